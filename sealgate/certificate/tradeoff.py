"""What a guarantee means for an attacker: the most that any test can find at a given rate of false alarms.

A test asks "was this row in the training data?". Its false-positive rate (FPR) is how often it says yes when the row
was not, its true-positive rate (TPR) how often when it was. Whoever satisfies (e, d(e)) for a curve of pairs limits
every test, in both directions of the neighbours (Kairouz, Oh and Viswanath 2015; Dong, Roth and Su 2022, prop. 2.4):

    TPR <= exp(e) FPR + d(e)    and    1 - FPR <= exp(e) (1 - TPR) + d(e)

The least bound over all pairs is the trade-off curve. A coarser set of pairs gives a looser bound, never a wrong one.
Pairs come from the privacy-loss distribution, the closed Gaussian form, or a single (epsilon, delta).

Trusts: the figures that it is given. Never: estimates anything from data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sealgate.certificate.decimals import MICRO
from sealgate.certificate.gaussian import gaussian_delta
from sealgate.certificate.recompute import FINE, GaussianSteps, privacy_loss

_POINTS = 4000
_SMALLEST_DELTA = 1e-12  # pairs with less of it bound nothing that an attack could show


@dataclass(frozen=True)
class TradeOff:
    """A curve of (epsilon, delta) pairs that all hold at once, and what they say about tests of membership."""

    pairs: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not all(epsilon >= 0 and 0 <= delta <= 1 for epsilon, delta in self.pairs):
            raise ValueError("every pair needs epsilon >= 0 and delta in [0, 1]")

    def tpr_at(self, fpr: float) -> float:
        """The largest true-positive rate that any test can have at this false-positive rate."""
        if not 0 <= fpr <= 1:
            raise ValueError("a rate lies in [0, 1]")
        best = 1.0
        for epsilon, delta in self.pairs:
            grown = math.exp(min(epsilon, 700.0))
            best = min(best, grown * fpr + delta, 1.0 - (1.0 - fpr - delta) / grown)
        return max(best, fpr)  # guessing reaches TPR = FPR, so rounding must not say less

    def fpr_at(self, tpr: float) -> float:
        """The least false-positive rate of any test that reaches this true-positive rate: the inverse of `tpr_at`."""
        if not 0 <= tpr <= 1:
            raise ValueError("a rate lies in [0, 1]")
        least = 0.0
        for epsilon, delta in self.pairs:
            grown = math.exp(min(epsilon, 700.0))
            least = max(least, (tpr - delta) / grown, 1.0 - delta - grown * (1.0 - tpr))
        return min(least, tpr)

    def advantage(self) -> float:
        """No test has a larger TPR - FPR: the total variation distance between the neighbours' models."""
        # TPR - FPR is concave in FPR, so the bound of each pair peaks where its two lines meet.
        found = 1.0
        for epsilon, delta in self.pairs:
            grown = math.exp(min(epsilon, 700.0))
            found = min(found, (grown - 1 + 2 * delta) / (grown + 1))
        return found

    def precision_at(self, fpr: float, *, prior: float) -> float:
        """How sure a yes can make the attacker: P[in | yes] for a share `prior` of the asked rows being in the data."""
        if not 0 < prior < 1:
            raise ValueError("a prior lies between 0 and 1")
        hits = prior * self.tpr_at(fpr)
        alarms = (1 - prior) * fpr
        return hits / (hits + alarms) if hits > 0 else prior

    def after(self, *, epsilon: float, delta: float) -> TradeOff:
        """The curve of this mechanism together with another one that is (epsilon, delta): basic composition."""
        return TradeOff(tuple((one + epsilon, min(1.0, other + delta)) for one, other in self.pairs))


def of_steps(steps: GaussianSteps, *, replace_one: bool = False, discretisation: str = FINE) -> TradeOff:
    """The curve of Poisson-sampled Gaussian steps from their privacy-loss distribution; raises CertificateError."""
    loss = privacy_loss(steps, replace_one=replace_one, discretisation=discretisation)
    top = min(700.0, max(1.0, float(loss.get_epsilon_for_delta(_SMALLEST_DELTA))))
    epsilons = [top * index / _POINTS for index in range(_POINTS + 1)]
    deltas = loss.get_delta_for_epsilon(epsilons)
    return TradeOff(tuple((one, min(1.0, max(0.0, float(other)))) for one, other in zip(epsilons, deltas, strict=True)))


def of_gaussian(mu: float) -> TradeOff:
    """The curve of the Gaussian mechanism: N(0, 1) against N(mu, 1)."""
    top = mu * mu / 2 + 8 * mu
    epsilons = [top * index / _POINTS for index in range(_POINTS + 1)]
    return TradeOff(tuple((one, gaussian_delta(mu, one)) for one in epsilons))


def of_pair(*, epsilon_micro: int, delta: str) -> TradeOff:
    """The weakest curve that a stated (epsilon, delta) allows, when nothing else is known of the mechanism."""
    return TradeOff(((epsilon_micro / MICRO, float(delta)),))
