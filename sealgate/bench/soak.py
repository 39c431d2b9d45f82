"""The soak: a steady load for long, and whether memory stays flat.

After every few seconds of load the memory that each process wrote is read (pages of files count for others too, and
change with them); then it may rest. The slope is a least-squares line over the second half, when caches are full; a
process is called flat where it is less than `_FLAT_MI` MiB an hour.
Trusts: /proc. Never: hides a refused request, of which the first ends the soak, or a process that ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sealgate.ambient import monotonic_ns
from sealgate.bench.accounting import own_memory_bytes
from sealgate.bench.measures import Caller, Table

_CALLERS = 8
_RUN_S = 5.0
_EVIDENCE_S = 60.0
_MI = 1 << 20
_REMEMBERED = 120  # bytes of an entry of the worker's replay set, in CPython
_FLAT_MI = 1.0  # an hour; less than this is noise of an allocator


@dataclass
class Watched:
    """Memory of one process over time: seconds, and bytes that it wrote itself."""

    role: str
    at_s: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    ended_s: float | None = None  # when it was first missing

    def slope(self) -> float:
        """Bytes a second over the second half; 0 for fewer than three points."""
        half = len(self.at_s) // 2
        times, sizes = self.at_s[half:], self.bytes[half:]
        if len(times) < 3:
            return 0.0
        middle_s, middle = sum(times) / len(times), sum(sizes) / len(sizes)
        spread = sum((at - middle_s) ** 2 for at in times)
        return sum((at - middle_s) * (size - middle) for at, size in zip(times, sizes, strict=True)) / spread


def soak(caller: Caller, *, minutes: float, say: Callable[[str], None], busy: float = 1.0) -> Table:
    """Load for so long, for the share `busy` of the time; raises what a refused request raises."""
    began = monotonic_ns()
    watched: dict[int, Watched] = {}
    rates: list[float] = []
    answered, renewed, told = 0, 0.0, 0.0
    while (at := (monotonic_ns() - began) / 1e9) < minutes * 60:
        if at - renewed > _EVIDENCE_S:
            caller.sealer.renew()
            renewed = at
        asked_ns = monotonic_ns()
        asked = caller.ask(_CALLERS, seconds=_RUN_S)
        worked_s = (monotonic_ns() - asked_ns) / 1e9
        rates.append(asked.run.rate)
        answered += asked.run.answered
        at = (monotonic_ns() - began) / 1e9
        there = caller.stand.processes()
        for pid, role in there.items():
            one = watched.setdefault(pid, Watched(role))
            one.at_s.append(at)
            one.bytes.append(own_memory_bytes(pid))
        for pid, one in watched.items():
            if pid not in there and one.ended_s is None:
                one.ended_s = at
                say(f"{at / 60:.0f} min: {one.role} {pid} has ended")
        if at - told > 60:
            told = at
            sizes = ", ".join(
                f"{one.role} {one.bytes[-1] / _MI:.1f}" for one in watched.values() if one.ended_s is None
            )
            say(f"{at / 60:.0f} min: {answered} answered, MiB: {sizes}")
        time.sleep(worked_s * (1 / busy - 1))
    return _table(watched, rates, answered=answered, minutes=minutes, own=caller.stand.own)


def _table(watched: dict[int, Watched], rates: list[float], *, answered: int, minutes: float, own: bool) -> Table:
    table = Table(
        f"Soak: {minutes:g} minutes, {_CALLERS} callers, {answered} requests, none refused",
        ("process", "pid", "MiB first", "middle", "last", "MiB/hour, second half", ""),
    )
    numbers = []
    for pid, one in sorted(watched.items(), key=lambda pair: pair[1].role):
        hourly = one.slope() * 3600 / _MI
        sizes = [one.bytes[0], one.bytes[len(one.bytes) // 2], one.bytes[-1]]
        verdict = "flat" if abs(hourly) < _FLAT_MI else "grows" if hourly > 0 else "shrinks"
        if one.ended_s is not None:
            verdict = f"ended after {one.ended_s / 60:.0f} min"
        table.rows.append((one.role, pid, *(f"{size / _MI:.1f}" for size in sizes), f"{hourly:+.2f}", verdict))
        numbers.append({"role": one.role, "bytes": one.bytes, "at_s": one.at_s, "mi_per_hour": hourly})
    if rates:
        first, last = rates[: max(1, len(rates) // 4)], rates[-max(1, len(rates) // 4) :]
        until = "10 minutes here" if own else "25 hours by default"
        table.notes.append(
            f"A worker must remember every request that it opened until its key is gone ({until}; about {_REMEMBERED} "
            f"bytes each, bounded): {answered} requests are at most {answered * _REMEMBERED / _MI:.0f} MiB of it."
        )
        table.notes.append(
            f"Requests/s: {sum(first) / len(first):.0f} in the first quarter, {sum(last) / len(last):.0f} in the last."
        )
    table.numbers = {"processes": numbers, "answered": answered, "rates": rates}
    return table
