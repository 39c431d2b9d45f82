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
