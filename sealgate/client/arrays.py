"""Numbers in files of numpy's own format (NEP 1, `.npy`), read without numpy: volumes, signals, whatever is too much
for CSV or JSON.

Trusts: the model's sealed metadata for what its inputs are. Never: unpickles (arrays of objects are refused), converts,
or shows a value in an error.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.client.errors import UsageError
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.limits import MAX_INNER_MESSAGE
from sealgate.protocol.tensors import Tensor, check_tensor

if TYPE_CHECKING:
    from sealgate.client.metadata import ModelMetadata

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 64 * 1024
_DATATYPES = {
    "|b1": "BOOL",
    "|u1": "UINT8",
    "<u2": "UINT16",
    "<u4": "UINT32",
    "<u8": "UINT64",
    "|i1": "INT8",
    "<i2": "INT16",
    "<i4": "INT32",
    "<i8": "INT64",
    "<f2": "FP16",
    "<f4": "FP32",
    "<f8": "FP64",
}


@dataclass(frozen=True)
class Array:
    """One file. `called` is the input that it is for; "" for the model's only one."""

    path: Path
    called: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview = field(repr=False)


def read_array(named: str) -> Array:
    """`FILE.npy` or `INPUT=FILE.npy`; raises ConfigurationError or UsageError."""
    called, _, file = named.rpartition("=")
    path = Path(file)
    try:
        with path.open("rb") as opened:
            raw = opened.read(MAX_INNER_MESSAGE + _MAX_HEADER + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_INNER_MESSAGE + _MAX_HEADER:
        raise UsageError(f"{path} is more than one request can hold; send fewer rows at once")
    try:
        described, shape, data = _split(raw)
        descr, by_columns = described["descr"], described["fortran_order"] is not False
    except (ValueError, LookupError, TypeError, SyntaxError, MemoryError, RecursionError, struct.error) as error:
        raise UsageError(f"{path} is not an array of numbers as numpy.save writes it") from error
    if by_columns or not isinstance(descr, str) or descr not in _DATATYPES:
        raise UsageError(
            f"{path} holds {descr if isinstance(descr, str) else 'records'}{' in columns' if by_columns else ''}; "
            "save little-endian numbers row by row: numpy.save(file, numpy.ascontiguousarray(array))"
        )
    return Array(path, called, _DATATYPES[descr], shape, data)


def _split(raw: bytes) -> tuple[dict[str, object], tuple[int, ...], memoryview]:
    """The header, the shape that it says, and the numbers behind it."""
    if not raw.startswith(_MAGIC):
        raise ValueError
    form = "<H" if raw[6] == 1 else "<I"
    start = 8 + struct.calcsize(form)
    end = start + struct.unpack_from(form, raw, 8)[0]
    if raw[6] not in (1, 2, 3) or end > min(len(raw), start + _MAX_HEADER):
        raise ValueError
    described = ast.literal_eval(raw[start:end].decode("utf-8" if raw[6] == 3 else "latin-1").strip())
    if not isinstance(described, dict):
        raise TypeError
    shape = described["shape"]
    if not isinstance(shape, tuple) or not all(type(one) is int for one in shape):
        raise TypeError
    return described, shape, memoryview(raw)[end:]


def tensors_of(arrays: Sequence[Array], metadata: ModelMetadata) -> tuple[Tensor, ...]:
    """What the model takes of them; raises UsageError that names the file."""
    declared = {spec.name: spec for spec in metadata.inputs}
    found: dict[str, Tensor] = {}
    for one in arrays:
        name = one.called or (metadata.inputs[0].name if len(declared) == 1 else "")
        if name not in declared or name in found:
            raise UsageError(f"{one.path}: say which input it is, each once: INPUT=FILE with {', '.join(declared)}")
        wanted = declared[name]
        if one.datatype != wanted.datatype:
            raise UsageError(f"{one.path} holds {one.datatype}, but input '{name}' takes {wanted.datatype}")
        try:
            found[name] = check_tensor(Tensor(name, one.datatype, one.shape, one.data), "input")
        except DecodeError as error:
            raise UsageError(f"{one.path}: {error}") from error
    return tuple(found.values())
