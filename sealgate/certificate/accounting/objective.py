"""Epsilon of objective perturbation for logistic regression, with a solver that only comes close to the minimum.

The mechanism minimises J(w) = sum of losses + (lambda/2) |w|^2 + b'w with b from N(0, sigma^2 I), and adds Gaussian
noise to a w at which the gradient of J has norm at most gamma. Why its epsilon is what is computed here:

The minimum w* and b determine each other, b = -gradient(w*), so the density of w* is that of b times the determinant of
the Hessian (Chaudhuri, Monteleoni and Sarwate 2011; Kifer, Smith and Thakurta 2012). Adding a row x, |x| <= B:
  - the determinant grows by a factor 1 + l'' x'H^-1 x, which lies in [1, 1 + (B^2/4)/lambda]: the logistic loss has
    l'' <= 1/4, and H is at least lambda on the diagonal. That costs c = log(1 + B^2/(4 lambda)), in one direction.
  - b moves by l' x, along one line and with one sign (l' of a logistic loss has the sign of its label), by at most B.
    With Z = the noise along that line over sigma and u in [0, B/sigma] the privacy loss of the noise is u Z + u^2/2,
    convex in u, so at most max(0, a Z + a^2/2) with a = B/sigma: the loss of a Gaussian mechanism of mu = a wherever
    it is above zero. For any epsilon >= c, delta is hence at most that Gaussian mechanism's at epsilon - c.
The same structure, with a factor two where the sign of l' is not known, is in Redberg, Koskela and Wang 2023.

J is lambda-strongly convex, so the found w lies within gamma/lambda of w*. Given w*, releasing w plus N(0, tau^2 I) is
a Gaussian mechanism of sensitivity 2 gamma/lambda (Iyengar et al. 2019), which is charged to delta alone: its total
variation, delta at epsilon zero. Real arithmetic is assumed; the noise is floating point.

Trusts: nothing. Never: takes a loss that is not the logistic one of a label in {0, 1}.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import log1p

from sealgate.certificate.accounting.account import micro_up, replaced, require_agreement, require_delta
from sealgate.certificate.decimals import MICRO, micro_text, parse_decimal
from sealgate.certificate.gaussian import gaussian_delta, gaussian_epsilon
from sealgate.certificate.recompute import ACCOUNTANT, FINE, Epsilon, refusing
from sealgate.certificate.refusals import refusal
from sealgate.errors import DecodeError
from sealgate.limits import MAX_NORM_MICRO, MAX_SIGMA_MICRO, MIN_SIGMA_MICRO

_CURVATURE = Fraction(1, 4)  # the largest second derivative of log(1 + exp(-m))


@dataclass(frozen=True, kw_only=True)
class PerturbedObjective:
    """B, lambda, sigma (in B), gamma and tau of the mechanism above."""

    row_norm_micro: int
    regularisation_micro: int
    sigma_micro: int
    gradient_tolerance: str
    output_sigma_micro: int
    delta: str

    @property
    def accountant(self) -> str:
        """See Account."""
        return ACCOUNTANT

    def require_computable(self) -> None:
        """See Account."""
        delta = require_delta(self.delta)
        try:
            tolerance = parse_decimal(self.gradient_tolerance)
        except DecodeError as error:
            raise refusal("parameters-out-of-range", "the solver's tolerance is not a plain decimal number") from error
        if not (
            0 < self.row_norm_micro <= MAX_NORM_MICRO
            and 0 < self.regularisation_micro <= MAX_SIGMA_MICRO * MICRO
            and MIN_SIGMA_MICRO <= self.sigma_micro <= MAX_SIGMA_MICRO
            and 0 < self.output_sigma_micro <= MAX_SIGMA_MICRO
            and 0 < tolerance <= 1
        ):
            raise refusal("parameters-out-of-range", "a constant of the objective is outside what can be recomputed")
        if self.output_delta() >= delta / 2:
            raise refusal("delta", "the solver's tolerance takes more than half of delta")

    def determinant_cost(self) -> float:
        """c: how much the determinant of the Hessian can tell."""
        norm, ridge = Fraction(self.row_norm_micro, MICRO), Fraction(self.regularisation_micro, MICRO)
        return log1p(float(_CURVATURE * norm**2 / ridge))

    def output_delta(self) -> float:
        """The share of delta that hides how close the solver came."""
        tolerance = Fraction(parse_decimal(self.gradient_tolerance))
        mu = 2 * tolerance / Fraction(self.regularisation_micro, MICRO) / Fraction(self.output_sigma_micro, MICRO)
        return gaussian_delta(float(mu), 0.0)

    def epsilon(self) -> Epsilon:
        """See Account: the accountant's figure, which the closed form must confirm."""
        self.require_computable()
        left = float(self.delta) - self.output_delta()
        with refusing():
            add_remove, second = self.accountant_micro(), self.closed_form_micro()
            require_agreement(add_remove, second)
            # Given w*, the solver's error is bounded alike for any two data sets: the output's share stays as it is.
            replace_one = micro_up(replaced(self._epsilon_at, left))
        return Epsilon(
            add_remove_micro=max(add_remove, second),
            replace_one_micro=max(add_remove, second, replace_one),
            discretisation=FINE,
        )

    def closed_form_micro(self) -> int:
        """The figure without the accountant."""
        return micro_up(self._epsilon_at(float(self.delta) - self.output_delta()))

    def accountant_micro(self) -> int:
        """The figure with the Gaussian's part by privacy-loss distribution."""
        from dp_accounting.pld import privacy_loss_distribution

        loss = privacy_loss_distribution.from_gaussian_mechanism(
            self.sigma_micro / MICRO, value_discretization_interval=float(FINE)
        )
        noise = float(loss.get_epsilon_for_delta(float(self.delta) - self.output_delta()))
        return micro_up(self.determinant_cost() + noise)

    def _epsilon_at(self, delta: float) -> float:
        """Epsilon of the perturbed minimum alone."""
        return self.determinant_cost() + gaussian_epsilon(MICRO / self.sigma_micro, delta)

    def words(self) -> str:
        """See Account."""
        return (
            f"logistic objective, rows of norm {micro_text(self.row_norm_micro)}, lambda "
            f"{micro_text(self.regularisation_micro)}, sigma {micro_text(self.sigma_micro)}, gradient within "
            f"{self.gradient_tolerance}, delta {self.delta}"
        )
