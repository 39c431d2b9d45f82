"""The private mean of fixed features: what one example can do to it, its noise, its cost, and a run that uses it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sealgate.certificate.agreement import CENTRE
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.decimals import micro_text
from sealgate.certificate.gaussian import gaussian_epsilon
from sealgate.certificate.publishers import publishers_of
from sealgate.errors import ConfigurationError
from secure_runtime.models.bundle import load_bundle
from training.centering import Centering, centering_of
from training.configuration import load_configuration
from training.experiment import run_experiment
from training.randomness import Keystream
from training.report import Terminal

EXAMPLE = Path(__file__).parents[2] / "examples" / "vision" / "digits.toml"
SECTION = {"norm": Decimal(2), "multiplier": Decimal(10), "delta": Decimal("0.000001")}


def frozen() -> Keystream:
    """The same noise each time: only tests may."""
    return Keystream(lambda count: bytes(range(count)))


@given(
    rows=st.integers(0, 20),
    size=st.floats(1e-3, 1e6),
    seed=st.integers(0, 1000),
    spoilt=st.sampled_from([None, float("nan"), float("inf")]),
)
@settings(max_examples=40, deadline=None)
def test_one_example_moves_the_sum_by_at_most_the_norm(rows, size, seed, spoilt):
    centering = Centering.of(SECTION)
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows + 1, 7)) * size)
    if spoilt is not None:
        features[-1, 3] = spoilt
    with_it = centering.mean(features, population=100, stream=frozen())
    without = centering.mean(features[:-1], population=100, stream=frozen())
    assert float(torch.linalg.vector_norm(with_it - without)) * 100 <= 2 * (1 + 1e-9)
    if spoilt is not None:
        torch.testing.assert_close(with_it, without)


def test_short_features_enter_as_they_are_and_the_noise_is_as_large_as_said():
    features = torch.full((500, 20_000), 0.001, dtype=torch.float64)  # norm 0.14, below 2
    found = Centering.of(SECTION).mean(features, population=1000, stream=Keystream())
    wanted, deviation = 500 * 0.001 / 1000, 10 * 2 / 1000
    assert float(found.mean()) == pytest.approx(wanted, abs=6 * deviation / 20_000**0.5)
    assert float(found.std()) == pytest.approx(deviation, rel=0.03)


def test_the_cost_is_that_of_the_gaussian_mechanism():
    centering = Centering.of(SECTION)
    for stated, times in ((centering.epsilon_micro, 1), (centering.epsilon_replace_one_micro, 2)):
        assert stated / 1e6 == pytest.approx(gaussian_epsilon(times / 10, 1e-6), abs=2e-5)
        assert stated / 1e6 > gaussian_epsilon(times / 10, 1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": Decimal(0)}, "norm"),
        ({"multiplier": Decimal("0.00000001")}, "six decimals"),
        ({"multiplier": Decimal(-1)}, "noise"),
        ({"delta": Decimal(0)}, "mechanism"),
        ({"delta": Decimal("NaN")}, "center"),
        ({"weight": Decimal(1)}, "weight"),
    ],
)
def test_sections_that_are_wrong(changes, words):
    with pytest.raises(ConfigurationError, match=words):
        Centering.of({**SECTION, **changes})


def configured(folder: Path) -> Path:
    text = EXAMPLE.read_text()
    assert "rooted = true\n" in text
    text = text.replace(
        "rooted = true\n",
        "rooted = true\nshared_percent = 50\ncentred = true\n\n[center]\nnorm = 10\nmultiplier = 20\ndelta = 1e-6\n",
    )
    path = folder / "digits.toml"
    path.write_text(text.replace("steps = 60", "steps = 25"))
    return path


def test_a_run_counts_its_centre(tmp_path, key):
    path = configured(tmp_path)
    with (tmp_path / "shown.txt").open("w") as file:
        terminal = Terminal(Console(file=file, width=160))
        published = run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False, narrator=terminal)
    publishers = publishers_of({"hospital": key.public_key()})
    certificate = verify_bundle(published.bundle.directory, publishers).certificate
    shown = (tmp_path / "shown.txt").read_text()
    assert f"epsilon {micro_text(certificate.epsilon_micro)} at delta 0.00001 for one row" in shown
    spent = micro_text(certificate.preprocessing.epsilon_micro)
    assert f"of that, epsilon {spent} for 1 private statistic, at their part of delta" in shown
    assert float(shown.split("epsilon ")[-1].split()[0]) == pytest.approx(certificate.epsilon_micro / 1e6, abs=0.02)
    centering = centering_of(load_configuration(path))
    assert centering is not None
    assert certificate.preprocessing == centering.preprocessing
    assert certificate.preprocessing.parts[0].what == CENTRE
    assert 2_900_000 < certificate.epsilon_micro <= 3_000_000
    assert certificate.delta == "0.00001"
    model = load_bundle(published.bundle.directory, publishers)
    images = torch.randint(0, 17, (4, 1, 8, 8), dtype=torch.uint8)
    assert model.predict({"images": images})["scores"].shape == (4, 10)
    assert published.quality.value > 0.7


def test_a_centre_that_spends_too_much_or_is_not_wanted(tmp_path):
    configuration = load_configuration(configured(tmp_path))
    centering = centering_of(configuration)
    assert centering is not None
    privacy = centering.left(configuration).privacy
    assert privacy.epsilon == Decimal(3) - Decimal(centering.epsilon_micro) / 1_000_000
    assert privacy.delta == Decimal("0.000009")
    for poor in ({"epsilon": Decimal("0.1")}, {"delta": Decimal("0.000001")}):
        less = msgspec.structs.replace(configuration.privacy, **poor)
        with pytest.raises(ConfigurationError, match="spends all"):
            centering.left(msgspec.structs.replace(configuration, privacy=less))
    with pytest.raises(ConfigurationError, match="belong together"):
        centering_of(msgspec.structs.replace(configuration, center={}))
    persons = msgspec.structs.replace(configuration.data, person="who")
    with pytest.raises(ConfigurationError, match="person"):
        centering_of(msgspec.structs.replace(configuration, data=persons))
