"""Models whose first part is fixed: what it makes of an example is computed once, and only the rest is trained.

The fixed part has nothing to learn and sees each example alone (`secure_runtime.models.architectures.parts_of`), so
clipped sums over its outputs are those of the whole model, many times faster. Trusts: that an example's features do not
depend on the others of its part. Never: keeps the features after the run.
"""

from __future__ import annotations

import torch
from torch import nn

from secure_runtime.models.architectures import parts_of
from training.dp_sgd.modes import Inputs
from training.limits import FIXED_ROWS


def fixed_first(module: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """The part of a module that is trained, sharing its weights, and its inputs in the type of those; module and inputs
    if nothing is fixed.
    """
    fixed, trained = parts_of(module)
    dtype = next(trained.parameters()).dtype
    if fixed is not None:
        with torch.no_grad():
            inputs = (_in_parts(fixed, inputs),)
    return trained, tuple(one.to(dtype) if one.is_floating_point() else one for one in inputs)


def _in_parts(fixed: nn.Module, inputs: Inputs) -> torch.Tensor:
    """[n, ...] each -> [n, features]"""
    count = len(inputs[0])
    first: torch.Tensor = fixed(*(one[:1] for one in inputs))
    features: torch.Tensor = first.new_empty((count, *first.shape[1:]))
    for start in range(0, count, FIXED_ROWS):
        part = slice(start, start + FIXED_ROWS)
        features[part] = fixed(*(one[part] for one in inputs))
    return features
