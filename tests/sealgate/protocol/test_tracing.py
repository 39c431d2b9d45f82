"""W3C Trace Context: the recommendation's own examples, and everything that is not quite one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.protocol.tracing import TraceParent, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"  # https://www.w3.org/TR/trace-context/#examples-of-http-traceparent-headers


def test_the_examples_of_the_recommendation() -> None:
    assert parse_traceparent(GOOD) == TraceParent(bytes.fromhex(TRACE), bytes.fromhex(SPAN), sampled=True)
    not_sampled = parse_traceparent(f"00-{TRACE}-{SPAN}-00")
    assert not_sampled is not None
    assert not not_sampled.sampled


@pytest.mark.parametrize(
    "line",
    [
        "",
        GOOD + " ",
        " " + GOOD,
        GOOD + "\n",
        GOOD + "-00",
        GOOD.upper(),
        GOOD.replace("00-4", "01-4", 1),
        GOOD.replace("00-4", "ff-4", 1),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-\uff10\uff11",
    ],
)
def test_what_is_not_exactly_a_line_is_none(line: str) -> None:
    assert parse_traceparent(line) is None


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.booleans())
def test_a_line_says_what_it_was_made_of(trace: bytes, span: bytes, sampled: bool) -> None:
    made = TraceParent(trace, span, sampled)
    assert parse_traceparent(made.line()) == (made if any(trace) and any(span) else None)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error(line: str) -> None:
    found = parse_traceparent(line)
    assert found is None or found.line()[:-2] == line[:-2]
