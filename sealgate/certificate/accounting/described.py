"""From the parts of a certificate to the account whose epsilon they make; refuses parts that cannot carry one.

Each mechanism has units that it can protect, and sums in which those units have bounded weight. What is checked here is
that what the certificate says adds up; what nobody but the trainer could see is the business of the audit.

Trusts: nothing. Never: looks at the epsilon that is stated.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

from sealgate.certificate.accounting.account import Account, WithStatistics
from sealgate.certificate.accounting.objective import PerturbedObjective
from sealgate.certificate.accounting.releases import GaussianReleases, share
from sealgate.certificate.accounting.selection import BestOfRuns
from sealgate.certificate.decimals import MICRO, decimal_text
from sealgate.certificate.mechanisms import (
    AdaSsp,
    DpSgd,
    GapAggregation,
    Mechanism,
    ObjectivePerturbation,
    name_of,
)
from sealgate.certificate.recompute import GaussianSteps
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Certificate, Search
from sealgate.limits import MAX_CLIPPING_EXCESS_PPB, MAX_GRAPH_DEGREE, MAX_GRAPH_HOPS, MAX_NORM_MICRO, MAX_ROWS_PER_UNIT

_UNITS = {
    "dp-sgd": ("example", "user", "graph"),
    "adassp": ("example",),
    "objective-perturbation": ("example",),
    "gap-aggregation": ("edge", "node"),
}
_ONE_ROW = ("example", "graph")  # units that add one term to a sum over rows
_CLIPPING = {"example": "per-example-flat", "graph": "per-example-flat", "user": "per-user-flat"}
_PPB = 10**9


def account_of(certificate: Certificate) -> Account:
    """The account of everything that the certificate says was done; raises CertificateError."""
    name = name_of(certificate.mechanism)
    if certificate.unit not in _UNITS[name] or certificate.adjacency != "add-remove":
        raise refusal("mechanism", f"{name} with this unit and adjacency is not one that can be recomputed")
    preprocessing = certificate.preprocessing
    if certificate.unit not in _ONE_ROW and preprocessing.statistics == "dp":
        raise refusal("private-statistics", "statistics are counted for one row, which is not what a unit is here")
    if certificate.unit not in _ONE_ROW and certificate.selection.search is not None:
        raise refusal("selection-unaccounted", "a search's scores count rows, of which a unit may have several")
    whole = Decimal(certificate.delta)
    left = certificate.delta if preprocessing.statistics != "dp" else decimal_text(whole - Decimal(preprocessing.delta))
    account = _mechanism_account(certificate.mechanism, unit=certificate.unit, delta=left)
    if certificate.selection.search is not None:
        account = _search_account(account, certificate.selection.search)
    account.require_computable()
    if preprocessing.statistics == "dp":
        account = WithStatistics(
            account=account,
            statistics_micro=preprocessing.epsilon_micro,
            statistics_replace_one_micro=preprocessing.epsilon_replace_one_micro,
            delta=certificate.delta,
        )
        account.require_computable()
    return account


def _mechanism_account(mechanism: Mechanism, *, unit: str, delta: str) -> Account:
    match mechanism:
        case DpSgd():
            return steps_of(mechanism, clipping=_CLIPPING[unit], delta=delta)
        case AdaSsp():
            return _adassp(mechanism, delta)
        case ObjectivePerturbation():
            return _objective(mechanism, delta)
        case GapAggregation():
            return aggregation_releases(mechanism, unit=unit, delta=delta)


def steps_of(mechanism: DpSgd, *, clipping: str, delta: str) -> GaussianSteps:
    """The sampled Gaussian steps of DP-SGD, sigma counted in what a unit can really add; raises CertificateError."""
    bound, sampling = mechanism.clipping, mechanism.sampling
    if bound.kind != clipping or not 0 < bound.norm_micro <= MAX_NORM_MICRO:
        raise refusal("mechanism", f"what one unit adds to a sum is not bounded {clipping.replace('-flat', '')}")
    if not 0 <= bound.excess_ppb <= MAX_CLIPPING_EXCESS_PPB or not 1 <= bound.rows_per_unit <= MAX_ROWS_PER_UNIT:
        raise refusal("parameters-out-of-range", "the clipping's excess or rows per unit are out of range")
    if bound.rows_per_unit != 1 and clipping != "per-user-flat":
        raise refusal("mechanism", "only a person may have more than one row")
    rate = sampling.rate
    if not 0 < rate.numerator <= rate.denominator or math.gcd(rate.numerator, rate.denominator) != 1:
        raise refusal("parameters-out-of-range", "the sampling rate is not a reduced fraction in (0, 1]")
    return GaussianSteps(
        sigma_micro=mechanism.noise.sigma_micro * _PPB // (_PPB + bound.excess_ppb),
        rate=Fraction(rate.numerator, rate.denominator),
        steps=sampling.steps_declared,
        delta=delta,
    )


def _adassp(mechanism: AdaSsp, delta: str) -> GaussianReleases:
    if not (0 < mechanism.row_norm_micro <= MAX_NORM_MICRO and 0 < mechanism.target_bound_micro <= MAX_NORM_MICRO):
        raise refusal("parameters-out-of-range", "the bounds of rows and targets are out of range")
    sigmas = (mechanism.eigenvalue.sigma_micro, mechanism.gram.sigma_micro, mechanism.moments.sigma_micro)
    return adassp_releases(eigenvalue=sigmas[0], gram=sigmas[1], moments=sigmas[2], delta=delta)


def adassp_releases(*, eigenvalue: int, gram: int, moments: int, delta: str) -> GaussianReleases:
    """The releases of AdaSSP with these sigmas in millionths; raises CertificateError for sigmas out of range."""
    return GaussianReleases(
        mu_squared=share(eigenvalue) + share(gram) + share(moments),
        mu_squared_replace_one=share(eigenvalue) + share(gram, square=2) + share(moments, square=4),
        delta=delta,
    )


def _objective(mechanism: ObjectivePerturbation, delta: str) -> PerturbedObjective:
    if mechanism.loss != "logistic":
        raise refusal("mechanism", "objective perturbation is recomputed for the logistic loss only")
    return PerturbedObjective(
        row_norm_micro=mechanism.row_norm_micro,
        regularisation_micro=mechanism.regularisation_micro,
        sigma_micro=mechanism.noise.sigma_micro,
        gradient_tolerance=mechanism.gradient_tolerance,
        output_sigma_micro=mechanism.output.sigma_micro,
        delta=delta,
    )


def aggregation_releases(mechanism: GapAggregation, *, unit: str, delta: str) -> GaussianReleases:
    """GAP (Sajadmanesh et al. 2023), with the sensitivities of undirected graphs and unit-norm rows.

    An edge changes two rows of a sum by at most one each: square 2. A node with at most D neighbours changes D rows by
    at most one each; where the rows are served, its own is among them and holds a sum of norm at most D, or less where
    sums are scaled down to a norm (a projection onto a ball, which moves no two rows apart).
    """
    if mechanism.serving not in ("noised-aggregates", "nothing"):
        raise refusal("serving-leaks", "the served model reads neighbours without aggregation noise")
    if not (0 < mechanism.hops <= MAX_GRAPH_HOPS and 0 < mechanism.max_degree <= MAX_GRAPH_DEGREE):
        raise refusal("parameters-out-of-range", "hops or degree are out of range")
    if not 0 <= mechanism.sum_norm_micro <= MAX_NORM_MICRO:
        raise refusal("parameters-out-of-range", "the norm of sums is out of range")
    parts = [part for part in (mechanism.encoder, mechanism.classifier) if part is not None]
    if unit == "node" and len(parts) != 2:
        raise refusal("mechanism", "protecting nodes needs an encoder and a classifier trained with DP-SGD")
    degree = mechanism.max_degree
    own = min(Fraction(degree), Fraction(mechanism.sum_norm_micro, MICRO)) if mechanism.sum_norm_micro else degree
    square = 2 if unit == "edge" else degree + (own**2 if mechanism.serving != "nothing" else 0)
    one = share(mechanism.noise.sigma_micro, square=square * mechanism.hops)
    # Replacing an edge is removing one and adding another. Where both end at one node, its row may change by two, and
    # two other rows by one each: square 6. A node: twice of everything, squared.
    again = 3 if unit == "edge" else 4
    steps = tuple(steps_of(part, clipping="per-example-flat", delta=delta) for part in parts if unit == "node")
    return GaussianReleases(mu_squared=one, mu_squared_replace_one=again * one, delta=delta, steps=steps)


def _search_account(account: Account, search: Search) -> BestOfRuns:
    if not isinstance(account, GaussianSteps):
        raise refusal("selection-unaccounted", "a search is accounted for runs of DP-SGD with continuous noise only")
    return BestOfRuns(
        run=account,
        score_sigma_micro=search.noise.sigma_micro,
        mean_trials=Fraction(search.trials_mean_micro, MICRO),
        shape=search.shape,
    )
