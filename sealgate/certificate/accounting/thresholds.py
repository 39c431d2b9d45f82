"""Names that nobody gave beforehand: categories or words whose noisy counts pass a public threshold.

A row counts one for each of at most c names. A name that only this row brings has the true count one, and betrays the
row if its noisy count passes: that chance is delta's (Korolova et al. 2009; Desfontaines, Voss & Gipson 2022). The rest
is the noise's own epsilon. A row adds at most c in L1 and sqrt(c) in L2.

Trusts: nothing. Never: takes a tail smaller than it is.
"""

from __future__ import annotations

import math

from sealgate.certificate.decimals import MICRO

LAPLACE = "laplace-threshold"
GAUSSIAN = "gaussian-threshold"
DEVIATION_MARGIN = 1.01  # by which noise on a grid of whole numbers may be wider than it is said to be


def tail_of(mechanism: str, multiplier_micro: int, *, contributions: int, threshold: int) -> float:
    """The chance that one of c names with count one passes the threshold, not less than it is."""
    above, multiplier = threshold - 1, multiplier_micro / MICRO
    if mechanism == LAPLACE:
        # Half of this for continuous noise; on a grid the half is 1 / (1 + exp(-1/t)).
        one = math.exp(-min(above / (multiplier * contributions), 700.0))
    else:
        one = math.erfc(above / (DEVIATION_MARGIN * multiplier * math.sqrt(2 * contributions))) / 2
    return min(1.0, contributions * one * (1 + 1e-9) + 1e-300)


def threshold_of(mechanism: str, multiplier_micro: int, *, contributions: int, delta: str) -> int:
    """The least whole threshold whose tail is at most delta."""
    low, high = 1, 2
    while tail_of(mechanism, multiplier_micro, contributions=contributions, threshold=high) > float(delta):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        fits = tail_of(mechanism, multiplier_micro, contributions=contributions, threshold=middle) <= float(delta)
        low, high = (low, middle) if fits else (middle, high)
    return high
