"""The header fields of a request by name, read in one pass whoever asks first and however many ask.

Trusts: the server for names in lowercase. Never: joins the values of a field that was said twice, or picks one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

_READ = "gateway.fields"  # in a scope: the headers that were read, and what was read of them


def values_of(scope: MutableMapping[str, Any], name: bytes) -> tuple[bytes, ...]:
    """Every value of a field (an ASGI scope's; its name in lowercase), in the order in which they came."""
    headers = scope["headers"]
    known: tuple[Any, Mapping[bytes, tuple[bytes, ...]]] | None = scope.get(_READ)
    if known is None or known[0] is not headers:  # a part of the gateway may put others in their place
        read: dict[bytes, tuple[bytes, ...]] = {}
        for field, value in headers:
            read[field] = (*read[field], value) if field in read else (value,)
        known = scope[_READ] = headers, read
    return known[1].get(name, ())
