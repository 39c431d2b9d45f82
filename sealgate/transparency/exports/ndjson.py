"""Newline-delimited JSON: an object a line with the index, the leaf hash and the record.

The record is the leaf itself, byte for byte: SHA-256 over a zero byte and the text between `"record":` and the last
brace is `leaf_hash`. Trusts nothing. Never: writes a leaf in another form than the log has it.
"""

from __future__ import annotations

import re

from sealgate.errors import DecodeError
from sealgate.transparency.exports.leaves import PlacedLeaf, place

_LINE = re.compile(rb'\{"index":(0|[1-9][0-9]{0,18}),"leaf_hash":"([0-9a-f]{64})","record":(\{.*\})\}\n', re.DOTALL)


def ndjson_line(entry: PlacedLeaf) -> bytes:
    """One line, with its end."""
    return b'{"index":%d,"leaf_hash":"%s","record":%s}\n' % (entry.index, entry.hash.encode(), entry.leaf)


def parse_ndjson_line(line: bytes) -> PlacedLeaf:
    """The leaf in exactly such a line, its hash recomputed; raises DecodeError."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise DecodeError("the line is not one of this export")
    entry = place(int(match[1]), match[3])
    if entry.hash.encode() != match[2]:
        raise DecodeError("the line's record does not have the hash beside it")
    return entry
