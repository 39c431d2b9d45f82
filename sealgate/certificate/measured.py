"""How well a model did on held-out rows, with the interval in which chance leaves it, as a certificate states it.

Trusts: nothing. Never: measures; a verifier sees only whether the figures fit each other.
"""

from __future__ import annotations

import math

from sealgate.certificate.decimals import MICRO
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Measured
from sealgate.limits import MAX_MEASURED, MAX_ROWS_MEASURED

ACCURACY, R2 = "accuracy", "R2"
_NORMAL_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Wilson's (1927) 95 % interval for a share of which `right` of `rows` were observed."""
    if not 0 <= right <= rows or rows == 0:
        raise ValueError("so many of so many is no share")
    share, square = right / rows, _NORMAL_95**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = _NORMAL_95 / (1 + square / rows) * math.sqrt(share * (1 - share) / rows + square / (4 * rows * rows))
    # At the ends the interval touches 0 and 1; rounding must not put the share outside.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def around(value: float, *, error: float) -> tuple[float, float]:
    """The 95 % interval of an estimate that is nearly normal with this standard error."""
    return value - _NORMAL_95 * error, value + _NORMAL_95 * error


def check_measured(measured: tuple[Measured, ...], *, epsilon_micro: int) -> None:
    """Raise CertificateError unless the first is about this model and every figure fits the others."""
    if len(measured) > MAX_MEASURED or (measured and measured[0].epsilon_micro != epsilon_micro):
        raise refusal("certificate-malformed", "what was measured is not about this model, or is too much")
    for one in measured:
        if not _fits(one):
            raise refusal("certificate-malformed", "a measured quality does not fit its interval")


def _fits(one: Measured) -> bool:
    if not (0 < one.rows <= MAX_ROWS_MEASURED and one.epsilon_micro > 0):
        return False
    if not one.low_micro <= one.value_micro <= one.high_micro <= MICRO + MICRO * (one.measure == R2):
        return False
    if one.measure != ACCURACY:
        return one.measure == R2 and one.right == 0
    if not 0 <= one.right <= one.rows or abs(one.value_micro - one.right * MICRO / one.rows) > 1:
        return False
    low, high = wilson(one.right, one.rows)
    return abs(one.low_micro - low * MICRO) <= 1 and abs(one.high_micro - high * MICRO) <= 1


def interval_text(one: Measured) -> str:
    """The figure and its interval as people read them."""
    shown = [quality_text(one.measure, micro / MICRO) for micro in (one.value_micro, one.low_micro, one.high_micro)]
    return f"{shown[0]} (95 % interval {shown[1]} to {shown[2]})"


def quality_text(measure: str, value: float) -> str:
    """One figure: accuracies in per cent."""
    return f"{value * 100:.1f} %" if measure == ACCURACY else f"{value:.3f}"
