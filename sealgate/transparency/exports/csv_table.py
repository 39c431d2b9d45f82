"""CSV (RFC 4180) for spreadsheets. Nothing in a field is taken for a formula, or for the end of a field or of a line.

A record's texts can be chosen by whoever asks (a filter that an auditor typed, for example), so they are hostile to the
program that opens the file. Three rules, all of which can be undone without loss:

    1. control characters, line ends, backslashes and semicolons are written as \\uXXXX: a spreadsheet that splits at
       semicolons or tabs, as some languages' do, finds none
    2. a text whose first visible character could start a formula (= + - @, also full-width), or is a quotation mark
       of this rule itself, gets an apostrophe in front
    3. every text stands in quotation marks, those inside doubled

Trusts nothing. Never: a bare text.
"""

from __future__ import annotations

import re

import msgspec

from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.exports.leaves import PlacedLeaf, rfc3339
from sealgate.transparency.record import Record

_FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
_GUARD = "'"
_SPECIAL = re.compile(r"[\x00-\x1f\x7f-\x9f\\;\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_FIELDS = tuple(Record.__struct_fields__)

COLUMNS = ("index", "time", "leaf_hash", *_FIELDS)
"""What the first line names: where the record stands, when it was written, its hash, then its fields as they are."""


def csv_header() -> bytes:
    """The first line."""
    return (",".join(_quoted(name) for name in COLUMNS) + "\r\n").encode()


def csv_line(entry: PlacedLeaf) -> bytes:
    """One record, in the order of COLUMNS. What the record leaves out stands at its default."""
    record = entry.record
    cells = [str(entry.index), _quoted(rfc3339(record.ts_us)), _quoted(entry.hash)]
    cells += [_cell(getattr(record, name)) for name in _FIELDS]
    return (",".join(cells) + "\r\n").encode()


def guard(text: str) -> str:
    """The text as no program takes it for a formula. `unguard` undoes it."""
    safe = _SPECIAL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    visible = safe.lstrip()[:1]
    return _GUARD + safe if visible in _FORMULA or visible == _GUARD else safe


def unguard(text: str) -> str:
    """What `guard` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text.removeprefix(_GUARD))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)  # a number is no formula, not even with its sign
    if isinstance(value, str):
        return _quoted(value)
    builtin = msgspec.to_builtins(value)
    return _quoted(canonical_json(builtin).decode() if builtin else "")


def _quoted(text: str) -> str:
    return '"' + guard(text).replace('"', '""') + '"'
