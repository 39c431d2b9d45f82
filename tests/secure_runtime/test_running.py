"""What `sealgate doctor STATE` hears from a runtime host: the state that gateways hear, or why there is none."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.provisioning import provision
from sealgate.deployment import Deployment
from sealgate.errors import HostAway
from sealgate.protocol.frames import Layer, PublishedWorker, RuntimeState, encode_frame
from secure_runtime import doctor, running

STATE = RuntimeState(
    ready=True,
    detail="",
    log_state="ok",
    log="test/log",
    key_configs=b"",
    models=(),
    policy_digest="d" * 64,
    assurance="software",
    profile="strict",
    degraded=False,
)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    root = Path(tempfile.mkdtemp(prefix="sg-"))
    made = provision(root / "state", audience="localhost:8443", origin="test/log", profile="dev")
    made.socket.parent.mkdir(exist_ok=True)
    yield made
    shutil.rmtree(root)


def answered(deployment: Deployment, *parts: bytes) -> RuntimeState:
    """What is read where a host says exactly this, and closes."""
    deployment.socket.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(deployment.socket))
        listening.listen(1)
        listening.settimeout(60)

        def say() -> None:
            connection, _ = listening.accept()
            with connection:
                for part in parts:
                    connection.sendall(part)

        host = threading.Thread(target=say, daemon=True)
        host.start()
        try:
            return running.read_state(deployment)
        finally:
            host.join(60)


def test_the_state_is_read_however_it_comes(deployment: Deployment) -> None:
    whole = b"".join(bytes(part) for part in encode_frame(STATE))
    assert answered(deployment, whole) == STATE
    assert answered(deployment, whole[:5], whole[5:9], whole[9:]) == STATE


def test_where_no_state_comes_that_is_said(deployment: Deployment) -> None:
    whole = b"".join(bytes(part) for part in encode_frame(STATE))
    for parts in ((), (whole[:9],), (b"\xff" * 64,)):
        with pytest.raises(HostAway):
            answered(deployment, *parts)
    deployment.socket.unlink()
    with pytest.raises(HostAway, match="no runtime host runs"):
        running.read_state(deployment)


def test_a_host_that_says_nothing_is_not_waited_for(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "STATE_ANSWER_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(deployment.socket))
        listening.listen(1)
        with pytest.raises(HostAway):
            running.read_state(deployment)


def test_troubles_are_what_is_not_well() -> None:
    assert running.troubles(STATE) == []
    bad = msgspec.structs.replace(STATE, ready=False, detail="no worker", log_state="failed: full", witnesses="w: away")
    assert running.troubles(bad) == [
        "not ready: no worker",
        "the audit log: failed: full",
        "witnesses do not cosign: w: away",
    ]
    one_less = msgspec.structs.replace(STATE, detail="the worker ended (worker-died) and is being replaced")
    assert running.troubles(one_less) == ["a worker is away: the worker ended (worker-died) and is being replaced"]
    diagnosis = doctor.Diagnosis({}, {}, {}, {"strict": [], "container": [], "dev": []})
    assert "w: away" in doctor.as_text(diagnosis, bad)
    assert "w: away" in doctor.as_json(diagnosis, bad)
    assert "witnesses" not in doctor.as_text(diagnosis)


def test_what_came_of_capturing_graphs_is_told() -> None:
    worker = PublishedWorker(
        instance="i", key_configs=b"", models=("toy",), device="cuda:0", graphs={"toy": "captured for 1, 4 rows"}
    )
    assert ("CUDA graphs of toy", "captured for 1, 4 rows") in running.as_pairs(
        msgspec.structs.replace(STATE, workers=(worker,))
    )


def test_what_isolates_the_workers_that_run_is_told_apart_from_what_the_machine_offers() -> None:
    """Here the machine offers what the deployment does not use, and the host reads what the worker does not say."""
    once = Layer(state="on", detail="32 attempts were denied")
    offers = doctor.Diagnosis({"seccomp-once": once}, {}, {}, {"strict": [], "container": [], "dev": []})
    worker = PublishedWorker(
        instance="i" * 32,
        key_configs=b"",
        models=("toy",),
        layers={
            "seccomp-once": Layer(state="not-needed", detail="none are offered"),
            "no-new-privileges": Layer(state="on"),
        },
        host_layers={
            "no-new-privileges": Layer(state="on"),
            "zygote": Layer(state="failed", detail="lacks \x9bseccomp"),
        },
        got_through=("open-file",),
    )
    state = msgspec.structs.replace(STATE, workers=(worker,))
    assert running.isolation(worker) == [
        ("seccomp-once", "not-needed", "none are offered", ""),
        ("no-new-privileges", "on", "", "on"),
        ("zygote", "", "", "failed: lacks \x9bseccomp"),
    ]
    machine, _, deployment = doctor.as_text(offers, state).partition("What the deployment says that runs:")
    assert "What this machine offers" in machine
    assert "seccomp-once  on" in machine
    assert "not-needed" not in machine
    assert "What isolates worker 1 (iiiiiiiiiiiiiiii), as it runs: These attempts got through: open-file." in deployment
    assert "not-needed  none are offered" in deployment
    assert "32 attempts" not in deployment
    assert "lacks ?seccomp" in deployment
    raw = doctor.as_json(offers, state)
    assert "\x9b" not in raw
    told = json.loads(raw)
    assert told["layers"]["seccomp-once"]["state"] == "on"
    (one,) = told["runtime"]["workers"]
    assert one["layers"]["seccomp-once"]["state"] == "not-needed"
    assert one["host_layers"]["zygote"]["detail"] == "lacks \x9bseccomp"
    assert one["got_through"] == ["open-file"]
