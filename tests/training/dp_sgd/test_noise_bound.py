"""The bound on what arithmetic does to rounded noise, derived step by step: each constant of the docstring is a test.

An exact run releases grid values with probabilities P, the real one with P'. Neighbouring data have Q and Q'. The
privacy loss of the real run, log(P'/Q'), differs from the exact one by X = log(P'/P) - log(Q'/Q), summed over
coordinates and steps. What follows bounds each term of X by its cell, then the sum by its variance, range and mean.
"""

from __future__ import annotations

import math

import mpmath
import pytest

from sealgate.certificate.gaussian import gaussian_epsilon
from training.dp_sgd.noise import ROOM, ROUNDED_BITS, SUMMATION
from training.randomness import ERROR

CELL = 2.0**-ROUNDED_BITS
HALF = 2.0**-53  # of a float64: what rounding to nearest loses
CERTAINTY = math.log(10**13)
LONGEST = math.sqrt(2 * math.log(2) * (63 + 54 + 1))  # of a pair: its smallest uniform number is 2^-117
UNEVEN = 1.02  # density within a cell and beside it, against the cell's average
BY_LENGTH = UNEVEN * 2 * (ERROR + HALF) / CELL  # h of a pair of length one: both borders of a cell move so far
BY_SUM = UNEVEN * 2 * HALF / CELL  # h of a coordinate of size one

RUNS = [
    (d, t, b, sigma)
    for d in (1, 10, 10_000, 250_000, 10_000_000)
    for t in (1, 3, 100, 2000, 100_000)
    for b in (1, 1000, 2**18)
    for sigma in (0.3, 1.0, 20.0)
]


def stated(d: int, t: int, b: int, sigma: float) -> float:
    """The docstring's formula."""
    own = 8 * math.sqrt(2 * d * t) + t * math.sqrt(d) / sigma
    return 2.0**-36 * own + 2.0**-36 * (math.sqrt(t) + t / (64 * sigma)) * b / sigma + 2.0**-28


def derived(d: int, t: int, b: int, sigma: float) -> float:
    """Freedman's inequality on the sum of X: variance, range and mean. A sum is at most B / sigma deviations long."""
    length = b / sigma
    root_mean_square = BY_LENGTH * math.sqrt(2)  # of h: the square of a pair's length is 2 on average
    # X is at most h of the one side and h of the other. Root mean squares of two parts add up at most (Minkowski).
    spread = 2 * (root_mean_square * math.sqrt(d * t) + BY_SUM * math.sqrt(t) * length)
    reach = 2 * (BY_LENGTH * LONGEST + BY_SUM * length)
    walk = math.sqrt(2 * CERTAINTY) * spread + 2 / 3 * CERTAINTY * reach
    # Under P' the mean of log(P'/P) is at most h^2; that of -log(Q'/Q) would be so under Q', and P' and Q' are apart by
    # the derivative of the density times what the unit adds: 1 / sigma in all, sqrt(d) / sigma as a sum of sizes.
    squares = 2 * (d * t * root_mean_square**2 + t * (BY_SUM * length) ** 2)
    apart = t * (1.64 * BY_LENGTH * math.sqrt(d) / sigma + math.sqrt(2 / math.pi) * BY_SUM * length / sigma)
    return walk + squares + apart


def test_a_cell_changes_by_no_more_than_its_borders_move():
    """P'(cell) lies between the exact chances of the cell made narrower and wider by the error, at each border."""
    with mpmath.workdps(60):
        cell = mpmath.mpf(CELL)
        for place in (0, 1, 300, 1024, 4 * 1024, 9 * 1024):
            for other in (0.0, 1.0, 8.0):  # the pair's second value
                middle = place * cell
                length = mpmath.sqrt(middle**2 + mpmath.mpf(other) ** 2)
                for size in (0.0, 100.0, 2.0**18):  # of the sum
                    moved = ERROR * length + HALF * (size + length)
                    chance = _between(middle - cell / 2, middle + cell / 2)
                    wide = _between(middle - cell / 2 - moved, middle + cell / 2 + moved)
                    narrow = _between(middle - cell / 2 + moved, middle + cell / 2 - moved)
                    allowed = BY_LENGTH * length + BY_SUM * size
                    assert wide / chance - 1 <= allowed
                    assert 1 - narrow / chance <= allowed


def _between(low: mpmath.mpf, high: mpmath.mpf) -> mpmath.mpf:
    return mpmath.quad(mpmath.npdf, [low, high])


def test_the_root_mean_square_of_the_factor_is_the_one_stated():
    assert BY_LENGTH * math.sqrt(2) < 2.0**-37
    assert BY_SUM <= UNEVEN * 2.0**-42


def test_a_shift_weighs_lengths_by_no_more_than_stated():
    """The integral of |x| |f'(x)| is 1, of |f'(x)| sqrt(2 / pi), and the mean of |u| sqrt(2 / pi): r <= |x| + |u|."""
    slope = mpmath.quad(lambda x: abs(x) * mpmath.npdf(x), [-mpmath.inf, 0, mpmath.inf])
    far = mpmath.quad(lambda x: x**2 * mpmath.npdf(x), [-mpmath.inf, 0, mpmath.inf])
    assert far + slope * slope < 1.64
    assert float(slope) == pytest.approx(math.sqrt(2 / math.pi))


@pytest.mark.parametrize(("d", "t", "b", "sigma"), RUNS)
def test_what_is_derived_is_below_what_is_stated(d, t, b, sigma):
    assert derived(d, t, b, sigma) < stated(d, t, b, sigma)


def test_the_figures_of_the_docstring():
    assert stated(250_000, 2000, 1000, 1.0) < 2.1e-5
    assert stated(10_000_000, 10_000, 10_000, 1.0) < 6e-4


@pytest.mark.parametrize("epsilon_about", [0.3, 1.0, 8.0])
def test_the_room_in_the_noise_pays_for_it(epsilon_about):
    """Steps of all rows, where epsilon has a closed form: what larger noise takes off covers sums and arithmetic."""
    mu, delta, steps = epsilon_about / 4, 1e-5, 10_000
    sigma = math.sqrt(steps) / mu
    larger = mu * (1 + SUMMATION) / (1 + ROOM)
    saved = gaussian_epsilon(mu, delta) - gaussian_epsilon(larger, delta)
    assert saved > stated(1_000_000, steps, 10_000, sigma)
