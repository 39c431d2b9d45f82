"""The host's own reading of a worker's isolation, from /proc. The worker's word is one thing, the kernel's another.

Only what the host may read is listed: an ordinary user cannot see the namespaces of a process that is not dumpable,
which is as it should be.

Trusts: the kernel's /proc. Never: asks the worker.
"""

from __future__ import annotations

import os
from pathlib import Path

from sealgate.protocol.frames import Layer

_NAMESPACES = {"mnt": "mount", "net": "network", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup", "user": "user"}
_STAGES = 2
_ON = Layer(state="on")


def read_layers(pid: int) -> dict[str, Layer]:
    """What the kernel says of process `pid`; empty when it is gone. `zygote` is there when it has a child."""
    own = _read(pid)
    read = dict(own)
    for child in _children(pid) if own else ():
        lacking = sorted(
            name
            for name, layer in _read(child).items()
            if layer.state == "failed" and own.get(name, _ON).state != "failed"
        )
        read["zygote"] = _layer(not lacking, f"lacks {' '.join(lacking)}" if lacking else "as the worker itself")
        if lacking:
            break
    return read


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{pid}\n" in status.read_text("ascii", "replace"):
                found.append(int(status.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def _read(pid: int) -> dict[str, Layer]:
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
        owner = os.stat(f"/proc/{pid}/status").st_uid
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return {}
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    uids = {int(uid) for uid in status["Uid"].split()}
    sets = [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")]
    read = {
        "no-capabilities": _layer(not any(sets), f"bounding set {status['CapBnd']}"),
        "no-new-privileges": _layer(status["NoNewPrivs"].strip() == "1"),
        "seccomp": _layer(*_filters(pid, threads)),
        "not-traced": _layer(status["TracerPid"].strip() == "0"),
        # The kernel gives these files to root while a process is not dumpable, and to its user otherwise.
        "not-dumpable": Layer(state="not-needed", detail="runs as root") if 0 in uids else _layer(owner == 0),
        "other-uid": _layer(os.geteuid() not in uids, f"uid {min(uids)}")
        if os.geteuid() == 0
        else Layer(state="not-needed", detail="the host is not root"),
        "pid-namespace": _layer(len(status.get("NSpid", "").split()) > 1),
    }
    for kind, name in _NAMESPACES.items():
        try:
            read[f"{name}-namespace"] = _layer(
                os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
            )
        except OSError:
            continue
    return read


def _filters(pid: int, threads: list[str]) -> tuple[bool, str]:
    """Both stages on every thread, and at least one thread to say so."""
    seen = 0
    for thread in threads:
        try:
            text = Path(f"/proc/{pid}/task/{thread}/status").read_text("ascii", "replace")
        except OSError:
            continue  # the thread ended meanwhile
        status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        count = int(status.get("Seccomp_filters", "0"))
        if status.get("Seccomp", "0").strip() != "2" or count < _STAGES:
            return False, f"thread {thread} runs under {count} filters"
        seen += 1
    return seen > 0, f"{seen} threads, {_STAGES} filters each"


def _layer(holds: bool, detail: str = "") -> Layer:
    return Layer(state="on" if holds else "failed", detail=detail)


def resident_memory(pid: int) -> int:
    """Bytes that a process and its children have in memory now; 0 for what is gone."""
    return sum(_field_bytes(Path(f"/proc/{one}/status"), "VmRSS") for one in (pid, *_children(pid)))


def free_memory() -> int | None:
    """Bytes that could be taken now: what the machine has left, or this process's control group if that is less. None
    if the kernel does not say."""
    free = _field_bytes(Path("/proc/meminfo"), "MemAvailable") or None
    try:
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        figures = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return free
    left = max(0, most - used + int(figures.get("file", 0)))  # cached files make room
    return left if free is None else min(free, left)


def _field_bytes(path: Path, name: str) -> int:
    try:
        for line in path.read_text("ascii", "replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
