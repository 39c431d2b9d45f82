"""Variable-length integers against the examples of RFC 9000 appendix A.1, and the size classes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.protocol.padding import SMALLEST_CLASS, padme, size_class
from sealgate.protocol.varint import MAX_VARINT, encode_varint, read_varint

RFC_9000 = [
    (151_288_809_941_952_652, "c2197c5eff14e88c"),
    (494_878_333, "9d7f3e7d"),
    (15_293, "7bbd"),
    (37, "25"),
]


@pytest.mark.parametrize(("value", "encoded"), RFC_9000)
def test_rfc_9000_examples(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded
    assert read_varint(bytes.fromhex(encoded), 0) == (value, len(encoded) // 2)


def test_longer_than_necessary_forms_are_read() -> None:
    assert read_varint(bytes.fromhex("4025"), 0) == (37, 2)


@pytest.mark.parametrize("edge", [0, 63, 64, 16383, 16384, 2**30 - 1, 2**30, MAX_VARINT])
def test_edges(edge: int) -> None:
    encoded = encode_varint(edge)
    assert read_varint(b"\xff" + encoded + b"\xff", 1) == (edge, 1 + len(encoded))
    for cut in range(len(encoded)):
        with pytest.raises(DecodeError):
            read_varint(encoded[:cut], 0)


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_values_without_a_form(value: int) -> None:
    with pytest.raises(DecodeError):
        encode_varint(value)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, MAX_VARINT))
def test_round_trip(value: int) -> None:
    encoded = encode_varint(value)
    assert read_varint(memoryview(encoded), 0) == (value, len(encoded))


# Values computed by hand from the definition in the Padmé paper (section 4.2 of the PoPETS text).
@pytest.mark.parametrize(
    ("length", "padded"),
    [(0, 0), (1, 1), (2, 2), (7, 7), (8, 8), (9, 10), (100, 104), (1000, 1024), (1025, 1088), (65537, 67584)],
)
def test_padme_values(length: int, padded: int) -> None:
    assert padme(length) == padded


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**40))
def test_padme_bounds(length: int) -> None:
    padded = padme(length)
    assert length <= padded <= length * 1.12
    assert padme(padded) == padded
    assert padme(length + 1) >= padded


def test_few_classes() -> None:
    assert len({padme(length) for length in range(1, 16 * 1024 * 1024, 997)}) < 400
    assert {size_class(length) for length in range(SMALLEST_CLASS + 1)} == {SMALLEST_CLASS}
