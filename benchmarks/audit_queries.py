"""How long every question takes to a log of a million records, or ten: pages, records, proofs, reports, exports.

Builds a log of `--records` records in a temporary folder (`benchmarks.audit_bulk`: real leaves, tree, tables, seal,
checkpoints), asks each question of `benchmarks.audit_questions` once a round, in turn, so that what else the machine
does hits all alike, and prints medians, ranges and the indexes that the database used. Then how long opening takes,
an append (in turn with an append to a fresh log), a bundle, and the offline verifier.

`python -m benchmarks.audit_queries [--records 1000000] [--database sqlite|postgresql|both] [--rounds 5]
[--log FILE]`. `--log` asks an SQLite log that `--build-only FILE` made before, and keeps it. Else nothing is left.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from audit.database import open_database
from audit.errors import AuditError
from audit.log import AuditLog
from audit.person_keys import beside
from audit.query import AuditReader, RecordFilter
from benchmarks import audit_questions as questions
from benchmarks.audit_bulk import ORIGIN, SIGNER, SUBJECTS_KEY, build
from benchmarks.audit_mix import DAY_US, START_US
from sealgate.ambient import monotonic_ns
from sealgate.terminal import render_table
from sealgate.transparency.record import Record
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.audit.postgres_server import PostgresServer, missing

PER_DAY = 27_400  # records: a million is five weeks, ten million a year
SIGNED = 250_000  # so many of the first records carry workers' real signatures
VERIFIED = 50_000
APPENDS = 150
DENIAL = Record(kind="inference.denied", tenant="lab", actor="a" * 32, model="m", reason="purpose", operation="infer")


@dataclass
class Measured:
    """One row of the table."""

    times_ms: list[float] = field(default_factory=list)
    answer: str = ""
    indexes: str = ""
    each: int = 0  # records that one time is about; 0: the time itself is told

    def shown(self) -> str:
        if not self.times_ms:
            return "-"
        values = sorted(self.times_ms)
        if self.each:
            rates = [self.each / (value / 1000) for value in values]
            return f"{statistics.median(rates):,.0f}/s ({rates[-1]:,.0f} to {rates[0]:,.0f})"
        return f"{statistics.median(values):,.1f} ({values[0]:,.1f} to {values[-1]:,.1f})"


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Milliseconds, and the answer or the refusal."""
    start = monotonic_ns()
    try:
        answer = work()
    except AuditError as error:
        answer = error
    return (monotonic_ns() - start) / 1e6, answer


def ask(url: str, *, rounds: int) -> dict[str, Measured]:
    """Every question, once a round; a first round warms up, and tells the plans."""
    reader = AuditReader(url, origin=ORIGIN)
    try:
        size = reader.size()
        newest = reader.records(RecordFilter(kind="inference.denied"), limit=1).records[0].record
        days = (newest.ts_us - START_US) // DAY_US
        asked = dict(questions.single(reader, size))
        asked |= questions.pages(reader, url, size, days, newest.actor)
        asked |= questions.reports(reader, size, days)
        asked |= questions.exports(reader, size)
        found = {name: Measured() for name in asked}
        for name, work in asked.items():
            with questions.heard() as said:
                _, answer = timed(work)
            found[name].indexes = questions.indexes(url, said)
            refused = isinstance(answer, AuditError)
            found[name].answer = f"refused: {answer}"[:40] if refused else f"{questions.weight(answer):,}"
            found[name].each = 0 if refused or not name.startswith("export") else questions.EXPORTED
        for _ in range(rounds):
            for name, work in asked.items():
                found[name].times_ms.append(timed(work)[0])
    finally:
        reader.close()
    return found


def write(url: str, fresh: str, *, people: Path, rounds: int) -> dict[str, Measured]:
    """Opening, and appends in turn with those to a log that holds nothing."""
    names = ("open, with the self-check", "append", "append to a fresh log", "receipt")
    found = {name: Measured() for name in names}
    elsewhere = people.with_name("fresh.people")
    open_log(fresh, elsewhere).close()
    for _ in range(rounds):
        spent, log = timed(lambda: open_log(url, people))
        found[names[0]].times_ms.append(spent)
        assert isinstance(log, AuditLog)
        with log, open_log(fresh, elsewhere) as other:
            for _ in range(APPENDS // rounds):
                for name, one in ((names[1], log), (names[2], other)):
                    start = monotonic_ns()
                    appended = one.append(DENIAL).result()
                    found[name].times_ms.append((monotonic_ns() - start) / 1e6)
                    if one is log:
                        found[names[3]].answer = f"{len(appended.receipt):,} bytes, leaf {len(appended.leaf):,}"
    return found


def open_log(url: str, people: Path) -> AuditLog:
    return AuditLog.open(url, signer=SIGNER, subjects_key=SUBJECTS_KEY, person_keys=people, origin=ORIGIN)


def verify(url: str, *, rounds: int) -> dict[str, Measured]:
    """The first records as a bundle, and what the offline verifier says of it."""
    reader = AuditReader(url, origin=ORIGIN)
    count = min(VERIFIED, reader.size())
    found = Measured(each=count)
    out = io.BytesIO()
    reader.export(0, count - 1, out)
    reader.close()
    for _ in range(min(rounds, 3)):
        out.seek(0)
        spent, report = timed(lambda: verify_bundle(out, LogTrust(verifiers=(SIGNER.verifier,))))
        found.times_ms.append(spent)
        problems = [step.name for step in report.steps if step.status == "failed"]  # type: ignore[attr-defined]
        found.answer = ", ".join(problems) or f"verified; {len(out.getvalue()) / count:,.0f} bytes a record"
    return {f"verify a bundle offline, {count:,}": found}


def size_of(url: str, file: Path | None, count: int) -> str:
    """How large the log is, and its parts in PostgreSQL."""
    if file is not None:
        return f"{file.stat().st_size / 1e9:.2f} GB, {file.stat().st_size / count:,.0f} bytes a record"
    engine = open_database(url).reader_engine()
    with engine.begin() as connection:
        whole = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one()
        parts = connection.exec_driver_sql(
            "SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "ORDER BY 2 DESC LIMIT 8"
        ).all()
    engine.dispose()
    named = ", ".join(f"{name} {size / count:,.0f}" for name, size in parts)
    return f"{whole / 1e9:.2f} GB, {whole / count:,.0f} bytes a record ({named})"


@contextmanager
def places(folder: Path, database: str, log: Path | None) -> Iterator[list[tuple[str, str, str, Path, Path | None]]]:
    """Name, URL of the log, URL of a fresh one, where the keys of people stand, and the log's file if it is one."""
    with ExitStack() as stack:
        found: list[tuple[str, str, str, Path, Path | None]] = []
        if database in ("sqlite", "both"):
            file = log or folder / "audit.sqlite"
            found.append(
                (
                    "SQLite",
                    f"sqlite:///{file}",
                    f"sqlite:///{folder / 'fresh.sqlite'}",
                    beside(f"sqlite:///{file}"),
                    file,
                )
            )
        if database in ("postgresql", "both"):
            if missing():
                print(missing())
            else:
                server = PostgresServer()
                stack.callback(server.remove)
                found.append(
                    ("PostgreSQL", server.url(server.create()), server.url(server.create()), folder / "people", None)
                )
        yield found


def measure(
    name: str, url: str, fresh: str, people: Path, file: Path | None, arguments: argparse.Namespace
) -> list[tuple[str, ...]]:
    """One database's rows of the table."""
    if file is None or not file.exists():
        spent, count = timed(lambda: build_log(url, arguments.records, people))
        print(f"{name}: {count:,} records built in {spent / 1000:,.0f} s")
    spent, log = timed(lambda: open_log(url, people))
    assert isinstance(log, AuditLog)
    with log:
        count = log.state.size
    if file is None:
        analyze(url)
    print(f"{name}: {count:,} records, {size_of(url, file, count)}; first opened in {spent / 1000:,.1f} s", flush=True)
    found = ask(url, rounds=arguments.rounds)
    found |= write(url, fresh, people=people, rounds=arguments.rounds)
    found |= verify(url, rounds=arguments.rounds)
    return [(name, what, one.shown(), one.answer, one.indexes) for what, one in found.items()]


def build_log(url: str, records: int, people: Path | None = None) -> int:
    return build(url, records=records, day=PER_DAY, signed=SIGNED, people=people, tell=True)


def analyze(url: str) -> None:
    """What autovacuum does within a minute of such a load."""
    hold = open_database(url).open_writer()
    with hold.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    hold.release()


def main() -> None:
    """Build, ask, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--log", type=Path, help="an SQLite log that --build-only made; it is kept")
    parser.add_argument("--build-only", type=Path, metavar="FILE", help="make the SQLite log there, and stop")
    arguments = parser.parse_args()
    if arguments.build_only is not None:
        build_log(f"sqlite:///{arguments.build_only}", arguments.records)
        return
    folder = Path(tempfile.mkdtemp(prefix="sealgate-bench-", dir="/tmp"))
    try:
        with places(folder, arguments.database, arguments.log) as databases:
            rows = [row for place in databases for row in measure(*place, arguments)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(render_table(("database", "what", "ms, or records/s: median (range)", "answer", "found by"), rows))
    print(f"{arguments.rounds} interleaved rounds")


if __name__ == "__main__":
    main()
