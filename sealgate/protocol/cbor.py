"""Strict deterministic CBOR (RFC 8949 section 4.2.1), the subset that evidence and receipts need.

Integers of 64 bits, byte and text strings, arrays, maps keyed by integers or text, booleans, null, tags. No floats, no
indefinite lengths, no other simple values. `decode` accepts only the one encoding that `encode` writes: shortest
heads, map keys in bytewise order and never twice, no trailing bytes.

Trusts nothing. Never: allocates by a length that the input does not have, recurses deeper than MAX_CBOR_DEPTH, raises
anything but DecodeError on bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sealgate.errors import DecodeError
from sealgate.limits import MAX_CBOR_DEPTH, MAX_EVIDENCE

Value: TypeAlias = "int | bytes | str | bool | list[Value] | tuple[Value, ...] | Mapping[int | str, Value] | Tag | None"
"""What this subset can carry. Decoded arrays are lists, decoded maps dicts."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES: dict[int, bool | None] = {20: False, 21: True, 22: None}
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}


@dataclass(frozen=True)
class Tag:
    """A tagged value (major type 6)."""

    number: int
    value: Value


def encode(value: Value) -> bytes:
    """The deterministic bytes of a value; raises DecodeError if it is outside the subset."""
    out = bytearray()
    _write(out, value, 0)
    return bytes(out)


def decode(data: bytes | memoryview, *, limit: int = MAX_EVIDENCE) -> Value:
    """The value in exactly these bytes; raises DecodeError."""
    if len(data) > limit:
        raise DecodeError("CBOR document is too large")
    reader = _Reader(bytes(data))
    value = reader.value(0)
    if reader.remaining:
        raise DecodeError("bytes follow the CBOR document")
    return value


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, width in _WIDTHS.items():
        if argument < 1 << 8 * width:
            return bytes([major << 5 | info]) + argument.to_bytes(width, "big")
    raise DecodeError("integer is larger than 64 bits")


def _write(out: bytearray, value: Value, depth: int) -> None:
    if depth > MAX_CBOR_DEPTH:
        raise DecodeError("CBOR nests too deep")
    if value is None or isinstance(value, bool):
        out += _head(_SIMPLE, {False: 20, True: 21, None: 22}[value])
    elif isinstance(value, int):
        out += _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
    elif isinstance(value, bytes):
        out += _head(_BYTES, len(value)) + value
    elif isinstance(value, str):
        text = _utf8(value)
        out += _head(_TEXT, len(text)) + text
    elif isinstance(value, list | tuple):
        out += _head(_ARRAY, len(value))
        for item in value:
            _write(out, item, depth + 1)
    elif isinstance(value, Tag):
        out += _head(_TAG, value.number)
        _write(out, value.value, depth + 1)
    elif isinstance(value, Mapping):
        pairs = sorted(((_key(key), item) for key, item in value.items()), key=lambda pair: pair[0])
        out += _head(_MAP, len(pairs))
        for key, item in pairs:
            out += key
            _write(out, item, depth + 1)
    else:
        raise DecodeError("value has no CBOR form here")


def _key(key: object) -> bytes:
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise DecodeError("map keys must be integers or text")
    out = bytearray()
    _write(out, key, 0)
    return bytes(out)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DecodeError("text is not Unicode") from error


class _Reader:
    """A cursor over the input. Every read checks what is left before it takes or counts on it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self._at

    def value(self, depth: int) -> Value:
        if depth > MAX_CBOR_DEPTH:
            raise DecodeError("CBOR nests too deep")
        major, argument = self._head()
        if major == _UNSIGNED:
            return argument
        if major == _NEGATIVE:
            return -1 - argument
        if major == _BYTES:
            return self._take(argument)
        if major == _TEXT:
            return self._text(argument)
        if major == _ARRAY:
            self._require(argument)
            return [self.value(depth + 1) for _ in range(argument)]
        if major == _MAP:
            return self._map(argument, depth)
        if major == _TAG:
            return Tag(argument, self.value(depth + 1))
        if argument not in _SIMPLE_VALUES:
            raise DecodeError("CBOR simple value or float is not allowed")
        return _SIMPLE_VALUES[argument]

    def _head(self) -> tuple[int, int]:
        first = self._take(1)[0]
        major, info = first >> 5, first & 31
        if info < 24:
            return major, info
        if info not in _WIDTHS or major == _SIMPLE:
            raise DecodeError("CBOR head is not allowed")
        argument = int.from_bytes(self._take(_WIDTHS[info]), "big")
        if len(_head(major, argument)) != 1 + _WIDTHS[info]:
            raise DecodeError("CBOR head is not in its shortest form")
        return major, argument

    def _map(self, count: int, depth: int) -> dict[int | str, Value]:
        self._require(2 * count)
        found: dict[int | str, Value] = {}
        before = b""
        for _ in range(count):
            start = self._at
            key = self._map_key()
            encoded = self._data[start : self._at]
            if encoded <= before:
                raise DecodeError("map keys must be in order, and never twice")
            found[key] = self.value(depth + 1)
            before = encoded
        return found

    def _map_key(self) -> int | str:
        """An integer or a text. Nothing that nests is even begun: a key inside a key inside a key has no end."""
        major, argument = self._head()
        if major == _TEXT:
            return self._text(argument)
        if major not in (_UNSIGNED, _NEGATIVE):
            raise DecodeError("map keys must be integers or text")
        return argument if major == _UNSIGNED else -1 - argument

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise DecodeError("CBOR text is not UTF-8") from error

    def _require(self, count: int) -> None:
        if count > self.remaining:
            raise DecodeError("CBOR document ends early")

    def _take(self, count: int) -> bytes:
        self._require(count)
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken
