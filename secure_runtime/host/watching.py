"""What the host sees of each request on its way: figures of its steps and ends, and spans where it is traced.

`Watcher.begin` gives a `Journey`, which admission tells of each step. Where neither metrics nor traces are on, it is
NOTHING, whose methods do nothing. Trusts: the worker's `Took` for what it took inside, and no clock but the host's for
when: the worker's steps are laid end to end before the moment in which its answer came. Never: has a label or a fact of
a caller, a tenant or a payload; changes what happens to a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from sealgate.ambient import Clock, Entropy, monotonic_ns, now_us, random_bytes
from sealgate.protocol.figures import Figures
from sealgate.protocol.frames import Done, Span, Submit, Took
from sealgate.protocol.tracing import TraceParent, parse_traceparent

if TYPE_CHECKING:
    from sealgate.transparency.record import Record
    from secure_runtime.host.link_server import Reply

_BUDGETS = frozenset({"budget-exhausted", "privacy-budget-exhausted", "privacy-budget-held", "no-privacy-budget"})


class Journey:
    """One request's way through the host. This one does nothing."""

    def authorised(self, record: Record) -> None:
        """Step 6 is durable, or the denial that came of it."""

    def ran(self, done: Done) -> None:
        """Steps 7 to 9: the worker's completion is there."""

    def ended(self, record: Record) -> None:
        """Step 10 is durable."""

    def told(self, reply: Reply) -> Reply:
        """The reply, with the spans of a traced request."""
        return reply


NOTHING = Journey()


class Watcher:
    """Owned by the host's event loop. `figures` is None where no metrics are kept."""

    def __init__(
        self,
        figures: Figures | None,
        *,
        traced: bool,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
        time: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.figures = figures
        self._traced = traced
        self._clock = clock
        self._entropy = entropy
        self._time = time

    def begin(self, frame: Submit) -> Journey:
        """A request has come from a gateway."""
        parent = parse_traceparent(frame.trace) if self._traced and frame.trace else None
        if self.figures is None and parent is None:
            return NOTHING
        return _Watched(self.figures or Figures(), parent, clock=self._clock, entropy=self._entropy, time=self._time)

    def denied(self, record: Record) -> None:
        """A refusal that no request went on from is durable."""
        if self.figures is not None:
            _count_end(self.figures, record)


class _Watched(Journey):
    def __init__(
        self,
        figures: Figures,
        parent: TraceParent | None,
        *,
        clock: Clock,
        entropy: Entropy,
        time: Callable[[], int],
    ) -> None:
        self._figures = figures
        self._parent = parent
        self._entropy = entropy
        self._time = time
        self._began = self._at = time()
        self._began_us = clock() if parent is not None else 0
        self._spans: list[Span] = []
        self._took: Took | None = None

    def _step(self) -> tuple[int, int]:
        """The span of time since the step before, in nanoseconds."""
        since, self._at = self._at, self._time()
        return since, self._at

    def authorised(self, record: Record) -> None:
        since, until = self._step()
        self._figures.observe("sealgate_step_seconds", ("authorise",), (until - since) // 1000)
        self._span("authorise", since, until, process="host")
        if record.kind != "inference.authorized":
            _count_end(self._figures, record)

    def ran(self, done: Done) -> None:
        since, until = self._step()
        self._took = took = done.took or Took()
        inside_us = took.open_us + took.run_us + took.seal_us
        observe = self._figures.observe
        observe("sealgate_step_seconds", ("queue",), max(0, (until - since) // 1000 - inside_us))
        observe("sealgate_step_seconds", ("open",), took.open_us)
        if took.rows:
            observe("sealgate_step_seconds", ("run",), took.run_us)
            observe("sealgate_batch_rows", (), took.batch_rows)
        observe("sealgate_step_seconds", ("seal",), took.seal_us)
        if self._parent is not None:
            self._inside(took, since, until)

    def _inside(self, took: Took, since: int, until: int) -> None:
        """The worker's steps, end to end and never outside of what the host saw."""
        above = self._span("worker", since, until, process="host", facts={"sealgate.batch_rows": took.batch_rows})
        at = max(since, until - (took.open_us + took.run_us + took.seal_us) * 1000)
        for name, lasted_us in (("open", took.open_us), ("run", took.run_us), ("seal", took.seal_us)):
            end = min(until, at + lasted_us * 1000)
            self._span(name, at, end, process="worker", above=above)
            at = end

    def ended(self, record: Record) -> None:
        since, until = self._step()
        self._figures.observe("sealgate_step_seconds", ("record",), (until - since) // 1000)
        self._span("record", since, until, process="host")
        _count_end(self._figures, record)
        # A digest: the name is a loaded model's, and no caller's word.
        if record.model_digest and self._took is not None:
            _count_cost(self._figures, record, self._took)

    def _span(
        self,
        name: str,
        since: int,
        until: int,
        *,
        process: str,
        above: bytes = b"",
        facts: dict[str, str | int] | None = None,
    ) -> bytes:
        if self._parent is None:
            return b""
        start_us, end_us = ((self._began_us + (moment - self._began) // 1000) for moment in (since, until))
        span_id = self._entropy(8)
        where = "worker" if process == "worker" else "host"
        self._spans.append(
            Span(where, name, span_id, above or self._parent.span_id, start_us, end_us, facts or {})  # type: ignore[arg-type]
        )
        return span_id

    def told(self, reply: Reply) -> Reply:
        if not self._spans or not hasattr(reply, "spans"):
            return reply
        return msgspec.structs.replace(reply, spans=tuple(self._spans))


def _count_end(figures: Figures, record: Record) -> None:
    """One request came to its end, or was refused before it began; other records are not counted here."""
    if not record.kind.startswith("inference."):
        return
    outcome = record.outcome or record.kind.removeprefix("inference.")
    figures.add("sealgate_requests_total", (record.operation, outcome))
    if record.reason:
        figures.add("sealgate_request_failures_total", (record.reason,))
        if record.reason in _BUDGETS:
            figures.add("sealgate_budget_refusals_total", (record.reason,))
    if record.units and record.grant:
        figures.add("sealgate_units_total", (), record.units)
    if record.eps_micro and record.grant:
        figures.add("sealgate_epsilon_total", (), record.eps_micro)


def _count_cost(figures: Figures, record: Record, took: Took) -> None:
    model = (record.model,)
    figures.add("sealgate_model_requests_total", model)
    figures.add("sealgate_model_rows_total", model, took.rows)
    figures.add("sealgate_model_cpu_seconds_total", model, took.cpu_us)
    energy_uj = record.detail.get("energy_uj")
    if energy_uj is not None:
        figures.add("sealgate_energy_joules_total", (record.detail["energy_by"],), int(energy_uj))
