"""What every form promises: one line a record, the whole leaf in it, nothing that depends on anything but the leaf."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.transparency.exports.formats import FORMATS
from sealgate.transparency.exports.leaves import PlacedLeaf, place, rfc3339
from sealgate.transparency.exports.ndjson import ndjson_line, parse_ndjson_line
from sealgate.transparency.exports.part import measure
from sealgate.transparency.merkle import leaf_hash

from .conftest import hostile_records, one_of_each, placed, record_of


@pytest.mark.parametrize("name", FORMATS)
@given(entry=hostile_records())
@settings(max_examples=60, deadline=None)
def test_a_record_is_one_line_of_utf8_whatever_is_in_it(name: str, entry: PlacedLeaf) -> None:
    form = FORMATS[name]
    line = form.line(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.decode().strip()
    assert line == form.line(place(entry.index, entry.leaf))
    assert len(line) < 4 * len(entry.leaf) + 4096


@given(entry=hostile_records())
@settings(max_examples=60, deadline=None)
def test_ndjson_gives_the_leaf_back(entry: PlacedLeaf) -> None:
    assert parse_ndjson_line(ndjson_line(entry)) == entry


def test_ndjson_refuses_a_line_that_was_changed() -> None:
    line = ndjson_line(placed(record_of("audit.query", tenant="clinic"), 7))
    assert (
        leaf_hash(line[line.index(b'"record":') + 9 : -2]).hex()
        == placed(record_of("audit.query", tenant="clinic"), 7).hash
    )
    for at in range(len(line)):
        changed = bytearray(line)
        changed[at] ^= 1
        index = line.index(b"7")
        if at == index:
            continue  # the index is said, not hashed: only a proof shows it
        with pytest.raises(DecodeError):
            parse_ndjson_line(bytes(changed))


def test_moments() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_700_000_000_123_456) == "2023-11-14T22:13:20.123456Z"
    with pytest.raises(DecodeError):
        rfc3339(2**62)


def test_no_leaf_that_is_no_record() -> None:
    for index, leaf in ((0, b"{}"), (-1, next(one_of_each()).leaf), (0, b"")):
        with pytest.raises(DecodeError):
            place(index, leaf)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_that_was_cut_anywhere_is_gone_on_with(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    entries = list(one_of_each())[:9]
    whole = form.header + b"".join(form.line(entry) for entry in entries)
    cut = data.draw(st.integers(0, len(whole)))
    progress = measure(io.BytesIO(whole[:cut]), form)
    rest = entries[progress.records :]
    joined = whole[: progress.size] + (b"" if progress.size else form.header) + b"".join(map(form.line, rest))
    assert joined == whole
    assert progress.size <= cut


def test_a_file_of_another_format_is_not_gone_on_with() -> None:
    with pytest.raises(DecodeError):
        measure(io.BytesIO(b"{}\n"), FORMATS["csv"])
