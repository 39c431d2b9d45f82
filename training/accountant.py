"""How much privacy a run costs: calibrating sigma before, and two independent figures for the certificate.

The figure is dp-accounting's privacy-loss distribution, through the same function that every verifier uses. The
cross-check is Opacus' PRV accountant, an independent construction. Nothing depends on the data.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version

from sealgate.certificate.decimals import MICRO, micro_text
from sealgate.certificate.recompute import COARSE, FINE, GaussianSteps, epsilon_micro, recompute
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import MAX_SIGMA_MICRO, MIN_SIGMA_MICRO
from training.limits import EPSILON_MARGIN_MICRO, PROGRESS_POINTS, SIGMA_GRID_MICRO

SECOND_ACCOUNTANT = "opacus-prv"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run costs, in millionths: the stated figures, and the second accountant's."""

    epsilon_micro: int
    epsilon_replace_one_micro: int
    discretisation: str
    second_epsilon_micro: int
    second_version: str


def calibrate(*, target_micro: int, rate: Fraction, steps: int, delta: str) -> GaussianSteps:
    """The least sigma (to three decimals) whose stated epsilon is at most the target; raises ConfigurationError."""

    def at(units: int) -> GaussianSteps:
        return GaussianSteps(sigma_micro=units * SIGMA_GRID_MICRO, rate=rate, steps=steps, delta=delta)

    def fits(units: int, discretisation: str) -> bool:
        try:
            found = epsilon_micro(at(units), discretisation=discretisation)
        except CertificateError as error:
            if error.code == "epsilon-out-of-range":
                return False
            raise ConfigurationError(f"[privacy]: {error}") from error
        return found + EPSILON_MARGIN_MICRO <= target_micro

    low, high = MIN_SIGMA_MICRO // SIGMA_GRID_MICRO, 1000
    while not fits(high, COARSE):
        low, high = high, high * 2
        if high * SIGMA_GRID_MICRO > MAX_SIGMA_MICRO:
            raise ConfigurationError(
                f"[privacy]: no noise gives epsilon {micro_text(target_micro)}; take fewer steps or a lower rate"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle, COARSE) else (middle, high)
    while not fits(high, FINE):
        high += 1
    return at(high)


def cost_of(steps: GaussianSteps) -> Cost:
    """The figures that the certificate states, each a margin above what was computed; raises CertificateError."""
    found = recompute(steps)
    return Cost(
        epsilon_micro=found.add_remove_micro + EPSILON_MARGIN_MICRO,
        epsilon_replace_one_micro=found.replace_one_micro + EPSILON_MARGIN_MICRO,
        discretisation=found.discretisation,
        second_epsilon_micro=_second_figure(steps),
        second_version=version("opacus"),
    )


def _second_figure(steps: GaussianSteps) -> int:
    """Epsilon by Opacus' PRV accountant, in millionths, rounded up."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(steps.sigma_micro / MICRO, float(steps.rate), steps.steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about precision far from the region of interest
        epsilon = float(accountant.get_epsilon(delta=float(steps.delta)))
    return -int(-epsilon * MICRO // 1)


class RunningEpsilon:
    """Epsilon after so many steps, for the progress bar: coarse, and computed at a few points only."""

    def __init__(self, steps: GaussianSteps) -> None:
        self._steps = steps
        self._every = max(1, steps.steps // PROGRESS_POINTS)
        self._text = "0"

    def after(self, step: int) -> str:
        """The text to show after `step` steps."""
        if step % self._every == 0 or step == self._steps.steps:
            found = epsilon_micro(replace(self._steps, steps=step), discretisation=COARSE)
            self._text = f"{found / MICRO:.2f}"
        return self._text
