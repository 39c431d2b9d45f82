"""Calibration meets its target from below, and both accountants stand behind the figure."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from sealgate.certificate.accounting.account import WithStatistics
from sealgate.certificate.accounting.selection import BestOfRuns
from sealgate.certificate.recompute import GaussianSteps, epsilon_micro, recompute
from sealgate.errors import ConfigurationError
from training.accountant import RunningEpsilon, calibrate, cost_of, halting_probability


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


def test_each_account_has_a_second_figure_and_says_what_one_run_costs():
    run = GaussianSteps(sigma_micro=8_000_000, rate=Fraction(1, 10), steps=20, delta="0.00001")
    best = BestOfRuns(run=run, score_sigma_micro=50_000_000, mean_trials=Fraction(5), shape=1)
    for account, name in ((run, "opacus-prv"), (best, "opacus-rdp")):
        alone = cost_of(account)
        both = cost_of(
            WithStatistics(
                account=account, statistics_micro=100_000, statistics_replace_one_micro=200_000, delta="0.00001"
            )
        )
        assert alone.second_accountant == both.second_accountant == name
        assert both.epsilon_micro == alone.epsilon_micro + 100_000
        assert both.second_epsilon_micro == alone.second_epsilon_micro + 100_000
        assert both.one_run_micro == alone.one_run_micro + 100_000
        assert (alone.one_run_micro < alone.epsilon_micro) == (account is best)


@pytest.mark.parametrize("mean", [1.5, 4.0, 60.0])
def test_the_logarithmic_number_of_runs_has_the_mean_that_is_asked_for(mean):
    left = 1 - halting_probability(mean, 0)
    weights = [left**count / count for count in range(1, 20_000)]
    found = sum(count * weight for count, weight in enumerate(weights, start=1)) / sum(weights)
    assert found == pytest.approx(mean, rel=1e-3)
