"""What an account allows an attacker at every rate of false alarms: the closest trade-off curve that is known for it.

Trusts: nothing. Never: gives a curve below the true one; where none is known, a single (epsilon, delta) is the curve.
"""

from __future__ import annotations

import math

from sealgate.certificate.accounting.account import Account, WithStatistics
from sealgate.certificate.accounting.objective import PerturbedObjective
from sealgate.certificate.accounting.releases import GaussianReleases
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.recompute import GaussianSteps
from sealgate.certificate.tradeoff import TradeOff, of_gaussian, of_pair, of_steps


def curve_of(account: Account) -> TradeOff:
    """The curve for adding or removing a unit; raises CertificateError."""
    match account:
        case GaussianSteps():
            return of_steps(account)
        case GaussianReleases(mu_squared=square, steps=()):
            return of_gaussian(math.sqrt(float(square)))
        case PerturbedObjective():
            gaussian = of_gaussian(MICRO / account.sigma_micro)
            return gaussian.after(epsilon=account.determinant_cost(), delta=account.output_delta())
        case WithStatistics():
            spent = float(account.delta) - float(account.account.delta)
            return curve_of(account.account).after(epsilon=account.statistics_micro / MICRO, delta=spent)
    return of_pair(epsilon_micro=account.epsilon().add_remove_micro, delta=account.delta)
