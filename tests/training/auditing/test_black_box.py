"""The attacks of the report: their bounds against exact sums, and that they tell private training from none."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from sealgate.ambient import random_bytes
from sealgate.certificate.architectures import MlpSpec
from secure_runtime.models.architectures import build
from training.auditing import black_box
from training.auditing.black_box import Crowd, chance_of_guesses, epsilon_excluded, offline_ratio, one_run
from training.auditing.replay import RepeatedRandomness
from training.initialisation import initialise
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

SPEC = MlpSpec(inputs=60, hidden=(48,), classes=3)  # enough to learn targets at random by heart
PRIVATE = PrivateSgd(rate=Fraction(1, 4), steps=60, divisor=75.0, clip_norm=1.0, sigma=60.0, learning_rate=0.5)
EXPOSED = replace(
    PRIVATE, rate=Fraction(1), divisor=150.0, clip_norm=50.0, sigma=1e-6, learning_rate=0.5, momentum=0.9, steps=150
)


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(black_box, "AUDIT_BLACK_BOX_CANARIES", 300)
    monkeypatch.setattr(black_box, "AUDIT_GUESSED", 150)
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
    assert private.guesses == exposed.guesses == 150
    # Of 150 guesses 75.5 +- 6.1 are right where so much noise was added, and 134.8 +- 3.3 where there was next to none:
    # the line between them is six standard deviations from either.
    assert exposed.right > 112 > private.right
    for told in (private, exposed):
        assert told.epsilon_lower == epsilon_excluded(300, 150, told.right, delta=1e-5, alpha=0.001)


@pytest.mark.slow
def test_the_likelihood_ratio_attack_finds_members_of_an_exposed_model_only():
    # At three false accusations in ten, of the members 0.81 +- 0.04 are found in the one and 0.30 +- 0.05 in the other.
    (private,) = offline_ratio(*attacked(PRIVATE), false_rates=(0.3,))
    (exposed,) = offline_ratio(*attacked(EXPOSED), false_rates=(0.3,))
    assert exposed.true_rate > 0.56 > private.true_rate


class Drawn:
    """A crowd that learns nothing: losses fall by normal amounts, and by `shift` deviations more if the example was in.

    Each example has a mean and a deviation of its own, as hard ones and easy ones have, which shadows must find out.
    """

    def __init__(self, count: int, *, shift: float) -> None:
        self._draw, self._shift = np.random.default_rng(8), shift
        self._mean, self._spread = self._draw.normal(0, 3, count), self._draw.uniform(0.2, 3, count)
        self.included = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.included)

    def after(self, _train, _module, included):
        self.included = included
        fell = self._draw.normal(size=len(included)) + self._shift * included
        return self._mean + self._spread * fell


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_likelihood_ratio_attack_finds_as_many_as_theory_allows(shift, monkeypatch):
    """A shift of a normal value is found with chance Phi(shift - z) at z's rate of false accusations; with bounds by
    scipy's own Clopper and Pearson. Nothing here is left to chance: all randomness is repeated."""
    monkeypatch.setattr(black_box, "AUDIT_SHADOWS", 64)
    crowd = Drawn(20_000, shift=shift)
    found = offline_ratio(None, crowd, None, entropy=RepeatedRandomness(b"coins"))
    members = int(crowd.included.sum())
    for rate, one in zip((0.01, 0.1), found, strict=True):
        assert one.false_rate == pytest.approx(rate, abs=2e-4)
        assert one.true_rate == pytest.approx(stats.norm.sf(stats.norm.isf(rate) - shift), abs=0.015 + 0.02 * shift)
        for share, bound, count, side in (
            (one.true_rate, one.true_rate_lower, members, "low"),
            (one.false_rate, one.false_rate_upper, len(crowd) - members, "high"),
        ):
            exact = stats.binomtest(round(share * count), count).proportion_ci(0.998, method="exact")
            assert bound == pytest.approx(getattr(exact, side), rel=1e-6)


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
