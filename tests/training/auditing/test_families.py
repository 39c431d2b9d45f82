"""The probe of the run's own architecture, on every family: made-up examples of its form, norms of its layers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from sealgate.ambient import random_bytes
from sealgate.certificate.architectures import Spec
from secure_runtime.models.architectures import build, parts_of
from tests.secure_runtime.models.families.test_steps_and_graphs import SPECS
from tests.training.auditing.trainers import BROKEN
from training.auditing.neighbours import no_example_moves_more
from training.auditing.subject import Subject
from training.initialisation import initialise
from training.losses import Loss
from training.private_sgd import PrivateSgd

CONSTANTS = PrivateSgd(rate=Fraction(1, 4), steps=10, divisor=50.0, clip_norm=0.05, sigma=2.0, learning_rate=1.0)


def asked(spec: Spec, **changes):
    module = build(spec).double()
    initialise(module)
    subject = replace(Subject(constants=CONSTANTS, loss=Loss.usual(spec.classes), delta="0.00001"), **changes)
    _, trained = parts_of(module)
    return no_example_moves_more(subject, spec.trained_part(), trained, random_bytes)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_family_has_examples_and_obeys_the_bound(spec):
    found = asked(spec)
    assert found.held, found.found


@pytest.mark.parametrize("name", ["lstm", "embedding-bag"])
def test_a_missing_clip_is_seen_in_layers_of_other_kinds(name):
    assert not asked(SPECS[name], trainer=BROKEN["no clipping"]).held
