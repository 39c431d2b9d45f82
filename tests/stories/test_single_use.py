"""Permits that demand a process for one request alone, over the real processes: offered, not offered, under load."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealgate.client.errors import ServiceRefused
from sealgate.deployment import open_deployment
from sealgate.errors import ConfigurationError
from sealgate.transparency.record import ENDS
from secure_runtime.limits import MAX_SINGLE_USE
from tests.live import MODEL, Live, run_sealgate

POLICY = """
@id("alone")
@says("each request in a process of its own")
@single_use("true")
permit (principal is Client, action == Action::"infer", resource is Model);
"""


@pytest.fixture
def demanding(fresh: Callable[[], Live]) -> Callable[..., Live]:
    """A deployment whose policy demands it, with or without the setting that offers it."""

    def make(*, offered: bool) -> Live:
        live = fresh()
        (live.deployment.policy / "own.cedar").write_text(POLICY)
        settings = live.root / "deployment.toml"
        text = settings.read_text()
        settings.write_text(text.replace("[runtime]\n", f"[runtime]\nsingle_use = {str(offered).lower()}\n"))
        live.start()
        live.ready()
        return live

    return make


def test_requests_are_answered_by_processes_of_their_own_and_say_so(demanding: Callable[..., Live]) -> None:
    live = demanding(offered=True)
    with live.session() as session:
        assert session.metadata(MODEL).name == MODEL
        result = session.infer(MODEL, live.rows[:3])
        assert result.obligations.single_use
        assert "alone" in result.receipt.record.policy_ids
    standing = {process.pid for process in live.worker_processes()}

    def ask(number: int) -> list[int]:
        with live.session() as own:
            answered = own.infer(MODEL, live.rows[number : number + 1])
            assert answered.obligations.single_use
            return answered.outputs["label"]

    with ThreadPoolExecutor(3 * MAX_SINGLE_USE) as pool:  # more than there are processes: the others wait
        labels = [label for (label,) in pool.map(ask, range(24))]
    with live.session() as session:
        assert session.infer(MODEL, live.rows[:24]).outputs["label"] == labels
    assert {process.pid for process in live.worker_processes()} == standing, "each process ended with its request"
    records = live.records()
    (start,) = [record for record in records if record.kind == "worker.start"]
    assert "seccomp-zygote" not in start.detail["layers_missing"]
    assert start.detail["probes_failed"] == ""
    ends = [record for record in records if record.kind in ENDS]
    assert {record.outcome for record in ends} == {"completed"}
    told = json.loads(run_sealgate("doctor", live.root, "--json", check=False).stdout)
    (worker,) = told["runtime"]["workers"]
    own = worker["layers"]
    assert own["seccomp-zygote"] == told["layers"]["seccomp-zygote"], "its processes try what this machine's tried"
    assert own["seccomp-once"] == told["layers"]["seccomp-once"]
    assert worker["host_layers"]["zygote"] == {"state": "on", "detail": "as the worker itself"}
    assert worker["got_through"] == []


def test_where_it_is_not_offered_the_request_is_refused_on_record(demanding: Callable[..., Live]) -> None:
    live = demanding(offered=False)
    with live.session() as session:
        assert session.metadata(MODEL).name == MODEL
        with pytest.raises(ServiceRefused) as refused:
            session.infer(MODEL, live.rows[:1])
    assert refused.value.status == 503
    assert live.records()[-1].reason == "obligation-unmet"
    machine, _, running = run_sealgate("doctor", live.root, check=False).stdout.partition("What the deployment says")
    for layer in ("seccomp-zygote", "seccomp-once"):
        (line,) = [line for line in running.splitlines() if line.startswith(layer)]
        assert line.split()[1] == "not-needed", "the deployment has none, whatever the machine offers"
        assert not [line for line in machine.splitlines() if line.startswith(layer) and "not-needed" in line]


def test_two_threads_and_single_use_processes_do_not_go_together(fresh: Callable[[], Live]) -> None:
    live = fresh()
    settings = live.root / "deployment.toml"
    settings.write_text(
        settings.read_text().replace("[runtime]\n", "[runtime]\nsingle_use = true\ntorch_threads = 2\n")
    )
    with pytest.raises(ConfigurationError, match="torch_threads = 1"):
        open_deployment(live.root)
    assert "torch_threads = 1" in run_sealgate("runtime", live.root, check=False).stderr
