"""Gaussian releases that see every row, alone or together with sampled steps: AdaSSP and aggregation perturbation.

All releases of the same rows together are one Gaussian mechanism of mu^2 = sum of 1/sigma_i^2, sigma counted in the
release's own L2 sensitivity. The figure is its privacy-loss distribution, composed with that of the sampled steps.
Where nothing is sampled the closed form (Balle and Wang 2018) is computed beside it, and must agree.

Sensitivities, with rows of norm at most B and targets within Y (Wang 2018, algorithm 2 and appendix):
    X'X                      adding a row x: xx', whose upper triangle has norm at most B^2; replacing one: sqrt(2) B^2
    its least eigenvalue     B^2 in both cases (Weyl: the eigenvalues of xx' - zz' lie in [-B^2, B^2])
    X'y                      adding a row: B Y; replacing one: 2 B Y

Trusts: nothing. Never: takes a sampled release for one that is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sealgate.certificate.accounting.account import micro_up, require_agreement, require_delta
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.gaussian import gaussian_epsilon
from sealgate.certificate.recompute import (
    ACCOUNTANT,
    COARSE,
    FINE,
    FINE_BELOW_MICRO,
    Epsilon,
    GaussianSteps,
    privacy_loss,
    refusing,
)
from sealgate.certificate.refusals import refusal
from sealgate.limits import MAX_MU_SQUARED, MAX_SIGMA_MICRO, MIN_SIGMA_MICRO


def share(sigma_micro: int, *, square: int | Fraction = 1) -> Fraction:
    """The mu^2 of one release: `square` over sigma^2; raises CertificateError for a sigma out of range."""
    if not MIN_SIGMA_MICRO <= sigma_micro <= MAX_SIGMA_MICRO:
        raise refusal("parameters-out-of-range", "a sigma is outside what can be recomputed")
    return Fraction(square) * Fraction(MICRO**2, sigma_micro**2)


@dataclass(frozen=True, kw_only=True)
class GaussianReleases:
    """Releases whose mu^2 add up, for adding a unit and for replacing one, and sampled steps beside them."""

    mu_squared: Fraction
    mu_squared_replace_one: Fraction
    delta: str
    steps: tuple[GaussianSteps, ...] = ()

    @property
    def accountant(self) -> str:
        """See Account."""
        return ACCOUNTANT

    def require_computable(self) -> None:
        """See Account."""
        require_delta(self.delta)
        if not 0 < self.mu_squared <= self.mu_squared_replace_one <= MAX_MU_SQUARED:
            raise refusal("epsilon-out-of-range", "so little noise protects nothing")
        for steps in self.steps:
            steps.require_computable()

    def epsilon(self) -> Epsilon:
        """See Account."""
        self.require_computable()
        coarse = self._figure(replace_one=False, discretisation=COARSE)
        discretisation = FINE if coarse <= FINE_BELOW_MICRO else COARSE
        add_remove = self._figure(replace_one=False, discretisation=discretisation)
        replace_one = self._figure(replace_one=True, discretisation=discretisation)
        return Epsilon(
            add_remove_micro=add_remove,
            replace_one_micro=max(add_remove, replace_one),
            discretisation=discretisation,
        )

    def closed_form_micro(self, *, replace_one: bool = False) -> int:
        """The figure without the accountant, where nothing is sampled."""
        if self.steps:
            raise ValueError("sampled steps have no closed form")
        mu = float(self.mu_squared_replace_one if replace_one else self.mu_squared) ** 0.5
        return micro_up(gaussian_epsilon(mu, float(self.delta)))

    def _figure(self, *, replace_one: bool, discretisation: str) -> int:
        with refusing():
            loss = self._loss(replace_one=replace_one, discretisation=discretisation)
            figure = micro_up(float(loss.get_epsilon_for_delta(float(self.delta))))
        if not self.steps:
            require_agreement(figure, self.closed_form_micro(replace_one=replace_one))
        return figure

    def _loss(self, *, replace_one: bool, discretisation: str) -> Any:
        from dp_accounting.pld import privacy_loss_distribution

        mu_squared = self.mu_squared_replace_one if replace_one else self.mu_squared
        loss = privacy_loss_distribution.from_gaussian_mechanism(
            float(mu_squared) ** -0.5, value_discretization_interval=float(discretisation)
        )
        for steps in self.steps:
            loss = loss.compose(privacy_loss(steps, replace_one=replace_one, discretisation=discretisation))
        return loss

    def words(self) -> str:
        """See Account."""
        beside = "".join(f"; {steps.words()}" for steps in self.steps)
        return f"Gaussian releases of mu {float(self.mu_squared) ** 0.5:.4f} in all{beside}, delta {self.delta}"
