"""The host's sum of everybody's figures: through reconnections, and with the kernel's word for its own processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from sealgate.errors import DecodeError
from sealgate.protocol import figures
from sealgate.protocol.figures import Figures, Snapshot
from secure_runtime.host.metrics import HostMetrics, Standing, descendants, own_processes, read_process

REQUESTS = "sealgate_gateway_requests_total"
STANDING = Standing(
    ready=True,
    degraded=True,
    workers=2,
    models=3,
    models_refused=1,
    keys=4,
    key_age_us=1,
    layers=[],
    requests_in_flight=5,
    bytes_in_flight=6,
    log_records=7,
    log_ok=True,
    log_allows_inference=False,
    witnesses_ok=True,
)


def given(metrics: HostMetrics) -> Snapshot:
    return figures.decode(metrics.given(own_processes()))


def tell(metrics: HostMetrics, gateway: str, own: Figures, *, requests: int, in_flight: int, cpu: int) -> None:
    own.add(REQUESTS, ("/sealed/{model}", "200"), requests)
    own.put("sealgate_gateway_requests_in_flight", (), in_flight)
    own.put("sealgate_process_cpu_seconds_total", ("gateway",), cpu)
    metrics.told(gateway, figures.encode(own.take()))


def test_counts_outlive_a_gateway_and_its_standing_does_not() -> None:
    metrics, first, second = HostMetrics(lambda: STANDING), Figures(), Figures()
    tell(metrics, "first", first, requests=10, in_flight=3, cpu=100)
    tell(metrics, "second", second, requests=1, in_flight=4, cpu=200)
    tell(metrics, "first", first, requests=5, in_flight=2, cpu=150)
    seen = given(metrics)
    assert seen[REQUESTS] == {("/sealed/{model}", "200"): (16,)}
    assert seen["sealgate_gateway_requests_in_flight"] == {(): (6,)}
    of_process = seen["sealgate_process_cpu_seconds_total"]
    assert {of_process[("gateway-0",)], of_process[("gateway-1",)]} == {(150,), (200,)}
    metrics.gone("first")
    tell(metrics, "first again", first, requests=2, in_flight=1, cpu=160)  # it reconnects, and tells what came since
    seen = given(metrics)
    assert seen[REQUESTS] == {("/sealed/{model}", "200"): (18,)}
    assert seen["sealgate_gateway_requests_in_flight"] == {(): (5,)}


def test_how_the_host_stands_is_in_it() -> None:
    seen = given(HostMetrics(lambda: STANDING))
    for name, value in (("worker_up", 2), ("models_refused", 1), ("log_allows_inference", 0), ("log_records", 7)):
        assert seen[f"sealgate_{name}"] == {(): (value,)}
    assert seen["sealgate_process_resident_memory_bytes"][("host",)][0] > 1_000_000


def test_what_is_no_figures_is_refused_and_changes_nothing() -> None:
    metrics = HostMetrics(lambda: STANDING)
    with pytest.raises(DecodeError):
        metrics.told("gateway", b"no figures")
    assert REQUESTS not in given(metrics)


def test_processes_below_are_found_and_read() -> None:
    program = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
    program += "print(c.pid, flush=True); input(); c.communicate(b'x')"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        below = int(child.stdout.readline())
        assert {child.pid, below} <= set(descendants(os.getpid()))
        assert below in descendants(child.pid)
        assert child.pid not in descendants(below)
        memory, cpu_us = read_process(child.pid) or (0, -1)
        assert memory > 1_000_000
        assert memory == pytest.approx(psutil.Process(child.pid).memory_info().rss, rel=0.1)
        assert 0 <= cpu_us < 60_000_000
        child.communicate(b"x")
    assert read_process(2**30) is None


def test_processor_time_is_what_the_process_itself_counts() -> None:
    tick_us = 1_000_000 // os.sysconf("SC_CLK_TCK")
    while time.process_time() < 0.2:  # clear of the two ticks that rounding may take
        sum(range(10_000))
    before = time.process_time_ns() // 1000
    _, cpu_us = read_process(os.getpid()) or (0, -1)
    assert before - 2 * tick_us <= cpu_us <= time.process_time_ns() // 1000 + tick_us
