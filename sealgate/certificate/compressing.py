"""From the weights of a verified bundle to fewer bits, without looking at data: post-processing of what was certified.

Everything is single IEEE operations on FP32 numbers (a maximum, a division, a rounding to even), so the same weights
give the same bytes on every machine: whoever has the original can make the compressed file again and compare
(`sealgate models verify --original`). No calibration: ranges that were taken from rows would be one more release.

    int8   scale = max |w| / 127 over one row of the first axis; q = w / scale, rounded to even (symmetric)
    bf16   the nearest bfloat16, ties to even

Trusts: weights that were verified. Never: draws a random number or reads a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sealgate.certificate.compression import (
    BF16,
    BF16_DTYPE,
    FP32_DTYPE,
    INT8_DTYPE,
    SCALE,
    is_compressed,
)
from sealgate.certificate.refusals import refusal
from sealgate.certificate.weights import Stored, parse_weights_header, weights_file

LARGEST = 127  # of the magnitudes of int8: -128 is left out, so that a weight and its negative fare alike


def int8_rows(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """[rows, ...] -> whole numbers of the same shape, and one scale per row. A row of zeros has scale one."""
    flat = weights.reshape(len(weights), -1)
    scale = np.abs(flat).max(axis=1) / np.float32(LARGEST)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    whole = np.clip(np.rint(flat / scale[:, None]), -LARGEST, LARGEST).astype(np.int8)
    return whole.reshape(weights.shape), scale


def bf16_bits(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 (ties to even); raises CertificateError where that would be infinite."""
    bits = weights.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    if bool(((rounded & np.uint32(0x7F80)) == np.uint32(0x7F80)).any()):
        raise refusal("weights-shape", "a weight is too large for bfloat16")
    return rounded.astype(np.uint16)


def compress_weights(weights: bytes, kind: str) -> bytes:
    """The compressed safetensors file of a plain one; raises CertificateError for a file that is not plain FP32."""
    stored: dict[str, Stored] = {}
    for name, place in sorted(parse_weights_header(weights).items()):
        raw = weights[place.start : place.end]
        if not is_compressed(place.shape):
            stored[name] = Stored(FP32_DTYPE, place.shape, raw)
            continue
        values = np.frombuffer(raw, dtype="<f4").reshape(place.shape).astype(np.float32)
        if not bool(np.isfinite(values).all()):
            raise refusal("weights-shape", "a weight is not a finite number")
        stored.update(_tensor(name, values, kind))
    return weights_file(stored)


def _tensor(name: str, values: NDArray[np.float32], kind: str) -> Mapping[str, Stored]:
    if kind == BF16:
        return {name: Stored(BF16_DTYPE, values.shape, bf16_bits(values).astype("<u2").tobytes())}
    whole, scale = int8_rows(values)
    return {
        name: Stored(INT8_DTYPE, values.shape, whole.tobytes()),
        name + SCALE: Stored(FP32_DTYPE, scale.shape, scale.astype("<f4").tobytes()),
    }
