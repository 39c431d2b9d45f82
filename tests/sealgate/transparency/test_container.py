"""The one-form ZIP: foreign tools read it, and nothing but what we write is read by us."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.transparency import container
from sealgate.transparency.container import ContainerReader, ContainerWriter

NAMES = st.text("abcdefghij0123456789-./", min_size=1, max_size=20).filter(
    lambda name: ".." not in name and not name.startswith("/")
)


def pack(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    writer = ContainerWriter(out)
    for name, content in members.items():
        writer.add(name, content)
    writer.close()
    return out.getvalue()


def read_all(data: bytes) -> dict[str, bytes]:
    reader = ContainerReader(io.BytesIO(data))
    return {name: reader.read(name) for name in reader.names}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=200), min_size=1, max_size=5))
def test_round_trip_here_and_in_the_standard_library(members: dict[str, bytes]) -> None:
    data = pack(members)
    assert read_all(data) == members
    with zipfile.ZipFile(io.BytesIO(data)) as foreign:
        assert foreign.testzip() is None
        assert {name: foreign.read(name) for name in foreign.namelist()} == members


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_bit_counts(data: st.DataObject) -> None:
    whole = pack({"a": b"first", "b/c": b"second", "empty": b""})
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecodeError):
        read_all(bytes(changed))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_and_cuts_are_typed_refusals(garbage: bytes, at: int) -> None:
    whole = pack({"a": b"first", "b": b"second"})
    for data in (garbage, whole[:at] + garbage, whole + garbage + b"x", b"x" + whole, whole[: at % len(whole)]):
        if data == whole:
            continue
        with pytest.raises(DecodeError):
            read_all(data)


def test_a_file_of_another_kind_is_called_no_bundle() -> None:
    for data in (b"", b"%PDF-1.7", b"PK\x05\x06" + bytes(18)):
        with pytest.raises(DecodeError, match="no evidence bundle"):
            ContainerReader(io.BytesIO(data))


def test_other_zip_files_are_refused() -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as foreign:
            foreign.writestr("bomb", b"\0" * 1_000_000)
        with pytest.raises(DecodeError):
            ContainerReader(out)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../up", "a/../b", "back\\slash", "\u00e4", "x" * 121, "new\nline"]
)
def test_names_that_are_not_allowed(name: str) -> None:
    with pytest.raises(DecodeError):
        ContainerWriter(io.BytesIO()).add(name, b"")


def test_a_name_stands_once() -> None:
    writer = ContainerWriter(io.BytesIO())
    writer.add("a", b"")
    with pytest.raises(DecodeError):
        writer.add("a", b"")


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_BUNDLE", 100), ("MAX_BUNDLE_MEMBER", 10), ("MAX_BUNDLE_MEMBERS", 1)]
)
def test_bounds_hold_on_both_sides(limit: str, value: int, monkeypatch: Any) -> None:
    members = {"a": b"x" * 50, "b": b"y" * 50}
    whole = pack(members)
    monkeypatch.setattr(container, limit, value)
    with pytest.raises(DecodeError):
        pack(members)
    with pytest.raises(DecodeError):
        ContainerReader(io.BytesIO(whole))


def test_a_member_that_is_not_there() -> None:
    with pytest.raises(DecodeError):
        ContainerReader(io.BytesIO(pack({"a": b""}))).read("b")
