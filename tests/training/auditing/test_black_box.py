"""The attacks of the report: their bounds against exact sums, and that they tell private training from none."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest

from sealgate.ambient import random_bytes
from sealgate.certificate.architectures import MlpSpec
from secure_runtime.models.architectures import build
from training.auditing import black_box
from training.auditing.black_box import Crowd, chance_of_guesses, epsilon_excluded, offline_ratio, one_run
from training.initialisation import initialise
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

SPEC = MlpSpec(inputs=60, hidden=(48,), classes=3)  # enough to learn targets at random by heart
PRIVATE = PrivateSgd(rate=Fraction(1, 4), steps=60, divisor=75.0, clip_norm=1.0, sigma=6.0, learning_rate=0.5)
EXPOSED = replace(
    PRIVATE, rate=Fraction(1), divisor=150.0, clip_norm=50.0, sigma=1e-6, learning_rate=0.5, momentum=0.9, steps=150
)


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(black_box, "AUDIT_BLACK_BOX_CANARIES", 300)
    monkeypatch.setattr(black_box, "AUDIT_GUESSED", 100)
    monkeypatch.setattr(black_box, "AUDIT_SHADOWS", 8)


def attacked(constants: PrivateSgd):
    module, loss = build(SPEC).double(), Loss.usual(SPEC.classes)
    initialise(module)

    def train(made, inputs, targets):
        train_privately(made, inputs, targets, constants=constants, loss=loss)

    return train, Crowd.of(SPEC, loss, module, random_bytes), module


def test_one_run_tells_private_training_from_none():
    private = one_run(*attacked(PRIVATE), delta=1e-5)
    exposed = one_run(*attacked(EXPOSED), delta=1e-5)
    assert private.guesses == exposed.guesses == 100
    # Epsilon of the private run is about 1.5: more than that must not be found.
    assert private.epsilon_lower < 1.5
    assert exposed.epsilon_lower > 0.5
    assert exposed.right > 75 > private.right


@pytest.mark.slow
def test_the_likelihood_ratio_attack_finds_members_of_an_exposed_model_only():
    (_, private) = offline_ratio(*attacked(PRIVATE))
    (_, exposed) = offline_ratio(*attacked(EXPOSED))
    assert exposed.true_rate > 1.5 * exposed.false_rate
    assert exposed.false_rate < exposed.false_rate_upper
    assert private.true_rate_lower < 0.2


def test_without_delta_the_chance_is_the_binomial_tail():
    rate = math.e / (1 + math.e)
    tail = sum(math.comb(20, k) * rate**k * (1 - rate) ** (20 - k) for k in range(18, 21))
    assert chance_of_guesses(1000, 20, 18, epsilon=1.0, delta=0.0) == pytest.approx(tail)
    more = chance_of_guesses(1000, 20, 18, epsilon=1.0, delta=1e-5)
    assert tail < more < tail + 2 * 1000 * 1e-5
    assert chance_of_guesses(1000, 20, 18, epsilon=1.0, delta=0.5) == 1.0


def test_the_excluded_epsilon_is_where_the_chance_crosses_alpha():
    found = epsilon_excluded(1000, 100, 95, delta=1e-6, alpha=0.001)
    assert 1.0 < found < math.log(95 / 5)
    assert chance_of_guesses(1000, 100, 95, epsilon=found, delta=1e-6) < 0.001
    assert chance_of_guesses(1000, 100, 95, epsilon=found + 0.002, delta=1e-6) >= 0.001
    assert epsilon_excluded(1000, 100, 55, delta=1e-6, alpha=0.001) == 0.0
    # A hundred of a hundred: 0.001^(1/100) = e^x / (1 + e^x).
    assert epsilon_excluded(1000, 100, 100, delta=0.0, alpha=0.001) == pytest.approx(2.637, abs=2e-3)
