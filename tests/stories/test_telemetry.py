"""Metrics, traces and usage of the real processes: what a scraper, a collector and a bill see of real requests.

The scraper's text is read by Prometheus's own parser, the spans arrive at a real OTLP receiver, and usage is counted
again, by other code, from an export of the log.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sealgate.cli import main
from sealgate.client.errors import ServiceRefused
from sealgate.demo.stage import free_port
from sealgate.protocol.figures import FAMILIES, STEPS
from sealgate.protocol.tracing import SPANS
from tests.live import MODEL, Live, run_sealgate, wait_until
from tests.otlp import Collector, attributes

TOKEN = "a scraper's own token".replace(" ", "-").replace("'", "")
PRICES = """
currency = "EUR"
[[price]]
request = "0.10"
unit = "0.01"
[[price]]
operation = "read-model"
request = "0"
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


@pytest.fixture
def live(fresh: Callable[[], Live], collector: Collector) -> Live:
    made = fresh()
    (made.root / "scraper.token").write_text(TOKEN)
    settings = made.root / "deployment.toml"
    settings.write_text(
        settings.read_text()
        + f"""
[telemetry]
metrics = "127.0.0.1:{free_port()}"
metrics_token_file = "scraper.token"
traces = "{collector.url}"
trace_ratio = 1.0
watts_per_cpu = 12.5
"""
    )
    again = Live(made.root, made.rows)
    made.deployment = again.deployment
    made.start()
    made.ready()
    return made


def usage(*arguments: object, code: int = 0) -> tuple[str, str]:
    """`sealgate usage ARGUMENTS` in this process: what it printed, and what it complained of."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["usage", *map(str, arguments)]) == code, err.getvalue()
    return out.getvalue(), err.getvalue()


def scrape(live: Live) -> dict[str, list[Any]]:
    """Samples by their names, as Prometheus reads them."""
    address = live.deployment.settings.telemetry.metrics
    answer = httpx.get(f"http://{address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False)
    assert answer.status_code == 200
    found: dict[str, list[Any]] = defaultdict(list)
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name].append(sample)
    return found


def value(samples: dict[str, list[Any]], name: str, **labels: str) -> float:
    return sum(one.value for one in samples[name] if labels.items() <= one.labels.items())


def test_what_real_requests_leave_in_metrics_traces_and_bills(live: Live, collector: Collector, tmp_path: Path) -> None:
    with live.session() as session:
        for count in (1, 2, 3):
            session.infer(MODEL, live.rows[:count])
        described = session.metadata(MODEL)
        assert described
        with pytest.raises(ServiceRefused):
            session.infer(MODEL, live.rows[:1], purpose="advertising")

    seen = scrape(live)
    assert value(seen, "sealgate_requests_total", operation="infer", outcome="completed") == 3
    assert value(seen, "sealgate_requests_total", outcome="denied") == 1
    assert value(seen, "sealgate_model_rows_total", model=MODEL) == 6
    assert value(seen, "sealgate_units_total") == 6
    assert value(seen, "sealgate_model_cpu_seconds_total", model=MODEL) > 0
    assert value(seen, "sealgate_energy_joules_total", source="declared") > 0
    assert value(seen, "sealgate_batch_rows_count") == 3
    assert value(seen, "sealgate_batch_rows_sum") == 6
    for step in STEPS:
        assert value(seen, "sealgate_step_seconds_count", step=step) >= 3, step
    for name in (
        "runtime_ready",
        "worker_up",
        "worker_starts_total",
        "log_ok",
        "log_allows_inference",
        "models_loaded",
    ):
        assert value(seen, f"sealgate_{name}") == 1, name
    assert value(seen, "sealgate_log_records") == len(live.records())
    processes = {one.labels["process"] for one in seen["sealgate_process_resident_memory_bytes"]}
    assert {"gateway-0", "host", "worker-0"} <= processes
    assert all(
        one.value > 1e6 for one in seen["sealgate_process_resident_memory_bytes"] if one.labels["process"] != "worker-0"
    )
    names = {one.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for one in seen}
    assert names <= set(FAMILIES)
    text = json.dumps({name: [one.labels for one in samples] for name, samples in seen.items()})
    for never in ("clinic", "triage-app", "advertising", "treatment"):
        assert never not in text

    # Spans of three processes, one tree for each request.
    def traced() -> bool:
        return len([span for _, span in collector.spans() if span.name == "sealed-request"]) >= 5

    # An auditor's own asking, and what he takes away.
    certificate, key = live.certificate("auditor")
    credential = ("--trust", live.trust, "--client-cert", certificate, "--client-key", key)
    asked = json.loads(usage(live.url, "--format", "json", *credential)[0])
    assert [one.kind for one in live.records()].count("audit.query") == 1
    assert "not for the URL" in usage("https://elsewhere.example.org", *credential, code=1)[1]
    bundle, lines = tmp_path / "evidence.zip", tmp_path / "records.ndjson"
    run_sealgate("audit", "export", "--out", bundle, *credential)
    run_sealgate("audit", "export", "--format", "ndjson", "--out", lines, *credential)
    proven = json.loads(
        run_sealgate("audit", "report", "usage", "--bundle", bundle, "--json", "--trust", live.trust).stdout
    )
    assert proven["basis"]["proven"]

    live.stop()  # what was not sent yet is sent now
    wait_until(traced, within_s=60, what="five traces")
    by_trace: dict[bytes, list[tuple[str, Any]]] = defaultdict(list)
    for service, span in collector.spans():
        by_trace[span.trace_id].append((service, span))
        assert span.name in SPANS
        assert set(attributes(span)) <= {"http.route", "http.response.status_code", "sealgate.batch_rows"}
    answered = [spans for spans in by_trace.values() if any(span.name == "run" for _, span in spans)]
    ends = [one for one in live.records() if one.kind in ("inference.completed", "inference.failed")]
    assert len(answered) == len(ends) >= 4  # the session asks about a model's inputs too
    for spans in answered:
        assert Counter(service for service, _ in spans) >= Counter(
            {"sealgate-gateway": 4, "sealgate-host": 3, "sealgate-worker": 3}
        )
        by_id = {span.span_id: span for _, span in spans}
        (root,) = [span for _, span in spans if not span.parent_span_id]
        assert root.name == "sealed-request"
        assert attributes(root) == {"http.route": "/sealed/{model}", "http.response.status_code": 200}
        for _, span in spans:
            if span is not root:
                above = by_id[span.parent_span_id]
                assert above.start_time_unix_nano <= span.start_time_unix_nano + 1000
                assert span.end_time_unix_nano <= above.end_time_unix_nano + 1_000_000
    assert not any(secret in collector.raw() for secret in (b"clinic", b"triage-app", b"breast-cancer", b"treatment"))

    # The bill, and the same counted again from what auditors take away.
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    bill = json.loads(usage(live.root, "--prices", prices, "--format", "json")[0])
    exported = [json.loads(line) for line in lines.read_text().splitlines()]
    recounted: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for record in (one.get("record", one) for one in exported):
        if record["kind"] in ("inference.completed", "inference.failed", "inference.aborted"):
            group = tuple(record.get(name, "") for name in ("tenant", "model", "operation", "purpose"))
            recounted[group] += Counter({"requests": 1, "units": record.get("units", 0)})
            recounted[group] += Counter({name: int(record["detail"][name]) for name in ("rows", "cpu_us", "energy_uj")})
            assert record["detail"]["energy_by"] == "declared"
    counted = {
        (row["tenant"], row["model"], row["operation"], row["purpose"]): +Counter(
            requests=row["requests"],
            units=row["units"],
            rows=row["rows"],
            cpu_us=row["cpu_us"],
            energy_uj=row["energy_uJ"],
        )
        for row in bill["usage"]
    }
    assert counted == recounted
    assert asked["usage"] == [{name: cell for name, cell in row.items() if name != "price"} for row in bill["usage"]]
    (table,) = proven["tables"]
    assert [list(row) for row in table["rows"]] == [list(row.values()) for row in asked["usage"]]
    assert sum(row["requests"] for row in bill["usage"]) == len(ends)
    assert bill["total"] == "0.360000"  # three requests at 0.10, six units at 0.01
    table = usage(live.root, "--prices", prices)[0]
    assert "0.360000" in table
    lines = list(csv.reader(io.StringIO(usage(live.root, "--format", "csv")[0])))
    assert [row[4] for row in lines if row][1:] == [str(row["requests"]) for row in bill["usage"]]
    assert usage(live.root, "--tenant", "others")[0].startswith("Nothing was used")
