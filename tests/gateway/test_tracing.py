"""Traces of a running gateway, by OpenTelemetry's in-memory exporter and by a real receiver of OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import app as composition
from gateway.tracing import TraceExporter, open_traces
from sealgate.deployment import Deployment, open_deployment
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from sealgate.protocol.frames import Span
from sealgate.protocol.tracing import parse_traceparent
from tests.gateway.conftest import LOG, FakeHost, Running, plain_answer, post_sealed
from tests.gateway.test_metrics import with_telemetry
from tests.otlp import Collector

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLERS = f"00-{TRACE}-{SPAN}-01"


class Traced:
    """A gateway whose spans a test can look at, and a host that adds two of its own."""

    def __init__(self, deployment: Deployment, host: FakeHost, monkeypatch: pytest.MonkeyPatch, **settings: Any):
        self.memory = InMemorySpanExporter()
        self.exporter = TraceExporter(self.memory)
        monkeypatch.setattr(composition, "open_traces", lambda _: self.exporter)
        host.script = self._script
        self.submitted: list[str] = []
        values = {"traces": "http://127.0.0.1:1/v1/traces", "trace_ratio": 1.0, **settings}
        self.running = Running(with_telemetry(deployment, **values), host)
        self.client = self.running.client(token=self.running.token())

    def _script(self, frame: Any, body: bytes) -> Any:
        if not isinstance(frame, frames.Submit):
            return plain_answer(frame, body)
        self.submitted.append(frame.trace)
        above = parse_traceparent(frame.trace)
        spans: tuple[Span, ...] = ()
        if above is not None:
            good = Span(
                "host", "authorise", b"h" * 8, above.span_id, 10, 20, {"sealgate.batch_rows": 3, "evil": "payload"}
            )
            unknown = Span("worker", "exfiltrate", b"w" * 8, above.span_id, 10, 20)
            short = Span("worker", "run", b"w", above.span_id, 10, 20)
            spans = (good, unknown, short)
        answer = frames.Answer(media_type="message/ohttp-res", log=LOG, record=7, receipt=b"receipt", spans=spans)
        return answer, b"sealed answer"

    def spans(self) -> list[Any]:
        self.exporter._processor.force_flush()
        return list(self.memory.get_finished_spans())


@pytest.fixture
def traced(deployment: Deployment, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    made = Traced(deployment, host, monkeypatch)
    yield made
    made.running.close()


def test_a_request_is_one_tree_and_the_hosts_spans_are_believed_as_far_as_they_are_known(traced: Traced) -> None:
    assert post_sealed(traced.client).status_code == 200
    spans = {span.name: span for span in traced.spans()}
    assert set(spans) == {"sealed-request", "authenticate", "parse", "decide", "runtime", "authorise"}
    root = spans["sealed-request"]
    assert root.parent is None
    assert dict(root.attributes) == {"http.route": "/sealed/{model}", "http.response.status_code": 200}
    assert root.resource.attributes["service.name"] == "sealgate-gateway"
    for name in ("authenticate", "parse", "decide", "runtime"):
        assert spans[name].parent.span_id == root.context.span_id
        assert root.start_time <= spans[name].start_time <= spans[name].end_time <= root.end_time
    host = spans["authorise"]
    assert host.parent.span_id == spans["runtime"].context.span_id
    assert host.resource.attributes["service.name"] == "sealgate-host"
    assert dict(host.attributes) == {"sealgate.batch_rows": 3}
    assert {span.context.trace_id for span in spans.values()} == {root.context.trace_id}


def test_a_callers_trace_counts_only_where_it_is_configured(traced: Traced) -> None:
    assert post_sealed(traced.client, traceparent=CALLERS).status_code == 200
    (root,) = [span for span in traced.spans() if span.name == "sealed-request"]
    assert root.parent is None
    assert root.context.trace_id != int(TRACE, 16)


def test_a_callers_trace_goes_on_here_if_it_is_sampled_and_well_formed(
    deployment: Deployment, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Traced(deployment, host, monkeypatch, traceparent=True)
    try:
        assert post_sealed(made.client, traceparent=CALLERS).status_code == 200
        (root,) = [span for span in made.spans() if span.name == "sealed-request"]
        assert (root.context.trace_id, root.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
        assert made.submitted[-1].startswith(f"00-{TRACE}-")
        made.memory.clear()
        assert post_sealed(made.client, traceparent=CALLERS[:-1] + "0").status_code == 200
        assert not made.spans()  # its caller does not trace it
        for line in ("00-" + "0" * 32 + f"-{SPAN}-01", "x" * 5000, CALLERS + ", " + CALLERS):
            assert post_sealed(made.client, traceparent=line).status_code == 200
        roots = [span for span in made.spans() if span.name == "sealed-request"]
        assert len(roots) == 3
        assert all(span.parent is None and span.context.trace_id != int(TRACE, 16) for span in roots)
    finally:
        made.running.close()


def test_what_is_not_drawn_is_not_traced_and_the_host_is_not_asked_to(
    deployment: Deployment, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Traced(deployment, host, monkeypatch, trace_ratio=0.0, traceparent=True)
    try:
        assert post_sealed(made.client, traceparent=CALLERS).status_code == 200
        assert made.submitted == [""]
        assert not made.spans()
    finally:
        made.running.close()


def test_no_word_of_a_caller_is_in_a_span(traced: Traced) -> None:
    hostile = "hostile-word"
    post_sealed(traced.client, model=hostile, Purpose=hostile)
    post_sealed(traced.running.client(token=hostile), tracestate=f"a={hostile}", baggage=f"a={hostile}")
    post_sealed(traced.running.client(token=traced.running.token(subject=hostile)))
    traced.client.post(f"/sealed/{hostile}/{hostile}")
    spans = traced.spans()
    assert len([span for span in spans if span.name == "sealed-request"]) >= 3
    assert hostile not in " ".join(span.to_json() for span in spans)
    assert "clinic" not in " ".join(span.to_json() for span in spans)


def test_a_refusal_is_traced_as_far_as_it_came(traced: Traced) -> None:
    assert post_sealed(traced.running.client(token="nobody")).status_code == 401
    (root,) = traced.spans()
    assert root.attributes["http.response.status_code"] == 401
    assert root.status.is_unset


def test_spans_reach_a_real_receiver(deployment: Deployment, host: FakeHost) -> None:
    with Collector() as collector:
        running = Running(with_telemetry(deployment, traces=collector.url, trace_ratio=1.0), host)
        try:
            assert post_sealed(running.client(token=running.token())).status_code == 200
        finally:
            running.close()  # sends what is left
        assert {span.name for _, span in collector.spans()} >= {"sealed-request", "authenticate", "runtime"}
        assert {service for service, _ in collector.spans()} == {"sealgate-gateway"}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ('traces = "http://collector.example.org:4318/v1/traces"', "https"),
        ('traces = "127.0.0.1:4318"', "https"),
        ("trace_ratio = 1.5", "from 0 to 1"),
        ("watts_per_cpu = -1.0", "watts_per_cpu"),
    ],
)
def test_settings_that_cannot_be_are_refused(deployment: Deployment, setting: str, says: str) -> None:
    with (deployment.root / "deployment.toml").open("a") as file:
        file.write(f"\n[telemetry]\n{setting}\n")
    with pytest.raises(ConfigurationError, match=says):
        open_deployment(deployment.root)


def test_an_authority_that_is_not_there_is_said(deployment: Deployment) -> None:
    changed = with_telemetry(deployment, traces="https://localhost:4318/v1/traces", traces_ca="missing.pem")
    with pytest.raises(ConfigurationError, match="traces_ca"):
        open_traces(changed)
    assert open_traces(deployment) is None


def test_frames_of_an_untraced_request_are_as_they_were() -> None:
    answer = frames.Answer(media_type="m", log="l", record=1, receipt=b"r")
    assert b"spans" not in msgspec.msgpack.encode(answer)
