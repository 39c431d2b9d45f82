"""How large a message may be in one deployment, and how that is said.

`[deployment] max_request_mb` bounds the inner message of a request and of its answer, padding included. What the
network carries is a little more: header, encapsulated key, a length and a tag for each chunk. A gateway says the sealed
size in the field `Upload-Limit` (draft-ietf-httpbis-resumable-upload, member max-size) beside the keys, so that a
client knows before it sends. Pure. Trusts nothing: a limit that is read is never above MAX_SEALED_MESSAGE.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sealgate.limits import (
    DEFAULT_MESSAGE,
    MAX_INNER_MESSAGE,
    MAX_SEALED_MESSAGE,
    SEALED_ROOM,
    SEALED_SHARE,
)
from sealgate.protocol.padding import size_class

LIMIT_FIELD = "Upload-Limit"
_MAX_SIZE = re.compile(r"(?:^|[,;])\s*max-size=([0-9]{1,15})\s*(?:$|[,;])")
_MI = 1024 * 1024


def sealed_size(inner: int) -> int:
    """The most bytes that sealing makes of an inner message of so many, in chunks of CHUNK."""
    return inner + inner // SEALED_SHARE + SEALED_ROOM


def inner_size(sealed: int) -> int:
    """The largest inner message that fits into so many sealed bytes, in whole mebibytes as the setting is: a limit made
    for it would tell, by what is sent and what is not, how long a message is inside its padding."""
    return max(0, min(MAX_INNER_MESSAGE, (sealed - SEALED_ROOM) * SEALED_SHARE // (SEALED_SHARE + 1))) // _MI * _MI


def padded_within(limit: int) -> Callable[[int], int]:
    """The size classes, but for the topmost: there a message is padded to `limit` bytes and no further."""

    def pad_to(length: int) -> int:
        return min(size_class(length), max(limit, length))

    return pad_to


def tell_limit(sealed: int) -> str:
    """The value of LIMIT_FIELD."""
    return f"max-size={sealed}"


def read_limit(value: str) -> int:
    """The largest sealed request that a gateway says it takes; what every gateway takes where it says nothing."""
    found = _MAX_SIZE.search(value)
    return sealed_size(DEFAULT_MESSAGE) if found is None else min(int(found[1]), MAX_SEALED_MESSAGE)


def in_mib(size: int) -> str:
    """`16 MiB`, `1.5 MiB`."""
    return f"{size / _MI:.1f}".removesuffix(".0") + " MiB"
