"""From a spawned interpreter to a sealed worker: plans, failures, silence, death, real inference, and many boots."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sealgate.protocol.frames import BootFailed, BootPlan, FrameReader, WorkerToHost
from secure_runtime.host import inspect, spawn

SEALED = "from secure_runtime.worker import sandbox; sandbox.seal(report); tell(sorted(report.probes))"


def _ends(watched: int) -> bool:
    """Whether the process behind a pidfd ends within half a minute."""
    try:
        return bool(select.select([watched], [], [], 30)[0])
    finally:
        os.close(watched)


def _wait_for_end(sock: socket.socket) -> bytes:
    """The worker holds the other end: its death is the end of the stream."""
    sock.settimeout(30)
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


# Plans and failures --------------------------------------------------------------------------------------------------


def test_a_boot_failure_is_a_frame_that_the_host_understands(boot: Callable[..., Any]) -> None:
    ended = boot("raise RuntimeError('the model is broken')")
    assert isinstance(ended.refusal, BootFailed)
    assert ended.refusal.reason == "boot-error"
    assert ended.refusal.detail == "RuntimeError: the model is broken (payload:6)"
    assert ended.refusal.layers["seccomp-load"].state == "on"
    assert ended.code == 1


def test_a_failure_after_the_seal_says_nothing(boot: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    """Then an exception's text may hold a payload."""
    ended = boot("""
from secure_runtime.worker import sandbox
sandbox.seal(report)
raise RuntimeError("payload payload payload")
""")
    assert ended.told is None
    assert ended.refusal is None
    assert ended.code == 70
    assert capfd.readouterr() == ("", "")


def test_a_memory_limit_below_the_libraries_of_torch_is_named_as_what_is_too_small(boot: Callable[..., Any]) -> None:
    ended = boot("import torch\ntell('imported')", memory_limit_bytes=200 << 20)
    assert ended.told is None
    assert ended.refusal.reason == "boot-error"
    assert "memory_limit_mb is too small for torch's libraries" in ended.refusal.detail


def test_what_libraries_print_reaches_nobody(boot: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    told = boot("""
import os, sys, warnings
print("payload"); print("payload", file=sys.stderr); warnings.warn("payload")
os.write(1, b"payload"); os.write(2, b"payload")
from secure_runtime.worker import sandbox
sandbox.seal(report)
print("payload", flush=True); os.write(1, b"payload"); os.write(2, b"payload")
tell("printed")
""").must()
    assert told == "printed"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "plan", [b"", b"{", b"[]", b"null", b'{"profile": "dev"}', b"\xff\xfe", b'{"profile": 7}'], ids=repr
)
def test_a_plan_that_is_none_ends_the_boot(plan: bytes) -> None:
    worker = spawn._start(spawn._BOOT, plan, python=sys.executable, environment={})
    with worker.sock:
        frames = FrameReader(WorkerToHost).feed(_wait_for_end(worker.sock))
    assert worker.wait() == 1
    assert [type(frame) for frame, _ in frames] == [BootFailed]


def test_a_host_that_hangs_up_before_the_plan_is_whole_leaves_no_worker() -> None:
    worker = spawn._start(spawn._BOOT, b"x" * 100, python=sys.executable, environment={})
    worker.sock.close()
    assert worker.process.wait(timeout=30) in (1, 70)


def test_the_plan_that_the_host_writes_is_the_plan_that_the_worker_reads(
    boot: Callable[..., Any], shared_folder: Path
) -> None:
    plan = BootPlan(
        profile="dev", audience="härte", models_dir=str(shared_folder / "models"),
        publishers_file=str(shared_folder / "publishers.toml"), sys_path=spawn.python_paths(), uid=65534, gid=65534,
        torch_threads=2, memory_limit_bytes=1 << 30, avoid_key_ids=(3, 4),
    )  # fmt: skip
    values = msgspec.to_builtins(plan)
    told = boot("tell({k: v for k, v in plan.items() if k != 'payload'})", **values).must()
    assert msgspec.convert(told, BootPlan) == plan


def test_the_worker_has_no_environment_to_speak_of(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEALGATE_SECRET", "in the host's environment")
    monkeypatch.setenv("LD_PRELOAD", "")
    worker = start("import os; tell(dict(os.environ))")
    with worker.sock as sock:
        told = json.loads(sock.recv(65536)[4:])
    worker.wait()
    assert set(told) <= {"LC_ALL", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX", "LC_CTYPE", "PATH"}


def test_python_paths_are_real_directories_that_hold_the_packages() -> None:
    paths = [Path(path) for path in spawn.python_paths()]
    for package in ("sealgate", "secure_runtime", "msgspec", "cryptography", "torch"):
        assert any((path / package).is_dir() for path in paths), package


def test_installed_packages_cannot_shadow_the_standard_library(boot: Callable[..., Any]) -> None:
    told = boot("import sys; tell(sys.path)").must()
    packages = set(spawn.python_paths())
    places = [index for index, path in enumerate(told) if path in packages]
    assert places == list(range(len(told) - len(places), len(told)))


# Life and death ------------------------------------------------------------------------------------------------------


def test_killing_what_the_host_started_kills_the_sealed_process(start: Callable[..., Any]) -> None:
    worker = start(SEALED)
    with worker.sock as sock:
        assert sock.recv(1 << 16)
        sealed = os.pidfd_open(worker.sealed_pid())
        worker.kill()
        worker.wait()
        assert _ends(sealed)


def test_a_worker_whose_sealed_process_is_killed_ends_for_the_host_too(start: Callable[..., Any]) -> None:
    worker = start(SEALED)
    with worker.sock as sock:
        assert sock.recv(1 << 16)
        sealed = worker.sealed_pid()
        os.kill(sealed, signal.SIGKILL)
        assert worker.wait() in (128 + signal.SIGKILL, -signal.SIGKILL)


def test_a_worker_dies_with_its_host() -> None:
    """The host is killed, so it cannot clean up; and another process keeps the host's end of the socket open, so that
    it is not the end of the stream that ends the worker."""
    host = """
import json, os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from secure_runtime.host import spawn
worker = spawn._start(Path({boot!r}), {plan!r}, python=sys.executable, environment={{}})
worker.sock.recv(1 << 16)
os.dup2(worker.sock.fileno(), 1)
sys.stderr.write(json.dumps([worker.pid, worker.sealed_pid()]) + "\\n")
sys.stderr.flush()
sys.stdin.read()
"""
    here = Path(__file__)
    plan = {
        "profile": "dev", "audience": "x", "models_dir": "", "publishers_file": "", "uid": 65534, "gid": 65534,
        "sys_path": list(spawn.python_paths()), "torch_threads": 1, "memory_limit_bytes": 1 << 30,
        "payload": "sock.sendall(b'up')\nwhile True:\n    sock.recv(1)\n",
    }  # fmt: skip
    source = host.format(
        root=str(here.parents[3]), boot=str(here.with_name("payload_boot.py")), plan=json.dumps(plan).encode()
    )
    ours, theirs = socket.socketpair()
    with ours:
        process = subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=theirs, stderr=subprocess.PIPE
        )
        with process:
            theirs.close()
            pids = json.loads(process.stderr.readline())  # type: ignore[union-attr]
            watched = [os.pidfd_open(pid) for pid in pids]
            process.kill()
            process.wait()
            assert [_ends(descriptor) for descriptor in watched] == [True, True], "the worker outlived its host"


# Many boots ----------------------------------------------------------------------------------------------------------


def _boot_often(boot: Callable[..., Any], times: int) -> None:
    for number in range(times):
        ended = boot(SEALED)
        assert ended.refusal is None, f"boot {number}: {ended.refusal.detail}"
        assert ended.told, f"boot {number}: exit code {ended.code}"
        assert ended.code == 0


def test_twenty_boots_in_a_row(boot: Callable[..., Any]) -> None:
    _boot_often(boot, 20)


@pytest.mark.slow
def test_a_thousand_boots_in_a_row(boot: Callable[..., Any]) -> None:
    """A race that hit one boot in twenty once showed only after hundreds."""
    _boot_often(boot, 1000)


# Real work -----------------------------------------------------------------------------------------------------------

INFERENCE = """
import resource, threading
import torch
from torch import nn
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

torch.set_num_threads(2)
torch.set_grad_enabled(False)
torch.manual_seed(7)
linear = nn.Linear(30, 2)
mlp = nn.Sequential(nn.Linear(30, 256), nn.ReLU(), nn.LayerNorm(256), nn.Linear(256, 2))
conv = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 15 * 15, 10))

def infer(rows):
    table = torch.linspace(0, 1, rows * 30).reshape(rows, 30)
    image = torch.linspace(0, 1, rows * 3072).reshape(rows, 3, 32, 32)
    return [round(float(torch.softmax(m(x), 1).sum()), 3) for m, x in ((linear, table), (mlp, table), (conv, image))]

def cipher():
    one, other = x25519.X25519PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    assert one.exchange(other.public_key()) == other.exchange(one.public_key())
    signer = ed25519.Ed25519PrivateKey.generate()
    signer.public_key().verify(signer.sign(b"x"), b"x")
    kem = mlkem.MLKEM768PrivateKey.generate()
    shared, sealed = kem.public_key().encapsulate()
    assert kem.decapsulate(sealed) == shared
    for aead in (AESGCM(bytes(16)), AESGCM(bytes(32)), ChaCha20Poly1305(bytes(32))):
        assert aead.decrypt(bytes(12), aead.encrypt(bytes(12), b"x", b"a"), b"a") == b"x"

before = [infer(rows) for rows in (1, 7)]
cipher()
from secure_runtime.worker import sandbox
sandbox.seal(report)
after = [infer(rows) for rows in (1, 7)]
others = [infer(rows) for rows in (2, 33, 300)]  # shapes never seen before the seal
torch.set_num_threads(4)
big = float((torch.ones(512, 512) @ torch.ones(512, 512)).sum())
cipher()
from_threads = []
threads = [threading.Thread(target=lambda: from_threads.append(infer(64))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
tell({"before": before, "after": after, "others": others, "big": big, "from_threads": from_threads,
      "layers": report.layers, "probes": report.probes})
"""


@pytest.mark.parametrize("situation", ["here", "user", "user-no-namespaces"])
def test_torch_and_cryptography_work_after_the_seal(boot_as: Callable[..., Any], situation: str) -> None:
    profile = "container" if situation == "user-no-namespaces" else "strict"
    if situation == "here" and os.geteuid() != 0:
        profile = "dev"
    ended = boot_as(situation, INFERENCE, profile=profile)
    told = ended.must()
    assert told["after"] == told["before"]
    assert told["others"] == [[float(rows)] * 3 for rows in (2, 33, 300)]
    assert told["big"] == 512.0**3
    assert told["from_threads"] == [[64.0] * 3] * 4
    assert ended.host["seccomp"].state == "on"  # both filters, on every thread that torch started
    assert ended.code == 0


def test_the_host_reads_nothing_of_a_process_that_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert inspect.read_layers(process.pid) == {}


def test_the_host_sees_a_process_without_a_sandbox_for_what_it_is() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        read = inspect.read_layers(process.pid)
        process.communicate(b"\n")
    wrong = {name for name, layer in read.items() if layer.state == "on"}
    assert wrong <= {"not-traced", "no-capabilities"}
