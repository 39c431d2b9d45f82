"""Epsilon of a choice among runs, by Renyi divergences: the best of a random number of runs of DP-SGD.

Run a mechanism K times, K random and public in its distribution, each time with a choice drawn uniformly from a list;
release only the run of the best score. For K truncated negative binomial the cost is theorem 2 of Papernot and Steinke
2022; shape 1 is geometric, shape 0 logarithmic. The score is part of each run and has to be private itself: a count
over the rows with Gaussian noise. Replacing a unit is charged by group privacy.

Trusts: nothing. Never: takes K as something that may be looked up in the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sealgate.certificate.accounting.account import micro_up, replaced, require_delta
from sealgate.certificate.decimals import MICRO, micro_text
from sealgate.certificate.recompute import RENYI_ACCOUNTANT, Epsilon, GaussianSteps, refusing
from sealgate.certificate.refusals import refusal
from sealgate.limits import MAX_SELECTION_TRIALS, MAX_SIGMA_MICRO, MIN_SIGMA_MICRO

# Whole numbers: there the divergence of sampled Gaussian noise is a finite sum.
ORDERS = (*range(2, 65), *range(68, 129, 4), *range(144, 513, 16))


def _step_event(steps: GaussianSteps) -> Any:
    from dp_accounting import dp_event

    one = dp_event.GaussianDpEvent(steps.sigma_micro / MICRO)
    sampled = one if steps.rate == 1 else dp_event.PoissonSampledDpEvent(float(steps.rate), one)
    return dp_event.SelfComposedDpEvent(sampled, steps.steps)


@dataclass(frozen=True, kw_only=True)
class BestOfRuns:
    """The best of K >= 1 runs of the same steps by a private score; `mean_trials` is the mean of K."""

    run: GaussianSteps
    score_sigma_micro: int
    mean_trials: Fraction
    shape: int  # 0 logarithmic, 1 geometric

    @property
    def delta(self) -> str:
        """See Account."""
        return self.run.delta

    @property
    def accountant(self) -> str:
        """See Account."""
        return RENYI_ACCOUNTANT

    def require_computable(self) -> None:
        """See Account."""
        self.run.require_computable()
        require_delta(self.delta)
        if not MIN_SIGMA_MICRO <= self.score_sigma_micro <= MAX_SIGMA_MICRO:
            raise refusal("parameters-out-of-range", "the score's sigma is outside what can be recomputed")
        if self.shape not in (0, 1) or not 1 < self.mean_trials <= MAX_SELECTION_TRIALS:
            raise refusal("parameters-out-of-range", "the number of trials is outside what can be recomputed")

    def epsilon(self) -> Epsilon:
        """See Account."""
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant

        self.require_computable()
        scored = dp_event.ComposedDpEvent(
            [_step_event(self.run), dp_event.GaussianDpEvent(self.score_sigma_micro / MICRO)]
        )
        event = dp_event.RepeatAndSelectDpEvent(scored, mean=float(self.mean_trials), shape=float(self.shape))
        with refusing():
            accountant = RdpAccountant(list(ORDERS)).compose(event)
            return _both(accountant, float(self.delta))

    def words(self) -> str:
        """See Account."""
        kind = ("logarithmic", "geometric")[self.shape]
        return (
            f"the best of {float(self.mean_trials):g} runs on average ({kind}), score with sigma "
            f"{micro_text(self.score_sigma_micro)}; one run: {self.run.words()}"
        )


def _both(accountant: Any, delta: float) -> Epsilon:
    return Epsilon(
        add_remove_micro=micro_up(float(accountant.get_epsilon(delta))),
        replace_one_micro=micro_up(replaced(lambda one: float(accountant.get_epsilon(one)), delta)),
        discretisation="0",
    )
