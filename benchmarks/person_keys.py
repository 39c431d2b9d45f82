"""What a key for each person costs an append: the first record of somebody against the next ones.

Interleaved rounds on one disk, fsync on: `callers` tasks of one event loop, as in the host; each waits for its record
to be durable before it hands over the next.

    known    everybody has a pseudonym: no key is touched
    new      each record is of somebody the log never saw: a key, a row, one more fsync a batch

Then how long one erasure takes, from the request to the deleted key. `python -m benchmarks.person_keys [--rounds 7]
[--seconds 0.7] [--callers 1,64]`. PostgreSQL's rows are missing where it is not installed, and it is said.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

from audit.erasure import erasing
from audit.log import Appended, AuditLog
from benchmarks.audit_log import ORIGIN, rate, shown
from sealgate.ambient import monotonic_ns
from sealgate.terminal import render_table
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from tests.audit.postgres_server import PostgresServer, missing

KNOWN = 64
ERASURES = 30


class Series:
    """One log and its people."""

    def __init__(self, name: str, url: str, people: Path) -> None:
        self.name = name
        signer = NoteSigner.from_seed(ORIGIN, b"\x01" * 32)
        self.log = AuditLog.open(url, signer=signer, subjects_key=b"\x02" * 32, person_keys=people, origin=ORIGIN)
        self._turn, self._fresh = itertools.count(), itertools.count()
        for number in range(KNOWN):
            self._append(f"known {number}").result()

    def _append(self, subject: str) -> Future[Appended]:
        actor = self.log.actor("clinic", subject)
        draft = Record(
            kind="inference.denied", reason="purpose", tenant="clinic", actor=actor, model="m", purpose="care"
        )
        return self.log.append(draft)

    async def known(self) -> None:
        await asyncio.wrap_future(self._append(f"known {next(self._turn) % KNOWN}"))

    async def new(self) -> None:
        await asyncio.wrap_future(self._append(f"new {next(self._fresh)}"))

    def erasure(self) -> float:
        """Milliseconds; the person is there before."""
        subject = f"leaving {next(self._fresh)}"
        self._append(subject).result()
        effect = erasing(self.log.subjects, tenant="clinic", subject=subject, ground="objection")
        start = monotonic_ns()
        self.log.append(Record(kind="erasure.completed"), effect).result()
        self.log.subjects.scrub()
        return (monotonic_ns() - start) / 1e6


@contextmanager
def logs(folder: Path) -> Iterator[list[Series]]:
    """A fresh log in each database that is there."""
    with ExitStack() as stack:
        series = [Series("SQLite", f"sqlite:///{folder / 'audit.sqlite'}", folder / "people")]
        if missing():
            print(f"PostgreSQL: {missing()}")
        else:
            server = PostgresServer()
            stack.callback(server.remove)
            series.append(Series("PostgreSQL", server.url(server.create()), folder / "people-too"))
        for one in series:
            stack.callback(one.log.close)
        yield series


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--callers", default="1,64")
    arguments = parser.parse_args()
    callers = [int(number) for number in arguments.callers.split(",")]
    found: dict[tuple[str, int], tuple[list[float], list[float]]] = {}
    erased: dict[str, list[float]] = {}
    folder = Path(tempfile.mkdtemp(prefix="sealgate-bench-", dir="/tmp"))
    try:
        with logs(folder) as series:
            for number, count, one in itertools.product(range(arguments.rounds + 1), callers, series):
                for place, work in enumerate((one.known, one.new)):
                    value = asyncio.run(rate(work, callers=count, seconds=arguments.seconds if number else 0.2))
                    if number:  # the first round warms up
                        found.setdefault((one.name, count), ([], []))[place].append(value)
            for _, one in itertools.product(range(ERASURES), series):
                erased.setdefault(one.name, []).append(one.erasure())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [(name, str(count), shown(known), shown(new)) for (name, count), (known, new) in found.items()]
    print(render_table(("database", "callers", "known people, records/s", "new people, records/s"), rows))
    for name, times in erased.items():
        print(f"{name}: an erasure takes {statistics.median(times):,.1f} ms ({min(times):,.1f} to {max(times):,.1f})")
    print(f"{arguments.rounds} interleaved rounds of {arguments.seconds} s")


if __name__ == "__main__":
    main()
