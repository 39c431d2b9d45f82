"""Epsilon, recomputed from the mechanism's parameters by Google's dp-accounting (privacy-loss distributions).

This is the one place that turns (sampler, sigma, rate, steps, delta) into epsilon, for the trainer, for
`sealgate models verify` and for the worker at load. Discretisation is pessimistic: the figure is an upper bound, up to
floating-point rounding of about 1e-9, for which the trainer adds a margin to what it states.

Work is bounded: `require_computable` refuses what would need more than about a gigabyte or ten seconds, and a coarse
pass (30 ms) refuses absurd epsilons before the fine one (0.3 s). Nothing is cached between calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sealgate.certificate.decimals import MICRO, micro_text, parse_decimal
from sealgate.certificate.refusals import refusal
from sealgate.errors import DecodeError
from sealgate.limits import (
    MAX_EPSILON_MICRO,
    MAX_PRIVACY_LOSS_MEAN,
    MAX_SIGMA_MICRO,
    MAX_TRAINING_STEPS,
    MIN_DELTA_EXPONENT,
    MIN_SIGMA_MICRO,
)

ACCOUNTANT = "dp-accounting-pld"
RENYI_ACCOUNTANT = "dp-accounting-rdp"
FINE = "0.0001"
COARSE = "0.001"
# Above this the fine pass takes ten seconds, and the third decimal of such an epsilon matters to nobody.
FINE_BELOW_MICRO = 20 * MICRO


@dataclass(frozen=True, kw_only=True)
class GaussianSteps:
    """`steps` releases of a Poisson-sampled sum with Gaussian noise, sensitivity one. The mechanism behind DP-SGD."""

    sigma_micro: int
    rate: Fraction
    steps: int
    delta: str

    def require_computable(self) -> None:
        """Raise CertificateError for parameters outside what can be recomputed in bounded work."""
        try:
            delta = Fraction(parse_decimal(self.delta))
        except DecodeError as error:
            raise refusal("delta", "delta is not a plain decimal number") from error
        if not Fraction(1, 10**MIN_DELTA_EXPONENT) <= delta < 1:
            raise refusal("delta", "delta is out of range")
        if not (
            MIN_SIGMA_MICRO <= self.sigma_micro <= MAX_SIGMA_MICRO
            and 0 < self.rate <= 1
            and self.rate.denominator <= 10**12
            and 0 < self.steps <= MAX_TRAINING_STEPS
        ):
            raise refusal("parameters-out-of-range", "sigma, rate or steps are outside what can be recomputed")
        mean_loss = self.steps * self.rate / (2 * Fraction(self.sigma_micro, MICRO) ** 2)
        if mean_loss > MAX_PRIVACY_LOSS_MEAN:
            raise refusal("epsilon-out-of-range", "so little noise over so many steps protects nothing")

    @property
    def accountant(self) -> str:
        """Which accountant gives the figure."""
        return ACCOUNTANT

    def epsilon(self) -> Epsilon:
        """Both figures; see `recompute`."""
        return recompute(self)

    def words(self) -> str:
        """The constants as one line for people."""
        return (
            f"sigma {micro_text(self.sigma_micro)}, rate {self.rate.numerator}/{self.rate.denominator}, "
            f"{self.steps} steps, delta {self.delta}"
        )


@dataclass(frozen=True, kw_only=True)
class Epsilon:
    """Recomputed figures in millionths, rounded up."""

    add_remove_micro: int
    replace_one_micro: int
    discretisation: str


@contextmanager
def refusing() -> Iterator[None]:
    """Constants that are within bounds, but that the accountant stumbles over, are refused like others."""
    try:
        yield
    except (ArithmeticError, ValueError, IndexError, MemoryError) as error:
        raise refusal("parameters-out-of-range", f"the accountant cannot compute this: {error!s:.100}") from error


def privacy_loss(steps: GaussianSteps, *, replace_one: bool = False, discretisation: str = FINE) -> Any:
    """dp-accounting's PrivacyLossDistribution of all steps together; raises CertificateError for what is out of bounds.

    `replace_one` exchanges one row instead of adding or removing it (an epsilon 1.05 to 2.3 times larger).
    """
    # Imported here: a base installation has no accountant, and scipy is slow to load.
    from dp_accounting import privacy_accountant
    from dp_accounting.pld import privacy_loss_distribution

    steps.require_computable()
    relations = privacy_accountant.NeighboringRelation
    with refusing():
        loss = privacy_loss_distribution.from_gaussian_mechanism(
            steps.sigma_micro / MICRO,
            value_discretization_interval=float(discretisation),
            sampling_prob=float(steps.rate),
            neighboring_relation=relations.REPLACE_ONE if replace_one else relations.ADD_OR_REMOVE_ONE,
        )
        return loss.self_compose(steps.steps)


def epsilon_micro(steps: GaussianSteps, *, replace_one: bool = False, discretisation: str = FINE) -> int:
    """Epsilon in millionths, rounded up; raises CertificateError for parameters that cannot be recomputed."""
    loss = privacy_loss(steps, replace_one=replace_one, discretisation=discretisation)
    with refusing():
        epsilon = float(loss.get_epsilon_for_delta(float(steps.delta)))
    if not 0 <= epsilon <= 10 * MAX_EPSILON_MICRO / MICRO:
        raise refusal("epsilon-out-of-range", "epsilon is too large to mean anything")
    return -int(-epsilon * MICRO // 1)


def recompute(steps: GaussianSteps) -> Epsilon:
    """Both figures, after the cheap refusals; raises CertificateError."""
    coarse = epsilon_micro(steps, discretisation=COARSE)
    if coarse > MAX_EPSILON_MICRO:
        raise refusal("epsilon-out-of-range", "epsilon is too large to mean anything")
    discretisation = FINE if coarse <= FINE_BELOW_MICRO else COARSE
    add_remove = epsilon_micro(steps, discretisation=discretisation)
    replace_one = epsilon_micro(steps, replace_one=True, discretisation=discretisation)
    # Replacing a row by one without influence is removing it, so the true figure cannot be smaller; the bounds can.
    return Epsilon(
        add_remove_micro=add_remove,
        replace_one_micro=max(add_remove, replace_one),
        discretisation=discretisation,
    )


def accountant_version() -> str:
    """The installed version of dp-accounting."""
    from importlib.metadata import version

    return version("dp-accounting")
