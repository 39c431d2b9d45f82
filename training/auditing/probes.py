"""What a probe is: one question to the trainer, a verdict, and the words for it; and exact tests of counts.

A probe that fails says that the trainer is not the mechanism that the certificate will describe. Probes with chance in
them fail a correct trainer with probability at most `FALSE_ALARM` (all tests of one probe together), so a failure is
never to be tried again until it passes. Pure: no randomness here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

FALSE_ALARM = 1e-6
"""Probability that one probe accuses a correct trainer: one run in a million, however many tests it is made of."""

BOUND_ALPHA = 1e-3
"""One minus the confidence of the lower bound on epsilon, over all its thresholds."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The outcome of one probe. `found` is a sentence with the figures that decided it."""

    name: str
    held: bool
    found: str


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


def too_unlikely(score: float, *, tests: int) -> bool:
    """Whether a standard normal score is beyond what `tests` two-sided tests may produce by chance."""
    return not abs(score) <= float(stats.norm.isf(FALSE_ALARM / (2 * tests)))


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
