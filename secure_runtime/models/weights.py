"""From the verified bytes of a bundle's weights to a module: plain, in bfloat16, or in int8.

Trusts: the checked manifest. Never: unpickles, or takes a tensor that the manifest does not declare.
"""

from __future__ import annotations

import torch
from torch import nn

from sealgate.certificate.architectures import Architecture
from sealgate.certificate.compression import (
    BF16_DTYPE,
    FP32_DTYPE,
    INT8,
    INT8_DTYPE,
    SCALE,
    Compression,
    expected_tensors,
)
from sealgate.certificate.refusals import refusal
from sealgate.certificate.weights import COMPRESSED, PLAIN, Place, parse_weights_header
from secure_runtime.models.architectures import build
from secure_runtime.models.int8 import LARGEST, replace_linear

_DTYPES = {FP32_DTYPE: torch.float32, BF16_DTYPE: torch.bfloat16, INT8_DTYPE: torch.int8}


def module_from_weights(
    architecture: Architecture, weights: bytes, *, compression: Compression | None = None
) -> nn.Module:
    """Build the module and fill it from the bytes of a safetensors file; raises CertificateError if they do not fit."""
    module = build(architecture)
    parameters = dict(module.state_dict(keep_vars=True))
    places = parse_weights_header(weights, dtypes=COMPRESSED if compression else PLAIN)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if {name: (place.dtype, place.shape) for name, place in places.items()} != expected_tensors(shapes, compression):
        raise refusal("weights-shape", "the tensors are not those of the declared architecture")
    stored: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        for name, parameter in parameters.items():
            values = _tensor(weights, places[name])
            if values.dtype == torch.int8:
                scale = _scale(weights, places[name + SCALE])
                stored[name] = (values, scale)
                if bool((values < -LARGEST).any()):
                    raise refusal("weights-shape", f"a whole number lies outside -{LARGEST} to {LARGEST}")
                values = values.to(torch.float32) * scale.reshape(-1, *(1,) * (values.ndim - 1))
            if not bool(torch.isfinite(values).all()):
                raise refusal("weights-shape", "a weight is not a finite number")
            parameter.copy_(values)
    if compression is not None and compression.kind == INT8:
        replace_linear(module, stored)
    return module


def _tensor(weights: bytes, place: Place) -> torch.Tensor:
    # A bytearray, because torch warns about memory that it must not write to.
    raw = bytearray(memoryview(weights)[place.start : place.end])
    return torch.frombuffer(raw, dtype=_DTYPES[place.dtype]).reshape(place.shape)


def _scale(weights: bytes, place: Place) -> torch.Tensor:
    scale = _tensor(weights, place)
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise refusal("weights-shape", "a scale of whole numbers is not a positive number")
    return scale
