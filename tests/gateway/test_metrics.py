"""GET /metrics of a running gateway: who may read it, what stands in it, and that no caller can make it grow."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics
from gateway.metrics import rendered, require_metrics
from sealgate.demo.stage import free_port
from sealgate.deployment import Deployment, TelemetrySection
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from sealgate.protocol.figures import FAMILIES, Figures
from secure_runtime.host.metrics import HostMetrics, Standing, own_processes
from tests.gateway.conftest import FakeHost, Running, plain_answer, post_sealed

TOKEN = "0123456789abcdef-scraper"
STANDING = Standing(
    ready=True,
    degraded=False,
    workers=1,
    models=1,
    models_refused=0,
    keys=2,
    key_age_us=5_000_000,
    layers=[
        {"seccomp": frames.Layer(state="on"), "landlock": frames.Layer(state="on")},
        {"seccomp": frames.Layer(state="on"), "landlock": frames.Layer(state="failed")},
    ],
    requests_in_flight=0,
    bytes_in_flight=0,
    log_records=7,
    log_ok=True,
    log_allows_inference=True,
    witnesses_ok=True,
)


def with_telemetry(deployment: Deployment, **settings: Any) -> Deployment:
    section = TelemetrySection(**settings)
    return Deployment(deployment.root, msgspec.structs.replace(deployment.settings, telemetry=section))


class Scraped:
    """A gateway that serves metrics, with a host that adds up as the real one does."""

    def __init__(self, deployment: Deployment, host: FakeHost, **settings: Any) -> None:
        self.port = free_port()
        self.host_metrics = HostMetrics(lambda: STANDING)
        host.script = self._script
        self.running = Running(with_telemetry(deployment, metrics=f"127.0.0.1:{self.port}", **settings), host)

    def _script(self, frame: Any, body: bytes) -> Any:
        if isinstance(frame, frames.FiguresTold):
            self.host_metrics.told("the gateway", body)
            return frames.Recorded(log="", record=0, receipt=b""), b""  # to number 0, which nobody asked by
        if isinstance(frame, frames.FiguresWanted):
            return frames.FiguresGiven(), self.host_metrics.given(own_processes())
        return plain_answer(frame, body)

    def get(self, path: str = "/metrics", **fields: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=fields, trust_env=False)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        answer = self.get()
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }


@pytest.fixture
def scraped(deployment: Deployment, host: FakeHost) -> Iterator[Scraped]:
    made = Scraped(deployment, host)
    yield made
    made.running.close()


def test_requests_are_counted_by_route_status_step_and_reason(scraped: Scraped) -> None:
    running = scraped.running
    client = running.client(token=running.token())
    for _ in range(3):
        assert post_sealed(client).status_code == 200
    assert post_sealed(running.client(token="no.token.atall")).status_code == 401
    assert post_sealed(client, Purpose="advertising").status_code == 403
    seen = scraped.samples()
    route = ("route", "/sealed/{model}")
    assert seen[("sealgate_gateway_requests_total", (route, ("status", "200")))] == 3
    assert seen[("sealgate_gateway_requests_total", (route, ("status", "401")))] == 1
    assert seen[("sealgate_gateway_requests_total", (route, ("status", "403")))] == 1
    assert seen[("sealgate_gateway_request_seconds_count", (route,))] == 5
    assert seen[("sealgate_step_seconds_count", (("step", "authenticate"),))] == 4
    assert seen[("sealgate_step_seconds_count", (("step", "decide"),))] == 4
    assert seen[("sealgate_step_seconds_count", (("step", "release"),))] == 3
    reason = (("reason", "token-malformed"),)
    assert seen[("sealgate_gateway_authentication_failures_total", reason)] == 1
    assert sum(n for (name, _), n in seen.items() if name == "sealgate_gateway_denials_total") == 1
    assert seen[("sealgate_sandbox_layer_on", (("layer", "seccomp"),))] == 1
    assert seen[("sealgate_sandbox_layer_on", (("layer", "landlock"),))] == 0
    assert seen[("sealgate_request_key_age_seconds", ())] == 5
    assert seen[("sealgate_process_resident_memory_bytes", (("process", "gateway-0"),))] > 1e7
    assert scraped.samples()[("sealgate_gateway_requests_total", (route, ("status", "200")))] == 3  # not counted twice


def test_no_caller_can_make_the_metrics_grow(scraped: Scraped) -> None:
    running = scraped.running

    def attempt(number: int) -> None:
        text = f"hostile-{number}"
        client = running.client(token=running.token(subject=text))
        post_sealed(client, model=text, Purpose=text, Sealed_Operation=text, Sealed_Model=text)
        post_sealed(client, model=text, Purpose="treatment", traceparent=text)
        post_sealed(running.client(token=running.token(roles=["auditor"])), model="wine")
        post_sealed(running.client(token=text))
        client.get(f"/{text}")
        client.get(f"/audit/v1/records/{text}")
        client.request(text.upper(), f"/sealed/{text}")
        client.get("/health/ready", params={text: text}, headers={text: text})

    attempt(0)
    before = set(scraped.samples())
    for number in range(1, 12):
        attempt(number)
    assert set(scraped.samples()) == before
    assert "hostile" not in scraped.get().text.lower()


def test_only_what_is_served_there_is_served(scraped: Scraped) -> None:
    for path in ("/", "/metrics/", "/metrics?x=1", "/health/live", "/audit/v1/records"):
        assert scraped.get(path).status_code == 404
    answer = httpx.post(f"http://127.0.0.1:{scraped.port}/metrics", content=b"x", trust_env=False)
    assert answer.status_code == 404
    assert scraped.running.client().get("/metrics").status_code == 404  # not on the network's side


def test_a_name_that_strangers_point_here_is_not_answered(scraped: Scraped) -> None:
    ours = ("127.0.0.1:9464", "127.0.0.1", "localhost", "localhost:1", "[::1]:9464", "[::1]")
    theirs = ("rebound.test", "rebound.test:9464", "127.0.0.1.rebound.test", "192.0.2.1:9464", "", ":9464", "[::1")
    assert [scraped.get(Host=host).status_code for host in ours] == [200] * len(ours)
    assert [scraped.get(Host=host).status_code for host in theirs] == [403] * len(theirs)


def test_the_token_of_a_scraper(deployment: Deployment, host: FakeHost) -> None:
    (deployment.root / "scraper.token").write_text(TOKEN + "\n")
    made = Scraped(deployment, host, metrics_token_file="scraper.token")
    try:
        for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = made.get(**shown)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert TOKEN not in answer.text
        twice = httpx.get(
            f"http://127.0.0.1:{made.port}/metrics",
            headers=[("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")],
            trust_env=False,
        )
        assert twice.status_code == 401
        assert made.get(Authorization=f"Bearer {TOKEN}").status_code == 200
        assert made.get(Authorization=f"Bearer {TOKEN}", Host="metrics.test").status_code == 200  # a page has no token
    finally:
        made.running.close()


def test_a_head_that_is_too_long_gets_no_answer_and_others_are_served(scraped: Scraped) -> None:
    with socket.create_connection(("127.0.0.1", scraped.port), timeout=60) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n" + b"x: " + b"y" * 200_000)
        answer = b""
        try:
            while data := sock.recv(4096):
                answer += data
        except ConnectionError:
            pass
    assert answer == b""
    assert scraped.get().status_code == 200


def test_a_gateway_without_a_runtime_tells_its_own_figures(scraped: Scraped, host: FakeHost) -> None:
    host.stop()
    Running.until(lambda: not scraped.running.gate.link.connected)
    seen = scraped.samples()
    assert seen[("sealgate_runtime_ready", ())] == 0
    assert ("sealgate_process_resident_memory_bytes", (("process", "gateway"),)) in seen


def test_whichever_of_several_processes_is_asked_gives_the_sum(
    deployment: Deployment, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FIGURES_EVERY_S", 0.01)
    made = Scraped(deployment, host)
    other = Running(made.running.deployment, host)  # listens on the same port, and knows nothing of the first
    try:
        for running, count in ((made.running, 2), (other, 3)):
            client = running.client(token=running.token())
            assert [post_sealed(client).status_code for _ in range(count)] == [200] * count
        key = ("sealgate_gateway_requests_total", (("route", "/sealed/{model}"), ("status", "200")))
        Running.until(lambda: made.samples().get(key) == 5)
        other.close()
        assert {made.samples()[key] for _ in range(4)} == {5}
    finally:
        made.running.close()


def test_off_unless_it_is_set(gateway: Running) -> None:
    client = gateway.client(token=gateway.token())
    assert post_sealed(client).status_code == 200
    assert not gateway.host._of(frames.FiguresTold)
    assert gateway.asgi._watch is None


@pytest.mark.parametrize(
    "address", ["0.0.0.0:9464", "192.168.1.4:9464", "example.org:9464", "9464", "127.0.0.1:", "::1"]
)
def test_only_addresses_of_this_machine_are_accepted(deployment: Deployment, address: str) -> None:
    from sealgate.deployment import open_deployment

    with (deployment.root / "deployment.toml").open("a") as file:
        file.write(f'\n[telemetry]\nmetrics = "{address}"\n')
    with pytest.raises(ConfigurationError, match="loopback"):
        open_deployment(deployment.root)


def test_what_would_keep_it_from_being_served_is_said_in_one_line(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="cannot listen"):
            require_metrics(with_telemetry(deployment, metrics=f"127.0.0.1:{port}"))
    for content in ("short", "two words of a token", ""):
        (deployment.root / "token").write_text(content)
        with pytest.raises(ConfigurationError, match="must hold one token"):
            require_metrics(with_telemetry(deployment, metrics="127.0.0.1:0", metrics_token_file="token"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        require_metrics(with_telemetry(deployment, metrics="127.0.0.1:0", metrics_token_file="missing"))


def test_every_family_is_rendered_and_read_again_by_prometheus_own_parser() -> None:
    figures = Figures()
    for name, family in FAMILIES.items():
        labels = tuple(f"some-{label}" for label in family.labels)
        if family.kind == "histogram":
            for value in (*family.bounds, family.bounds[-1] + 1):
                figures.observe(name, labels, value)
        else:
            figures.put(name, labels, 3 * family.per)
    _, body = rendered(figures.snapshot())
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    for name, family in FAMILIES.items():
        found = families[name.removesuffix("_total")]
        assert found.type == family.kind
        assert found.documentation == family.help
        values = {sample.name: sample.value for sample in found.samples}
        if family.kind == "histogram":
            counts = [sample.value for sample in found.samples if sample.name.endswith("_bucket")]
            assert counts == list(range(1, len(family.bounds) + 2))
            assert values[f"{name}_sum"] == pytest.approx((sum(family.bounds) + family.bounds[-1] + 1) / family.per)
        else:
            assert values[name] == 3
