"""What every account can do, bounds that all of them share, and what an account costs beside separate statistics.

Trusts: nothing. Never: rounds a figure down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import exp, inf, log
from typing import Protocol

from sealgate.certificate.decimals import MICRO, micro_text, parse_decimal
from sealgate.certificate.recompute import Epsilon
from sealgate.certificate.refusals import refusal
from sealgate.errors import DecodeError
from sealgate.limits import MAX_EPSILON_MICRO, MIN_DELTA_EXPONENT

# Two computations of the same figure agree to about one per cent; more means that they were given other parameters.
AGREE_RELATIVE = Fraction(3, 100)
AGREE_ABSOLUTE_MICRO = 50_000


class Account(Protocol):
    """The public constants of a mechanism, from which its epsilon follows at `delta`."""

    @property
    def delta(self) -> str: ...

    @property
    def accountant(self) -> str:
        """Which accountant gives the figure."""

    def require_computable(self) -> None:
        """Raise CertificateError for parameters outside what can be recomputed in bounded work."""

    def epsilon(self) -> Epsilon:
        """Both figures, rounded up; raises CertificateError."""

    def words(self) -> str:
        """The constants as one line for people."""


def require_delta(text: str) -> Decimal:
    """The delta in this text; raises CertificateError unless it lies in [10^-12, 1)."""
    try:
        delta = parse_decimal(text)
    except DecodeError as error:
        raise refusal("delta", "delta is not a plain decimal number") from error
    if not Fraction(1, 10**MIN_DELTA_EXPONENT) <= Fraction(delta) < 1:
        raise refusal("delta", "delta is out of range")
    return delta


def micro_up(epsilon: float) -> int:
    """Millionths, rounded up; raises CertificateError for what is no figure or too large."""
    if not 0 <= epsilon <= MAX_EPSILON_MICRO / MICRO:
        raise refusal("epsilon-out-of-range", "epsilon is too large to mean anything")
    return -int(-epsilon * MICRO // 1)


def require_agreement(first_micro: int, second_micro: int) -> None:
    """Raise CertificateError unless two computations of one figure agree."""
    if abs(first_micro - second_micro) > AGREE_ABSOLUTE_MICRO + AGREE_RELATIVE * first_micro:
        raise refusal("accountants-disagree", "two computations of epsilon do not fit each other")


def replaced(epsilon_at: Callable[[float], float], delta: float) -> float:
    """Epsilon for replacing a unit, from a curve for adding or removing one: two steps of group privacy.

    Who is (e, d) for one step is (2 e, (1 + exp(e)) d) for two (Vadhan 2017, lemma 2.2). Sought is a d that comes out
    at `delta`; the answer holds for whichever d passes, so a search that stops early is only looser.
    """

    def holds(step: float) -> bool:
        epsilon = epsilon_at(exp(step))
        return epsilon < 700 and (1 + exp(epsilon)) * exp(step) <= delta

    # The largest d that holds gives the least epsilon: walk down from delta / 2 to one, then back up by halves.
    high = log(delta / 2)
    low = next((high - step / 2 for step in range(240) if holds(high - step / 2)), None)
    if low is None:
        return inf
    high = min(high, low + 0.5)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return 2 * epsilon_at(exp(low))


@dataclass(frozen=True, kw_only=True)
class WithStatistics:
    """An account beside statistics of the same rows that cost (epsilon, delta) of their own: basic composition."""

    account: Account
    statistics_micro: int
    statistics_replace_one_micro: int  # at the same delta
    delta: str  # of both together

    @property
    def accountant(self) -> str:
        """See Account."""
        return self.account.accountant

    def require_computable(self) -> None:
        """See Account."""
        self.account.require_computable()
        if not 0 < self.statistics_micro <= self.statistics_replace_one_micro <= MAX_EPSILON_MICRO:
            raise refusal("private-statistics", "the cost of the statistics is out of range")

    def epsilon(self) -> Epsilon:
        """See Account."""
        found = self.account.epsilon()
        return replace(
            found,
            add_remove_micro=found.add_remove_micro + self.statistics_micro,
            replace_one_micro=found.replace_one_micro + self.statistics_replace_one_micro,
        )

    def words(self) -> str:
        """See Account."""
        return f"{self.account.words()}; statistics at epsilon {micro_text(self.statistics_micro)}"
