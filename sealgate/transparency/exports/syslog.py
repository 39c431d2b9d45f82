"""Syslog messages (RFC 5424), one a line. The message's text is the leaf; what is asked for most is structured data.

Facility 13 (log audit); the severity is one of Warning, Notice and Informational. The structured data's identifier has
the number 32473, which is reserved for examples (RFC 5612): nobody's private enterprise number is claimed. In a file a
line feed ends each message (RFC 6587 section 3.4.2); for octet counting the length goes in front. A message is as long
as its leaf and some hundred bytes, at most 10 KiB: give the collector room (RFC 5424 section 6.1 promises 2 KiB).
Trusts nothing. Never: a control character in a header or a parameter.
"""

from __future__ import annotations

import re

from sealgate.transparency.exports.leaves import PlacedLeaf, rfc3339
from sealgate.transparency.exports.weight import Weight, weight_of

SD_ID = "sealgate@32473"
_FACILITY = 13
_SEVERITY = {Weight.PLAIN: 6, Weight.NOTABLE: 5, Weight.BAD: 4}
_BOM = b"\xef\xbb\xbf"
_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ESCAPE = re.compile(r'(["\\\]])')
_PARAMETERS = ("tenant", "actor", "model", "purpose", "outcome", "reason", "grant")
_MAX_HOSTNAME, _MAX_MSGID = 255, 32


def syslog_line(entry: PlacedLeaf) -> bytes:
    """One message with its line feed."""
    record = entry.record
    priority = _FACILITY * 8 + _SEVERITY[weight_of(record)]
    host = _word(record.log, _MAX_HOSTNAME)
    header = f"<{priority}>1 {rfc3339(record.ts_us)} {host} sealgate - {_word(record.kind, _MAX_MSGID)} "
    pairs = [("index", str(entry.index)), ("leafHash", entry.hash), ("id", record.id)]
    pairs += [(name, value) for name in _PARAMETERS if (value := getattr(record, name))]
    data = f"[{SD_ID}{''.join(f' {name}={_value(value)}' for name, value in pairs)}] "
    text = entry.leaf if entry.leaf.isascii() else _BOM + entry.leaf  # MSG-UTF8 begins with a mark, MSG-ANY does not
    return (header + data).encode() + text + b"\n"


def _word(text: str, limit: int) -> str:
    """PRINTUSASCII; what is nothing of it becomes `?`, and nothing at all becomes the nil value."""
    return _UNPRINTABLE.sub("?", text)[:limit] or "-"


def _value(text: str) -> str:
    """A parameter's value, in quotation marks (RFC 5424 section 6.3.3)."""
    return '"' + _ESCAPE.sub(r"\\\1", _CONTROL.sub("?", text)) + '"'
