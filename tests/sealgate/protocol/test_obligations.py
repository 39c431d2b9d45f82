"""The field inside the seal: what is written is read, and nothing else is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.protocol.frames import Obligations
from sealgate.protocol.obligations import decode_obligations, encode_obligations, epsilon_text

everything = st.builds(
    Obligations,
    round_digits=st.none() | st.integers(0, 15),
    top_k=st.none() | st.integers(1, 10_000),
    hide_scores=st.booleans(),
    noise_epsilon_micro=st.integers(0, 10**8),
    noise_rows=st.integers(0, 4096),
    receipt_required=st.booleans(),
    single_use=st.booleans(),
)


@settings(max_examples=200)
@given(everything)
def test_what_is_written_is_read(obligations: Obligations) -> None:
    text = encode_obligations(obligations)
    expected = msgspec.structs.replace(obligations, noise_rows=0)
    assert decode_obligations([text] if text else []) == expected
    assert text.isascii()
    assert text.isprintable()


def test_the_form() -> None:
    assert encode_obligations(Obligations()) == ""
    full = Obligations(
        round_digits=6, top_k=1, hide_scores=True, noise_epsilon_micro=500_000, receipt_required=True, single_use=True
    )
    assert encode_obligations(full) == (
        'round-digits=6, top-k=1, noise-epsilon="0.5", hide-scores, receipt-required, single-use'
    )


@pytest.mark.parametrize(
    ("micro", "text"), [(1, "0.000001"), (500_000, "0.5"), (10**6, "1"), (12_345_678, "12.345678")]
)
def test_epsilon_as_people_write_it(micro: int, text: str) -> None:
    assert epsilon_text(micro) == text


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ["receipt-required", "receipt-required"],
        ["receipt-required, receipt-required"],
        ["receipt-required,single-use"],
        ["Receipt-Required"],
        ["receipt-required=1"],
        ["receipt-required=?0"],
        ["keep-secret"],
        ["round-digits"],
        ["round-digits=-1"],
        ["round-digits=06"],
        ["round-digits=1.5"],
        ['round-digits="6"'],
        ["noise-epsilon=0.5"],
        ['noise-epsilon="0.50"'],
        ['noise-epsilon="1e3"'],
        ['noise-epsilon="0.1234567"'],
        ["round-digits=6, "],
        ["round-digits=6\r\nx: y"],
        ["round-digits=6\n"],
        ["single-use, " * 100 + "single-use"],
    ],
)
def test_anything_else_is_refused_because_it_may_be_a_duty(values: list[str]) -> None:
    with pytest.raises(DecodeError):
        decode_obligations(values)
