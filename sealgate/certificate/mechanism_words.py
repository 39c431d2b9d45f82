"""A mechanism's constants in words, for `sealgate models show` and the card.

Trusts: that the mechanism was checked. Never: says that a constant is good.
"""

from __future__ import annotations

from collections.abc import Iterator

from sealgate.certificate.decimals import micro_text
from sealgate.certificate.mechanisms import (
    AdaSsp,
    DpSgd,
    GapAggregation,
    Mechanism,
    Noise,
    ObjectivePerturbation,
    noises_of,
)


def mechanism_lines(mechanism: Mechanism) -> list[str]:
    """A few lines, the last of which says where the noise came from."""
    noise = noises_of(mechanism)[0]
    return [*_constants(mechanism), _noise(noise)]


def _noise(noise: Noise) -> str:
    unit = "standard deviations" if noise.arithmetic == "grid-rounded" else "clip norms"
    grid = f", grid of 2^-{noise.grid_bits} {unit}" if noise.grid_bits else ""
    return f"noise {noise.source}, {noise.transform}, {noise.arithmetic}{grid}"


def _constants(mechanism: Mechanism) -> Iterator[str]:
    match mechanism:
        case DpSgd():
            yield _steps(mechanism)
        case AdaSsp():
            sigmas = ", ".join(
                micro_text(noise.sigma_micro) for noise in (mechanism.eigenvalue, mechanism.gram, mechanism.moments)
            )
            yield (
                f"rows of norm at most {micro_text(mechanism.row_norm_micro)}, targets within "
                f"{micro_text(mechanism.target_bound_micro)}; sigma of eigenvalue, X'X and X'y: {sigmas}"
            )
        case ObjectivePerturbation():
            yield (
                f"{mechanism.loss} loss, rows of norm at most {micro_text(mechanism.row_norm_micro)}, lambda "
                f"{micro_text(mechanism.regularisation_micro)}, sigma {micro_text(mechanism.noise.sigma_micro)}; "
                f"solved to a gradient of {mechanism.gradient_tolerance}"
            )
        case GapAggregation():
            yield (
                f"{mechanism.hops} noisy sums over at most {mechanism.max_degree} neighbours{_scaled(mechanism)}, "
                f"sigma {micro_text(mechanism.noise.sigma_micro)}; the served model reads {mechanism.serving} of the "
                "graph"
            )
            for what, part in (("encoder", mechanism.encoder), ("classifier", mechanism.classifier)):
                if part is not None:
                    yield f"{what}: {_steps(part)}"


def _scaled(mechanism: GapAggregation) -> str:
    norm = mechanism.sum_norm_micro
    return f" scaled down to norm {micro_text(norm)}" if norm else ""


def _steps(mechanism: DpSgd) -> str:
    sampling, clipping = mechanism.sampling, mechanism.clipping
    return (
        f"{sampling.sampler} sampling, rate {sampling.rate.numerator}/{sampling.rate.denominator}, "
        f"{sampling.steps_executed} of {sampling.steps_declared} steps, clip norm {micro_text(clipping.norm_micro)} "
        f"{clipping.kind}, sigma {micro_text(mechanism.noise.sigma_micro)}"
    )
