"""Cursors of the query API: where a reading stopped, in which snapshot, under which filter.

A cursor is text that the caller hands back; its MAC, keyed from the database, means that only readers of this log made
it. It fixes the snapshot, so pages never shift while the log grows, and it cannot be used with another filter.
Trusts: the key. Never: carries anything but a place in the log.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from audit.errors import QueryRefused
from audit.limits import MAX_CURSOR
from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json, parse_canonical_json

_CONTEXT = b"sealgate query cursor v1\x00"
_MAC = 16


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`size` is the snapshot, `edge` the last position that was looked at, `question` the digest of the filter."""

    size: int
    edge: int
    question: str


def encode_cursor(cursor: Cursor, key: bytes) -> str:
    """As text for a URL."""
    content = canonical_json(cursor)
    return base64.urlsafe_b64encode(_mac(content, key) + content).rstrip(b"=").decode()


def decode_cursor(text: str, key: bytes, *, question: str) -> Cursor:
    """The cursor, if this log's readers made it for this question; raises QueryRefused."""
    try:
        if len(text) > MAX_CURSOR:
            raise ValueError
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        content = raw[_MAC:]
        if not hmac.compare_digest(raw[:_MAC], _mac(content, key)):
            raise ValueError
        cursor = msgspec.convert(parse_canonical_json(content, limit=MAX_CURSOR), Cursor)
    except (ValueError, binascii.Error, DecodeError, msgspec.ValidationError) as error:
        raise QueryRefused("the cursor was not made by this log; start again without one", code="cursor") from error
    if cursor.question != question:
        raise QueryRefused("the cursor belongs to another filter; start again without one", code="cursor")
    return cursor


def _mac(content: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _CONTEXT + content, hashlib.sha256)[:_MAC]
