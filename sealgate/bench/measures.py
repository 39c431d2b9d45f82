"""What `sealgate bench` measures, each as a function from a stand to a table: rows of text, and the numbers behind
them.

Trusts: the kernel's clocks and books, the deployment's own figures for its steps. Never: counts an answer that is not
200, or whose receipt (of those that are looked at) does not hold.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sealgate.ambient import monotonic_ns, now_us
from sealgate.bench.accounting import CpuTimer, memory_bytes, peak_bytes
from sealgate.bench.figures import mean_us, read_steps
from sealgate.bench.load import LoadFailed, Run, percentile
from sealgate.bench.sealing import Sealer
from sealgate.bench.stand import Stand, Workshop
from sealgate.errors import SealgateError

CALLERS = (1, 8, 64)
PAYLOADS = (1 << 10, 32 << 10, 1 << 20, 10 << 20, 100 << 20)
_PAYLOAD_PROCESSES = ("gateway", "host", "worker")
_GUESS = {1: 150.0}  # requests a second, until a run says better
_OPENED = 8
_CLIENT_TIMES = 40
_MI = 1 << 20

STEPS = (
    ("1", "evidence", "client", "fetch and verify evidence; once, until it expires"),
    ("2", "seal", "client", "encode, pad, exchange keys, seal"),
    ("3", "authenticate", "gateway", "the token; one that was seen is looked up"),
    ("4", "parse", "gateway", "the sealed request's header; its body is awaited here"),
    ("5", "decide", "gateway", "the policy; a decision that was made is looked up"),
    ("6", "authorise", "host", "reserve budgets, record, wait for the disk"),
    ("", "queue", "host, worker", "until the worker begins, and until the host hears of its end"),
    ("7", "open", "worker", "ten checks, key exchange, open"),
    ("8", "run", "worker", "the batch that it is in"),
    ("9", "sealed", "worker", "seal the answer, sign the completion"),
    ("10", "record", "host", "settle, record the end, wait for the disk, receipt"),
    ("11", "release", "gateway", "hand the answer to the connection"),
    ("12", "open-answer", "client", "verify receipt, log and worker; open"),
)
_OF_SERVER = {"sealed": "seal"}  # our word for a step, where the figures' is another


@dataclass
class Table:
    """One result: a title, what it says, and the same as numbers for JSON."""

    title: str
    headings: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: Any = None


@dataclass
class Asked:
    """One run with so many callers: what came back, processor time by process, and the time of each step."""

    run: Run
    cpu_us: dict[str, float]
    steps_us: dict[str, float]


class Caller:
    """Asks a stand. Keeps how fast it answered, to seal as many requests as the next run can need."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self._message = stand.message()
        self.sealer: Sealer = stand.sealer()
        self._rates: dict[int, float] = dict(_GUESS)

    def close(self) -> None:
        """Close its connections."""
        self.sealer.close()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, callers: int, *, seconds: float, warm_s: float = 0.3) -> Asked:
        """Requests sealed beforehand, for so long; a few answers are verified and opened afterwards."""
        guess = self._rates.get(callers) or max(self._rates.values()) * 3
        self.sealer.seal(*self._message, count=int(guess * (seconds + warm_s) * 1.3) + 2 * callers)
        with self.stand.load(callers) as load:
            before = read_steps(self.stand.metrics)
            timer = CpuTimer(self.stand.processes())
            run = load.run(self.sealer.requests(), seconds=seconds, warm_s=warm_s, keep_every=101)
            spent = timer.spent_us()
            steps = mean_us(before, read_steps(self.stand.metrics))
        if run.first_refusal is not None:
            said = run.first_refusal
            raise LoadFailed(f"the service refused {run.refused} of {run.answered}: {said.status} {said.body[:200]!r}")
        for answer in run.kept[:_OPENED]:
            self.sealer.open(answer)
        self._rates[callers] = run.rate
        return Asked(run, {role: us / max(1, run.answered) for role, us in spent.items()}, steps)

    def seal_once(self) -> float:
        """Step 2, in microseconds."""
        began = monotonic_ns()
        self.sealer.seal(*self._message, count=1)
        return (monotonic_ns() - began) / 1000

    def client_steps(self) -> dict[str, float]:
        """Steps 1, 2 and 12 where the client runs: medians, in microseconds."""
        evidence, seal, opened = [], [], []
        for number in range(_CLIENT_TIMES):
            if number % 4 == 0:
                evidence.append(timed_us(self.sealer.renew))
            seal.append(self.seal_once())
            with self.stand.load(1) as load:
                run = load.run(self.sealer.requests(), seconds=30, keep_every=1)
            if not run.kept:
                raise LoadFailed("the service refused a request")
            opened.append(timed_us(partial(self.sealer.open, run.kept[0])))
        medians = (statistics.median(values) for values in (evidence, seal, opened))
        return dict(zip(("evidence", "seal", "open-answer"), medians, strict=True))


def timed_us(call: Callable[[], object]) -> float:
    """How long a call takes, in microseconds."""
    began = monotonic_ns()
    call()
    return (monotonic_ns() - began) / 1000


# The tables ----------------------------------------------------------------------------------------------------------


def latency(caller: Caller, *, seconds: float) -> tuple[Table, dict[int, Asked]]:
    """Requests a second and latencies at 1, 8 and 64 callers, with each process's time."""
    found = {callers: caller.ask(callers, seconds=seconds) for callers in CALLERS}
    roles = [
        role for role in ("gateway", "host", "worker", "other") if any(role in one.cpu_us for one in found.values())
    ]
    table = Table(
        "Latency, as the network sees it (sealed beforehand, TLS)",
        ("callers", "requests/s", "p50 ms", "p90 ms", "p99 ms", *(f"{role} CPU us" for role in roles)),
    )
    for callers, one in found.items():
        cuts = [f"{percentile(one.run.latencies_us, share) / 1000:.2f}" for share in (0.5, 0.9, 0.99)]
        spent = [f"{one.cpu_us.get(role, 0):.0f}" for role in roles]
        table.rows.append((callers, f"{one.run.rate:.0f}", *cuts, *spent))
    if not roles:
        table.notes.append("Processor time is shown where the service runs on this machine: name its folder (--state).")
    table.numbers = {
        callers: {
            "rate": one.run.rate,
            "p50_us": percentile(one.run.latencies_us, 0.5),
            "p99_us": percentile(one.run.latencies_us, 0.99),
            "cpu_us": one.cpu_us,
        }
        for callers, one in found.items()
    }
    return table, found


def steps(client_us: Mapping[str, float], asked: Mapping[int, Asked]) -> Table:
    """The twelve steps: mean time of each, for one caller and for many at once."""
    fewest, most = min(asked), max(asked)
    table = Table(
        "The twelve steps of a request (us, mean)",
        ("step", "what", "where", f"{fewest} caller", f"{most} callers", ""),
    )
    numbers: dict[str, dict[int, float]] = {}
    for number, name, where, what in STEPS:
        key = _OF_SERVER.get(name, name)
        if where == "client":
            cells = [f"{client_us[name]:.0f}", "the same"]
            numbers[name] = {fewest: client_us[name]}
        else:
            known = {callers: asked[callers].steps_us.get(key) for callers in (fewest, most)}
            cells = ["" if us is None else f"{us:.0f}" for us in known.values()]
            numbers[name] = {callers: us for callers, us in known.items() if us is not None}
        table.rows.append((number, name, where, *cells, what))
    if not any(one.steps_us for one in asked.values()):
        table.notes.append(
            "The server's steps come from its metrics page ([telemetry] metrics; --metrics URL), which was not there."
        )
    else:
        table.notes.append(
            "Steps 6 and 10 wait for the disk, and share that wait with what arrived together; 8 is the whole batch's. "
            "Those of many callers overlap: what a request costs is the processor time above."
        )
    table.numbers = numbers
    return table


def memory(stand: Stand, *, title: str) -> Table:
    """Resident and proportional memory of each process."""
    table = Table(title, ("process", "pid", "resident MiB", "proportional MiB"))
    numbers = []
    for pid, role in sorted(stand.processes().items(), key=lambda pair: (pair[1], pair[0])):
        resident, proportional = memory_bytes(pid)
        if resident:
            table.rows.append((role, pid, f"{resident / _MI:.1f}", f"{proportional / _MI:.1f}"))
            numbers.append({"role": role, "resident": resident, "proportional": proportional})
    if not table.rows:
        table.notes.append("Shown where the service runs on this machine: name its folder (--state).")
    table.numbers = numbers
    return table


def payloads(caller: Caller) -> Table:
    """One request each of 1 KiB to 100 MiB: how long it takes and what each process held at most, or who refuses it and
    how."""
    peaks = [f"{role} MiB" for role in _PAYLOAD_PROCESSES]
    table = Table("Payloads: one request, one caller", ("size", "rows", "sealed bytes", "ms", "MiB/s", *peaks, ""))
    numbers = []
    row_bytes = 4 * len(caller.stand.rows[0])
    for size in PAYLOADS:
        rows = max(1, size // row_bytes)
        row: dict[str, Any] = {"size": size, "rows": rows}
        try:
            caller.sealer.seal(*caller.stand.message(rows), count=3)
            sealed = len(next(caller.sealer.requests()))
            with caller.stand.load(1) as load:
                run = load.run(caller.sealer.requests(), seconds=60, keep_every=1)
            if run.first_refusal is not None:
                said = run.first_refusal
                raise LoadFailed(f"the service refuses it: {said.status} {_title(said.body)}")
            opened = caller.sealer.open(run.kept[-1])
            if opened.response.status != 200:
                raise LoadFailed(
                    f"the runtime refuses it, sealed: {opened.response.status} {_title(opened.response.body)}"
                )
            best = min(run.latencies_us)
            held = _peaks(caller.stand)
            row |= {"sealed": sealed, "us": best, "peak": held}
            most = [f"{held[role] / _MI:.0f}" if role in held else "" for role in _PAYLOAD_PROCESSES]
            cells: tuple[object, ...] = (sealed, f"{best / 1000:.1f}", f"{size / _MI / (best / 1e6):.1f}", *most, "")
        except (SealgateError, OSError) as error:
            row["refused"] = str(error)
            cells = ("", "", "", *([""] * len(peaks)), str(error)[:100])
        table.rows.append((_size(size), rows, *cells))
        numbers.append(row)
    table.notes.append("The largest request is a setting of the deployment: [deployment] max_request_mb.")
    if any("peak" in one and one["peak"] for one in numbers):
        table.notes.append("MiB: the most that was ever resident, up to and with this row (VmHWM).")
    table.numbers = numbers
    return table


def _peaks(stand: Stand) -> dict[str, int]:
    """The largest of each role's processes, by the most that it ever held."""
    found: dict[str, int] = {}
    for pid, role in stand.processes().items():
        found[role] = max(found.get(role, 0), peak_bytes(pid))
    return {role: peak for role, peak in found.items() if peak}


def growth(workshop: Workshop, *, seconds: float) -> Table:
    """Requests a second at 64 callers with more gateway processes and more workers."""
    table = Table(
        f"More processes, 64 callers ({os.cpu_count()} cores here)",
        ("gateways", "workers", "requests/s", "p99 ms", "start s"),
    )
    numbers = []
    for gateways, workers in ((1, 1), (2, 1), (1, 2), (2, 2)):
        with workshop.serve(gateways=gateways, workers=workers) as stand, Caller(stand) as caller:
            asked = caller.ask(64, seconds=seconds)
        p99 = percentile(asked.run.latencies_us, 0.99) / 1000
        table.rows.append((gateways, workers, f"{asked.run.rate:.0f}", f"{p99:.1f}", f"{stand.start_s:.1f}"))
        numbers.append({"gateways": gateways, "workers": workers, "rate": asked.run.rate})
    table.notes.append(
        "Client and load generator take their share of the same cores: more cores than these were not tried."
    )
    table.numbers = numbers
    return table


def _title(body: bytes | bytearray | memoryview) -> str:
    """The words of a problem or an inference error, cut."""
    return bytes(body[:160]).decode(errors="replace")


def _size(count: int) -> str:
    return f"{count // _MI} MiB" if count >= _MI else f"{count // 1024} KiB"


def started(stand: Stand) -> Table:
    """How long `sealgate serve` took until it answered."""
    table = Table("Start", ("what", "s"), [("sealgate serve until ready", f"{stand.start_s:.1f}")])
    table.numbers = {"serve_s": stand.start_s, "at_us": now_us()}
    return table
