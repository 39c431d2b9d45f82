"""What the claim allows an attacker: its trade-off between false and true accusations.

For two neighbouring data sets any attack obeys TPR <= exp(e) * FPR + delta(e) for every e at once (Kairouz, Oh and
Viswanath 2015; Dong, Roth and Su 2022). `delta(e)` comes from dp-accounting's privacy-loss distribution, as the
certificate's epsilon does, and is an upper bound; both directions of add-remove are covered. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from sealgate.certificate.decimals import MICRO
from sealgate.certificate.recompute import COARSE, GaussianSteps


def delta_curve(claim: GaussianSteps, epsilons: Sequence[float]) -> list[float]:
    """delta(e) of the claimed mechanism for each e >= 0; raises CertificateError for what cannot be computed."""
    from dp_accounting.pld import privacy_loss_distribution

    claim.require_computable()
    loss = privacy_loss_distribution.from_gaussian_mechanism(
        claim.sigma_micro / MICRO,
        value_discretization_interval=float(COARSE),
        sampling_prob=float(claim.rate),
    )
    composed = loss.self_compose(claim.steps)
    return [float(composed.get_delta_for_epsilon(epsilon)) for epsilon in epsilons]
