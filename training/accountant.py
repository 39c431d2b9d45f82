"""How much privacy a run costs: calibrating sigma before, and two independent figures for the certificate.

The first figure is the account's own, through the same functions that every verifier uses. The second is another
construction: Opacus' PRV accountant for sampled steps, the closed Gaussian form where nothing is sampled, and for a
search the theorem itself over Opacus' Renyi divergences. Nothing depends on the data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version

from sealgate.certificate.accounting.account import Account, WithStatistics
from sealgate.certificate.accounting.objective import PerturbedObjective
from sealgate.certificate.accounting.releases import GaussianReleases
from sealgate.certificate.accounting.selection import ORDERS, BestOfRuns
from sealgate.certificate.decimals import MICRO, micro_text
from sealgate.certificate.recompute import COARSE, FINE, GaussianSteps, epsilon_micro
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import MAX_SIGMA_MICRO, MIN_SIGMA_MICRO
from training.limits import EPSILON_MARGIN_MICRO, PROGRESS_POINTS, SIGMA_GRID_MICRO

PRV = "opacus-prv"
RENYI = "opacus-rdp"
CLOSED_FORM = "analytic-gaussian"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run costs, in millionths: the stated figures, and the second accountant's."""

    epsilon_micro: int
    epsilon_replace_one_micro: int
    discretisation: str
    second_epsilon_micro: int
    second_accountant: str
    second_version: str
    one_run_micro: int  # of a search: what one run costs by itself; otherwise the stated figure


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


def calibrate_run(account_at: Callable[[int], Account], *, target_micro: int) -> Account:
    """The account of the least sigma (to three decimals) whose stated epsilon is at most the target, for accounts
    that `calibrate` does not know; raises ConfigurationError."""

    def fits(units: int) -> bool:
        try:
            return (
                account_at(units * SIGMA_GRID_MICRO).epsilon().add_remove_micro + EPSILON_MARGIN_MICRO <= target_micro
            )
        except CertificateError as error:
            if error.code == "epsilon-out-of-range":
                return False
            raise ConfigurationError(f"[privacy]: {error}") from error

    low, high = MIN_SIGMA_MICRO // SIGMA_GRID_MICRO, 1000
    while not fits(high):
        low, high = high, high * 2
        if high * SIGMA_GRID_MICRO > MAX_SIGMA_MICRO:
            raise ConfigurationError(f"[privacy]: no noise gives epsilon {micro_text(target_micro)}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return account_at(high * SIGMA_GRID_MICRO)


def cost_of(account: Account) -> Cost:
    """The figures that the certificate states, each a margin above what was computed; raises CertificateError."""
    found = account.epsilon()
    name, second = second_figure(account)
    return Cost(
        epsilon_micro=found.add_remove_micro + EPSILON_MARGIN_MICRO,
        epsilon_replace_one_micro=found.replace_one_micro + EPSILON_MARGIN_MICRO,
        discretisation=found.discretisation,
        second_epsilon_micro=second,
        second_accountant=name,
        second_version=version("opacus") if name != CLOSED_FORM else version("sealgate"),
        one_run_micro=_one_run_micro(account, found.add_remove_micro) + EPSILON_MARGIN_MICRO,
    )


def _one_run_micro(account: Account, whole_micro: int) -> int:
    """What is left of the figure without a search; the figure itself where there was none."""
    if isinstance(account, BestOfRuns):
        return account.run.epsilon().add_remove_micro
    if isinstance(account, WithStatistics):
        return _one_run_micro(account.account, whole_micro - account.statistics_micro) + account.statistics_micro
    return whole_micro


def second_figure(account: Account) -> tuple[str, int]:
    """Name and figure of the second computation, in millionths, rounded up."""
    match account:
        case GaussianSteps():
            return PRV, _prv([account], mu_squared=Fraction(0), delta=account.delta)
        case GaussianReleases(steps=()):
            return CLOSED_FORM, account.closed_form_micro()
        case GaussianReleases():
            return PRV, _prv(list(account.steps), mu_squared=account.mu_squared, delta=account.delta)
        case PerturbedObjective():
            return CLOSED_FORM, account.closed_form_micro()
        case BestOfRuns():
            return RENYI, _best_of_runs(account)
        case WithStatistics():
            name, figure = second_figure(account.account)
            return name, figure + account.statistics_micro
    raise TypeError("an account without a second computation")


def _prv(steps: list[GaussianSteps], *, mu_squared: Fraction, delta: str) -> int:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(one.sigma_micro / MICRO, float(one.rate), one.steps) for one in steps]
    if mu_squared:
        accountant.history.append((float(mu_squared) ** -0.5, 1.0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about precision far from the region of interest
        epsilon = float(accountant.get_epsilon(delta=float(delta)))
    return -int(-epsilon * MICRO // 1)


def _best_of_runs(account: BestOfRuns) -> int:
    """Theorem 2 of Papernot and Steinke 2022, written down again, over the divergences of Opacus."""
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders, run = list(ORDERS), account.run
    mean, shape = float(account.mean_trials), account.shape
    steps = compute_rdp(q=float(run.rate), noise_multiplier=run.sigma_micro / MICRO, steps=run.steps, orders=orders)
    one = [
        float(divergence) + order / (2 * (account.score_sigma_micro / MICRO) ** 2)
        for order, divergence in zip(orders, steps, strict=True)
    ]
    halting = halting_probability(mean, shape)
    beside = (1 + shape) * min(
        (1 - 1 / order) * divergence - math.log(halting) / order for order, divergence in zip(orders, one, strict=True)
    )
    whole = [divergence + beside + math.log(mean) / (order - 1) for order, divergence in zip(orders, one, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the best order being the first or last
        epsilon, _order = get_privacy_spent(orders=orders, rdp=whole, delta=float(run.delta))
    return -int(-float(epsilon) * MICRO // 1)


def halting_probability(mean: float, shape: int) -> float:
    """The gamma of a truncated negative binomial number of trials with this mean: shape 1 geometric, 0 logarithmic."""
    if shape == 1:
        return 1 / mean
    low, high = 1e-12, 1.0 - 1e-12
    for _ in range(200):
        middle = math.sqrt(low * high)
        # The mean of the logarithmic distribution falls as gamma grows.
        low, high = (middle, high) if (1 / middle - 1) / -math.log(middle) > mean else (low, middle)
    return low


class RunningEpsilon:
    """Epsilon after so many steps, for the progress bar: coarse, and computed at a few points only.

    Where the figure is not one of so many steps it is the whole from the beginning. `before_micro` was spent before.
    """

    def __init__(self, account: Account, *, before_micro: int = 0) -> None:
        self._before = before_micro
        self._steps = account if isinstance(account, GaussianSteps) else None
        self._every = max(1, self._steps.steps // PROGRESS_POINTS) if self._steps else 1
        self._text = self._words(0 if self._steps else account.epsilon().add_remove_micro)

    def after(self, step: int) -> str:
        """The text to show after `step` steps."""
        if self._steps and (step % self._every == 0 or step == self._steps.steps):
            found = epsilon_micro(replace(self._steps, steps=step), discretisation=COARSE)
            self._text = self._words(found)
        return self._text

    def _words(self, micro: int) -> str:
        return f"{(micro + self._before) / MICRO:.2f}" if micro + self._before else "0"
