"""Spans of traced requests, of all three processes, to an OpenTelemetry collector (OTLP over HTTP).

The host has no network and the worker not even a clock that is believed, so their spans come with the host's answer
(sealgate.protocol.frames.Span) and leave from here, each as a service of its own. Spans are handed to the library's
background thread when the request is over; when that has more than it can send, it drops them and nobody waits.

Needs the extra `telemetry`. Trusts: the collector to be the operator's. Never: has an attribute of a payload, a caller,
a tenant or a credential; changes what happens to a request.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.watching import Journey
from sealgate.errors import ConfigurationError
from sealgate.protocol.tracing import SPANS, TraceParent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from sealgate.deployment import Deployment

SERVICES = {"gateway": "sealgate-gateway", "host": "sealgate-host", "worker": "sealgate-worker"}
_FACTS = frozenset({"sealgate.batch_rows"})
_SERVER_ERROR = 500


class TraceExporter:
    """Owned by the event loop; `exporter` is used from the library's own thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._processor = BatchSpanProcessor(exporter)
        self._resources = {
            process: Resource({"service.name": service, "service.namespace": "sealgate"})
            for process, service in SERVICES.items()
        }

    def export(self, journey: Journey, ended_ns: int, *, route: str, status: int) -> None:
        """All spans of one request. The host's are believed as far as their names and facts are known ones."""
        trace = journey.trace
        assert trace is not None
        facts: dict[str, str | int] = {"http.route": route, "http.response.status_code": status}
        self._emit(
            "gateway",
            "sealed-request",
            trace,
            above=journey.above,
            start_us=journey.began_us,
            end_us=journey.began_us + (ended_ns - journey.began_ns) // 1000,
            facts=facts,
            server=True,
        )
        for name, began, ended in journey.steps:
            if name in SPANS:
                span_id = journey.runtime_span if name == "runtime" else journey.entropy(8)
                start_us, end_us = (journey.began_us + (at - journey.began_ns) // 1000 for at in (began, ended))
                own = TraceParent(trace.trace_id, span_id)
                self._emit("gateway", name, own, above=trace.span_id, start_us=start_us, end_us=end_us)
        for span in journey.remote:
            if span.name in SPANS and len(span.span_id) == len(span.parent_id) == 8:
                own = TraceParent(trace.trace_id, span.span_id)
                known = {name: value for name, value in span.facts.items() if name in _FACTS}
                self._emit(
                    span.process,
                    span.name,
                    own,
                    span.parent_id,
                    start_us=span.start_us,
                    end_us=span.end_us,
                    facts=known,
                )

    def _emit(
        self,
        process: str,
        name: str,
        own: TraceParent,
        above: bytes,
        *,
        start_us: int,
        end_us: int,
        facts: dict[str, str | int] | None = None,
        server: bool = False,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind, Status, StatusCode

        failed = bool(facts) and int((facts or {}).get("http.response.status_code", 0)) >= _SERVER_ERROR
        span = ReadableSpan(
            name=name,
            context=_context(own.trace_id, own.span_id, remote=False),
            parent=_context(own.trace_id, above, remote=server) if above else None,
            resource=self._resources[process],
            attributes=dict(facts or {}),
            kind=SpanKind.SERVER if server else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=start_us * 1000,
            end_time=max(start_us, end_us) * 1000,
        )
        self._processor.on_end(span)

    def close(self) -> None:
        """Send what is left, within the library's own time-outs."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # of the library


def _context(trace_id: bytes, span_id: bytes, *, remote: bool) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(
        int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote=remote, trace_flags=TraceFlags(1)
    )


def open_traces(deployment: Deployment) -> TraceExporter | None:
    """By the deployment's settings; None where nothing is traced. Raises ConfigurationError without the extra."""
    settings = deployment.settings.telemetry
    if not settings.traces:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigurationError(
            "telemetry.traces is set, and the extra telemetry is not installed: pip install 'sealgate[telemetry]'"
        ) from None
    ca: Path | None = deployment.root / settings.traces_ca if settings.traces_ca else None
    if ca is not None and not ca.is_file():
        raise ConfigurationError(f"telemetry.traces_ca: {ca} is not there")
    return TraceExporter(OTLPSpanExporter(endpoint=settings.traces, certificate_file=str(ca) if ca else None))
