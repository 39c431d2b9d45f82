"""What statistics of the private rows cost: bounds, means, categories that preprocessing did not take as given.

Laplace noise of b sensitivities costs 1/b, and twice that for replacing a row (two steps of group privacy); Gaussian
noise of s sensitivities costs the closed form at the delta that is stated, with twice the sensitivity for replacing.
Names that nobody gave beforehand are told where their noisy count passes a threshold, whose tail takes part of delta.
Costs add up (basic composition), which needs no assumption about what the statistics are.

Trusts: the publisher for mechanisms that are "stated" only. Never: takes less than the parts' own figures.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from sealgate.certificate.accounting.thresholds import GAUSSIAN, LAPLACE, tail_of
from sealgate.certificate.decimals import MICRO, parse_decimal
from sealgate.certificate.gaussian import gaussian_epsilon
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Preprocessing, Statistic
from sealgate.errors import DecodeError
from sealgate.limits import (
    MAX_EPSILON_MICRO,
    MAX_MASKED,
    MAX_MASKED_WORDS,
    MAX_NAME,
    MAX_SIGMA_MICRO,
    MAX_STATISTIC_COUNT,
    MAX_STATISTICS,
)

MASKINGS = ("drop", "hash", "bin", "top", "month", "year", "prefix", "redact")


def check_masked(preprocessing: Preprocessing) -> None:
    """Raise CertificateError unless what is told of masked columns is short and of known kinds."""
    if len(preprocessing.masked) > MAX_MASKED:
        raise refusal("certificate-malformed", "the certificate tells of too many masked columns")
    for one in preprocessing.masked:
        if one.action not in MASKINGS or not 0 < len(one.column) <= MAX_NAME or len(one.detail) > MAX_MASKED_WORDS:
            raise refusal("certificate-malformed", "the certificate tells of a masked column in an unknown way")


def statistic_cost(
    mechanism: str, multiplier_micro: int, delta: str, *, contributions: int = 1, threshold: int = 0
) -> tuple[int, int]:
    """Epsilon in millionths, rounded up, for adding a row and for replacing one; raises CertificateError."""
    if not 0 < multiplier_micro <= MAX_SIGMA_MICRO:
        raise refusal("private-statistics", "a statistic's noise is outside what can be recomputed")
    left = float(parse_decimal(delta))
    if mechanism in (LAPLACE, GAUSSIAN):
        if not (0 < contributions <= MAX_STATISTIC_COUNT and 1 < threshold <= MAX_STATISTIC_COUNT and 0 < left < 1):
            raise refusal("private-statistics", "a statistic's threshold, contributions or delta are out of range")
        tail = tail_of(mechanism, multiplier_micro, contributions=contributions, threshold=threshold)
        left -= tail
        if left < 0:
            raise refusal("private-statistics", "a statistic's threshold is too low for its delta")
    elif (contributions, threshold) != (1, 0):
        raise refusal("private-statistics", "a statistic without names has a threshold")
    if mechanism == LAPLACE or (mechanism == "laplace" and delta == "0"):
        once = Fraction(MICRO * MICRO, multiplier_micro)
        return -int(-once // 1), -int(-2 * once // 1)
    if mechanism in ("gaussian", GAUSSIAN) and 0 < left < 1:
        figures = [gaussian_epsilon(times * MICRO / multiplier_micro, left) for times in (1, 2)]
        if max(figures) * MICRO <= MAX_EPSILON_MICRO:
            return -int(-figures[0] * MICRO // 1), -int(-figures[1] * MICRO // 1)
    raise refusal("private-statistics", "a statistic's mechanism is not one that is known here")


def check_statistics(preprocessing: Preprocessing) -> None:
    """Raise CertificateError unless each part states no less than it costs, and the sums are those of the parts."""
    parts = preprocessing.parts
    try:
        if not 0 < len(parts) <= MAX_STATISTICS:
            raise refusal("private-statistics", "preprocessing names no statistics, or too many")
        for part in parts:
            _check_part(part)
        delta = sum((parse_decimal(part.delta) for part in parts), Decimal(0))
        if parse_decimal(preprocessing.delta) != delta:
            raise refusal("private-statistics", "the delta of preprocessing is not the sum of its parts")
    except DecodeError as error:
        raise refusal("delta", "a delta of preprocessing is not a plain decimal number") from error
    sums = (sum(part.epsilon_micro for part in parts), sum(part.epsilon_replace_one_micro for part in parts))
    if sums != (preprocessing.epsilon_micro, preprocessing.epsilon_replace_one_micro):
        raise refusal("private-statistics", "the epsilon of preprocessing is not the sum of its parts")


def _check_part(part: Statistic) -> None:
    if not (part.what and 0 <= parse_decimal(part.delta) < 1):
        raise refusal("private-statistics", "a statistic has no name, or a delta out of range")
    if not 0 < part.epsilon_micro <= part.epsilon_replace_one_micro <= MAX_EPSILON_MICRO:
        raise refusal("private-statistics", "a statistic's epsilon is out of range")
    if part.mechanism == "stated":
        return
    once, twice = statistic_cost(
        part.mechanism,
        part.multiplier_micro,
        part.delta,
        contributions=part.contributions,
        threshold=part.threshold,
    )
    if part.epsilon_micro < once or part.epsilon_replace_one_micro < twice:
        raise refusal("private-statistics", "a statistic states less than its noise costs")
