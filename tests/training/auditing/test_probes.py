"""The statistics of the gate by themselves: bounds against published tables, the attacker against theory.

Nothing is trained here: what lanes do under a mechanism that is exactly right, or exactly wrong, is drawn directly.
"""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sealgate.ambient import random_bytes
from sealgate.certificate.recompute import GaussianSteps
from sealgate.certificate.tradeoff import TradeOff, of_gaussian, of_steps
from training.auditing.claimed import delta_at
from training.auditing.membership import Observed, epsilon_lower_micro, guesses_within_the_claim, log_ratios
from training.auditing.probes import (
    FALSE_ALARM,
    FIRST_ALARM,
    SECOND_ALARM,
    Probe,
    asked,
    binomial_score,
    binomial_tail,
    lower,
    squares_score,
    too_unlikely,
    upper,
)
from training.auditing.replay import RepeatedRandomness, dispersion, participation

MECHANISM = GaussianSteps(sigma_micro=3_324_000, rate=Fraction(1, 2), steps=20, delta="0.00001")


def test_bounds_are_those_of_clopper_and_pearsons_table():
    # 95 % two-sided, as in the tables that follow their paper: 1 of 10, 5 of 10, 0 of 20.
    assert lower(1, 10, alpha=0.025) == pytest.approx(0.0025286, rel=1e-4)
    assert upper(1, 10, alpha=0.025) == pytest.approx(0.4450161, rel=1e-6)
    assert lower(5, 10, alpha=0.025) == pytest.approx(0.1870860, rel=1e-6)
    assert upper(5, 10, alpha=0.025) == pytest.approx(0.8129140, rel=1e-6)
    assert upper(0, 20, alpha=0.025) == pytest.approx(0.1684335, rel=1e-6)
    assert (lower(0, 20, alpha=0.025), upper(20, 20, alpha=0.025)) == (0.0, 1.0)


@given(trials=st.integers(1, 40), rate=st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_bounds_miss_no_more_often_than_they_say(trials, rate):
    """Exactly: the chance of the outcomes whose bound lies on the wrong side, by adding up the binomial."""
    chance = [math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(trials + 1)]
    for alpha in (0.05, 0.001):
        assert sum(p for k, p in enumerate(chance) if lower(k, trials, alpha=alpha) > rate) <= alpha + 1e-12
        assert sum(p for k, p in enumerate(chance) if upper(k, trials, alpha=alpha) < rate) <= alpha + 1e-12


def test_tails_and_scores_agree_with_adding_up():
    chance = [math.comb(12, k) * 0.3**k * 0.7 ** (12 - k) for k in range(13)]
    assert binomial_tail(5, 12, rate=0.3) == pytest.approx(sum(chance[5:]))
    assert binomial_tail(0, 12, rate=0.3) == 1.0
    assert binomial_score(9, 12, rate=0.3) > 3 > 0 > binomial_score(0, 12, rate=0.3)
    assert too_unlikely(6.0, tests=1, alarm=1e-6)
    assert not too_unlikely(4.5, tests=1, alarm=1e-6)
    assert too_unlikely(math.nan, tests=1, alarm=1e-6)


def answering(*chances):
    """A question whose answers are, under the claim, so unlikely; and at which level each was asked for."""
    levels, left = [], iter(chances)

    def question(alarm: float) -> Probe:
        levels.append(alarm)
        chance = next(left)
        return Probe(name="any", held=chance > alarm, found=f"chance {chance}")

    return question, levels


@pytest.mark.parametrize(
    ("chances", "held", "times"),
    [
        ([0.5], True, 1),
        ([2e-5], True, 1),
        ([5e-6, 0.5], True, 2),
        ([1e-300, 2e-3], True, 2),
        ([5e-6, 5e-4], False, 2),
        ([0.0, 0.0], False, 2),
    ],
)
def test_nobody_is_accused_by_one_answer_or_asked_thrice(chances, held, times):
    question, levels = answering(*chances)
    found = asked(question)
    assert (found.held, len(levels)) == (held, times)
    assert levels == [FIRST_ALARM, SECOND_ALARM][:times]
    assert [f"chance {chance}" in found.found for chance in chances] == [True] * times


def test_two_looks_accuse_less_and_see_more_than_one_at_a_millionth():
    """Exactly, for a score that is normal: whatever one look saw in one run of twenty or more, two see more often."""
    beyond = [stats.norm.isf(alarm) for alarm in (1e-6, FIRST_ALARM, SECOND_ALARM)]
    for shift in np.arange(beyond[0] + stats.norm.ppf(0.05), 12.0, 0.25):
        single, first, second = (stats.norm.sf(line - shift) for line in beyond)
        assert first * second >= single or single > 0.999
    assert pytest.approx(1e-8) == FALSE_ALARM
    missed = [1 - math.prod(stats.norm.sf(line - beyond[0] - more) for line in beyond[1:]) for more in (0.0, 1.2816)]
    assert missed == pytest.approx([0.346, 0.040], abs=1e-3)  # as the module says


def counted(rows: int, rate: float, *, times: int) -> tuple[np.ndarray, float]:
    """The exact chances of each value of a sum of `times` squared deviations of Binomial(rows, rate): by convolution.

    rows * rate must be whole, so that the squares are. Also the variance of one count.
    """
    counts = np.arange(rows + 1)
    squares = np.rint((counts - rows * rate) ** 2).astype(np.int64)
    variance = rows * rate * (1 - rate)
    size = 1 << math.ceil(math.log2(8 * times * variance))
    once = np.zeros(size)
    fits = squares < size
    np.add.at(once, squares[fits], stats.binom.pmf(counts, rows, rate)[fits])
    return np.fft.irfft(np.fft.rfft(once) ** times, size), variance


@pytest.mark.parametrize(("rows", "rate", "times"), [(256, 0.5, 100), (800, 0.125, 100), (100, 0.25, 256)])
def test_the_spread_accuses_as_often_as_it_says(rows, rate, times):
    """Of a sampler that is right, at the level that the probe `sampling` has for each of its scores."""
    chances, variance = counted(rows, rate, times=times)
    assert chances.sum() == pytest.approx(1.0)
    spread = 2.0 + (1.0 - 6.0 * rate * (1 - rate)) / variance
    middle = round(times * variance)
    for alarm in (FIRST_ALARM, SECOND_ALARM):

        def accused(total: int, *, alarm: float = alarm) -> bool:
            score = squares_score(total / variance, mean=times, variance=spread * times)
            return too_unlikely(score, tests=8, alarm=alarm)

        most = bisect.bisect_left(range(middle, len(chances)), True, key=accused) + middle
        least = bisect.bisect_left(range(middle), True, key=lambda total: not accused(total))
        unlikely = chances[:least].sum() + chances[most:].sum()
        assert alarm / 8 * 0.9 < unlikely < alarm / 8 * 1.1


@pytest.mark.parametrize("degrees", [1, 40, 6400])
def test_the_score_of_squares_is_that_of_chi_squared(degrees):
    law = stats.chi2(degrees)
    for wanted in (-6.0, -2.0, 0.5, 3.0, 5.5):
        total = float(law.isf(stats.norm.sf(wanted)))
        assert squares_score(total, mean=degrees, variance=2 * degrees) == pytest.approx(wanted, abs=1e-6)
    assert squares_score(1e9 * degrees, mean=degrees, variance=2 * degrees) > 30


def test_repeated_randomness_repeats_and_does_not_cycle():
    first, second = RepeatedRandomness(b"word"), RepeatedRandomness(b"word")
    drawn = [first(size) for size in (16, 32, 7, 100)]
    assert drawn == [second(size) for size in (16, 32, 7, 100)]
    assert [len(one) for one in drawn] == [16, 32, 7, 100]
    assert len({one[:7] for one in drawn}) == 4
    assert RepeatedRandomness(b"other")(16) != drawn[0]


def test_delta_at_a_slope_is_never_below_the_curve():
    curve = of_gaussian(1.0)
    assert delta_at(curve, 0.0) == pytest.approx(0.38292, abs=1e-4)  # total variation of N(0,1) and N(1,1)
    for epsilon in (0.3, 1.0, 2.5):
        exact = 0.5 * (
            math.erfc((epsilon - 0.5) / math.sqrt(2)) - math.exp(epsilon) * math.erfc((epsilon + 0.5) / 2**0.5)
        )
        assert exact <= delta_at(curve, epsilon) <= exact + 5e-3
    assert delta_at(TradeOff(((1.0, 0.1),)), 0.5) == 1.0  # the pair says nothing below its epsilon


def lanes(generator, *, count=20_000, rate=0.5, noise=1.0, reach=1.0) -> Observed:
    """What `count` lanes do under the mechanism with these factors on its rate, noise and clip norm."""
    sigma, steps = MECHANISM.sigma_micro / 1e6, MECHANISM.steps
    included = generator.random(count) < 0.5
    moved = generator.normal(0, sigma * noise, (steps, count))
    moved += reach * ((generator.random((steps, count)) < rate) & included)
    return Observed(
        included=included,
        ratio=log_ratios(moved, rate=0.5, sigma=sigma),
        moved=moved.sum(axis=0),
        squares=(moved**2).sum(axis=0),
        products=(moved[1:] * moved[:-1]).sum(axis=0),
        steps=steps,
    )


def test_the_likelihood_ratio_is_that_of_the_mixture():
    moved = np.array([[0.3, -1.0], [1.7, 0.2]])

    def density(x, mean):
        return math.exp(-((x - mean) ** 2) / (2 * 4.0))

    for lane in (0, 1):
        wanted = sum(
            math.log((0.7 * density(x, 0) + 0.3 * density(x, 1)) / density(x, 0)) for x in moved[:, lane].tolist()
        )
        assert log_ratios(moved, rate=0.3, sigma=2.0)[lane] == pytest.approx(wanted)
    whole = log_ratios(moved, rate=1.0, sigma=2.0)
    assert whole[0] == pytest.approx(sum(math.log(density(x, 1) / density(x, 0)) for x in (0.3, 1.7)))
    assert np.isfinite(log_ratios(np.full((3, 1), 1e9), rate=0.01, sigma=0.5)).all()


def test_the_attacker_reaches_the_claimed_curve_and_no_further():
    """By Neyman and Pearson the ratio is the best attack: with many lanes it comes close to what the curve allows."""
    curve = of_steps(MECHANISM)
    observed = lanes(np.random.default_rng(1), count=200_000)
    for threshold in (0.0, 1.0):
        found = observed.ratio > threshold
        true_rate = found[observed.included].mean()
        allowed = curve.tpr_at(float(found[~observed.included].mean()))
        assert allowed - 0.02 < true_rate < allowed + 0.01


def test_a_right_mechanism_is_never_accused_and_wrong_ones_always():
    curve = of_steps(MECHANISM)
    generator = np.random.default_rng(2)
    for _ in range(12):
        found = guesses_within_the_claim(curve, lanes(generator), random_bytes, alarm=1e-6)
        assert found.held
    for wrong in ({"noise": 0.8}, {"rate": 0.625}, {"reach": 1.2}):
        for _ in range(4):
            found = guesses_within_the_claim(curve, lanes(generator, **wrong), random_bytes, alarm=1e-6)
            assert not found.held


def test_the_lower_bound_stays_below_epsilon_and_rises_with_the_leak():
    generator = np.random.default_rng(3)
    right = [epsilon_lower_micro(lanes(generator), delta="0.00001") for _ in range(4)]
    leaky = [epsilon_lower_micro(lanes(generator, noise=0.1), delta="0.00001") for _ in range(2)]
    assert 0 < min(right) <= max(right) < 3_000_000 < min(leaky)
    nothing = lanes(generator, reach=0.0)
    assert epsilon_lower_micro(nothing, delta="0.00001") == 0


def shuffled(generator, steps, rows, size):
    drawn = np.zeros((steps, rows), dtype=bool)
    order = itertools.chain.from_iterable(generator.permutation(rows) for _ in itertools.count())
    for step in range(steps):
        drawn[step, list(itertools.islice(order, size))] = True
    return drawn


def test_participation_tells_poisson_from_everything_else():
    generator = np.random.default_rng(4)
    for rate in (0.5, 0.1):
        for _ in range(30):
            scores = participation(generator.random((100, 256)) < rate, rate)
            assert not any(too_unlikely(score, tests=8, alarm=1e-6) for score in scores.values())
    fixed = np.zeros((100, 256), dtype=bool)
    for step in range(100):
        fixed[step, generator.permutation(256)[:64]] = True
    assert too_unlikely(participation(fixed, 0.25)["spread of steps"], tests=8, alarm=1e-6)
    epochs = participation(shuffled(generator, 100, 256, 64), 0.25)
    assert too_unlikely(epochs["spread of rows"], tests=8, alarm=1e-6)
    assert too_unlikely(epochs["twice in a row"], tests=8, alarm=1e-6)
    sticky = np.repeat(generator.random((50, 256)) < 0.3, 2, axis=0)
    assert too_unlikely(participation(sticky, 0.3)["twice in a row"], tests=8, alarm=1e-6)
    assert participation(np.ones((3, 4), dtype=bool), 1.0) == {"mean": 0.0}
    assert participation(np.eye(4, dtype=bool), 1.0) == {"mean": -math.inf}


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01])
def test_the_spread_score_is_a_standard_one(rate):
    generator = np.random.default_rng(5)
    scores = np.array([dispersion(generator.binomial(100, rate, 512), 100, rate) for _ in range(300)])
    assert abs(scores.mean()) < 0.25
    assert 0.8 < scores.std() < 1.2
