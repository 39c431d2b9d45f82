"""Canonical JSON: the only bytes that are hashed or signed as JSON (RFC 8785, restricted).

Restriction: strings, booleans, null, integers of magnitude below 2^53, arrays and objects with ASCII keys. No floats.
Under it, msgspec's sorted output is byte-identical to RFC 8785. Trusts nothing; never accepts what it would not write.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sealgate.errors import DecodeError

_MAX_SAFE_INTEGER = 2**53 - 1
_encoder = msgspec.json.Encoder(order="sorted")


def _check(value: Any, depth: int = 0) -> None:
    if depth > 32:
        raise DecodeError("JSON nests deeper than 32 levels")
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int):
        if abs(value) > _MAX_SAFE_INTEGER:
            raise DecodeError("integer outside the exact range of JSON")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise DecodeError("object keys must be ASCII text")
            _check(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, depth + 1)
    else:
        raise DecodeError("value has no canonical JSON form")


def _is_plain(value: msgspec.Struct) -> bool:
    """Whether a Struct can be written as it is, which is many times faster: every field is a text, a truth value, an
    exact integer, or a flat list or object of texts. What each field really holds is looked at, not how it is declared.
    """
    for field in msgspec.structs.astuple(value):
        kind = type(field)
        if kind is str or kind is bool:
            continue
        if kind is int:
            if abs(field) > _MAX_SAFE_INTEGER:
                return False
        elif kind is tuple:
            if any(type(item) is not str for item in field):
                return False
        elif kind is not dict or any(
            type(key) is not str or not key.isascii() or type(item) is not str for key, item in field.items()
        ):
            return False
    return True


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of a JSON value (dicts, lists, str, int, bool, None; or a msgspec Struct of these)."""
    if isinstance(value, msgspec.Struct) and _is_plain(value):
        return _encoder.encode(value)
    builtin = msgspec.to_builtins(value)
    _check(builtin)
    return _encoder.encode(builtin)


def parse_canonical_json(data: bytes, *, limit: int) -> Any:
    """Parse bytes that must be exactly what `canonical_json` writes; raises DecodeError otherwise."""
    if len(data) > limit:
        raise DecodeError("JSON document is too large")
    try:
        value = msgspec.json.decode(data)
        _check(value)
        again = _encoder.encode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DecodeError("not a JSON document") from error
    if again != data:
        raise DecodeError("JSON document is not in canonical form")
    return value
