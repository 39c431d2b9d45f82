"""Starts a worker process and hands it its plan.

The worker begins as a fresh interpreter that shares nothing with the host but one socketpair: no environment, no
descriptors, no paths from the environment, no site customisation. Its sandbox closes from inside (worker/boot.py).

Trusts: the interpreter that runs the host. Never: uses a shell, or starts a worker from another thread than the main
one (the kernel ends a worker when the *thread* that started it ends).
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sealgate.protocol.frame_writer import widen
from sealgate.protocol.frames import BootPlan
from secure_runtime.limits import CUDA_LIBRARIES_BYTES

_BOOT = Path(__file__).parents[1] / "worker" / "boot.py"
_PROBE = Path(__file__).parents[1] / "worker" / "probe.py"
# OpenBLAS starts its threads while numpy is imported, before anybody could tell it how many. An empty PATH finds no
# compiler: torch for CUDA looks for libraries while it is imported, through ctypes, which would try one in a temporary
# file.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PATH": ""}
# All of CUDA's kernels are loaded before the sandbox is sealed, none is cached on a disk, and GPUs are counted as the
# machine does.
_WITH_GPUS = {"CUDA_MODULE_LOADING": "EAGER", "CUDA_CACHE_DISABLE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_NEEDED = (
    "sealgate",
    "secure_runtime",
    "torch",
    "numpy",
    "cryptography",
    "msgspec",
    "httpx",
    "safetensors",
    "dp_accounting",
    "scipy",
    "absl",
    "attr",
)
"""Packages whose directories a worker may read; those that are not installed are passed over."""


@dataclass(frozen=True)
class SpawnedWorker:
    """A started worker: the process that the host waits for, and the host's end of the socketpair."""

    process: subprocess.Popen[bytes]
    sock: socket.socket

    @property
    def pid(self) -> int:
        """The process that the host started: the worker itself, or its reaper."""
        return self.process.pid

    def sealed_pid(self) -> int:
        """The sealed process as the host sees it; right once the worker has spoken, when it has forked or will not.

        The reaper's child is the first of its process-id namespace. A child in the same namespace is a zygote, and
        then there is no reaper.
        """
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text("ascii", "replace")
            except OSError:
                continue  # it ended meanwhile
            if f"\nPPid:\t{self.pid}\n" in text and text.partition("\nNSpid:")[2].partition("\n")[0].endswith("\t1"):
                return int(status.parent.name)
        return self.pid

    def kill(self) -> None:
        """SIGKILL to the started process; the kernel then kills the sealed one."""
        self.process.kill()

    def wait(self) -> int:
        """Block until it has ended; returns its exit code (128 + signal if the sealed process was killed)."""
        return self.process.wait()


def python_paths() -> tuple[str, ...]:
    """The directories that hold the packages a worker needs, found without importing them.

    The worker's interpreter runs without `site`, so neither .pth files nor editable-install hooks work there: these are
    real directories.
    """
    found: dict[str, None] = {}
    for name in _NEEDED:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        for place in places:
            found[os.path.dirname(os.path.abspath(place))] = None
    return tuple(found)


def torch_for_cuda() -> bool:
    """Whether the torch that a worker imports is the build for CUDA; found without importing it."""
    spec = importlib.util.find_spec("torch")
    places = (spec.submodule_search_locations or ()) if spec is not None else ()
    return any(os.path.exists(os.path.join(place, "lib", "libtorch_cuda.so")) for place in places)


def memory_limit(limit_mb: int, *, gpus: Sequence[str]) -> int:
    """Bytes that a worker is bounded to. Without a GPU its addresses are bounded, those of libraries counted; what
    torch's libraries take more where they are for CUDA is no room for requests, so it is added."""
    return limit_mb * 1024 * 1024 + (CUDA_LIBRARIES_BYTES if not gpus and torch_for_cuda() else 0)


def spawn_worker(plan: BootPlan, *, python: str = sys.executable) -> SpawnedWorker:
    """Start a worker and write its plan. Call from the main thread; raises OSError when no process can be made."""
    return _start(_BOOT, msgspec.json.encode(plan), python=python, environment=worker_environment(plan))


def worker_environment(plan: BootPlan) -> dict[str, str]:
    """Every variable that a worker is given, and no other: evidence states the digest of this list."""
    threads = str(plan.torch_threads)
    own = {**_ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return {**own, **_WITH_GPUS} if plan.gpus else own


def spawn_probe(plan: BootPlan, *, python: str = sys.executable) -> SpawnedWorker:
    """Start a process that closes and seals the same sandbox, says what it reached (worker/probe.py), and ends."""
    return _start(_PROBE, msgspec.json.encode(plan), python=python, environment=_ENVIRONMENT)


def _start(boot: Path, plan: bytes, *, python: str, environment: dict[str, str]) -> SpawnedWorker:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("workers are started from the main thread only: they die with the thread that starts them")
    ours, theirs = socket.socketpair()
    widen(theirs)  # the worker may not, once it is sealed
    try:
        process = subprocess.Popen(
            [python, "-I", "-S", "-B", str(boot), str(theirs.fileno())],
            env=environment,
            cwd="/",
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,  # opened for both directions; boot.py puts it on 1 and 2 as well
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    try:
        ours.sendall(len(plan).to_bytes(4, "big") + plan)
    except OSError:
        # It ended before reading. The caller finds out the usual way: the socket is at its end.
        process.poll()
    return SpawnedWorker(process, ours)
