"""The best of many runs against the published theorem's special cases, a second computation, and order."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from sealgate.certificate.accounting.selection import BestOfRuns
from sealgate.certificate.recompute import GaussianSteps
from sealgate.errors import CertificateError
from training.accountant import cost_of

RUN = GaussianSteps(sigma_micro=4_000_000, rate=Fraction(1, 10), steps=100, delta="0.00001")
BEST = BestOfRuns(run=RUN, score_sigma_micro=20_000_000, mean_trials=Fraction(10), shape=1)


def test_two_computations_agree_and_a_search_costs_two_to_three_runs():
    for shape in (0, 1):
        cost = cost_of(replace(BEST, shape=shape))
        assert abs(cost.epsilon_micro - cost.second_epsilon_micro) < 0.01 * cost.epsilon_micro
        assert 1.5 * cost.one_run_micro < cost.epsilon_micro < 3 * cost.one_run_micro


def test_it_is_below_three_times_a_pure_mechanism_as_the_paper_says():
    """Corollary 3: the geometric number of runs of an epsilon-private mechanism is 3 epsilon-private."""
    gaussian = GaussianSteps(sigma_micro=40_000_000, rate=Fraction(1), steps=1, delta="0.00001")
    best = BestOfRuns(run=gaussian, score_sigma_micro=10_000_000_000, mean_trials=Fraction(100), shape=1)
    assert best.epsilon().add_remove_micro < 6 * gaussian.epsilon().add_remove_micro


def test_more_runs_and_sharper_scores_cost_more():
    base = BEST.epsilon()
    assert replace(BEST, mean_trials=Fraction(20)).epsilon().add_remove_micro > base.add_remove_micro
    assert replace(BEST, score_sigma_micro=10_000_000).epsilon().add_remove_micro > base.add_remove_micro
    assert replace(BEST, shape=0).epsilon().add_remove_micro < base.add_remove_micro
    assert base.replace_one_micro > 2 * base.add_remove_micro


@pytest.mark.parametrize(
    "change",
    [
        {"mean_trials": Fraction(1)},
        {"mean_trials": Fraction(10**6)},
        {"shape": 2},
        {"score_sigma_micro": 0},
    ],
)
def test_searches_that_cannot_be_recomputed(change):
    with pytest.raises(CertificateError) as caught:
        replace(BEST, **change).epsilon()
    assert caught.value.code == "parameters-out-of-range"
