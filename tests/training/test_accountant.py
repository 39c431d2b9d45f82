"""Calibration meets its target from below, and both accountants stand behind the figure."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from sealgate.certificate.recompute import GaussianSteps, epsilon_micro, recompute
from sealgate.errors import ConfigurationError
from training.accountant import RunningEpsilon, calibrate, cost_of


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [(3_000_000, Fraction(1, 3), 150), (1_000_000, Fraction(1, 100), 500), (8_000_000, Fraction(1), 20)],
)
def test_the_least_noise_that_meets_the_target(target, rate, steps):
    mechanism = calibrate(target_micro=target, rate=rate, steps=steps, delta="0.00001")
    cost = cost_of(mechanism)
    assert target * 0.99 < cost.epsilon_micro <= target
    assert recompute(mechanism).add_remove_micro < cost.epsilon_micro
    less = replace(mechanism, sigma_micro=mechanism.sigma_micro - 3_000)
    assert epsilon_micro(less) > cost.epsilon_micro
    assert abs(cost.second_epsilon_micro - cost.epsilon_micro) < 0.02 * target + 10_000
    assert cost.epsilon_replace_one_micro > cost.epsilon_micro


def test_a_target_that_cannot_be_met():
    with pytest.raises(ConfigurationError, match="fewer steps"):
        calibrate(target_micro=11, rate=Fraction(1), steps=100_000, delta="0.000000000001")


def test_the_progress_bars_epsilon_grows_and_ends_at_the_cost():
    mechanism = GaussianSteps(sigma_micro=5_000_000, rate=Fraction(1, 3), steps=40, delta="0.00001")
    running = RunningEpsilon(mechanism)
    shown = [float(running.after(step)) for step in range(1, 41)]
    assert shown == sorted(shown)
    assert abs(shown[-1] - epsilon_micro(mechanism) / 1e6) < 0.011
    assert shown[0] < shown[-1] / 2
