"""A log turns at a half-year: both trees are whole, chained, and everything that spans the turn goes on."""

from __future__ import annotations

import io
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from audit import holds, postgresql, sqlite
from audit.errors import AppendRefused, LogDamaged, LogUnavailable, QueryRefused
from audit.preparation import prepare_database
from audit.pruner import read_holds
from audit.query import AuditReader, RecordFilter
from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency.carried import balances_of, counters_of, restated, stood_at
from sealgate.transparency.cose_receipt import verify_cose_receipt
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.published import open_published
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import Record
from sealgate.transparency.reports.bundles import report_from_bundle
from sealgate.transparency.reports.question import Question
from sealgate.transparency.verifier import LogTrust, Report, verify_bundle
from tests.audit.conftest import ORIGIN, SIGNER
from tests.audit.test_schema import back_to_the_first_layout

JUNE, JULY = (
    int(datetime(2027, month, day, 12, tzinfo=UTC).timestamp()) * 1_000_000 for month, day in ((6, 30), (7, 1))
)
HALF_YEAR = 184 * 86_400_000_000
H2, NEXT = f"{ORIGIN}/2027h2", f"{ORIGIN}/2028h1"
MLDSA = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))


class Clock:
    def __init__(self, now: int = JUNE) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1
        return self.now


def bundle(bench: Any, origin: str) -> tuple[io.BytesIO, Report]:
    reader = bench.reader()
    out = io.BytesIO()
    reader.export(0, reader.size(origin=origin) - 1, out, origin=origin)
    reader.close()
    return out, verify_bundle(out, LogTrust(verifiers=(SIGNER.verifier,), mldsa_keys=(MLDSA.public,)))


def open_log(bench: Any, clock: Clock, **options: Any) -> Any:
    return bench.open(clock=clock, mldsa=MLDSA, shard="half-year", **options)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turned(bench: Any, clock: Clock) -> Any:
    """A log with a request open across the turn, which ended after it."""
    log = open_log(bench, clock, balances=lambda _, digest: {"all": (250_000, JUNE)} if digest == "cd" * 32 else {})
    log.append(Record(kind="policy.change", policy_digest="cd" * 32, outcome="in-force")).result()
    bench.start_worker(log)
    bench.request(log)
    begun = bench.authorize(log)
    clock.now = JULY
    ended = log.append(bench.end(begun.record)).result()
    bench.request(log)
    return log, begun, ended


def test_the_turn_chains_two_trees_and_says_again_what_is_in_force(bench, turned) -> None:
    log, begun, ended = turned
    log.close()
    reader = bench.reader()
    old, new = reader.shards().all
    assert (old.origin, new.origin) == (ORIGIN, H2)
    last = reader.record_at(reader.size(origin=ORIGIN) - 1, origin=ORIGIN).record
    assert (last.kind, last.outcome, last.detail) == ("log.closed", "turned", {"next": H2})
    final = open_published(reader.checkpoint(origin=ORIGIN), [SIGNER.verifier], [MLDSA.public]).checkpoint
    first = reader.record_at(0).record
    assert first.log == H2
    assert first.detail == {
        "previous_origin": ORIGIN,
        "previous_size": str(final.size),
        "previous_root": final.root.hex(),
    }
    assert final.size == reader.size(origin=ORIGIN)
    policy, worker, budgets, request = (reader.record_at(index).record for index in (1, 2, 3, 4))
    assert [one.kind for one in (policy, worker, budgets, request)] == ["log.carried"] * 4
    assert restated(policy).policy_digest == "cd" * 32
    assert restated(worker).kind == "worker.start"
    assert counters_of(worker) == (1, frozenset())
    assert balances_of(budgets) == {"all": (250_000, JUNE)}
    assert (restated(request).id, stood_at(request)) == (begun.record.id, begun.index)
    assert (ended.record.log, ended.record.intent_seq, ended.record.grant) == (H2, 4, begun.record.id)
    assert verify_receipt(ended.receipt, [SIGNER.verifier]).index == ended.index == 5
    assert bench.sql("SELECT count(*) FROM open_intent") == [(0,)]
    reader.close()


def test_a_receipt_from_before_the_turn_is_a_cose_receipt_too(bench, turned) -> None:
    """Who asked for one was answered a moment before the turn, and is sent it a moment later."""
    log, begun, ended = turned
    for appended in (begun, ended):
        verified = verify_cose_receipt(log.cose_receipt(appended.receipt), appended.leaf, [SIGNER.verifier])
        assert (verified.origin, verified.record.id) == (appended.record.log, appended.record.id)


def test_a_hold_stands_at_a_record_of_its_shard(bench, turned) -> None:
    log, _, _ = turned
    log.append(Record(), holds.placing(log.subjects, name="case", tenant="clinic", subject="")).result()
    (found,) = read_holds(bench.url)
    log.close()
    reader = bench.reader()
    placed = reader.record_at(found.index, origin=found.origin).record
    assert (found.origin, placed.log, placed.kind, placed.reason) == (H2, H2, "hold.placed", "case")
    reader.close()


def test_both_shards_verify_by_themselves(bench, turned) -> None:
    log, _, _ = turned
    log.close()
    for origin in (ORIGIN, H2):
        _, report = bundle(bench, origin)
        assert report.ok, report.lines()
        assert report.require().origin == origin


def test_pages_cursors_proofs_and_tiles_go_across_the_turn(bench, turned) -> None:
    log, begun, _ = turned
    log.close()
    reader = bench.reader()
    seen, cursor = [], None
    while True:
        page = reader.records(RecordFilter(oldest_first=True), cursor, 3)
        seen += page.records
        cursor = page.cursor
        if cursor is None:
            break
    assert len({entry.record.id for entry in seen}) == len(seen) == page.tree_size
    places = [(entry.record.log, entry.index) for entry in seen]
    assert places == [
        (shard.origin, index) for shard in reader.shards().all for index in range(reader.size(origin=shard.origin))
    ]
    for entry in seen:
        origin = entry.record.log
        checkpoint = open_checkpoint(reader.checkpoint(origin=origin), [SIGNER.verifier]).checkpoint
        assert checkpoint.origin == origin
        verify_inclusion(
            hashed_leaf=leaf_hash(entry.leaf),
            index=entry.index,
            size=checkpoint.size,
            proof=reader.inclusion(entry.index, checkpoint.size, origin=origin),
            root=checkpoint.root,
        )
        assert reader.record(entry.record.id) == entry
        assert reader.record_at(entry.index, origin=origin) == entry
        tile = reader.tile(0, 0, entry.index + 1, origin=origin)
        assert tile[-32:] == leaf_hash(entry.leaf)
    assert [entry.record.log for entry in reader.records(RecordFilter(actor=begun.record.actor), None, 9).records] == [
        *[H2] * 4, *[ORIGIN] * 3
    ]  # fmt: skip
    kept = open_checkpoint(begun.receipt.partition(b"\n\n")[2], [SIGNER.verifier]).checkpoint
    newest = open_checkpoint(reader.checkpoint(origin=ORIGIN), [SIGNER.verifier]).checkpoint
    verify_consistency(
        first=kept.size, second=newest.size, first_root=kept.root, second_root=newest.root,
        proof=reader.consistency(kept.size, newest.size, origin=ORIGIN),
    )  # fmt: skip
    for wrong in (f"{ORIGIN}/2029h1", "x", ""):
        with pytest.raises(QueryRefused, match="no shard"):
            reader.size(origin=wrong)
    with pytest.raises(QueryRefused, match="no record"):
        reader.record_at(reader.size(origin=ORIGIN), origin=ORIGIN)
    reader.close()


def test_a_clock_that_goes_back_does_not_go_back_a_shard(bench, turned, clock) -> None:
    log, _, _ = turned
    clock.now = JUNE
    back = log.append(bench.draft()).result()
    assert back.record.log == H2
    assert back.record.ts_us < JULY
    log.close()
    again = open_log(bench, clock)
    assert again.append(bench.draft()).result().record.log == H2
    clock.now = JULY + HALF_YEAR
    assert again.append(bench.draft()).result().record.log == NEXT
    again.close()
    reader = bench.reader()
    assert [shard.origin for shard in reader.shards().all] == [ORIGIN, H2, NEXT]
    reader.close()
    for origin in (ORIGIN, H2, NEXT):
        assert bundle(bench, origin)[1].ok


def test_without_half_years_there_is_one_tree(bench, clock) -> None:
    log = bench.open(clock=clock)
    clock.now = JULY + 5 * HALF_YEAR
    assert log.append(bench.draft()).result().record.log == ORIGIN
    log.close()


def test_a_log_that_stood_still_over_the_turn_turns_when_it_is_opened(bench, clock) -> None:
    log = bench.open(clock=clock, mldsa=MLDSA)
    bench.authorize(log)
    log._committer.publish()
    log._hold.release()  # as a crash leaves it: nothing is closed
    log._closing = True
    clock.now = JULY
    again = open_log(bench, clock)
    again.close()
    reader = bench.reader()
    kinds = [entry.record.kind for entry in reader.records(RecordFilter(oldest_first=True), None, 99).records]
    assert kinds == [
        *("log.opened", "inference.authorized", "log.closed"),
        *("log.opened", "log.carried", "log.opened", "inference.aborted", "log.closed"),
    ]
    reader.close()
    for origin in (ORIGIN, H2):
        _, report = bundle(bench, origin)
        assert report.ok, report.lines()


def test_a_request_is_carried_over_two_turns(bench, clock) -> None:
    log = open_log(bench, clock)
    bench.start_worker(log)
    begun = bench.authorize(log)
    clock.now = JULY
    bench.request(log)
    clock.now = JULY + HALF_YEAR
    ended = log.append(bench.end(begun.record)).result()
    assert ended.record.log == NEXT
    log.close()
    reader = bench.reader()
    carried = reader.record_at(ended.record.intent_seq).record
    assert restated(carried).id == begun.record.id
    first = reader.record_at(stood_at(carried), origin=H2).record
    assert stood_at(first) == begun.index
    worker = next(
        e.record for e in reader.records(RecordFilter(kind="log.carried"), None, 9).records if counters_of(e.record)
    )
    assert counters_of(worker) == (1, frozenset())
    reader.close()
    for origin in (ORIGIN, H2, NEXT):
        _, report = bundle(bench, origin)
        assert report.ok, report.lines()


def test_an_end_of_another_log_is_refused_and_nobody_else_carries(bench, turned) -> None:
    log, begun, _ = turned
    for record in (bench.draft(log="example.com/other"), bench.draft("log.carried"), bench.draft(log=NEXT)):
        with pytest.raises(AppendRefused):
            log.append(record).result()
    with pytest.raises(AppendRefused, match="no open"):
        log.append(bench.end(begun.record)).result()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM shard WHERE number = 1",
        "UPDATE shard SET origin = 'example.com/log/2028h1', half_year = 4056 WHERE number = 1",
        "UPDATE shard SET first_idx = first_idx + 1 WHERE number = 1",
        "UPDATE shard SET first_idx = first_idx - 1 WHERE number = 1",
        "UPDATE shard SET origin = 'example.com/other' WHERE number = 0",
        "INSERT INTO shard SELECT 2, 'example.com/log/2028h1', size - 1, 4056 FROM head",
    ],
)
def test_a_table_of_shards_that_lies_stops_the_next_start(bench, turned, statement: str) -> None:
    turned[0].close()
    bench.sql(statement)
    with pytest.raises(LogDamaged):
        open_log(bench, Clock(JULY))


def test_sixty_four_callers_turn_together(bench, clock) -> None:
    log = open_log(bench, clock)
    bench.start_worker(log)
    order, done, failed = threading.Lock(), [], []
    half_way = threading.Barrier(64, action=lambda: setattr(clock, "now", JULY))

    def caller(number: int) -> None:
        try:
            for turn in range(3):
                begun = log.append(bench.draft("inference.authorized")).result(60)
                if turn == 1:
                    half_way.wait(60)
                with order:
                    future = log.append(bench.end(begun.record))
                done.extend((begun, future.result(60)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    log.close()
    assert {item.record.log for item in done} == {ORIGIN, H2}
    assert len({(item.record.log, item.index) for item in done}) == len(done) == 64 * 6
    for item in done[::29]:
        assert verify_receipt(item.receipt, [SIGNER.verifier]).record == item.record
    for origin in (ORIGIN, H2):
        _, report = bundle(bench, origin)
        assert report.ok, report.lines()


def test_cosigned_checkpoints_of_both_shards_stand(bench, turned) -> None:
    """A shard's last checkpoint is cosigned after the turn, with the first of the next: both are there for auditors."""
    log, _, _ = turned
    reader = bench.reader()
    final = reader.checkpoint(origin=ORIGIN)
    log.publish_cosigned(open_checkpoint(final, [SIGNER.verifier]).checkpoint.size, final)
    for _ in range(2):
        newest = log.checkpoint()
        log.publish_cosigned(open_checkpoint(newest, [SIGNER.verifier]).checkpoint.size, newest)
        log.append(bench.draft()).result()
    log.close()
    assert reader.checkpoint(cosigned=True, origin=ORIGIN) == final
    assert open_checkpoint(reader.checkpoint(cosigned=True), [SIGNER.verifier]).checkpoint.origin == H2
    out = io.BytesIO()
    reader.export(0, 1, out, origin=ORIGIN)
    assert final in out.getvalue()
    reader.close()


def test_a_log_of_an_earlier_release_goes_on_and_turns_at_its_next_half_year(before_seals, bench, clock) -> None:
    log = bench.open(clock=clock)
    bench.start_worker(log)
    done = bench.request(log)
    log.close()
    back_to_the_first_layout(bench)
    again = open_log(bench, clock)
    assert again.append(bench.draft()).result().record.log == ORIGIN
    clock.now = JULY
    assert again.append(bench.draft()).result().record.log == H2
    again.close()
    reader = bench.reader()
    assert [shard.first for shard in reader.shards().all] == [0, reader.size(origin=ORIGIN)]
    reader.close()
    for origin in (ORIGIN, H2):
        _, report = bundle(bench, origin)
        assert report.ok, report.lines()
    assert bundle(bench, ORIGIN)[1].require().size > done.index


def test_the_writers_role_in_postgresql_is_enough_for_a_turn(postgres_bench, clock) -> None:
    bench = postgres_bench
    prepare_database(bench.url)
    store = bench.store
    store.server.admin(f"CREATE ROLE {store.name}_the_writer LOGIN IN ROLE {store.name}_writer")
    bench.url = store.server.url(store.name, f"{store.name}_the_writer")
    log = open_log(bench, clock)
    begun = bench.authorize(log)
    clock.now = JULY
    assert log.append(bench.draft("inference.failed", grant=begun.record.id)).result().record.log == H2
    log.close()
    store.server.admin(f"CREATE ROLE {store.name}_the_reader LOGIN IN ROLE {store.name}_reader")
    reader = AuditReader(store.server.url(store.name, f"{store.name}_the_reader"), origin=ORIGIN)
    assert [shard.origin for shard in reader.shards().all] == [ORIGIN, H2]
    assert len(reader.records(RecordFilter(), None, 99).records) == reader.shards().size
    reader.close()


def test_reports_over_shards_count_all_and_answer_from_the_shard_of_the_moment(bench, turned) -> None:
    log, _, _ = turned
    log.append(Record(kind="policy.change", policy_digest="ef" * 32, outcome="in-force")).result()
    log.close()
    reader = bench.reader()
    (used,) = reader.report("access", Question()).tables
    assert [row[5:8] for row in used.rows] == [(3, 3, 0)]  # begun, completed, failed
    for moment, origin, digest in ((JUNE + 500, ORIGIN, "cd"), (JULY + 8, H2, "cd"), (None, H2, "ef")):
        report = reader.report("in-force", Question(at_us=moment))
        assert report.basis.origin == origin
        facts = dict(row for table in report.tables[:2] for row in table.rows)
        assert facts["policy"] == digest * 32
        assert facts.get("worker") == (None if moment is None else "worker-1")  # the log is closed by now
    for origin in (ORIGIN, H2):
        for name in ("reconcile", "completeness", "budget"):
            report = reader.report(name, Question() if name == "budget" else Question(shard=origin))
            assert report.ok, report.findings
            assert name == "budget" or report.basis.origin == origin
    titles = [table.title for table in reader.report("break-glass", Question()).tables]
    assert titles == [f"{title} ({origin})" for origin in (ORIGIN, H2) for title in ("operations", "reads by auditors")]
    with pytest.raises(QueryRefused, match="no shard"):
        reader.report("reconcile", Question(shard=NEXT))
    reader.close()
    for origin in (ORIGIN, H2):
        out, _ = bundle(bench, origin)
        proven = report_from_bundle(out, LogTrust(verifiers=(SIGNER.verifier,)), name="in-force", question=Question())
        assert dict(proven.tables[0].rows)["policy"] == ("cd" if origin == ORIGIN else "ef") * 32
        assert proven.ok
        with pytest.raises(LogError, match="the bundle is of"):
            report_from_bundle(
                out, LogTrust(verifiers=(SIGNER.verifier,)), name="reconcile", question=Question(shard=NEXT)
            )


def test_of_two_writers_one_turns_and_the_other_writes_nothing_any_more(bench, clock, monkeypatch) -> None:
    log = open_log(bench, clock)
    log.append(bench.draft(reason="first")).result()
    monkeypatch.setattr(postgresql, "_take_lock", lambda _: None)
    monkeypatch.setattr(sqlite.fcntl, "flock", lambda *_: None)
    second = open_log(bench, Clock(JULY))
    assert second.append(bench.draft(reason="second")).result().record.log == H2
    clock.now = JULY
    with pytest.raises(LogUnavailable):
        log.append(bench.draft(reason="too late")).result(60)
    assert not log.state.ok
    assert second.append(bench.draft(reason="second")).result().record.log == H2
    log.close()
    second.close()
    monkeypatch.undo()
    assert bench.sql("SELECT count(*) FROM record WHERE reason = 'too late'") == [(0,)]
    assert bench.sql("SELECT count(*) FROM shard") == [(2,)]
    for origin in (ORIGIN, H2):
        _, report = bundle(bench, origin)
        assert report.ok, report.lines()
    open_log(bench, Clock(JULY)).close()


def test_a_log_may_not_be_named_like_a_shard(sqlite_bench) -> None:
    with pytest.raises(ConfigurationError, match="choose another"):
        sqlite_bench.open(signer=SIGNER.under(H2), origin=H2)
