"""The compact form of a signed JSON object (JWS, RFC 7515 section 3.1), read in the one way that is left when every
doubtful one is refused: no padding, no stray bits, no repeated names, no fractions, no NaN, no half characters.

Two parsers must never read two different objects from the same signed text. Pure. Trusts nothing. Never: looks at a
signature; what comes out of here is what somebody says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from sealgate.errors import DecodeError
from sealgate.protocol.dpop import from_base64url


@dataclass(frozen=True)
class SignedText:
    """The parts of a compact JWS. Holding one proves nothing but its form."""

    header: dict[str, Any]
    payload: dict[str, Any]
    signed: bytes
    signature: bytes


def parse_compact(text: str) -> SignedText:
    """Raises DecodeError. The caller has bounded the text's length."""
    parts = text.split(".")
    if len(parts) != 3 or not text.isascii():
        raise DecodeError("not three parts")
    head, body, signature = parts
    return SignedText(
        parse_object(from_base64url(head)),
        parse_object(from_base64url(body)),
        f"{head}.{body}".encode("ascii"),
        from_base64url(signature),
    )


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object without repeated names, fractions, constants that are not JSON, or escapes that stand for half a
    character (RFC 8259 section 8.2: what becomes of those differs from reader to reader). Raises DecodeError."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unrepeated, parse_constant=_refuse, parse_float=_refuse)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DecodeError("not a strict JSON object") from error
    if not isinstance(value, dict):
        raise DecodeError("not a JSON object")
    return value


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is repeated")
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError("a number that is not whole")
