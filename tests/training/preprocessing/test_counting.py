"""Private sums: the noise is what its cost says, sums are exact, thresholds hold."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from sealgate.certificate.accounting.statistics import statistic_cost
from sealgate.certificate.accounting.thresholds import tail_of, threshold_of
from sealgate.certificate.gaussian import gaussian_epsilon
from sealgate.errors import CertificateError, ConfigurationError
from training.dp_sgd.discrete import discrete_laplace
from training.preprocessing.counting import COUNT_UNITS, plan_names, plan_sum
from training.preprocessing.statistics import told
from training.randomness import Keystream


def test_discrete_laplace_is_what_it_says():
    values = discrete_laplace(Keystream(), scale=3, count=40_000)
    assert len(values) == 40_000
    base = math.exp(-1 / 3)
    places = np.arange(-12, 13)
    chances = (1 - base) / (1 + base) * base ** np.abs(places)
    seen = np.array([(values == place).sum() for place in places])
    rest, expected_rest = len(values) - seen.sum(), len(values) * (1 - chances.sum())
    assert stats.chisquare([*seen, rest], [*(len(values) * chances), expected_rest]).pvalue > 1e-6


def test_the_least_noise_for_an_epsilon():
    laplace = plan_sum("a", epsilon_micro=200_000, delta="0", norm_l1=4.0, norm_l2=2.0)
    assert laplace.multiplier_micro == pytest.approx(5_000_000, rel=1e-3)
    gaussian = plan_sum("a", epsilon_micro=200_000, delta="0.000001", norm_l1=4.0, norm_l2=2.0)
    for one in (laplace, gaussian):
        assert 190_000 < one.statistic.epsilon_micro <= 200_000
    wanted = gaussian_epsilon(1e6 / gaussian.multiplier_micro, 1e-6)
    assert wanted <= gaussian.statistic.epsilon_micro / 1e6 < wanted + 1e-3


@pytest.mark.parametrize("delta", ["0", "0.000001"])
def test_the_noise_has_the_size_that_was_paid_for(delta):
    release = plan_sum("a", epsilon_micro=500_000, delta=delta, norm_l1=3.0, norm_l2=1.5)
    sums = np.full(4000, 7 << 20, dtype=np.int64)
    noise = (release.noisy(sums, units=1 << 20, stream=Keystream()) - sums) / (1 << 20)
    multiplier = release.multiplier_micro / 1e6
    wanted = stats.laplace(scale=3 * multiplier) if delta == "0" else stats.norm(scale=1.5 * multiplier)
    assert stats.kstest(noise, wanted.cdf).pvalue > 1e-6
    assert abs(noise - np.round(noise)).max() > 0.01  # on a fine grid


@pytest.mark.parametrize(("contributions", "kind"), [(1, "laplace-threshold"), (20, "gaussian-threshold")])
def test_a_threshold_keeps_what_only_one_row_brings(contributions, kind):
    release = plan_names("words", epsilon_micro=1_000_000, delta="0.0001", contributions=contributions)
    part = release.statistic
    assert (part.mechanism, part.epsilon_micro <= 1_000_000) == (kind, True)
    assert tail_of(kind, part.multiplier_micro, contributions=contributions, threshold=part.threshold) <= 1e-4
    lower = tail_of(kind, part.multiplier_micro, contributions=contributions, threshold=part.threshold - 1)
    assert lower > (1e-4 if kind == "laplace-threshold" else 5e-5)
    once, twice = statistic_cost(
        kind, part.multiplier_micro, part.delta, contributions=contributions, threshold=part.threshold
    )
    assert once <= part.epsilon_micro < twice + 100


@pytest.mark.parametrize("contributions", [1, 12])
def test_tails_are_not_below_those_of_the_noise(contributions):
    release = plan_names("words", epsilon_micro=1_000_000, delta="0.02", contributions=contributions)
    low = 2 + release.threshold // 2
    counts = np.full(60_000, COUNT_UNITS, dtype=np.int64)
    passed = int((release.noisy(counts, units=COUNT_UNITS, stream=Keystream()) >= low * COUNT_UNITS).sum())
    part = release.statistic
    one = tail_of(part.mechanism, part.multiplier_micro, contributions=contributions, threshold=low) / contributions
    assert stats.binom.sf(passed - 1, len(counts), one) > 1e-9  # as few as this, or fewer, are likely
    assert passed / len(counts) > one / 4  # and the figure is not far above it


def test_frequent_names_are_told_and_rare_ones_are_not():
    release = plan_names("words", epsilon_micro=1_000_000, delta="0.000001", contributions=1)
    rare = {f"rare-{place}": 1 for place in range(300)}
    found = told(release, Counter({"b": 900, "a": 500, **rare}), most=5, stream=Keystream())
    assert found == ("b", "a")
    assert told(release, Counter({"b": 900, "a": 500}), most=1, stream=Keystream()) == ("b",)
    assert told(release, Counter(), most=5, stream=Keystream()) == ()


def test_what_cannot_be_planned():
    with pytest.raises(ConfigurationError, match="epsilon must be above zero"):
        plan_sum("a", epsilon_micro=0, delta="0", norm_l1=1.0, norm_l2=1.0)
    with pytest.raises(ConfigurationError, match="delta above zero"):
        plan_names("a", epsilon_micro=1, delta="0", contributions=1)


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (("laplace-threshold", 1_000_000, "0.000001"), {"contributions": 1, "threshold": 10}),  # tail too large
        (("laplace-threshold", 1_000_000, "0"), {"contributions": 1, "threshold": 100}),
        (("gaussian-threshold", 1_000_000, "0.000001"), {"contributions": 0, "threshold": 100}),
        (("gaussian-threshold", 1_000_000, "0.000001"), {"contributions": 1, "threshold": 1}),
        (("gaussian", 1_000_000, "0.000001"), {"contributions": 2, "threshold": 0}),
        (("laplace", 1_000_000, "0"), {"contributions": 1, "threshold": 5}),
    ],
)
def test_costs_that_a_verifier_refuses(arguments, more):
    with pytest.raises(CertificateError) as caught:
        statistic_cost(*arguments, **more)
    assert caught.value.code == "private-statistics"


def test_the_least_threshold():
    for mechanism, contributions in (("laplace-threshold", 1), ("gaussian-threshold", 30)):
        found = threshold_of(mechanism, 5_000_000, contributions=contributions, delta="0.00001")
        assert tail_of(mechanism, 5_000_000, contributions=contributions, threshold=found) <= 1e-5
        assert tail_of(mechanism, 5_000_000, contributions=contributions, threshold=found - 1) > 1e-5
    assert threshold_of("laplace-threshold", 5_000_000, contributions=1, delta="0.00001") == pytest.approx(
        1 + 5 * math.log(1e5), abs=1
    )


def test_figures_of_opendp():
    """What OpenDP 0.16 says of the same noise on integers, computed once."""
    assert statistic_cost("laplace", 5_000_000, "0")[0] == 200_000  # make_laplace, scale 5 sensitivities: 0.2
    stated = tail_of("laplace-threshold", 5_000_000, contributions=1, threshold=80)
    assert 1 < stated / 6.187566503612629e-08 < 2.3  # make_laplace_threshold, scale 5, threshold 80
    rho = 0.00125  # make_gaussian, scale 20 sensitivities, in zCDP: epsilon 0.2059 at 1e-6 by its conversion
    assert gaussian_epsilon(math.sqrt(2 * rho), 1e-6) < 0.20590223599923807
