"""CloudEvents 1.0 in the JSON event format, one event a line; `data` is the leaf, byte for byte.

`source` and `id` together name the record. `sequence` orders the events of one source as text (the index in 20 digits,
as the specification's Sequence extension wants it); `leafhash` is the leaf hash of RFC 9162. Trusts nothing. Never: the
caller's identity: `subject` is the pseudonym that the record carries.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from sealgate.transparency.exports.leaves import PlacedLeaf, rfc3339

TYPE_PREFIX = "sealgate.audit."
_DIGITS = 20


def cloudevents_line(entry: PlacedLeaf) -> bytes:
    """One event with its line feed."""
    record = entry.record
    event: dict[str, Any] = {
        "specversion": "1.0",
        "type": TYPE_PREFIX + record.kind,
        "source": quote(record.log, safe="/-._~"),
        "id": record.id,
        "time": rfc3339(record.ts_us),
        "datacontenttype": "application/json",
        "sequence": f"{entry.index:0{_DIGITS}d}",
        "leafhash": entry.hash,
    }
    if record.actor:
        event["subject"] = record.actor
    event["data"] = msgspec.Raw(entry.leaf)
    return msgspec.json.encode(event) + b"\n"
