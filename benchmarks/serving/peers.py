"""The peers: how each is started, asked and stopped. Every one runs in an environment of its own.

`benchmarks/peers/install.sh` makes the environments; `benchmarks/peers/` has a server for each. A peer that is not
installed, does not come up, or answers something else is a row of the table that says why, and ends nothing.
While another server is measured a peer is stopped by SIGSTOP, so that its idle threads take nothing from that one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.models import BenchModel
from sealgate.ambient import monotonic_ns
from sealgate.bench.accounting import children
from sealgate.bench.load import Answer, Load, LoadFailed, http_request
from sealgate.demo.stage import free_port

HERE = Path(__file__).parents[1] / "peers"
_READY_S = 150.0
_STOP_S = 15.0
_BINARY = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One row of the table. `style` says how it takes a request: "oip", "bentoml" or "kserve"; `binary`, how raw
    tensors: "raw" (our own route), "oip" (the protocol's binary extension) or "" (it takes none)."""

    name: str
    env: str
    command: tuple[str, ...]
    batching: str
    style: str = "oip"
    binary: str = ""
    pausable: bool = True


PEERS = (
    Peer(
        name="litestar",
        env="litestar",
        command=("litestar_server.py", "{port}"),
        batching="none; a thread for each request",
        binary="raw",
    ),
    Peer(
        name="litestar-2",
        env="litestar",
        command=("litestar_server.py", "{port}", "--workers", "2"),
        batching="none; two processes",
        binary="raw",
    ),
    Peer(
        name="litestar-inline",
        env="litestar",
        command=("litestar_server.py", "{port}", "--inline"),
        batching="none; on the event loop",
        binary="raw",
    ),
    Peer(
        name="fastapi",
        env="fastapi",
        command=("fastapi_server.py", "{port}"),
        batching="none; a thread for each request",
        binary="raw",
    ),
    Peer(
        name="litserve",
        env="litserve",
        command=("litserve_server.py", "{port}"),
        batching="up to 64 requests, 5 ms",
    ),
    Peer(
        name="bentoml",
        env="bentoml",
        command=("bentoml_server.py", "{port}"),
        batching="adaptive, up to 64 rows",
        style="bentoml",
    ),
    Peer(
        name="mlserver",
        env="mlserver",
        command=("mlserver_server.py", "{port}"),
        batching="adaptive, up to 64 requests, 5 ms",
    ),
    Peer(
        name="kserve",
        env="kserve",
        command=("kserve_server.py", "{port}"),
        batching="none in its Python server",
        binary="oip",
    ),
    Peer(
        name="pytriton",
        env="pytriton",
        command=("pytriton_server.py", "{port}"),
        batching="Triton's dynamic batcher, up to 64 rows, 1 ms",
        binary="oip",
    ),
    Peer(
        name="ray",
        env="ray",
        command=("ray_server.py", "{port}"),
        batching="serve.batch, up to 64 requests, 5 ms",
        binary="raw",
    ),
)


def adopt_orphans() -> None:
    """Let processes whose parents have ended become ours, so that everything that a peer starts can be ended."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_all() -> None:
    """End whatever is still under this process: only what it started, directly or not."""
    for pid in children(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class RunningPeer:
    """A peer's process and port."""

    peer: Peer
    model: BenchModel
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    seen: set[int] = field(default_factory=set)

    def pids(self) -> list[int]:
        """Its processes, those that left its tree before included."""
        self.seen.update([self.process.pid, *children(self.process.pid)])
        return [pid for pid in self.seen if Path(f"/proc/{pid}").exists()]

    def signal(self, number: int) -> None:
        """Send a signal to all of them."""
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def pause(self) -> None:
        """Take it off the processors until `resume`."""
        if self.peer.pausable:
            self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        self.signal(signal.SIGCONT)

    def request(self, items: NDArray[Any], *, binary: bool) -> bytes:
        """The bytes of one request."""
        return _request(self.peer, self.model, items, binary=binary)

    def scores(self, answer: Answer, *, binary: bool) -> NDArray[np.float32]:
        """The scores in an answer, flat; raises LoadFailed for anything else."""
        try:
            return _scores(self.peer, self.model, answer, binary=binary)
        except (ValueError, KeyError, TypeError, IndexError, msgspec.DecodeError) as error:
            raise LoadFailed(f"its answer cannot be read: {answer.body[:120]!r}") from error

    def stop(self) -> None:
        """End it and all that it started."""
        self.resume()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_S)
        self.signal(signal.SIGKILL)
        self.process.wait()


def start(peer: Peer, model: BenchModel, *, into: Path, folder: Path) -> RunningPeer:
    """Start a peer; raises LoadFailed if it is not installed."""
    python = into / peer.env / "bin" / "python"
    if not (into / peer.env / "installed.txt").exists():
        raise LoadFailed(f"not installed: benchmarks/peers/install.sh --into {into} {peer.env}")
    port = free_port()
    log = folder / f"{peer.name}-{model.name}.log"
    words = [word.format(port=port) for word in peer.command]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENBLAS_"))},
        "PEER_WEIGHTS": str(model.weights),
        "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(HERE),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as words_of_it:
        process = subprocess.Popen(
            [str(python), str(HERE / words[0]), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=words_of_it,
            stderr=words_of_it,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    return RunningPeer(peer, model, port, process, log)


def wait_ready(running: RunningPeer) -> None:
    """Wait until it answers an inference; raises LoadFailed with its last words."""
    deadline = monotonic_ns() + int(_READY_S * 1e9)
    request = running.request(running.model.items[:1], binary=False)
    last = "no answer"
    while monotonic_ns() < deadline:
        running.pids()
        if running.process.poll() is not None:
            last = f"it ended with {running.process.returncode}"
            break
        try:
            with Load(port=running.port, connections=1) as load:
                run = load.run(iter([request]), seconds=30, keep_every=1)
        except LoadFailed as error:
            last = str(error)
        else:
            if run.kept:
                return
            if run.first_refusal is not None:
                last = f"it answers {run.first_refusal.status}: {run.first_refusal.body[:200]!r}"
        os.sched_yield()
        _pause()
    lines = [line for line in running.log.read_text(errors="replace").splitlines() if line.strip()]
    raise LoadFailed(f"did not come up: {last}; its last words: {' | '.join(lines[-2:])[-300:]}")


def _pause() -> None:
    """A moment for a server that is starting: there is no event to wait on."""
    signal.sigtimedwait([], 0.1)


def _request(peer: Peer, model: BenchModel, items: NDArray[Any], *, binary: bool) -> bytes:
    path = f"/v2/models/{model.name}/infer"
    if binary and peer.binary == "raw":
        return http_request("POST", f"/raw/{model.name}", {"content-type": _BINARY}, items.tobytes())
    described: dict[str, Any] = {"name": model.input, "datatype": model.datatype, "shape": list(items.shape)}
    if binary:
        described["parameters"] = {"binary_data_size": items.nbytes}
        document = {"inputs": [described], "parameters": {"binary_data_output": True}}
        head = msgspec.json.encode(document)
        fields = {"content-type": _BINARY, "inference-header-content-length": str(len(head))}
        return http_request("POST", path, fields, head + items.tobytes())
    if peer.style == "bentoml":
        body = msgspec.json.encode({"items": items.tolist()})
        return http_request("POST", "/infer", {"content-type": "application/json"}, body)
    described["data"] = items.ravel().tolist()
    body = msgspec.json.encode({"inputs": [described]})
    return http_request("POST", path, {"content-type": "application/json"}, body)


def _scores(peer: Peer, model: BenchModel, answer: Answer, *, binary: bool) -> NDArray[np.float32]:
    body = answer.body
    fields = answer.fields()
    if fields.get("transfer-encoding", "") == "chunked":
        body = _unchunked(body)
    if binary and peer.binary == "raw":
        classes = 10 if model.name == "cnn" else 2
        rows = len(body) // (4 * classes + 8)
        return np.frombuffer(body, np.float32, rows * classes)
    length = fields.get("inference-header-content-length", "")
    document = msgspec.json.decode(body[: int(length)] if length else body)
    if peer.style == "bentoml":
        return np.asarray(document, np.float32).ravel()
    at = int(length or 0)
    for output in document["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        if output["name"] == "scores":
            found = np.frombuffer(body[at : at + size], np.float32) if size else np.asarray(output["data"], np.float32)
            return found.ravel()
        at += size or 0
    raise KeyError("scores")


def _unchunked(body: bytes) -> bytes:
    """The body of an answer in chunks (RFC 9112 section 7.1)."""
    parts, at = [], 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
