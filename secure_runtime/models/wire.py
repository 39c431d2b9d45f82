"""Datatypes of the Open Inference Protocol and what torch holds them as: one table for training, serving and checks.

A manifest declares the datatype of each input, and the model computes in the arithmetic that it declares: between the
two stands the conversion of this table, the same for everybody. Each integer becomes one that torch computes with and
loses nothing; a UINT64 above 2**63 - 1 has no such place and is refused. BF16 has no type in numpy: torch reads it.

Trusts: nothing. Never: rounds; that is done once, by the model's own arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

HELD_AS: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.int32,
    "UINT32": torch.int64,
    "UINT64": torch.int64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BYTES": torch.int64,  # texts arrive as tokens
}
"""What an input of each datatype is to the code that prepares it."""

READ_AS: Mapping[str, torch.dtype] = {
    **{name: held for name, held in HELD_AS.items() if name != "BYTES"},
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
}
"""What its bytes on the wire are."""


def all_finite(values: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity. Their sum tells it in two steps instead of seven; where it is itself
    too large for the type, each is looked at."""
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())
