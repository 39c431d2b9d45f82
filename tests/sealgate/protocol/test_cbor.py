"""The CBOR subset against cbor2, against RFC 8949's own examples, and against garbage."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.limits import MAX_CBOR_DEPTH
from sealgate.protocol import cbor

INTEGERS = st.integers(-(2**64), 2**64 - 1)
KEYS = st.integers(-(2**40), 2**40) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300)
@given(value=VALUES)
def test_round_trip_and_agreement_with_an_independent_encoder(value: Any) -> None:
    encoded = cbor.encode(value)
    assert cbor.decode(encoded) == value
    assert cbor2.loads(encoded) == value
    # cbor2's canonical form orders keys by length first (RFC 7049); ours by bytes (RFC 8949). The lengths must agree.
    assert len(cbor2.dumps(value, canonical=True)) == len(encoded)


@settings(max_examples=300)
@given(data=st.binary(max_size=60))
def test_garbage_is_refused_or_is_exactly_what_we_write(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except DecodeError:
        return
    assert cbor.encode(value) == data


@settings(max_examples=200)
@given(value=VALUES, at=st.integers(0, 10_000), change=st.integers(1, 255))
def test_a_changed_byte_never_decodes_to_something_we_would_write_otherwise(value: Any, at: int, change: int) -> None:
    changed = bytearray(cbor.encode(value))
    changed[at % len(changed)] ^= change
    try:
        again = cbor.decode(bytes(changed))
    except DecodeError:
        return
    assert cbor.encode(again) == bytes(changed)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("1903e8", 1000),
        ("1a000f4240", 1_000_000),
        ("1bffffffffffffffff", 18446744073709551615),
        ("3bffffffffffffffff", -18446744073709551616),
        ("3903e7", -1000),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("4401020304", b"\x01\x02\x03\x04"),
        ("62c3bc", "\u00fc"),
        ("64f0908591", "\U00010151"),
        ("80", []),
        ("8301820203820405", [1, [2, 3], [4, 5]]),
        ("a201020304", {1: 2, 3: 4}),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("c11a514b67b0", cbor.Tag(1, 1363896240)),
    ],
)
def test_the_examples_of_rfc_8949_appendix_a(encoded: str, value: Any) -> None:
    assert cbor.encode(value) == bytes.fromhex(encoded)
    assert cbor.decode(bytes.fromhex(encoded)) == value


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "1817",  # 23 in two bytes
        "190018",
        "1a0000ffff",
        "1b00000000ffffffff",
        "f93c00",  # floats
        "fa47c35000",
        "fb3ff199999999999a",
        "f7",  # undefined
        "f0",  # unassigned simple value
        "f8ff",
        "5f42010243030405ff",  # indefinite lengths
        "7f657374726561646d696e67ff",
        "9fff",
        "bf61610161629f0203ffff",
        "1c",  # reserved additional information
        "1f",
        "ff",
        "61ff",  # not UTF-8
        "64eda080",  # short
        "63eda080",  # a surrogate
        "a10102ff",  # trailing byte
        "a2010201",  # odd
        "a201020103",  # the same key twice
        "a203040102",  # keys out of order
        "a1f501",  # a boolean key
        "a1400a",  # a byte string key
        "a1c00101",  # a tagged key
        "9b7fffffffffffffff",  # lengths that nobody can allocate
        "5b7fffffffffffffff",
        "bb7fffffffffffffff",
    ],
)
def test_everything_outside_the_subset_is_refused(encoded: str) -> None:
    with pytest.raises(DecodeError):
        cbor.decode(bytes.fromhex(encoded))


def test_depth_is_bounded_both_ways() -> None:
    deep: Any = 0
    for _ in range(MAX_CBOR_DEPTH):
        deep = [deep]
    assert cbor.decode(cbor.encode(deep)) == deep
    with pytest.raises(DecodeError):
        cbor.encode([deep])
    for head in (b"\x81", b"\xc1", b"\xa1\x01"):
        with pytest.raises(DecodeError):
            cbor.decode(head * 5000 + b"\x00")


@pytest.mark.parametrize("head", [b"\xa1", b"\x81", b"\xc1"], ids=["maps as keys", "arrays", "tags"])
def test_depth_is_bounded_whatever_nests(head: bytes) -> None:
    with pytest.raises(DecodeError):
        cbor.decode(head * 100_000)


@pytest.mark.parametrize(
    "value", [1.5, {1.5: 2}, {None: 1}, {True: 1}, object(), 2**64, -(2**64) - 1, "\ud800", {1, 2}]
)
def test_values_outside_the_subset_are_not_written(value: Any) -> None:
    with pytest.raises(DecodeError):
        cbor.encode(value)


def test_a_document_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(DecodeError, match="too large"):
        cbor.decode(b"\x00" * 11, limit=10)
