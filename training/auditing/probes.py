"""What a probe is: one question to the trainer, a verdict, and the words for it; and exact tests of counts.

A probe that fails says that the trainer is not the mechanism that the certificate will describe. One with chance in it
is asked once, and a second time with fresh randomness only if the first answer was too unlikely (`asked`). It fails if
both answers were: a correct trainer with probability at most `FALSE_ALARM` (all tests of one probe together). That is
the whole rule, fixed beforehand: a failure is never to be tried again until it passes.

Two looks see more than one, too. Where a single one at a millionth had missed a fault half the time, these two miss it
in 35 of 100 runs; where it had missed one in ten, one in twenty-five. Pure: no randomness here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from scipy import stats

FIRST_ALARM = 1e-5
"""Probability that a correct trainer's first answer to one probe is too unlikely, however many tests it is made of."""

SECOND_ALARM = 1e-3
"""The same of the second answer, which is independent of the first."""

FALSE_ALARM = FIRST_ALARM * SECOND_ALARM
"""Probability that one probe accuses a correct trainer: one run in a hundred million."""

BOUND_ALPHA = 1e-3
"""One minus the confidence of the lower bound on epsilon, over all its thresholds."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The outcome of one probe. `found` is a sentence with the figures that decided it."""

    name: str
    held: bool
    found: str


def asked(question: Callable[[float], Probe]) -> Probe:
    """The outcome of a probe with chance in it. `question` asks with fresh randomness each time it is called, and fails
    a correct trainer with at most the probability that it is given."""
    first = question(FIRST_ALARM)
    if first.held:
        return first
    second = question(SECOND_ALARM)
    return replace(second, found=f"{second.found}; and before that {first.found}")


def upper(successes: int, trials: int, *, alpha: float) -> float:
    """Clopper and Pearson's (1934) upper bound: the true proportion is above it with probability at most alpha."""
    if successes >= trials:
        return 1.0
    return float(stats.beta.ppf(1.0 - alpha, successes + 1, trials - successes))


def lower(successes: int, trials: int, *, alpha: float) -> float:
    """Clopper and Pearson's lower bound: the true proportion is below it with probability at most alpha."""
    if successes <= 0:
        return 0.0
    return float(stats.beta.ppf(alpha, successes, trials - successes + 1))


def too_unlikely(score: float, *, tests: int, alarm: float) -> bool:
    """Whether a standard normal score is beyond what `tests` two-sided tests produce with probability `alarm`."""
    return not abs(score) <= float(stats.norm.isf(alarm / (2 * tests)))


def binomial_tail(successes: int, trials: int, *, rate: float) -> float:
    """The probability of so many successes or more."""
    return float(stats.binom.sf(successes - 1, trials, rate))


def binomial_mass(successes: int, trials: int, *, rate: float) -> float:
    """The probability of exactly so many successes."""
    return float(stats.binom.pmf(successes, trials, rate))


def binomial_score(count: int, trials: int, *, rate: float) -> float:
    """The standard normal score with the same two-sided chance as this count has under Binomial(trials, rate)."""
    chance = max(float(stats.binomtest(count, trials, rate).pvalue), 1e-300)
    return math.copysign(float(stats.norm.isf(min(chance, 1.0) / 2)), count - trials * rate)


def squares_score(total: float, *, mean: float, variance: float) -> float:
    """The standard normal score with the same chance as a sum of squares this far out.

    The sum is taken as gamma distributed with this mean and variance: of n squared standard normal values it is that
    exactly (chi-squared). Taken as normal, 100 squares would be called one in a million thirty times too often.
    """
    shape, scale = mean**2 / variance, variance / mean
    if total > mean:
        return float(stats.norm.isf(max(float(stats.gamma.sf(total, shape, scale=scale)), 1e-300)))
    return -float(stats.norm.isf(max(float(stats.gamma.cdf(total, shape, scale=scale)), 1e-300)))
