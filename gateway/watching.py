"""What a gateway process sees of each request on its way: figures of its steps and ends, and the spans of a traced one.

The access log begins a `Journey` in the request's scope where metrics or traces are on, and ends it; in between whoever
does a step says so with `stepped`. Where both are off there is no journey, and a step costs one look into the scope.

Trusts: the router for the route template, the runtime host for its spans. Never: believes a caller's `traceparent`
unless it is configured to; has a label or a fact of a path, a credential, a tenant, a subject or a body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import AUTHENTICATION_FAILURES
from sealgate.ambient import Clock, Entropy, monotonic_ns, now_us, random_bytes
from sealgate.protocol.figures import OTHER, STEPS, Figures
from sealgate.protocol.frames import Answer, Refused, Span, Submit
from sealgate.protocol.tracing import TraceParent, parse_traceparent

if TYPE_CHECKING:
    from gateway.tracing import TraceExporter

JOURNEY = "gateway.journey"
"""In a scope: the request's journey, where there is one."""
_SEALED = ("/sealed/", "/.well-known/ohttp-gateway")
_DRAWN_FROM = 2**32
_OK = 200


class Journey:
    """One request's way through this process: steps with when they began and ended, in nanoseconds of the monotonic
    clock; and, of a traced request, which trace it belongs to."""

    __slots__ = ("above", "began_ns", "began_us", "entropy", "remote", "runtime_span", "steps", "trace")

    def __init__(self, began_ns: int) -> None:
        self.began_ns = began_ns
        self.began_us = 0
        self.steps: list[tuple[str, int, int]] = []
        self.trace: TraceParent | None = None  # its own span; None: not traced
        self.above = b""  # the caller's span, if its trace goes on here
        self.runtime_span = b""
        self.remote: tuple[Span, ...] = ()
        self.entropy: Entropy = random_bytes

    def handed_over(self, frame: Submit) -> Submit:
        """What is sent to the host: of a traced request, with the span under which the host's belong."""
        if self.trace is None:
            return frame
        self.runtime_span = self.entropy(8)
        return msgspec.structs.replace(frame, trace=TraceParent(self.trace.trace_id, self.runtime_span).line())

    def came_back(self, reply: Answer | Refused, began_ns: int) -> None:
        """The host's answer is there."""
        self.steps.append(("runtime", began_ns, monotonic_ns()))
        if self.trace is not None:
            self.remote += reply.spans


def stepped(scope: Any, name: str, began_ns: int) -> None:
    """A step of this request has ended now."""
    journey = scope.get(JOURNEY)
    if journey is not None:
        journey.steps.append((name, began_ns, monotonic_ns()))


class Watch:
    """Begins and ends journeys. Owned by the event loop. `figures` and `traces` are None where they are off."""

    def __init__(
        self,
        figures: Figures | None,
        traces: TraceExporter | None,
        *,
        ratio: float = 0.0,
        go_on: bool = False,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        self.figures = figures
        self._traces = traces
        self._below = round(ratio * _DRAWN_FROM)
        self._go_on = go_on
        self._clock = clock
        self._entropy = entropy

    def begin(self, scope: Any, began_ns: int) -> Journey:
        """The head of a request is here."""
        journey = scope[JOURNEY] = Journey(began_ns)
        if self._traces is not None and scope["method"] == "POST" and scope["path"].startswith(_SEALED):
            self._begin_trace(journey, scope)
        return journey

    def _begin_trace(self, journey: Journey, scope: Any) -> None:
        if int.from_bytes(self._entropy(4), "big") >= self._below:
            return
        caller = _callers(scope) if self._go_on else None
        if caller is not None and not caller.sampled:
            return
        journey.entropy = self._entropy
        journey.began_us = self._clock()
        journey.above = caller.span_id if caller is not None else b""
        trace_id = caller.trace_id if caller is not None else self._entropy(16)
        journey.trace = TraceParent(trace_id, self._entropy(8))

    def end(self, journey: Journey, scope: Any, *, route: str, status: int) -> None:
        """The answer is out, or nobody waits for it any more."""
        ended_ns = monotonic_ns()
        figures = self.figures
        if figures is not None:
            figures.add("sealgate_gateway_requests_total", (route, str(status)))
            figures.observe("sealgate_gateway_request_seconds", (route,), (ended_ns - journey.began_ns) // 1000)
            for name, began, ended in journey.steps:
                if name in STEPS:
                    figures.observe("sealgate_step_seconds", (name,), (ended - began) // 1000)
                elif name == "runtime" and status == _OK:
                    figures.observe("sealgate_step_seconds", ("release",), (ended_ns - ended) // 1000)
            _count_refusal(figures, scope.get("gateway.log", {}), status=status)
        if journey.trace is not None and self._traces is not None:
            self._traces.export(journey, ended_ns, route=route, status=status)

    def close(self) -> None:
        """Send what is left. Waits for the collector, within time-outs: not for the event loop's thread."""
        if self._traces is not None:
            self._traces.close()


def _count_refusal(figures: Figures, noted: dict[str, Any], *, status: int) -> None:
    reason = noted.get("reason")
    if not reason:
        return
    if status in (401, 503) and reason in AUTHENTICATION_FAILURES:
        figures.add("sealgate_gateway_authentication_failures_total", (reason,))
    elif "tenant" in noted:  # who is known was refused, for a reason of the policy's
        figures.add("sealgate_gateway_denials_total", (reason if isinstance(reason, str) else OTHER,))


def _callers(scope: Any) -> TraceParent | None:
    """The caller's trace, said once and as the recommendation writes it."""
    lines = [value for name, value in scope["headers"] if name == b"traceparent"]
    return parse_traceparent(lines[0].decode("latin-1")) if len(lines) == 1 else None
