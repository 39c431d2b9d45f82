"""Clip factors: how much of each unit's gradient enters the sum, so that none contributes more than C in L2 norm.

Squared norms are summed in float64 whatever the gradients are. Factors are a hair smaller than C / norm (`SLACK`), so
that the rounding of factor and product in the gradients' own type does not lift a contribution above C.
Trusts: squared norms that belong to the gradients to be scaled. Never: looks at the size of a batch.
"""

from __future__ import annotations

import torch

SLACK = {torch.float32: 2.0**-21, torch.float64: 2.0**-50}
LARGEST = {torch.float32: 2.0**80, torch.float64: 2.0**500}
"""In clip norms: smaller factors would leave the numbers that have all their digits, here or in the product."""

CACHED_NUMBERS = 65_536


def square_norms(each: torch.Tensor) -> torch.Tensor:
    """Squared L2 norm of each unit's part: [u, ...] -> float64 [u]."""
    flat = each.flatten(1)
    norms = [torch.linalg.vector_norm(some, dim=1, dtype=torch.float64) for some in _in_cache(flat)]
    return (norms[0] if len(norms) == 1 else torch.cat(norms)).square()


def _in_cache(flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows at a time whose copies in float64 stay in a processor's cache."""
    if flat.numel() <= CACHED_NUMBERS or flat.device.type != "cpu":
        return (flat,)
    parts: tuple[torch.Tensor, ...] = torch.split(flat, max(1, CACHED_NUMBERS // flat.shape[1]))
    return parts


def clip_factors(squares: torch.Tensor, *, clip_norm: float, dtype: torch.dtype) -> torch.Tensor:
    """min(1, C / norm) of each unit, rounded towards zero: float64 [u] -> `dtype` [u]. Beyond `LARGEST`: zero."""
    norms = squares.sqrt()
    bound = clip_norm * (1.0 - SLACK[dtype])
    factors = (bound / norms).clamp_max_(1.0)
    return torch.where(norms <= clip_norm * LARGEST[dtype], factors, 0.0).to(dtype)  # no number: not true, either
