"""The header of a safetensors file, parsed strictly and without any library: JSON that says where each tensor lies.

Accepted is exactly what the manifest demands: the same names, datatypes and shapes, laid end to end with nothing
before, between or after. All is FP32, but for compressed weights, which only who asks for them is given. So nothing can
hide in the file, and the loader has nothing left to decide.

Trusts: nothing. Never: interprets the numbers themselves.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sealgate.certificate.refusals import refusal
from sealgate.limits import MAX_WEIGHTS, MAX_WEIGHTS_HEADER, MAX_WEIGHTS_TENSORS
from sealgate.protocol.canonical import canonical_json

PLAIN = ("F32",)
COMPRESSED = ("F32", "BF16", "I8")
_BYTES = {"F32": 4, "BF16": 2, "I8": 1}  # of one number
_ALIGNED = 8  # the header's length is a multiple of it


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in the file: byte positions from its beginning."""

    shape: tuple[int, ...]
    start: int
    end: int
    dtype: str = "F32"


@dataclass(frozen=True)
class Stored:
    """One tensor to be written: `data` are its numbers, little-endian, row by row."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def weights_file(tensors: Mapping[str, Stored]) -> bytes:
    """A safetensors file of these tensors, in their order: the same tensors always give the same bytes."""
    entries: dict[str, object] = {}
    end = 0
    for name, one in tensors.items():
        entries[name] = {"data_offsets": [end, end + len(one.data)], "dtype": one.dtype, "shape": list(one.shape)}
        end += len(one.data)
    header = canonical_json(entries)
    header += b" " * (-len(header) % _ALIGNED)
    return b"".join((struct.pack("<Q", len(header)), header, *(one.data for one in tensors.values())))


def parse_weights_header(data: bytes, *, dtypes: Collection[str] = PLAIN) -> dict[str, Place]:
    """The tensors of a whole file by name; raises CertificateError. Other datatypes than FP32 only where asked for."""
    if len(data) > MAX_WEIGHTS:
        raise refusal("file-too-large", "the weights are larger than a bundle may hold")
    if len(data) < 8:
        raise refusal("weights-header", "the weights file is too short")
    (size,) = struct.unpack_from("<Q", data)
    if size > MAX_WEIGHTS_HEADER or 8 + size > len(data):
        raise refusal("weights-header", "the weights header is larger than the file or the limit")
    try:
        header: dict[str, Any] = msgspec.json.decode(data[8 : 8 + size], type=dict[str, Any])
        # __metadata__ is the format's only other key; nothing of ours needs it, so nothing may hide in it.
        entries = {name: msgspec.convert(value, _Entry) for name, value in header.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise refusal("weights-header", "the weights header is not the JSON of a safetensors file") from error
    if not 0 < len(entries) <= MAX_WEIGHTS_TENSORS:
        raise refusal("weights-header", "the weights file holds no tensors, or too many")
    end = 0
    for entry in sorted(entries.values(), key=lambda one: one.data_offsets):
        count = 1
        for side in entry.shape:
            count *= side
            if side <= 0 or count > MAX_WEIGHTS:
                raise refusal("weights-header", "a tensor's shape is out of range")
        length = count * _BYTES.get(entry.dtype, 0)
        if entry.dtype not in dtypes or entry.data_offsets != (end, end + length):
            raise refusal("weights-header", f"the tensors are not {' or '.join(dtypes)} laid end to end")
        end += length
    if end != len(data) - 8 - size:
        raise refusal("weights-header", "the weights file has bytes that belong to no tensor")
    base = 8 + size
    return {
        name: Place(entry.shape, base + entry.data_offsets[0], base + entry.data_offsets[1], entry.dtype)
        for name, entry in entries.items()
    }


def frozen_digest(data: bytes, *, prefix: str, dtypes: Collection[str] = PLAIN) -> str:
    """Hex SHA-256 over the tensors of a whole file whose names begin with `prefix`; raises CertificateError.

    It is the digest of canonical JSON: each name with its shape and the SHA-256 of its numbers. So it does not depend
    on the order or the offsets in the file, and who has the published tensors computes the same.
    """
    found = {
        name: [list(place.shape), hashlib.sha256(memoryview(data)[place.start : place.end]).hexdigest()]
        for name, place in parse_weights_header(data, dtypes=dtypes).items()
        if name.startswith(prefix)
    }
    return hashlib.sha256(canonical_json(found)).hexdigest()
