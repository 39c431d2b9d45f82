"""Canonical JSON: one byte form, and nothing else is read. Oracle: json.dumps with RFC 8785's rules for this subset."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json, parse_canonical_json

KEYS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=150)
@given(VALUES)
def test_agrees_with_a_second_writer_and_reads_back(value: object) -> None:
    written = canonical_json(value)
    second = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert written == second.replace(b"\\u007f", b"\x7f")
    assert parse_canonical_json(written, limit=len(written)) == value


class Flat(msgspec.Struct, omit_defaults=True):
    """As records and statements are."""

    zeta: Any = ""
    alpha: Any = 0
    middle: Any = ()
    beta: Any = {}
    truth: Any = False


FIELDS = TEXTS | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.tuples(TEXTS, TEXTS)
FIELDS = FIELDS | st.dictionaries(KEYS, TEXTS, max_size=3) | st.none() | st.lists(st.integers(0, 9), max_size=2)


@settings(max_examples=150)
@given(st.builds(Flat, zeta=FIELDS, alpha=FIELDS, middle=FIELDS, beta=FIELDS, truth=FIELDS))
def test_a_struct_is_written_as_its_fields_are(flat: Flat) -> None:
    assert canonical_json(flat) == canonical_json(msgspec.to_builtins(flat))


@pytest.mark.parametrize("value", [2**53, -(2**53), 0.5, {"\xe4": "a"}, (1.5,), {"a": 0.5}, [[0.5]]])
def test_a_struct_may_hold_no_more_than_json_may(value: object) -> None:
    with pytest.raises(DecodeError):
        canonical_json(Flat(middle=value))


@pytest.mark.parametrize(
    "text",
    [
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1} ',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":9007199254740992}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b'{"\xc3\xa4":1}',
        b"[1,]",
        b"NaN",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b"",
        b"[" * 40 + b"]" * 40,
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_any_other_form_is_refused(text: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_canonical_json(text, limit=100_000)


@settings(max_examples=150)
@given(st.binary(max_size=64))
def test_garbage_is_one_refusal(junk: bytes) -> None:
    try:
        value = parse_canonical_json(junk, limit=64)
    except DecodeError:
        return
    assert canonical_json(value) == junk


def test_the_limit_comes_first() -> None:
    with pytest.raises(DecodeError, match="too large"):
        parse_canonical_json(b"x" * 11, limit=10)


@pytest.mark.parametrize("value", [1.5, float("nan"), 2**53, -(2**53), {"ä": 1}, object()])
def test_what_has_no_canonical_form_is_not_written(value: object) -> None:
    with pytest.raises((DecodeError, TypeError)):
        canonical_json(value)
