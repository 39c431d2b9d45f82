"""What processes cost: processor time to the nanosecond and memory, by the kernel's own books.

Trusts: /proc. Never: samples or estimates; what a process that has ended used is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes under this one, however deep."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    except OSError:
        pass  # It ended while we looked.
    return found


def cpu_ns(pid: int) -> int:
    """Processor time of all threads that live, in nanoseconds; 0 for a process that is not there."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _ticks(pid)
    return total or _ticks(pid)


def _ticks(pid: int) -> int:
    """The same to a hundredth of a second, where the kernel keeps no schedstat."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_NS
    except (OSError, IndexError):
        return 0


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident and proportional memory (shared pages divided by who shares them); 0 where it cannot be read."""
    resident = _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:")
    return resident, _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") or resident


def peak_bytes(pid: int) -> int:
    """The most that was ever resident; 0 where it cannot be read."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:")


def own_memory_bytes(pid: int) -> int:
    """What the process wrote to memory itself, unlike the pages of files that it maps; 0 where it cannot be read."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss_Anon:")


def _kilobytes(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


class CpuTimer:
    """Processor time of groups of processes between two moments: `names` maps a process to its group's name."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self._before = {pid: cpu_ns(pid) for pid in names}

    def spent_us(self) -> dict[str, float]:
        """Microseconds by group since this was made."""
        spent: dict[str, float] = {}
        for pid, name in self._names.items():
            spent[name] = spent.get(name, 0.0) + max(0, cpu_ns(pid) - self._before[pid]) / 1000
        return spent


def roles(pid: int) -> dict[int, str]:
    """The processes of a deployment by their part: `gateway`, `host`, `worker`; others are `other`.

    `pid` is `sealgate serve`, `gateway` or `runtime`. The host's descendants are the worker's processes.
    """
    return dict(_roles([pid, *children(pid)]))


def _roles(pids: Iterable[int]) -> Iterable[tuple[int, str]]:
    hosts: set[int] = set()
    below: set[int] = set()
    for pid in pids:
        words = _words(pid)
        command = words[words.index("sealgate") + 1] if "sealgate" in words[:-1] else ""
        if pid in below:
            yield pid, "worker"
        elif command == "runtime":
            hosts.add(pid)
            below.update(children(pid))
            yield pid, "host"
        elif command == "gateway" or "benchmarks.clear_gateway" in words or _parent_is_gateway(pid):
            yield pid, "gateway"
        else:
            yield pid, "other"


def _parent_is_gateway(pid: int) -> bool:
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return False
    words = _words(parent)
    return "gateway" in words or "benchmarks.clear_gateway" in words


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def serving(state: Path) -> list[int]:
    """The processes that serve the deployment in `state`: those of the commands serve, gateway and runtime."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        words = _words(int(entry.name))
        if "sealgate" not in words[:-1] or words[-1:] == [""]:
            continue
        at = words.index("sealgate") + 1
        named = any(os.path.realpath(word) == str(state) for word in words[at + 1 :] if not word.startswith("-"))
        if words[at] in ("serve", "gateway", "runtime") and named:
            found.append(int(entry.name))
    return found
