"""Limits of a deployment: what is said of them is what holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.limits import CHUNK, DEFAULT_MESSAGE, MAX_INNER_MESSAGE, MAX_SEALED_MESSAGE
from sealgate.protocol.hpke import TAG_SIZE, Kem
from sealgate.protocol.sizes import in_mib, inner_size, padded_within, read_limit, sealed_size, tell_limit
from sealgate.protocol.varint import encode_varint

_ENC = max(kem.enc_size for kem in Kem)


@given(st.integers(0, MAX_INNER_MESSAGE))
def test_what_sealing_adds_fits(inner: int) -> None:
    """Counted from the format: header, encapsulated key, and a length and tag for each chunk and the final one."""
    chunks = -(-inner // CHUNK)
    each = len(encode_varint(CHUNK + TAG_SIZE)) + TAG_SIZE
    assert 7 + _ENC + inner + chunks * each + 1 + TAG_SIZE <= sealed_size(inner) <= MAX_SEALED_MESSAGE


@given(st.integers(1, 128))
def test_a_limit_that_is_told_is_understood(mb: int) -> None:
    inner = mb << 20
    assert inner_size(read_limit(tell_limit(sealed_size(inner)))) == inner


@pytest.mark.parametrize(
    ("value", "sealed"),
    [
        ("", sealed_size(DEFAULT_MESSAGE)),
        ("max-size=", sealed_size(DEFAULT_MESSAGE)),
        ("x-max-size=5", sealed_size(DEFAULT_MESSAGE)),
        ("max-size=5", 5),
        ("max-append-size=7, max-size=6", 6),
        ("max-size=9, min-size=1", 9),
        ("max-size=999999999999999", MAX_SEALED_MESSAGE),
        ("max-size=" + "9" * 400, sealed_size(DEFAULT_MESSAGE)),
    ],
)
def test_what_a_gateway_says_is_read_with_suspicion(value: str, sealed: int) -> None:
    assert read_limit(value) == sealed
    assert 0 <= inner_size(sealed) <= MAX_INNER_MESSAGE


@settings(max_examples=50)
@given(st.integers(1, 1 << 27), st.integers(1, 1 << 27))
def test_padding_stays_within_the_limit_and_never_cuts(limit: int, length: int) -> None:
    padded = padded_within(limit)(length)
    assert length <= padded <= max(limit, length)


def test_sizes_read_as_people_write_them() -> None:
    assert [in_mib(16 << 20), in_mib(3 << 19)] == ["16 MiB", "1.5 MiB"]
