"""Boots payloads inside the worker's real sandbox, in each situation that a machine may offer."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sealgate.protocol.frames import BootFailed, FrameReader, Layer, WorkerToHost
from secure_runtime.host import inspect, spawn

HERE = Path(__file__).parent
BOOT = HERE / "payload_boot.py"
SITUATIONS = HERE / "situations.py"

TELL = """
import json
def tell(value):
    sock.sendall(b"JSON" + json.dumps(value).encode() + b"\\n")
    sock.recv(1)
"""


@dataclass(frozen=True)
class Ended:
    """What came of one worker: what it said, its exit code, and how the host saw it while it lived."""

    told: Any
    refusal: BootFailed | None
    code: int
    host: dict[str, Layer]
    attacked: Any = None
    sealed_pid: int = 0

    def must(self) -> Any:
        """What it said; fails with its reason if it said nothing."""
        assert self.refusal is None, self.refusal.detail
        assert self.told is not None, f"said nothing, exit code {self.code}"
        return self.told


def _ended(data: bytes, code: int, host: dict[str, Layer], attacked: Any = None, sealed_pid: int = 0) -> Ended:
    if data.startswith(b"JSON"):
        return Ended(json.loads(data[4:]), None, code, host, attacked, sealed_pid)
    frames = FrameReader(WorkerToHost).feed(data)
    return Ended(None, frames[0][0] if frames else None, code, host, attacked)


def _hear(sock: socket.socket) -> bytes:
    sock.settimeout(60)
    data = b""
    while not data.endswith(b"\n") or not data.startswith(b"JSON"):
        try:
            more = sock.recv(1 << 20)
        except ConnectionResetError:
            break
        if not more:
            break
        data += more
    return data


def plan_for(payload: str, **changes: Any) -> dict[str, Any]:
    """A boot plan that carries a payload."""
    plan = {
        "profile": "dev",
        "audience": "tests",
        "models_dir": "",
        "publishers_file": "",
        "sys_path": list(spawn.python_paths()),
        "uid": 65534,
        "gid": 65534,
        "torch_threads": 1,
        "memory_limit_bytes": 4 << 30,
        "payload": TELL + payload,
    }
    return plan | changes


@pytest.fixture(scope="session")
def start() -> Callable[..., spawn.SpawnedWorker]:
    """Starts a payload as the present user; the caller ends it."""

    def begin(payload: str, **changes: Any) -> spawn.SpawnedWorker:
        plan = json.dumps(plan_for(payload, **changes)).encode()
        return spawn._start(BOOT, plan, python=sys.executable, environment=spawn._ENVIRONMENT)

    return begin


@pytest.fixture(scope="session")
def boot(start: Callable[..., spawn.SpawnedWorker]) -> Callable[..., Ended]:
    """Runs a payload to its end as the present user."""

    def run(payload: str, **changes: Any) -> Ended:
        worker = start(payload, **changes)
        with worker.sock:
            data = _hear(worker.sock)
            sealed_pid = worker.sealed_pid()
            host = inspect.read_layers(sealed_pid)
        return _ended(data, worker.wait(), host, sealed_pid=sealed_pid)

    return run


@pytest.fixture(scope="session")
def boot_as(boot: Callable[..., Ended]) -> Callable[..., Ended]:
    """Runs a payload in a named situation: "here", or one of situations.py, which need root to be set up."""

    def run(situation: str, payload: str, *, attacker: Path | None = None, depth: int = 0, **changes: Any) -> Ended:
        if situation == "here" and attacker is None:
            return boot(payload, **changes)
        if os.geteuid() != 0:
            pytest.skip(f"NOT TESTED: situation '{situation}' needs root to be set up")
        order: dict[str, Any] = {"plan": plan_for(payload, **changes), "boot": str(BOOT)}
        if attacker is not None:
            order |= {"attacker": str(attacker), "depth": depth}
        done = subprocess.run(
            [sys.executable, str(SITUATIONS), situation],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        host = {name: Layer(state=state, detail=detail) for name, (state, detail) in told["host"].items()}
        return _ended(told["data"].encode("latin-1"), told["code"], host, told["attacked"], told["sealed"])

    return run


@pytest.fixture(scope="session")
def shared_folder() -> Iterator[Path]:
    """A folder that any user may read, holding a model file and a secret beside it."""
    folder = Path(tempfile.mkdtemp(prefix="sealgate-tests-"))
    folder.chmod(0o755)
    (folder / "models").mkdir()
    (folder / "models" / "weights").write_text("weights")
    (folder / "publishers.toml").write_text("")
    (folder / "secret").write_text("the gateway's secret")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder)
