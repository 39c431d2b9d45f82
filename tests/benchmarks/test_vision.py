"""What the benchmark of images says: which files it measures on, and how sure the mean is."""

from __future__ import annotations

import pytest

from benchmarks import vision
from training.configuration import load_configuration


def test_the_test_images_stand_beside_the_training_images():
    changed = vision._test_images(load_configuration(vision.EXAMPLE))
    assert changed.data.source.endswith("t10k-images-idx3-ubyte.gz")
    assert changed.image["labels"].endswith("t10k-labels-idx1-ubyte.gz")
    with pytest.raises(SystemExit):
        vision._test_images(changed)


def test_an_interval_over_runs():
    assert vision.summary([90.0]) == "90.00 (1 runs)"
    # Student's t with four degrees of freedom: 2.776 * 1.5811 / sqrt(5)
    assert vision.summary([88.0, 89.0, 90.0, 91.0, 92.0]) == "90.00 +- 1.97 (5 runs)"


def test_every_rate_is_used():
    configuration = load_configuration(vision.EXAMPLE)
    assert vision.LEARNING_RATES["3"] == str(configuration.optimizer.learning_rate)
    changed = vision._changed(configuration, "1", vision.LEARNING_RATES["1"], rows=60_000)
    assert (str(changed.privacy.epsilon), changed.data.public_population) == ("1", 60_000)
