"""Appends per second to the audit log, in SQLite and in PostgreSQL, by how many callers wait at once.

Interleaved rounds on one disk, fsync on in both: in each round every series runs once, in turn, so that what else the
machine does hits all alike. Callers are tasks of one event loop, as in the host; each waits for its record to be
durable and signed before it hands over the next.

    records      one denial: a leaf, its index row, its place in the tree, a receipt
    requests     an authorization that takes from a budget, and its completion: two records, one hold

`python -m benchmarks.audit_log [--rounds 7] [--seconds 0.7] [--callers 1,16,64,256]` prints a table and writes nothing.
PostgreSQL is a server of its own, started from Debian's binaries; without them its rows are missing, and it is said.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from audit.effects import LedgerEffect
from audit.log import AuditLog
from policy.budget import BudgetBook
from policy.budgets import Budget, Window
from policy.ledger import Ledger
from sealgate.ambient import monotonic_ns
from sealgate.terminal import render_table
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from tests.audit.postgres_server import PostgresServer, missing

ORIGIN = "benchmark.example/log"
DIGEST = "ab" * 32
COMMON = {"tenant": "clinic", "actor": "a" * 32, "model": "m", "purpose": "care", "operation": "infer"}
NOW_US = 1_700_000_000_000_000


class Series:
    """One log, and the two ways to write to it."""

    def __init__(self, name: str, url: str, people: Path) -> None:
        self.name = name
        self._book = BudgetBook([Budget(name="all", tenant="clinic", window=Window.DAY, requests=10**12)])
        self._claim = self._book.claim(tenant="clinic", subject="someone", model="m")
        self._reserving = LedgerEffect(Ledger, lambda ledger, _: self._book.expect(ledger, self._claim), self._reserve)
        self._settling = LedgerEffect(
            Ledger,
            lambda ledger, record: self._book.expect_end(ledger, grant=record.grant, noised=False),
            self._settle,
        )
        self.log = AuditLog.open(
            url,
            signer=NoteSigner.from_seed(ORIGIN, b"\x01" * 32),
            subjects_key=b"\x02" * 32,
            person_keys=people,
            origin=ORIGIN,
            extra_tables=(self._book.tables,),
        )

    async def record(self) -> None:
        await asyncio.wrap_future(self.log.append(Record(kind="inference.denied", reason="purpose", **COMMON)))

    async def request(self) -> None:
        draft = Record(kind="inference.authorized", req_commit=DIGEST, model_digest=DIGEST, **COMMON)
        begun = await asyncio.wrap_future(self.log.append(draft, self._reserving))
        end = Record(
            kind="inference.completed", grant=begun.record.id, model="m", model_digest=DIGEST, units=1,
            outcome="completed", runtime_instance="worker", runtime_seq=begun.index, runtime_sig="s" * 86,
            req_commit=DIGEST, resp_commit=DIGEST,
        )  # fmt: skip
        await asyncio.wrap_future(self.log.append(end, self._settling))

    def _reserve(self, ledger: Ledger, record: Record) -> Record:
        self._book.reserve(ledger, self._claim, grant=record.id, now_us=NOW_US)
        return msgspec.structs.replace(record, budget_after_micro=1)

    def _settle(self, ledger: Ledger, record: Record) -> Record:
        self._book.settle(ledger, grant=record.grant, units=1, now_us=NOW_US)
        return record


async def rate(work: Callable[[], Awaitable[None]], *, callers: int, seconds: float) -> float:
    """How often a second `work` is done when so many callers do it one after the other."""
    done = 0
    start = monotonic_ns()
    deadline = start + int(seconds * 1e9)

    async def caller() -> None:
        nonlocal done
        while monotonic_ns() < deadline:
            await work()
            done += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / ((monotonic_ns() - start) / 1e9)


@contextmanager
def logs(folder: Path) -> Iterator[list[Series]]:
    """A fresh log in each database that is there."""
    with ExitStack() as stack:
        series = [Series("SQLite", f"sqlite:///{folder / 'audit.sqlite'}", folder / "people")]
        why = missing()
        if why:
            print(f"PostgreSQL: {why}")
        else:
            server = PostgresServer()
            stack.callback(server.remove)
            series.append(Series("PostgreSQL", server.url(server.create()), folder / "people-too"))
        for one in series:
            stack.callback(one.log.close)
        yield series


def measure(
    series: list[Series], *, rounds: int, seconds: float, callers: list[int]
) -> dict[tuple[str, int], list[list[float]]]:
    """Records and requests a second of every round, by database and number of callers."""
    found: dict[tuple[str, int], list[list[float]]] = {(one.name, n): [[], []] for n in callers for one in series}
    for number in range(rounds + 1):
        for count in callers:
            for one in series:
                for place, work in enumerate((one.record, one.request)):
                    value = asyncio.run(rate(work, callers=count, seconds=seconds if number else 0.2))
                    if number:  # the first round warms up
                        found[one.name, count][place].append(value)
    return found


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Start the server, make the logs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--callers", default="1,16,64,256")
    arguments = parser.parse_args()
    callers = [int(number) for number in arguments.callers.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="sealgate-bench-", dir="/tmp"))
    try:
        with logs(folder) as series:
            found = measure(series, rounds=arguments.rounds, seconds=arguments.seconds, callers=callers)
            sizes = ", ".join(f"{one.name} {one.log.state.size:,}" for one in series)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        render_table(
            ("database", "callers", "records/s: median (range)", "requests/s: median (range)"),
            [(name, str(count), *map(shown, values)) for (name, count), values in found.items()],
        )
    )
    print(f"{arguments.rounds} interleaved rounds of {arguments.seconds} s; records at the end: {sizes}")


if __name__ == "__main__":
    main()
