"""The figures of a whole deployment, as the host gives them to the gateway that is asked for metrics.

Its own tallies (secure_runtime.host.watching), what gateways told, and how things stand when it is asked: log, workers,
keys, isolation, processes.

Trusts: gateways for their own tallies, within bounds; the kernel's /proc. Never: has a label from a request; keeps more
of a gateway that is gone than its counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealgate.protocol import figures
from sealgate.protocol.figures import FAMILIES, Figures, Snapshot
from sealgate.protocol.frames import Layer
from secure_runtime.limits import MAX_COUNTED_PROCESSES

_JIFFIES = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MICRO = 1_000_000


@dataclass(frozen=True)
class Process:
    """Resident bytes, and microseconds of processor time since it began."""

    name: str
    resident: int
    cpu_us: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the host stands at a moment, in its own words."""

    ready: bool
    degraded: bool
    workers: int
    models: int
    models_refused: int
    keys: int
    key_age_us: int  # since what is published last changed
    layers: Sequence[Mapping[str, Layer]]  # of each worker, as the host itself reads them
    requests_in_flight: int
    bytes_in_flight: int
    log_records: int
    log_ok: bool
    log_allows_inference: bool
    witnesses_ok: bool


class HostMetrics:
    """Owned by the host's event loop."""

    def __init__(self, standing: Callable[[], Standing]) -> None:
        self.figures = Figures()
        self._standing = standing
        self._counted: Snapshot = {}  # by gateways
        self._standing_of: dict[Hashable, Snapshot] = {}  # by connection

    def told(self, gateway: Hashable, body: bytes) -> None:
        """What a gateway process has counted since it told last, and how it stands; raises DecodeError."""
        counts, self._standing_of[gateway] = figures.parted(figures.decode(body))
        self._counted = figures.add_up([self._counted, counts])

    def gone(self, gateway: Hashable) -> None:
        """Its connection ended. What it counted stays counted."""
        self._standing_of.pop(gateway, None)

    def given(self, processes: Sequence[Process]) -> bytes:
        """All of it, added up, as it stands now. `processes` are those of `own_processes`."""
        self._look(processes)
        return figures.encode(figures.add_up([self.figures.snapshot(), self._counted, *self._of_gateways()]))

    def _of_gateways(self) -> list[Snapshot]:
        """Each gateway process by a number of its own, instead of the name that all of them have for themselves."""
        named: list[Snapshot] = []
        for number, snapshot in enumerate(self._standing_of.values()):
            own: Snapshot = {}
            for name, series in snapshot.items():
                of_process = FAMILIES[name].labels == ("process",)
                own[name] = {(f"gateway-{number}",) if of_process else labels: n for labels, n in series.items()}
            named.append(own)
        return named

    def _look(self, processes: Sequence[Process]) -> None:
        standing, put = self._standing(), self.figures.put
        for name, value in (
            ("sealgate_runtime_ready", standing.ready),
            ("sealgate_runtime_degraded", standing.degraded),
            ("sealgate_worker_up", standing.workers),
            ("sealgate_models_loaded", standing.models),
            ("sealgate_models_refused", standing.models_refused),
            ("sealgate_request_keys", standing.keys),
            ("sealgate_request_key_age_seconds", standing.key_age_us),
            ("sealgate_requests_in_flight", standing.requests_in_flight),
            ("sealgate_request_bytes_in_flight", standing.bytes_in_flight),
            ("sealgate_log_records", standing.log_records),
            ("sealgate_log_ok", standing.log_ok),
            ("sealgate_log_allows_inference", standing.log_allows_inference),
            ("sealgate_log_witnesses_ok", standing.witnesses_ok),
        ):
            put(name, (), int(value))
        self.figures.drop("sealgate_sandbox_layer_on")
        for layer in {name for one in standing.layers for name in one}:
            states = [one[layer].state for one in standing.layers if layer in one]
            put("sealgate_sandbox_layer_on", (layer,), int(all(state == "on" for state in states)))
        memory, cpu = "sealgate_process_resident_memory_bytes", "sealgate_process_cpu_seconds_total"
        self.figures.drop(memory)
        self.figures.drop(cpu)
        for process in processes:
            put(memory, (process.name,), process.resident)
            put(cpu, (process.name,), process.cpu_us)


def own_processes() -> list[Process]:
    """The host and all processes below it. Reads all of /proc: in a thread, not in the event loop's."""
    mine, found = os.getpid(), []
    for number, pid in enumerate([mine, *descendants(mine)[: MAX_COUNTED_PROCESSES - 1]]):
        used = read_process(pid)
        if used is not None:
            found.append(Process(f"worker-{number - 1}" if number else "host", *used))
    return found


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, oldest first: of a runtime host, its workers and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat_fields(stat)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = sorted(children.get(waiting.pop(), []))
        found += below
        waiting += below
    return sorted(found)


def read_process(pid: int) -> tuple[int, int] | None:
    """Resident bytes and microseconds of processor time; None for a process that is gone."""
    fields = _stat_fields(Path(f"/proc/{pid}/stat"))
    if fields is None:
        return None
    jiffies = int(fields[11]) + int(fields[12])
    return int(fields[21]) * _PAGE, jiffies * _MICRO // _JIFFIES


def _stat_fields(path: Path) -> list[str] | None:
    """proc_pid_stat(5) from the third field on; the second may hold anything, so it is cut at the last bracket."""
    try:
        return path.read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
