"""Appending: what is acknowledged is durable, proven and in order; rules of kinds; effects; many callers."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import msgspec
import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert, select
from sqlalchemy.exc import IntegrityError

from audit.effects import LedgerEffect
from audit.errors import AppendRefused, LogUnavailable
from audit.log import AuditLog, LogState
from audit.rows import index_row
from audit.tables import leaf as leaf_table
from audit.tables import record as record_table
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_LEAF
from sealgate.transparency.merkle import leaf_hash, root_of, verify_consistency
from sealgate.transparency.notes import NoteSigner, open_checkpoint
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import Record, parse_leaf

BUDGET = MetaData()
spent = Table("spent", BUDGET, Column("grant_id", Text, primary_key=True), Column("units", Integer, nullable=False))


def test_a_record_comes_back_complete_durable_and_proven(bench, log) -> None:
    done = log.append(bench.draft(reason="purpose")).result()
    assert parse_leaf(done.leaf) == done.record
    assert (done.record.log, done.record.v, done.record.reason) == (bench.origin, 1, "purpose")
    verified = verify_receipt(done.receipt, [bench.verifier])
    assert (verified.index, verified.record) == (done.index, done.record)
    assert bench.rows(select(leaf_table.c.leaf).where(leaf_table.c.idx == done.index)) == [(done.leaf,)]
    assert log.state.size == done.index + 1


def test_signed_only_when_others_can_see_it(bench, log) -> None:
    """Whenever the log's key signs a size, that many leaves are committed."""
    signed = []

    class Watched:
        def sign(self, text: bytes) -> bytes:
            signed.append((int(text.split(b"\n")[1]), bench.sql("SELECT count(*) FROM leaf")[0][0]))
            return key.sign(text)

    key, bench.signer._key = bench.signer._key, Watched()
    try:
        for future in [log.append(bench.draft()) for _ in range(50)]:
            future.result()
    finally:
        bench.signer._key = key
    assert signed
    assert all(size == committed for size, committed in signed)


def test_a_transaction_holds_the_write_lock_from_its_first_moment(sqlite_bench) -> None:
    """An effect that reads, then writes, sees no other writer in between."""
    refusals = []
    log = sqlite_bench.open()

    def look(_: Connection, record: Record) -> Record:
        outsider = sqlite3.connect(sqlite_bench.path, timeout=0, isolation_level=None)
        try:
            outsider.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            refusals.append(error.sqlite_errorname)
        outsider.close()
        return record

    log.append(sqlite_bench.draft(), look).result()
    assert refusals == ["SQLITE_BUSY"]


def test_commits_wait_for_the_disk(sqlite_bench) -> None:
    with sqlite_bench.open()._hold.engine.begin() as connection:
        asked = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")
        }
    assert asked == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL: the WAL is synced before a commit returns


def test_receipts_are_small(bench, log) -> None:
    """About 1.4 KB for the usual completion in a log of some thousand records."""
    done = bench.request(log)
    assert len(done.leaf) < 1100
    assert len(done.receipt) + 11 * 45 < 2200  # as if the tree had eleven levels more


def test_the_tree_is_that_of_the_leaves_and_grows_consistently(bench, log) -> None:
    notes = []
    for _ in range(40):
        done = log.append(bench.draft()).result()
        notes.append(verify_receipt(done.receipt, [bench.verifier]).checkpoint)
    leaves = [row.leaf for row in bench.rows(select(leaf_table.c.leaf).order_by(leaf_table.c.idx))]
    for checkpoint in notes:
        assert checkpoint.root == root_of(map(leaf_hash, leaves[: checkpoint.size]))
    reader = bench.reader()
    for old, new in itertools.pairwise(notes):
        verify_consistency(
            first=old.size,
            second=new.size,
            first_root=old.root,
            second_root=new.root,
            proof=reader.consistency(old.size, new.size),
        )
    reader.close()


def test_opened_and_closed_are_records_and_the_log_goes_on(bench) -> None:
    first = bench.open()
    first.append(bench.draft()).result()
    first.close()
    assert not first.state.ok
    second = bench.open()
    kinds = [row.kind for row in bench.rows(select(record_table.c.kind).order_by(record_table.c.idx))]
    assert kinds == ["log.opened", "inference.denied", "log.closed", "log.opened"]
    assert open_checkpoint(second.checkpoint(), [bench.verifier]).checkpoint.size == 4
    second.close()
    assert bench.audit(kept=first.checkpoint(), strict=True).ok
    with pytest.raises(LogUnavailable) as caught:
        second.append(bench.draft()).result()
    assert caught.value.code == "log-closed"


def test_a_log_is_private(sqlite_bench) -> None:
    sqlite_bench.open()
    for path in sqlite_bench.path.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_key_and_origin_belong_together(bench) -> None:
    with pytest.raises(ConfigurationError):
        bench.open(signer=NoteSigner.from_seed("other/log", b"\x01" * 32))
    with pytest.raises(ConfigurationError):
        bench.open(subjects_key=b"short")
    for url in ("", "sqlite:///", "sqlite://", "sqlite:///:memory:", "postgresql://localhost/x", "nonsense://"):
        bench.url = url
        with pytest.raises(ConfigurationError):
            bench.open()


def test_index_rows_can_be_rebuilt_from_leaves(bench, log) -> None:
    bench.start_worker(log)
    bench.request(log)
    log.append(Record(kind="auth.failed", reason="expired", detail={"count": "1"})).result()
    leaves = bench.rows(select(leaf_table.c.idx, leaf_table.c.leaf).order_by(leaf_table.c.idx))
    stored = bench.rows(select(record_table).order_by(record_table.c.idx))
    assert [dict(row._mapping) for row in stored] == [index_row(idx, parse_leaf(leaf)) for idx, leaf in leaves]


# Rules of kinds ------------------------------------------------------------------------------------------------------


def test_an_end_belongs_to_one_open_authorization_and_inherits_from_it(bench, log) -> None:
    begun = bench.authorize(log, authn="jwt")
    end = bench.end(begun.record)
    done = log.append(end).result()
    assert (done.record.intent_seq, done.record.actor, done.record.authn) == (begun.index, begun.record.actor, "jwt")
    with pytest.raises(AppendRefused) as caught:
        log.append(end).result()
    assert caught.value.code == "grant-not-open"
    assert log.state.ok


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"grant": "unknown"}, "grant-not-open"),
        ({"actor": "b" * 32}, "end-differs"),
        ({"tenant": "other"}, "end-differs"),
        ({"purpose": "ads"}, "end-differs"),
        ({"intent_seq": 0}, "end-differs"),
        ({"model": "other"}, "end-differs"),
        ({"log": "other/log"}, "record-malformed"),
        ({"id": "not a uuid"}, "record-malformed"),
        ({"id": "01890000-0000-7000-8000-00000000000A"}, "record-malformed"),
        ({"id": "\0"}, "record-malformed"),
        ({"reason": "nul\0"}, "record-malformed"),
        ({"model_digest": "x" * 513}, "record-malformed"),
        ({"detail": {"x": "y" * MAX_LEAF}}, "record-malformed"),
        ({"salt": "short"}, "record-malformed"),
        ({"units": 2**60}, "record-malformed"),
    ],
)
def test_an_end_that_does_not_fit_is_refused_alone(bench, log, change: dict[str, Any], code: str) -> None:
    begun = bench.authorize(log)
    end = bench.end(begun.record)
    with pytest.raises(AppendRefused) as caught:
        log.append(msgspec.structs.replace(end, **change)).result()
    assert caught.value.code == code
    assert log.append(end).result().record.kind == "inference.completed"  # the grant is still open


@pytest.mark.parametrize("kind", ["log.opened", "log.closed"])
def test_only_the_writer_opens_and_closes(bench, log, kind: str) -> None:
    with pytest.raises(AppendRefused):
        log.append(bench.draft(kind)).result()
    assert log.state == LogState(ok=True, reason="", size=1)


def test_unknown_kinds_and_taken_ids_are_refused(bench, log) -> None:
    done = log.append(bench.draft()).result()
    for draft in (
        bench.draft("made.up"),
        bench.draft(id=done.record.id),
        bench.draft("inference.authorized", grant="x"),
    ):
        with pytest.raises(AppendRefused):
            log.append(draft).result()
    gate = threading.Event()

    def wait(_: Connection, record: Record) -> Record:
        gate.wait()
        return record

    blocker = log.append(bench.draft(), wait)
    same = "01890000-0000-7000-8000-000000000001"
    twins = [log.append(bench.draft(id=same)) for _ in range(2)]  # the two meet in one batch
    gate.set()
    blocker.result()
    twins[0].result()
    with pytest.raises(AppendRefused):
        twins[1].result()
    assert log.state.ok


# Effects -------------------------------------------------------------------------------------------------------------


def test_an_effect_and_its_record_are_one_transaction(bench) -> None:
    log = bench.open(extra_tables=(BUDGET,))

    def reserve(connection: Connection, record: Record) -> Record:
        connection.execute(insert(spent).values(grant_id=record.id, units=3))
        return msgspec.structs.replace(record, budget_after_micro=7)

    done = log.append(bench.draft("inference.authorized"), reserve).result()
    assert done.record.budget_after_micro == 7
    assert bench.rows(select(spent)) == [(done.record.id, 3)]


def test_an_effect_may_deny(bench) -> None:
    log = bench.open()
    done = log.append(
        bench.draft("inference.authorized"),
        lambda _, record: msgspec.structs.replace(record, kind="inference.denied", reason="budget", id="ignored"),
    ).result()
    assert (done.record.kind, done.record.reason) == ("inference.denied", "budget")
    assert done.record.id != "ignored"
    with pytest.raises(AppendRefused):
        log.append(bench.end(done.record)).result()


def test_an_effect_that_raises_undoes_itself_and_nothing_else(bench) -> None:
    log = bench.open(extra_tables=(BUDGET,))
    gate, begun_to_wait = threading.Event(), threading.Event()

    def wait(_: Connection, record: Record) -> Record:
        begun_to_wait.set()
        gate.wait()
        return record

    def effect(units: int, error: Exception | None) -> Any:
        def run(connection: Connection, record: Record) -> Record:
            connection.execute(insert(spent).values(grant_id=record.id, units=units))
            if error:
                raise error
            return record

        return run

    def duplicate(connection: Connection, record: Record) -> Record:
        for _ in range(2):
            connection.execute(insert(spent).values(grant_id="twice", units=0))
        return record

    blocker = log.append(bench.draft(), wait)
    begun_to_wait.wait()
    good = log.append(bench.draft(), effect(1, None))
    bad = log.append(bench.draft(), effect(2, ValueError("no")))
    twice = log.append(bench.draft(), duplicate)
    odd = log.append(bench.draft(), lambda *_: None)
    good_too = log.append(bench.draft(), effect(3, None))
    gate.set()
    blocker.result()
    assert good_too.result().index == good.result().index + 1
    for future, kind in ((bad, ValueError), (twice, IntegrityError), (odd, Exception)):
        with pytest.raises(kind):
            future.result()
    assert sorted(row.units for row in bench.rows(select(spent))) == [1, 3]
    assert log.state.ok


class Tally:
    """A ledger: how many units were spent in all; what it did for the log's writer."""

    said: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.expected: list[str] = []
        self.units: dict[str, int] = {}
        self.before: dict[str, int] = {}

    def load(self, connection: Connection) -> None:
        self.said.append(f"load {len(self.expected)}")

    def begin(self) -> None:
        self.before = dict(self.units)

    def undo(self) -> None:
        self.said.append("undo")
        self.units = self.before

    def store(self, connection: Connection) -> None:
        self.said.append("store")
        for grant, units in self.units.items():
            connection.execute(insert(spent).values(grant_id=grant, units=units))


def spends(units: int, *, expecting: Exception | None = None, running: Exception | None = None) -> Any:
    def expect(ledger: Tally, record: Record) -> None:
        if expecting:
            raise expecting
        ledger.expected.append(record.id)

    def run(ledger: Tally, record: Record) -> Record:
        ledger.units[record.id] = units
        if running:
            raise running
        return record

    return LedgerEffect(Tally, expect, run)


def in_one_batch(log: AuditLog, bench: Any, *appends: tuple[Record, Any]) -> list[Any]:
    gate, begun_to_wait = threading.Event(), threading.Event()

    def wait(_: Connection, record: Record) -> Record:
        begun_to_wait.set()
        gate.wait()
        return record

    blocker = log.append(bench.draft(), wait)
    begun_to_wait.wait()  # so that what follows is a batch of its own
    futures = [log.append(draft, effect) for draft, effect in appends]
    gate.set()
    blocker.result()
    return futures


def test_a_batch_shares_a_ledger_and_a_record_that_is_refused_leaves_nothing_in_it(bench) -> None:
    log = bench.open(extra_tables=(BUDGET,))
    under_way = log.append(bench.draft("inference.authorized")).result()
    chosen = bench.draft("inference.authorized", id="01890000-0000-7000-8000-000000000001")
    Tally.said.clear()
    appends = [
        (bench.end(under_way.record), spends(0)),
        (chosen, spends(1)),
        (bench.draft(), spends(2, running=ValueError("no"))),
        (bench.draft(), spends(3, expecting=ValueError("nor this"))),
        (bench.draft(tenant="x" * 10_000), spends(4)),  # does not fit into the index, which its effect cannot know
        (bench.end(under_way.record), spends(5)),  # has ended already
        (bench.draft(), spends(6)),
    ]
    futures = in_one_batch(log, bench, *appends)
    assert [futures[number].result().index - under_way.index - 2 for number in (0, 1, 6)] == [0, 1, 2]
    for number, kind in ((2, ValueError), (3, ValueError), (4, AppendRefused), (5, AppendRefused)):
        with pytest.raises(kind):
            futures[number].result()
    assert sorted(row.units for row in bench.rows(select(spent))) == [0, 1, 6]
    assert Tally.said == ["load 6", "undo", "undo", "undo", "store"]
    never = log.append(bench.end(under_way.record), spends(7))
    with pytest.raises(AppendRefused):
        never.result()
    assert Tally.said[5:] == ["load 0", "undo", "store"], "what is not under way is not looked for"
    assert log.state.ok


def test_effects_of_both_kinds_in_one_batch(bench) -> None:
    log = bench.open(extra_tables=(BUDGET,))

    def alone(connection: Connection, record: Record) -> Record:
        connection.execute(insert(spent).values(grant_id=record.id, units=100))
        raise ValueError("no")

    futures = in_one_batch(
        log,
        bench,
        (bench.draft(), spends(1)),
        (bench.draft(), alone),
        (bench.draft(), spends(2)),
        (bench.draft(), None),
    )
    with pytest.raises(ValueError, match="no"):
        futures.pop(1).result()
    assert [future.result().index for future in futures] == [2, 3, 4]
    assert sorted(row.units for row in bench.rows(select(spent))) == [1, 2]


def test_a_ledger_that_cannot_be_stored_fails_the_log(bench) -> None:
    log = bench.open(extra_tables=(BUDGET,))

    def twice(ledger: Tally, record: Record) -> Record:
        ledger.units["the same"] = 1
        return record

    effect = LedgerEffect(Tally, lambda *_: None, twice)
    log.append(bench.draft(), effect).result()
    with pytest.raises(LogUnavailable):
        log.append(bench.draft(), effect).result()
    assert not log.state.ok
    assert len(bench.rows(select(spent))) == 1


def test_an_effect_that_ends_the_transaction_fails_the_log(sqlite_bench) -> None:
    log = sqlite_bench.open()

    def commits(connection: Connection, record: Record) -> Record:
        connection.exec_driver_sql("COMMIT")
        return record

    for future in in_one_batch(log, sqlite_bench, *[(sqlite_bench.draft(), commits)] * 2):
        with pytest.raises(LogUnavailable):
            future.result()
    assert not log.state.ok


# Many callers --------------------------------------------------------------------------------------------------------


def test_a_thousand_concurrent_appends(bench, log) -> None:
    async def run() -> list[Any]:
        return await asyncio.gather(
            *(asyncio.wrap_future(log.append(bench.draft(reason=str(number)))) for number in range(1000))
        )

    done = asyncio.run(run())
    assert sorted(item.index for item in done) == list(range(1, 1001))
    assert [int(item.record.reason) for item in sorted(done, key=lambda item: item.index)] == list(range(1000))
    for item in done[::97]:
        assert verify_receipt(item.receipt, [bench.verifier]).record == item.record
    assert bench.audit(receipts=[item.receipt for item in done]).ok


def test_threads_that_begin_and_end_requests(bench, log) -> None:
    bench.start_worker(log)
    lock = threading.Lock()

    def caller() -> None:
        for _ in range(20):
            begun = log.append(bench.draft("inference.authorized")).result()
            with lock:  # a worker finishes one after the other; the host appends in that order
                future = log.append(bench.end(begun.record))
            future.result()

    threads = [threading.Thread(target=caller) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = bench.audit()
    assert report.ok
    assert "320 paired" in report.steps[5].detail
    assert [step.status for step in report.steps[5:]] == ["ok"] * 4


def test_cancelling_changes_nothing(bench, log) -> None:
    gate = threading.Event()

    def wait(_: Connection, record: Record) -> Record:
        gate.wait()
        return record

    async def run() -> None:
        first = log.append(bench.draft(reason="first"), wait)
        second = log.append(bench.draft(reason="second"))
        assert not second.cancel()
        task = asyncio.create_task(_await(second))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await asyncio.wrap_future(first)
        assert second.result().record.reason == "second"

    async def _await(future: Any) -> Any:
        return await asyncio.wrap_future(future)

    asyncio.run(run())
    assert [row.reason for row in bench.rows(select(record_table.c.reason).order_by(record_table.c.idx))] == [
        "",
        "first",
        "second",
    ]


def test_records_of_one_turn_of_an_event_loop_wake_the_writer_once(sqlite_bench, monkeypatch) -> None:
    log, woken = sqlite_bench.open(), 0
    notify = log._wake.notify

    def counted(n: int = 1) -> None:
        nonlocal woken
        woken += 1
        notify(n)

    async def run() -> list[int]:
        with log._wake:  # the writer, should it be awake, takes nothing meanwhile
            waiting = [log.append_awaited(sqlite_bench.draft()) for _ in range(5)]
            assert woken == 0
        indices = [(await one).index for one in waiting]
        assert woken == 1
        indices.append((await log.append_awaited(sqlite_bench.draft())).index)
        assert woken == 2
        return [*indices, (await asyncio.wrap_future(log.append(sqlite_bench.draft()))).index]

    monkeypatch.setattr(log._wake, "notify", counted)
    assert asyncio.run(run()) == list(range(1, 8))
    assert woken == 3


def test_loops_and_threads_wake_the_writer_beside_each_other(bench, log) -> None:
    def loop(count: int) -> int:
        async def run() -> int:
            done = [await log.append_awaited(bench.draft()) for _ in range(count)]
            done += await asyncio.gather(*(log.append_awaited(bench.draft()) for _ in range(count)))
            return len({one.index for one in done})

        return asyncio.run(run())

    with ThreadPoolExecutor() as threads:
        loops = [threads.submit(loop, 20) for _ in range(4)]
        plain = [threads.submit(lambda: log.append(bench.draft()).result()) for _ in range(40)]
        assert [one.result(60) for one in loops] == [40] * 4
        assert len({one.result(60).index for one in plain}) == 40
    assert log.state.size == 1 + 4 * 40 + 40
