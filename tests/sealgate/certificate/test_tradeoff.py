"""The trade-off curve against the exact Gaussian one, against attacks that are really carried out, and by its laws."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from sealgate.certificate.recompute import COARSE, GaussianSteps, epsilon_micro
from sealgate.certificate.tradeoff import TradeOff, of_gaussian, of_pair, of_steps

DEMO = GaussianSteps(sigma_micro=4_000_000, rate=Fraction(1, 4), steps=60, delta="0.0001")


@pytest.fixture(scope="module")
def demo() -> TradeOff:
    return of_steps(DEMO)


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("fpr", [0.001, 0.1, 0.5, 0.9])
def test_the_gaussian_curve_is_the_exact_one(mu, fpr):
    exact = float(norm.cdf(norm.ppf(fpr) + mu))
    found = of_gaussian(mu).tpr_at(fpr)
    assert exact - 1e-9 <= found <= exact + 1e-4


@pytest.mark.parametrize("fpr", [0.0001, 0.01, 0.3, 0.8])
def test_the_accountants_curve_without_sampling_is_the_gaussian_one(fpr):
    steps = GaussianSteps(sigma_micro=8_000_000, rate=Fraction(1), steps=16, delta="0.00001")
    exact = float(norm.cdf(norm.ppf(fpr) + 0.5))
    assert exact <= of_steps(steps).tpr_at(fpr) <= exact + 2e-3


def test_no_attack_beats_it_and_the_best_one_comes_close(demo):
    """The likelihood-ratio test on the sampled Gaussian steps themselves: no test can beat it (Neyman, Pearson)."""
    generator = np.random.default_rng(5)
    trials, sigma, rate, steps = 20_000, 4.0, 0.25, 60
    noise = generator.normal(0, sigma, (2, trials, steps))
    noise[1] += generator.random((trials, steps)) < rate
    ratio = np.log(1 - rate + rate * np.exp((2 * noise - 1) / (2 * sigma**2))).sum(axis=2)
    for fpr in (0.01, 0.1, 0.5):
        reached = float((ratio[1] > np.quantile(ratio[0], 1 - fpr)).mean())
        assert reached <= demo.tpr_at(fpr) + 4 * math.sqrt(0.25 / trials)
        assert reached >= demo.tpr_at(fpr) - 0.03


def test_it_holds_what_epsilon_says_and_more(demo):
    stated = of_pair(epsilon_micro=epsilon_micro(DEMO), delta=DEMO.delta)
    for fpr in (0.0, 0.001, 0.05, 0.5, 1.0):
        assert demo.tpr_at(fpr) <= stated.tpr_at(fpr) + 1e-4
    assert demo.tpr_at(0.01) < 0.7 * stated.tpr_at(0.01)
    assert of_pair(epsilon_micro=1_000_000, delta="0.01").tpr_at(0.1) == pytest.approx(math.e * 0.1 + 0.01)


def test_replacing_a_row_is_easier_to_notice(demo):
    replaced = of_steps(DEMO, replace_one=True, discretisation=COARSE)
    assert replaced.tpr_at(0.1) > demo.tpr_at(0.1)


@given(fpr=st.floats(0, 1), more=st.floats(0, 1))
@settings(max_examples=50)
def test_it_is_a_curve_of_possible_tests(demo, fpr, more):
    assert fpr <= demo.tpr_at(fpr) <= 1
    assert demo.tpr_at(max(fpr, more)) >= demo.tpr_at(min(fpr, more)) - 1e-12
    assert demo.tpr_at(fpr) - fpr <= demo.advantage() + 1e-9
    assert demo.fpr_at(demo.tpr_at(fpr)) <= fpr + 1e-9


def test_what_a_yes_is_worth(demo):
    assert demo.precision_at(0.1, prior=0.5) == pytest.approx(demo.tpr_at(0.1) / (demo.tpr_at(0.1) + 0.1))
    assert demo.precision_at(0.1, prior=0.01) < 0.05
    assert of_gaussian(1.0).advantage() == pytest.approx(2 * float(norm.cdf(0.5)) - 1, abs=1e-6)


def test_more_releases_only_help_the_attacker(demo):
    both = demo.after(epsilon=0.5, delta=1e-6)
    assert all(both.tpr_at(fpr) > demo.tpr_at(fpr) for fpr in (0.0, 0.01, 0.5))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_rates_that_are_none(demo, wrong):
    for ask in (demo.tpr_at, demo.fpr_at, lambda rate: demo.precision_at(0.1, prior=rate)):
        with pytest.raises(ValueError, match="lies"):
            ask(wrong)
    with pytest.raises(ValueError, match="pair"):
        TradeOff(((0.5, wrong),))
