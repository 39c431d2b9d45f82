"""Tensors of the Open Inference Protocol v2: name, datatype, shape, and raw little-endian bytes in row-major order.

Pure Python: no numpy, so that clients need none; `array` and `msgspec` do the work per element. BYTES elements are
each preceded by their length (u32, little endian), as in the protocol's binary extension.

Trusts nothing: a tensor made here has exactly the bytes that its datatype and shape call for. Error texts name the
tensor and what was expected, never a value; they are meant for the caller who sent it, inside the seal.
"""

from __future__ import annotations

import functools
import math
import re
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import (
    MAX_BINARY_ELEMENTS,
    MAX_NAME,
    MAX_PARAMETERS,
    MAX_TENSOR_ELEMENTS,
    MAX_TENSOR_RANK,
)

Parameter: TypeAlias = str | bool | int | float
Parameters: TypeAlias = Mapping[str, Parameter]


@dataclass(frozen=True)
class _Datatype:
    """`code` is that of `array`, for the datatypes that it has. `json` is the element's type in JSON."""

    size: int  # bytes per element; 0 for BYTES
    code: str
    json: type
    expected: str


def _integers(bits: int, code: str, *, signed: bool) -> _Datatype:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return _Datatype(bits // 8, code, int, f"integers from {low} to {high}")


_FLOATS = "finite numbers in the range of the datatype"
DATATYPES: Mapping[str, _Datatype] = {
    "BOOL": _Datatype(1, "", bool, "true or false"),
    "UINT8": _integers(8, "B", signed=False),
    "UINT16": _integers(16, "H", signed=False),
    "UINT32": _integers(32, "I", signed=False),
    "UINT64": _integers(64, "Q", signed=False),
    "INT8": _integers(8, "b", signed=True),
    "INT16": _integers(16, "h", signed=True),
    "INT32": _integers(32, "i", signed=True),
    "INT64": _integers(64, "q", signed=True),
    "FP16": _Datatype(2, "", float, _FLOATS),
    "FP32": _Datatype(4, "f", float, _FLOATS),
    "FP64": _Datatype(8, "d", float, _FLOATS),
    "BF16": _Datatype(2, "", float, _FLOATS),
    "BYTES": _Datatype(0, "", str, "strings"),
}
"""Every datatype of the protocol."""


class Tensor(msgspec.Struct, frozen=True):
    """One input or output. Made by `tensor_from_list` or by decoding, its data fits datatype and shape; made by hand,
    `check_tensor` says so, and every encoder asks it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview
    parameters: Parameters = {}

    def __repr__(self) -> str:
        return f"Tensor(name={self.name!r}, datatype={self.datatype!r}, shape={self.shape!r})"


def check_tensor(tensor: Tensor, role: str = "tensor") -> Tensor:
    """The same tensor, if its bytes are what its datatype and shape call for; raises DecodeError."""
    label = check_name(tensor.name, role)
    check_parameters(tensor.parameters, label)
    count = count_elements(label, tensor.datatype, tensor.shape, binary=True)
    data = memoryview(tensor.data).cast("B")
    size = DATATYPES[tensor.datatype].size
    if tensor.datatype == "BYTES":
        found = sum(1 for _ in _split_elements(label, data))
        if found != count:
            raise _expected(label, tensor.datatype, tensor.shape, f"{count} elements, got {found}")
    elif len(data) != count * size:
        raise _expected(label, tensor.datatype, tensor.shape, f"{count * size} bytes, got {len(data)}")
    elif tensor.datatype == "BOOL" and bytes(data).translate(None, b"\x00\x01"):
        raise _expected(label, tensor.datatype, tensor.shape, "bytes that are 0 or 1")
    return tensor


def tensor_from_list(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Tensor:
    """A tensor of Python values: a flat list in row-major order, or lists nested like `shape`.

    BOOL takes bool, integers int, floats finite float or int, BYTES str (as UTF-8) or bytes. Raises DecodeError.
    """
    label = check_name(name, "tensor")
    shape = tuple(shape)
    count_elements(label, datatype, shape)
    if not isinstance(values, list | tuple):
        raise _expected(label, datatype, shape, "a list")
    flat = _flatten(label, datatype, shape, values)
    json = DATATYPES[datatype].json
    allowed: set[type] = {int, float} if json is float else {str, bytes} if json is str else {json}
    if not set(map(type, flat)) <= allowed:
        raise _expected(label, datatype, shape, DATATYPES[datatype].expected)
    return Tensor(name, datatype, shape, _pack(label, datatype, shape, flat))


def tensor_from_json(label: str, name: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> Tensor:
    """A tensor of the JSON array in `raw`, flat or nested. Numbers beyond JSON (NaN, Infinity) are refused."""
    count_elements(label, datatype, shape)
    leading = _OPENING.match(raw)
    depth = leading.group().count(b"[") if leading else 0
    if depth not in (1, len(shape)) or depth == 0:
        raise _expected(label, datatype, shape, f"a flat list or one nested {len(shape)} deep")
    try:
        values = _list_decoder(DATATYPES[datatype].json, depth).decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError) as error:
        raise _expected(label, datatype, shape, DATATYPES[datatype].expected) from error
    return Tensor(name, datatype, shape, _pack(label, datatype, shape, _flatten(label, datatype, shape, values)))


def tensor_from_flat(label: str, name: str, datatype: str, shape: tuple[int, ...], values: list[Any]) -> Tensor:
    """A tensor of a flat list whose elements are known to be of `json_type(datatype)`. Raises DecodeError."""
    if count_elements(label, datatype, shape) != len(values):
        raise _expected(label, datatype, shape, f"{math.prod(shape)} values, got {len(values)}")
    return Tensor(name, datatype, shape, _pack(label, datatype, shape, values))


def tensor_to_list(tensor: Tensor, *, nested: bool = False) -> list[Any]:
    """The values: flat in row-major order, or nested like the shape. BYTES elements are `bytes`."""
    check_tensor(tensor)
    values = _unpack(tensor.datatype, memoryview(tensor.data).cast("B"))
    return _nest(values, tensor.shape) if nested else values


# Bounds and rules -----------------------------------------------------------------------------------------------------

_OPENING = re.compile(rb"[\[ \t\r\n]*")


@functools.cache
def _list_decoder(element: type, depth: int) -> msgspec.json.Decoder[Any]:
    wanted: Any = element
    for _ in range(depth):
        wanted = list[wanted]
    return msgspec.json.Decoder(wanted)


def check_name(name: str, role: str) -> str:
    """How errors call a tensor: its role and, if it is fit to be printed, its name. Raises DecodeError if it is not."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise DecodeError(f"{role}: a name must have 1 to {MAX_NAME} printable characters")
    return f"{role} '{name}'"


def check_parameters(parameters: Parameters, label: str) -> None:
    """Parameters are few, and strings, booleans or finite numbers; integers fit into 64 bits."""
    if not parameters:
        return
    if len(parameters) > MAX_PARAMETERS:
        raise DecodeError(f"{label}: more than {MAX_PARAMETERS} parameters")
    if not all(map(_is_parameter, parameters.values())):
        raise DecodeError(f"{label}: parameters must be strings, booleans or finite numbers")


def _is_parameter(value: object) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, str)


def count_elements(label: str, datatype: str, shape: Sequence[int], *, binary: bool = False) -> int:
    """How many elements a known datatype and a shape within bounds call for. `binary`: the numbers come as they are
    held, and are not made one by one."""
    if datatype not in DATATYPES:
        raise DecodeError(f"{label}: unknown datatype; known are {', '.join(DATATYPES)}")
    malformed = len(shape) > MAX_TENSOR_RANK
    for size in shape:
        malformed = malformed or type(size) is not int or size < 0
    if malformed:
        raise DecodeError(f"{label}: a shape must be at most {MAX_TENSOR_RANK} sizes, none negative")
    most = MAX_BINARY_ELEMENTS if binary and datatype != "BYTES" else MAX_TENSOR_ELEMENTS
    count = 1
    for size in shape:
        # Bounded at every step, sizes of 0 included: products stay small, and nothing is hidden behind a 0.
        count *= max(size, 1)
        if count > most:
            raise DecodeError(f"{label}: more than {most} elements")
    return 0 if 0 in shape else count


def _expected(label: str, datatype: str, shape: Sequence[int], what: str) -> DecodeError:
    return DecodeError(f"{label}: expected {datatype} data of shape [{', '.join(map(str, shape))}]: {what}")


def _flatten(label: str, datatype: str, shape: tuple[int, ...], values: Sequence[Any]) -> list[Any]:
    """All elements in row-major order; `values` is flat, or nested exactly like `shape`."""
    count = math.prod(shape)
    lists = {list, tuple}
    if len(shape) > 1 and len(values) and type(values[0]) in lists:
        level: list[Any] = [values]
        for size in shape:
            if not set(map(type, level)) <= lists or not set(map(len, level)) <= {size}:
                raise _expected(label, datatype, shape, "lists nested like the shape")
            level = list(chain.from_iterable(level))
    else:
        level = values if isinstance(values, list) else list(values)
    if len(level) != count:
        raise _expected(label, datatype, shape, f"{count} values, got {len(level)}")
    return level


def _nest(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The inverse of `_flatten`: groups from the innermost dimension outwards."""
    for axis in range(len(shape) - 1, 0, -1):
        size, groups = shape[axis], math.prod(shape[:axis])
        values = [values[index * size : (index + 1) * size] for index in range(groups)]
    return values


# Elements to bytes and back -------------------------------------------------------------------------------------------


def _pack(label: str, datatype: str, shape: tuple[int, ...], flat: list[Any]) -> bytes:
    """Raw bytes of elements whose types were checked; raises DecodeError for values out of range."""
    try:
        if datatype == "BYTES":
            return b"".join(_prefixed(value.encode() if isinstance(value, str) else value) for value in flat)
        if datatype in ("BOOL", "UINT8"):  # three times as fast as an array of them
            return bytes(flat)
        if datatype in ("FP16", "BF16"):
            _require_finite(flat)
            if datatype == "FP16":
                return struct.pack(f"<{len(flat)}e", *flat)
            return _little_endian(array("H", map(_to_bf16, _bits_of_floats(flat))))
        packed = array(DATATYPES[datatype].code, flat)
        if DATATYPES[datatype].json is float:  # what FP32 has no place for is infinite once it is packed
            _require_finite(packed)
        return _little_endian(packed)
    except (OverflowError, TypeError, ValueError, struct.error) as error:  # UnicodeError is a ValueError
        raise _expected(label, datatype, shape, DATATYPES[datatype].expected) from error


def _require_finite(values: Sequence[float]) -> None:
    """Raise OverflowError unless all are. The sum tells it fast, but for numbers whose sum is itself too large."""
    if not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
        raise OverflowError


def _unpack(datatype: str, data: memoryview) -> list[Any]:
    if datatype == "BYTES":
        return [bytes(element) for element in _split_elements("tensor", data)]
    if datatype == "BOOL":
        return list(map(bool, data))
    if datatype == "FP16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    if datatype == "BF16":
        halves = _from_little_endian("H", data)
        return memoryview(array("I", [half << 16 for half in halves])).cast("B").cast("f").tolist()
    return _from_little_endian(DATATYPES[datatype].code, data).tolist()


def _prefixed(element: bytes) -> bytes:
    return struct.pack("<I", len(element)) + element


def _split_elements(label: str, data: memoryview) -> Iterable[memoryview]:
    """The elements of a BYTES tensor; raises DecodeError if their lengths do not add up."""
    at, end = 0, len(data)
    while at < end:
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if start > end or at > end:
            raise DecodeError(f"{label}: expected BYTES data: each element preceded by its length")
        yield data[start:at]


def _bits_of_floats(flat: list[float]) -> list[int]:
    return memoryview(array("f", flat)).cast("B").cast("I").tolist()


def _to_bf16(bits: int) -> int:
    """The upper half of an FP32, rounded to nearest, ties to even."""
    half = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    if half & 0x7FFF >= 0x7F80:
        raise OverflowError
    return half


def _little_endian(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _from_little_endian(code: str, data: memoryview) -> array[Any]:
    values = array(code)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
