"""What was run on the private rows: the mechanisms that a certificate can describe, one structure each.

Each has exactly the public constants from which its epsilon follows; `accounting` turns them into figures. Integers
and texts, never floats: sigmas and norms are millionths.

    dp-sgd                   noisy sums of clipped gradients of sampled rows     Abadi et al. 2016
    adassp                   noisy sufficient statistics, linear regression      Wang 2018
    objective-perturbation   a noisy convex objective, logistic regression       Kifer, Smith, Thakurta 2012
    gap-aggregation          noisy sums over neighbours in a graph               Sajadmanesh et al. 2023

Trusts: nothing. Never: says what may be accepted; that is `claims.py`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a certificate: immutable, no unknown fields, keywords only."""


class Rate(Part, frozen=True):
    """A sampling probability as a fraction in (0, 1]."""

    numerator: int
    denominator: int


class Sampling(Part, frozen=True):
    """How units enter a step. `constants` says where rate, steps and divisor come from: only "public" is accepted.

    `sampler` is "poisson" (each unit enters each step independently with probability `rate`) or "full-batch" (all
    units enter each step: rate one).
    """

    sampler: str
    rate: Rate
    steps_declared: int
    steps_executed: int
    divisor_micro: int  # what the noisy sum is divided by: rate times the public population, never the batch's size
    constants: str


class Clipping(Part, frozen=True):
    """What one unit can add to a sum: a vector of L2 norm at most `norm_micro`.

    `kind` is "per-example-flat" (the whole gradient of one row or graph) or "per-user-flat" (of all rows of a person
    together). Arithmetic may let the norm grow by `excess_ppb` billionths of itself: float32, or rounding to a grid.
    """

    kind: str
    norm_micro: int
    excess_ppb: int = 0
    rows_per_unit: int = 1  # at most so many rows of a unit enter a step; more than one only for users


class Noise(Part, frozen=True):
    """Gaussian noise of standard deviation sigma times the sensitivity, on every coordinate.

    `source` is where randomness comes from, `seed` is "fresh" (never written down) or anything else, which is refused.
    `arithmetic` is
      "float64-continuous"  values by `transform` "box-muller-4"; not secure against reading low bits (Mironov 2012)
      "grid-rounded"        single values ("box-muller"), and the noisy sum rounded to a public grid of 2^-`grid_bits`
                            standard deviations: the Gaussian mechanism processed further, but for what floating point
                            does to it, which is bounded and which a slightly larger noise pays for
      "grid-discrete"       sums rounded to a public grid of 2^-`grid_bits` clip norms, plus whole grid units of the
                            discrete Gaussian ("exact-discrete-gaussian": Canonne, Kamath and Steinke 2020)
    Discrete noise carries the figures of the continuous mechanism with this sigma: it has to be so much larger that
    rounding is covered, and a discrete Gaussian many grid units wide is, but for a statistical distance below 2^-900,
    the continuous one processed further (Peikert 2010, theorem 3.1).
    """

    sigma_micro: int
    source: str
    seed: str
    transform: str
    arithmetic: str
    grid_bits: int = 0  # 0 for noise that is not on a grid


class DpSgd(Part, frozen=True, tag_field="kind", tag="dp-sgd"):
    """`steps_executed` noisy sums of clipped gradients; sigma counts in clip norms."""

    sampling: Sampling
    clipping: Clipping
    noise: Noise


class AdaSsp(Part, frozen=True, tag_field="kind", tag="adassp"):
    """The least eigenvalue of X'X, X'X itself and X'y, each with Gaussian noise.

    Rows (with their intercept) are scaled to L2 norm at most B = `row_norm_micro`, targets lie in [-Y, Y] with
    Y = `target_bound_micro`. Sigmas count in the sensitivities of adding a row: B^2, B^2 and B Y.
    """

    row_norm_micro: int
    target_bound_micro: int
    eigenvalue: Noise
    gram: Noise
    moments: Noise


class ObjectivePerturbation(Part, frozen=True, tag_field="kind", tag="objective-perturbation"):
    """A minimum of: sum of losses + (lambda/2) |w|^2 + b'w with Gaussian b, found up to a gradient of norm gamma.

    Rows (with their intercept) have L2 norm at most B = `row_norm_micro`. `noise` is that of b, counted in B;
    `output` is added to the weights in millionths of their unit (not of a sensitivity) and hides how well the solver
    did (Iyengar et al. 2019).
    """

    loss: str  # "logistic"
    row_norm_micro: int
    regularisation_micro: int  # lambda
    gradient_tolerance: str  # gamma, decimal text
    noise: Noise
    output: Noise


class GapAggregation(Part, frozen=True, tag_field="kind", tag="gap-aggregation"):
    """`hops` sums of unit-norm vectors over each node's neighbours, each with Gaussian noise on every row.

    The unit is an undirected edge (two rows of each sum change by at most one) or a node with at most `max_degree`
    neighbours (so many rows change by at most one, and its own by all that it holds: at most `max_degree`, or
    `sum_norm_micro` where each row is scaled down to that norm before the noise). `encoder` and `classifier` are DP-SGD
    over nodes, needed where the unit is a node. `serving` says what of the graph the served model reads:
    "noised-aggregates" or "nothing".
    """

    hops: int
    max_degree: int
    noise: Noise
    encoder: DpSgd | None
    classifier: DpSgd | None
    serving: str
    sum_norm_micro: int = 0  # 0: sums are not scaled down


Mechanism: TypeAlias = DpSgd | AdaSsp | ObjectivePerturbation | GapAggregation


def name_of(mechanism: Mechanism) -> str:
    """The mechanism's tag, as people read it."""
    return str(mechanism.__struct_config__.tag)


def noises_of(mechanism: Mechanism) -> tuple[Noise, ...]:
    """Every noise that the mechanism adds: all of them must be fresh."""
    match mechanism:
        case DpSgd(noise=noise):
            return (noise,)
        case AdaSsp(eigenvalue=eigenvalue, gram=gram, moments=moments):
            return (eigenvalue, gram, moments)
        case ObjectivePerturbation(noise=noise, output=output):
            return (noise, output)
        case GapAggregation(noise=noise, encoder=encoder, classifier=classifier):
            return (noise, *(part.noise for part in (encoder, classifier) if part is not None))
