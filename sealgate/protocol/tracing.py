"""W3C Trace Context (level 1), strictly: the one line by which a request's spans in several processes find together.

Trusts: nobody: a line that is not exactly as the recommendation writes version 00 is no line. Never: takes anything but
two identifiers and a flag from it; `tracestate` is not read at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_SAMPLED = 1

SPANS = {
    "sealed-request": "the gateway's: one request, from head to end of answer",
    "authenticate": "step 3",
    "parse": "step 4",
    "decide": "step 5",
    "runtime": "steps 6 to 10, as the gateway sees them",
    "authorise": "step 6, in the host",
    "worker": "steps 7 to 9, as the host sees them",
    "open": "step 7, in the worker",
    "run": "step 8, in the worker",
    "seal": "step 9, in the worker",
    "record": "step 10, in the host",
}
"""Every name that a span of ours has."""


@dataclass(frozen=True)
class TraceParent:
    """Which trace, and which span in it is above. Proves nothing about who sent it."""

    trace_id: bytes  # 16
    span_id: bytes  # 8
    sampled: bool = True

    def line(self) -> str:
        """As the header field `traceparent`."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{int(self.sampled):02x}"


def parse_traceparent(line: str) -> TraceParent | None:
    """None for what is no valid line: the trace then begins here."""
    found = _LINE.match(line)
    if found is None:
        return None
    trace_id, span_id = bytes.fromhex(found[1]), bytes.fromhex(found[2])
    if not any(trace_id) or not any(span_id):
        return None
    return TraceParent(trace_id, span_id, sampled=bool(int(found[3], 16) & _SAMPLED))
