"""The Gaussian mechanism without sampling, in closed form (Balle and Wang 2018, theorem 8).

Releasing a value of L2 sensitivity D under N(0, s^2 I) is mu = D/s; several such releases of the same rows together are
one with mu^2 = sum of mu_i^2 (Dong, Roth and Su 2022, corollary 3.3). This shares no code with the accountant of
`recompute.py` and stands beside it as the second figure for mechanisms that do not sample.

Trusts: nothing. Never: rounds a figure down; the bisection returns its upper end.
"""

from __future__ import annotations

import math

_TOLERANCE = 1e-9
_LARGEST_EPSILON = 1e4


def _log_cdf(x: float) -> float:
    """Logarithm of P[Z <= x] for a standard normal Z."""
    if x > -25.0:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
    # The tail's asymptotic series (Abramowitz and Stegun 26.2.12), here exact to 1e-11.
    y = 1.0 / (x * x)
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-y * (1 - y * (3 - y * (15 - 105 * y))))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The exact delta at `epsilon` >= 0: P[Z <= mu/2 - e/mu] - exp(e) P[Z <= -mu/2 - e/mu]."""
    if mu <= 0:
        return 0.0
    first = _log_cdf(mu / 2 - epsilon / mu)
    second = epsilon + _log_cdf(-mu / 2 - epsilon / mu)
    # exp(first) - exp(second) without cancellation; the second is never above the first but for rounding.
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon >= 0 at which the Gaussian mechanism has at most this delta; within 1e-9, from above."""
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
        if high > _LARGEST_EPSILON:
            return math.inf
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose epsilon at `delta` is at most `epsilon`; within a part in 10^9, from below."""
    low, high = 0.0, 1.0
    while gaussian_delta(high, epsilon) <= delta:
        low, high = high, 2 * high
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, epsilon) <= delta else (low, middle)
    return low
