"""The parameterised layers that families are put together from, made without a draw from torch's generator.

Weights and biases are zero and normalisations do nothing until a trainer or a bundle fills them. Each is of a type
whose per-example gradients are known (linear, embedding, layer normalisation): nothing here hides a bare parameter.
Never: draws random numbers.
"""

from __future__ import annotations

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def linear(width_in: int, width_out: int) -> nn.Linear:
    """[..., width_in] -> [..., width_out], all zero. torch's own initialisation is skipped: it would draw."""
    layer = nn.Linear(width_in, width_out, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def embedding(count: int, width: int) -> nn.Embedding:
    """int64 [...] below `count` -> [..., width], all zero."""
    return nn.Embedding(count, width, _weight=torch.zeros(count, width))


def layer_norm(width: int, *, epsilon: float = 1e-5) -> nn.LayerNorm:
    """[..., width] -> the same, each vector with mean zero and variance one (Ba et al. 2016), times one plus zero."""
    return nn.LayerNorm(width, eps=epsilon)


def masked_mean(steps: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean over the steps that are there: [n, T, width], bool [n, T] -> [n, width]. Zero where none is."""
    weights = present.to(steps.dtype).unsqueeze(-1)  # [n, T, 1]
    return (steps * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


def split_heads(steps: torch.Tensor, heads: int) -> torch.Tensor:
    """Side by side to one behind the other: [n, T, heads * d] -> [n, heads, T, d]."""
    count, length, width = steps.shape
    return steps.reshape(count, length, heads, width // heads).transpose(1, 2)
