"""Pruning: only what is due goes, its hashes stay, everything else still proves, and what is missing is explained."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from audit import pruning as pruning_module
from audit.erasure import erasing
from audit.errors import LogDamaged, LogUnavailable, PrivacyRefused
from audit.holds import holds_in_force, placing
from audit.pruner import Pruner, count_due
from audit.pruning import pruning, search
from audit.query import RecordFilter
from audit.retention import DAY_US, parse_retention
from sealgate.errors import ConfigurationError
from sealgate.transparency.merkle import leaf_hash, verify_inclusion
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.pruned import INDICES, Indices
from sealgate.transparency.record import Record
from sealgate.transparency.verifier import LogTrust, Report, verify_bundle
from tests.audit.every_statement import told_of
from tests.audit.test_roles import Roles

RULES = parse_retention(b"default_days = 100\n[[rule]]\npurpose = 'treatment'\ndays = 1000\n")
NOW = 2000 * DAY_US
WRITER = Path(__file__).parent / "prune_writer.py"


class Aged:
    """A log whose records were written over two thousand days; every third one is of a treatment."""

    def __init__(self, bench: Any, *, requests: int = 500) -> None:
        self.bench = bench
        self.now = 1 * DAY_US
        self.log = bench.open(clock=lambda: self.now)
        self.receipts: dict[int, bytes] = {}
        bench.start_worker(self.log)
        times = [self.now + (NOW - self.now) * number // requests for number in range(requests)]
        for some in (range(at, min(at + 64, requests)) for at in range(0, requests, 64)):
            drafts = [
                bench.draft(
                    "inference.authorized",
                    purpose="billing" if number % 3 else "treatment",
                    actor=f"{number % 7:032x}",
                    ts_us=times[number],
                )
                for number in some
            ]
            begun = [future.result().record for future in [self.log.append(draft) for draft in drafts]]
            ends = [msgspec.structs.replace(bench.end(one), ts_us=one.ts_us + 1000) for one in begun]
            for done in [future.result() for future in [self.log.append(end) for end in ends]]:
                self.receipts[done.index] = done.receipt
        self.now = NOW
        more = [self.log.append(bench.draft()) for _ in range((10 - self.log.state.size) % 256)]
        assert all(future.result() for future in more)  # the newest records do not end a row of the tree

    def announce(self, start: int = 0, rules: Any = RULES) -> tuple[Indices | None, int | None]:
        """One page, as the host does it."""
        with self.log.reading() as connection:
            held = holds_in_force(connection)
            found = search(connection, rules, held, start=start, now_us=self.now)
        if not found.records:
            return None, found.next
        effect = pruning(found.records, rules, now_us=self.now)
        done = self.log.append(Record(kind="retention.pruned"), effect).result()
        assert done.record.detail["rules"] == rules.digest
        return Indices.parse(done.record.detail[INDICES]), found.next

    def prune(self, rules: Any = RULES) -> list[int]:
        """Everything that is due."""
        start: int | None = 0
        gone: list[int] = []
        pruner = Pruner(self.bench.url)
        while start is not None:
            indices, start = self.announce(start, rules)
            if indices is not None:
                if pruner.needed:
                    pruner.delete(indices, rules, now_us=self.now)
                gone += indices
        pruner.close()
        return gone

    def kept(self) -> list[int]:
        return [index for (index,) in self.bench.sql("SELECT idx FROM leaf ORDER BY idx")]

    def due(self) -> list[int]:
        """By an oracle of its own: the leaves, one by one."""
        size = self.log.state.size
        last = (size // 256 - 1) * 256
        found = []
        for index, ts_us, kind, tenant, purpose in self.bench.sql(
            "SELECT idx, ts_us, kind, tenant, purpose FROM record ORDER BY idx"
        ):
            days = 1000 if not tenant or purpose == "treatment" else 100
            special = kind.split(".")[0] in ("hold", "erasure", "retention")
            if ts_us <= self.now - days * DAY_US and index < last and not special:
                found.append(index)
        return found

    def audit(self, first: int = 0, **options: Any) -> Report:
        reader = self.bench.reader()
        out = io.BytesIO()
        reader.export(first, reader.size() - 1, out)
        reader.close()
        return verify_bundle(out, LogTrust(verifiers=(self.bench.verifier,)), **options)


@pytest.fixture
def aged(bench: Any) -> Aged:
    return Aged(bench)


def test_exactly_what_is_due_goes(aged: Aged) -> None:
    due, size = aged.due(), aged.log.state.size
    assert 300 < len(due) < 800
    assert aged.prune() == due
    assert set(aged.kept()) == set(range(aged.log.state.size)) - set(due)
    assert [i for (i,) in aged.bench.sql("SELECT idx FROM record ORDER BY idx")] == aged.kept()
    assert aged.log.state.size > size
    size = aged.log.state.size
    assert aged.prune() == []  # nothing is left to do, and nothing is put on record
    assert aged.log.state.size == size


def test_everything_else_still_proves(aged: Aged) -> None:
    before = aged.log.checkpoint()
    gone = set(aged.prune())
    aged.log.append(aged.bench.draft()).result()
    old = open_checkpoint(before, [aged.bench.verifier]).checkpoint
    reader = aged.bench.reader()
    size = reader.size()
    report = aged.audit(receipts=list(aged.receipts.values()))
    assert report.ok, report.lines()
    root = report.require().root
    for index in random.Random(1).sample(sorted(aged.receipts), 20):
        leaf = next(iter(aged.bench.sql("SELECT leaf FROM leaf WHERE idx = ?", index)), None)
        assert (leaf is None) == (index in gone)
        if leaf is not None:
            proof = reader.inclusion(index, report.require().size)
            verify_inclusion(
                hashed_leaf=leaf_hash(leaf[0]), index=index, size=report.require().size, proof=proof, root=root
            )
    assert reader.consistency(old.size, size)
    assert reader.records(RecordFilter(tenant="clinic", oldest_first=True), None, 5).records[0].index not in gone
    reader.close()
    names = [step.name for step in report.steps]
    assert "what is missing was pruned, and the log says so" in names
    assert f"{len(gone)} records" in next(step.detail for step in report.steps if "pruned, and" in step.name)
    assert any(f"{len(gone)} records are no longer kept" in text for text in report.limits)


def test_a_later_range_is_as_provable_as_ever(aged: Aged) -> None:
    gone = aged.prune()
    report = aged.audit(first=max(gone) + 1)
    assert not [step for step in report.steps if "pruned, and" in step.name]
    assert not [step for step in report.steps if step.status == "failed"]


def test_the_log_goes_on_after_a_restart(aged: Aged) -> None:
    aged.prune()
    aged.log.close()
    again = aged.bench.open(clock=lambda: NOW)
    again.append(aged.bench.draft()).result()
    aged.log = again
    report = aged.audit()
    assert report.ok, report.lines()


def test_even_when_everything_is_due_the_log_can_be_opened(bench) -> None:
    aged = Aged(bench, requests=400)
    aged.now = 100_000 * DAY_US
    everything = parse_retention(b"default_days = 1")
    gone = aged.prune(everything)
    assert len(gone) == len(set(gone)) > 500
    assert max(gone) < (aged.log.state.size // 256 - 1) * 256
    aged.log.close()
    aged.log = bench.open(clock=lambda: aged.now)
    report = aged.audit()
    assert report.ok, report.lines()
    assert aged.prune(everything) == []


def test_small_logs_are_left_alone(bench, log) -> None:
    for future in [log.append(bench.draft(ts_us=1)) for _ in range(300)]:
        future.result()
    with log.reading() as connection:
        assert search(connection, RULES, [], start=0, now_us=NOW).records == ()


def test_days_that_are_pruned_leave_the_roll_ups(aged: Aged) -> None:
    def counted() -> set[int]:
        return {int(day) for (day,) in aged.bench.sql("SELECT DISTINCT day FROM day_count")}

    before = counted()
    gone = aged.prune()
    days = {int(ts_us) // DAY_US for (ts_us,) in aged.bench.sql("SELECT ts_us FROM record")}
    assert len(gone) > 300
    assert len(before - counted()) > 100
    assert days <= counted()
    assert len(counted() - days) <= 1  # the newest day of a run waits for the next one


# Withheld, damaged, held ---------------------------------------------------------------------------------------------


def test_records_that_somebody_else_deleted_are_withheld(aged: Aged) -> None:
    aged.prune()
    aged.bench.sql("DELETE FROM leaf WHERE idx = ?", aged.kept()[3])
    failed = [step for step in aged.audit().steps if step.status == "failed"]
    assert [step.detail for step in failed if "withheld" in step.detail]


def test_what_is_announced_and_still_there_is_no_problem(postgres_bench) -> None:
    """In SQLite the transaction that announces also deletes."""
    aged = Aged(postgres_bench)
    announced, _ = aged.announce()
    assert announced is not None
    assert set(announced) <= set(aged.kept())  # as if the pruner was killed
    assert aged.audit().ok
    assert set(announced) <= set(aged.prune())
    assert not set(announced) & set(aged.kept())
    assert aged.audit().ok


@pytest.mark.parametrize("over", [("", ""), ("clinic", "")])
def test_what_is_held_stays(aged: Aged, over: tuple[str, str]) -> None:
    effect = placing(aged.log.subjects, name="case-7", tenant=over[0], subject=over[1])
    aged.log.append(Record(kind="hold.placed"), effect).result()
    due = aged.due()
    gone = aged.prune()
    tenants = dict(aged.bench.sql("SELECT idx, tenant FROM record"))
    assert not [index for index in due if index in gone and tenants.get(index) == "clinic"]
    assert gone == ([] if over == ("", "") else [index for index in due if index not in tenants])


def test_what_is_held_of_one_person_stays(bench) -> None:
    aged = Aged(bench, requests=400)
    ref = aged.log.actor("clinic", "alice")
    for _ in range(5):
        aged.log.append(bench.draft(actor=ref, ts_us=DAY_US)).result()
    effect = placing(aged.log.subjects, name="case-7", tenant="clinic", subject="alice")
    aged.log.append(Record(kind="hold.placed"), effect).result()
    for future in [aged.log.append(bench.draft(actor="b" * 32)) for _ in range(600)]:
        future.result()
    aged.prune()
    assert bench.sql("SELECT count(*) FROM record WHERE actor = ? AND kind = 'inference.denied'", ref) == [(5,)]


def test_a_pruner_judges_once_more(postgres_bench) -> None:
    aged = Aged(postgres_bench)
    announced, _ = aged.announce()
    assert announced is not None
    pruner = Pruner(postgres_bench.url)
    effect = placing(aged.log.subjects, name="case-7", tenant="clinic", subject="")
    aged.log.append(Record(kind="hold.placed"), effect).result()
    before = aged.kept()
    with pytest.raises(ConfigurationError, match="must be kept"):
        pruner.delete(announced, RULES, now_us=NOW)
    with pytest.raises(ConfigurationError, match="must be kept"):  # nor by longer rules
        pruner.delete(announced, parse_retention(b"default_days = 30000"), now_us=NOW)
    assert aged.kept() == before
    pruner.close()
    pruner.close()


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_young_record_that_the_index_makes_old_stays(aged: Aged) -> None:
    young = next(index for index in aged.kept() if index not in aged.due() and index > 600)
    aged.bench.sql("UPDATE record SET ts_us = 5, purpose = 'billing' WHERE idx = ?", young)
    assert young not in aged.prune()
    assert young in aged.kept()


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_leaf_that_was_changed_to_be_old_is_damage(aged: Aged) -> None:
    due = aged.due()
    aged.bench.sql("UPDATE leaf SET leaf = CAST(replace(leaf, 'clinic', 'cliniC') AS BLOB) WHERE idx = ?", due[5])
    with pytest.raises(LogDamaged):
        aged.prune()
    assert set(due) <= set(aged.kept())
    assert aged.log.state.ok


@pytest.mark.parametrize("database", ["sqlite"])
def test_nothing_that_the_index_alone_calls_due_is_announced(aged: Aged) -> None:
    aged.prune()
    young = aged.kept()[-300]
    aged.bench.sql("UPDATE record SET ts_us = 5 WHERE idx = ?", young)
    size = aged.log.state.size
    with pytest.raises(PrivacyRefused):
        aged.prune()
    assert aged.log.state.size == size


# Bounds and plans ----------------------------------------------------------------------------------------------------


def test_pages_are_bounded(aged: Aged, monkeypatch: Any) -> None:
    due = aged.due()
    for name, bound in (("PRUNE_SCAN", 100), ("PRUNE_RECORDS", 7), ("PRUNE_TEXT", 60)):
        monkeypatch.setattr(pruning_module, name, bound)
    pages = []
    start: int | None = 0
    while start is not None:
        with aged.log.reading() as connection:
            found = search(connection, RULES, [], start=start, now_us=NOW)
        start = found.next
        assert len(found.records) <= 7
        assert len(str(Indices.of(record.index for record in found.records))) <= 60
        pages.append([record.index for record in found.records])
    assert [index for page in pages for index in page] == due
    assert aged.prune() == due
    assert aged.audit().ok


def test_what_is_due_can_be_counted_without_touching_it(aged: Aged) -> None:
    before = aged.kept()
    counted = count_due(aged.bench.url, RULES, now_us=NOW)
    assert sum(counted.values()) == len(aged.due())
    assert counted["clinic", "billing"] > counted["clinic", "treatment"] > 0
    assert aged.kept() == before


def test_no_statement_scans_a_table(aged: Aged) -> None:
    """Every statement of a search, an announcement and a deletion goes by an index."""
    statements: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if any(f" {table}" in statement for table in ("record", "leaf", "tile", "subject")):
            statements.append((statement, parameters[0] if many and isinstance(parameters, list) else parameters))

    engines = [aged.log._reader, aged.log._hold.engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    aged.announce()
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    searched = [pair for pair in statements if pair[0].lstrip().startswith(("SELECT", "DELETE"))]
    assert len(searched) > 5
    with aged.log._reader.begin() as connection:
        if not aged.bench.url.startswith("sqlite"):
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        for statement, parameters in searched:
            plan = explained(connection, statement, parameters)
            whole = any(
                word in plan for word in ("SCAN record", "SCAN leaf", "SCAN tile", "SCAN subject", "Seq Scan on")
            )
            assert not whole or "USING" in plan, (statement, plan)


def explained(connection: Any, statement: str, parameters: Any) -> str:
    keyword = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    rows = connection.exec_driver_sql(keyword + statement, parameters).all()
    return " / ".join(str(row[-1]) for row in rows)


# Roles and crashes ---------------------------------------------------------------------------------------------------


def test_the_pruners_role_deletes_what_the_writers_announces(postgres_bench) -> None:
    roles = Roles(postgres_bench)
    bench, server, name = roles.bench, roles.server, roles.name
    drafts = [bench.draft(ts_us=DAY_US + number) for number in range(900)]
    for future in [roles.log.append(draft) for draft in drafts]:
        future.result()
    with roles.log.reading() as connection:
        found = search(connection, RULES, holds_in_force(connection), start=0, now_us=NOW)
    effect = pruning(found.records, RULES, now_us=NOW)
    done = roles.log.append(Record(kind="retention.pruned"), effect).result()
    indices = Indices.parse(done.record.detail[INDICES])
    assert indices.count > 400
    place = placing(roles.log.subjects, name="case-7", tenant="lab", subject="")
    roles.log.append(Record(kind="hold.placed"), place).result()
    for kind in ("writer", "reader", "auditor"):
        with pytest.raises(ConfigurationError, match="grant the role of the pruner"):
            Pruner(server.url(name, roles.login(kind)))
    pruner = Pruner(server.url(name, roles.login("pruner")))
    assert sum(count_due(server.url(name, roles.login("pruner")), RULES, now_us=NOW).values()) >= indices.count
    pruner.delete(indices, RULES, now_us=NOW)
    pruner.close()
    bench.url = roles.owner_url
    assert not set(indices) & {index for (index,) in bench.sql("SELECT idx FROM leaf")}
    report = bench.audit()
    assert report.ok, report.lines()


def test_killed_in_the_middle_the_log_is_whole_and_the_next_run_ends_it(bench) -> None:
    aged = Aged(bench)
    due = aged.due()
    aged.log.close()
    told: set[int] = set()
    for pages in (1, 3, 9):
        process = subprocess.Popen(
            [sys.executable, WRITER, bench.url, str(bench.people)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(pages)]
        process.kill()
        lines += process.stdout.readlines()
        process.communicate()
        for line in lines:
            if line.startswith("pruned ") and line.endswith("\n"):
                told |= set(Indices.parse(line.split(" ", 1)[1].strip()))
    aged.log = bench.open(clock=lambda: NOW)
    assert len(told) > 50
    assert not told & set(aged.kept())
    report = aged.audit(receipts=list(aged.receipts.values()))
    assert report.ok, report.lines()
    aged.prune()
    assert not set(due) & set(aged.kept())
    report = aged.audit()
    assert report.ok, report.lines()


@pytest.mark.parametrize("work", ["prune", "erase"])
def test_whichever_statement_fails_nothing_is_half_done(bench, monkeypatch: Any, work: str) -> None:
    """The database fails at each statement of the transaction in turn; the log is opened again, and is whole."""
    monkeypatch.setattr(pruning_module, "PRUNE_RECORDS", 5)
    aged = Aged(bench, requests=300)
    ref = aged.log.actor("clinic", "alice")
    aged.log.append(bench.draft(actor=ref)).result()
    effect = erasing(aged.log.subjects, tenant="clinic", subject="alice", ground="objection")
    for at in range(40):
        kept = aged.kept()
        fails = Failing(aged.log._hold.engine, at)
        try:
            if work == "prune":
                aged.announce()
            else:
                aged.log.append(Record(kind="erasure.completed"), effect).result()
        except LogUnavailable:
            assert fails.failed
        finally:
            fails.end()
        if not fails.failed:
            break
        assert not aged.log.state.ok
        aged.log.close()
        aged.log = bench.open(clock=lambda: NOW)
        effect = erasing(aged.log.subjects, tenant="clinic", subject="alice", ground="objection")
        assert set(kept) <= set(aged.kept())
        assert bench.sql("SELECT count(*) FROM subject") == [(1,)]
        assert aged.log.actor("clinic", "alice") == ref
        report = aged.audit()
        assert report.ok, report.lines()
    assert 5 < at < 39
    assert bench.sql("SELECT count(*) FROM subject") == [(int(work == "prune"),)]
    report = aged.audit()
    assert report.ok, report.lines()


class Failing:
    """The database fails at one statement, and is there for no other."""

    def __init__(self, engine: Any, at: int) -> None:
        self.left, self.failed = at, False
        self._watching = told_of(engine, before=self._count)
        self._watching.__enter__()

    def _count(self, statement: str) -> None:
        if self.failed or self.left == 0:
            self.failed = True
            raise OperationalError(statement, None, OSError("the disk is gone"))
        self.left -= 1

    def end(self) -> None:
        self._watching.__exit__(None, None, None)
