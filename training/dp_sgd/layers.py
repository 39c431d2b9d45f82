"""For each kind of layer: from what went in and the gradient at what came out, the contributions to its parameters.

Linear layers on [m, d] and [m, ..., d], convolutions in one and two dimensions, embeddings, layer, group and RMS norm.
Attention and recurrent cells are made of these. m rows are `places` rows for each of u units: rows of one unit are
folded into the places (m = u * places), so a person or an example with its augmentations is one gradient.

Trusts: that the first dimension counts rows, which `choice` checks against a loop. Never: mixes two rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from opacus.layers.dp_rnn import RNNLinear
from torch import nn
from torch.nn import functional

from training.dp_sgd.contributions import Contribution, Direct, Lookup, Outer

Parts: TypeAlias = Iterator[tuple[torch.Tensor, Contribution]]
Rule: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor, int], Parts]


def _folded(values: torch.Tensor, rows: int) -> torch.Tensor:
    """[m, T, d] -> [u, rows T, d]: all rows of a unit beside each other."""
    return values if rows == 1 else values.reshape(len(values) // rows, -1, values.shape[2])


def _summed(values: torch.Tensor, rows: int) -> torch.Tensor:
    """[m, ...] -> [u, ...]: the sum over a unit's rows."""
    return values if rows == 1 else values.reshape(len(values) // rows, rows, *values.shape[1:]).sum(dim=1)


def _linear(layer: nn.Linear, before: torch.Tensor, behind: torch.Tensor, rows: int) -> Parts:
    before = before.reshape(len(before), -1, before.shape[-1])  # [m, T, d]
    behind = behind.reshape(len(behind), -1, behind.shape[-1])  # [m, T, p]
    weight = Outer(_folded(before, rows), _folded(behind, rows), layer.weight.shape)
    yield layer.weight, weight
    if layer.bias is not None and weight.behind.shape[1] == 1:
        yield layer.bias, Direct(behind[:, 0], beside=weight)
    elif layer.bias is not None:
        yield layer.bias, Direct(_summed(behind.sum(dim=1), rows))


def _convolution(layer: nn.Conv1d | nn.Conv2d, before: torch.Tensor, behind: torch.Tensor, rows: int) -> Parts:
    windows = _windows(layer, before, behind.shape[2:])  # [m, T, d]
    behind = behind.flatten(2)  # [m, p, T]
    if layer.groups == 1:
        places = behind.transpose(1, 2)
        yield layer.weight, Outer(_folded(windows, rows), _folded(places, rows), layer.weight.shape)
    else:
        count = len(windows) * layer.groups
        apart = windows.view(*windows.shape[:2], layer.groups, -1).transpose(1, 2)
        product = torch.bmm(behind.reshape(count, -1, behind.shape[2]), apart.reshape(count, *apart.shape[2:]))
        yield layer.weight, Direct(_summed(product.view(len(windows), *layer.weight.shape), rows))
    if layer.bias is not None:
        yield layer.bias, Direct(_summed(behind.sum(dim=2), rows))


def _windows(layer: nn.Conv1d | nn.Conv2d, before: torch.Tensor, places: torch.Size) -> torch.Tensor:
    """What each place of the output saw: [m, T, d]. A view copied once is twice as fast as torch's `unfold`."""
    padded = functional.pad(before, _padding(layer)).contiguous()
    (rows, channels), strides = padded.shape[:2], padded.stride()
    steps = [size * by for size, by in zip(strides[2:], layer.stride, strict=True)]
    inside = [size * by for size, by in zip(strides[2:], layer.dilation, strict=True)]
    view = padded.as_strided(
        (rows, *places, channels, *layer.kernel_size),
        (strides[0], *steps, strides[1], *inside),
        padded.storage_offset(),
    )
    return view.reshape(rows, math.prod(places), -1)


def _padding(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Zeros to put before and behind each dimension, the last one first (as `functional.pad` wants them)."""
    sides: list[int] = []
    for index in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":
            total = layer.dilation[index] * (layer.kernel_size[index] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [0, 0] if layer.padding == "valid" else [int(layer.padding[index])] * 2
    return sides


def _embedding(layer: nn.Embedding, before: torch.Tensor, behind: torch.Tensor, rows: int) -> Parts:
    tokens = before.reshape(len(before), -1, 1)  # [m, T, 1]
    behind = behind.reshape(len(behind), tokens.shape[1], -1)  # [m, T, d]
    if layer.padding_idx is not None:
        behind = behind * (tokens != layer.padding_idx)
    yield layer.weight, Lookup(_folded(tokens, rows)[:, :, 0], _folded(behind, rows), layer.weight.shape)


def _layer_norm(layer: nn.LayerNorm, before: torch.Tensor, behind: torch.Tensor, rows: int) -> Parts:
    yield from _scaled(
        layer,
        functional.layer_norm(before, layer.normalized_shape, eps=layer.eps),
        behind,
        rows,
    )


def _rms_norm(layer: nn.RMSNorm, before: torch.Tensor, behind: torch.Tensor, rows: int) -> Parts:
    yield from _scaled(layer, functional.rms_norm(before, layer.normalized_shape, eps=layer.eps), behind, rows)


def _scaled(layer: Any, normal: torch.Tensor, behind: torch.Tensor, rows: int) -> Parts:
    places = (-1, math.prod(layer.normalized_shape))
    for parameter, values in ((layer.weight, behind * normal), (getattr(layer, "bias", None), behind)):
        if parameter is not None:
            each = values.reshape(len(values), *places).sum(dim=1).view(len(values), *parameter.shape)
            yield parameter, Direct(_summed(each, rows))


def _group_norm(layer: nn.GroupNorm, before: torch.Tensor, behind: torch.Tensor, rows: int) -> Parts:
    normal = functional.group_norm(before, layer.num_groups, eps=layer.eps)
    for parameter, values in ((layer.weight, behind * normal), (layer.bias, behind)):
        if parameter is not None:
            yield parameter, Direct(_summed(values.reshape(*values.shape[:2], -1).sum(dim=2), rows))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    RNNLinear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
}


def unsupported(layer: nn.Module) -> str:
    """Why a layer with parameters of its own has no rule here; empty if it has one."""
    if type(layer) not in RULES:
        return f"{type(layer).__name__} has parameters of its own that book-keeping has no rule for"
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros":
        return f"convolutions padded with '{layer.padding_mode}' have no rule in book-keeping"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        return "embeddings that rescale their rows or gradients have no rule in book-keeping"
    return ""
