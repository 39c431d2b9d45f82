"""The shards of a log are verified together, and a chain that is not whole is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit import holds, pruning
from audit.query import RecordFilter
from audit.retention import DAY_US, parse_retention
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.record import Record
from sealgate.transparency.reports.bundles import report_from_bundle
from sealgate.transparency.reports.question import Question
from sealgate.transparency.several import Given, SeveralReport, verify_bundles
from sealgate.transparency.verifier import LogTrust
from tests.audit.conftest import ORIGIN, SIGNER, Bench
from tests.audit.test_turning import H2, HALF_YEAR, JULY, JUNE, NEXT, Clock, open_log

TRUST = LogTrust(verifiers=(SIGNER.verifier,))
LEFT = {"all": (250_000, JUNE)}


def write(bench: Bench, folder: Path, origin: str, *, name: str = "", last: int | None = None) -> Path:
    path = folder / (name or origin.replace("/", "-"))
    reader = bench.reader()
    with path.open("wb") as out:
        reader.export(0, reader.size(origin=origin) - 1 if last is None else last, out, origin=origin)
    reader.close()
    return path


def live(bench: Bench, clock: Clock) -> None:
    """A log of three shards, with a request open over each turn."""
    log = open_log(bench, clock)
    log.append(Record(kind="policy.change", policy_digest="cd" * 32, outcome="in-force")).result()
    bench.start_worker(log)
    for turn in (JULY, JULY + HALF_YEAR):
        bench.request(log)
        begun = bench.authorize(log)
        clock.now = turn
        log.append(bench.end(begun.record)).result()
    log.close()


def states(report: SeveralReport) -> dict[str, str]:
    return {link.name: link.verdict.status for link in report.links}


@pytest.fixture
def shown(bench: Bench, tmp_path: Path) -> list[Path]:
    live(bench, Clock())
    return [write(bench, tmp_path, origin) for origin in (ORIGIN, H2, NEXT)]


def test_a_chain_of_shards_holds_in_whatever_order_it_is_handed_in(shown: list[Path]) -> None:
    for paths in (shown, shown[::-1]):
        report = verify_bundles(paths, TRUST)
        assert report.ok
        assert states(report) == {f"{H2} follows {ORIGIN}": "ok", f"{NEXT} follows {H2}": "ok"}
        assert [bundle.path for bundle in report.bundles] == paths
        kept = [step for bundle in report.bundles for step in bundle.report.steps if step.status != "ok"]
        assert {step.number for step in kept} == {5}  # nobody kept a checkpoint


def test_a_shard_that_is_left_out_is_refused(shown: list[Path]) -> None:
    report = verify_bundles([shown[0], shown[2]], TRUST)
    assert not report.ok
    assert "left out" in report.links[-1].verdict.detail


def test_what_is_not_there_at_the_ends_is_named_and_not_accepted_strictly(shown: list[Path]) -> None:
    for paths, name in ((shown[1:], f"{H2} is the log's beginning"), (shown[:2], f"{H2} is the log's end")):
        report = verify_bundles(paths, TRUST)
        assert report.ok
        assert states(report)[name] == "skipped"
        assert not verify_bundles(paths, TRUST, strict=True).ok


def test_an_end_that_is_not_shown_proves_no_chain(bench: Bench, shown: list[Path], tmp_path: Path) -> None:
    cut = write(bench, tmp_path, ORIGIN, name="cut", last=3)
    report = verify_bundles([cut, shown[1], shown[2]], TRUST)
    assert states(report)[f"{H2} follows {ORIGIN}"] == "skipped"


def test_another_predecessor_is_refused(shown: list[Path], tmp_path: Path, make_bench: Callable[[Path], Bench]) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = make_bench(folder)
    live(other, Clock(JUNE - DAY_US))
    mine, theirs = write(other, folder, ORIGIN), write(other, folder, H2)
    report = verify_bundles([shown[0], theirs], TRUST)
    assert not report.ok
    assert states(report)[f"{H2} follows {ORIGIN}"] == "failed"
    report = verify_bundles([mine, *shown], TRUST)  # one name, two trees
    assert not report.ok


def test_a_second_successor_is_refused(bench: Bench, tmp_path: Path, make_bench: Callable[[Path], Bench]) -> None:
    """The same shard, closed twice: whoever has the database and the key can do that, and it shows."""
    clock = Clock()
    log = open_log(bench, clock)
    log.append(bench.draft()).result()
    log.close()
    saved = bench.save()
    ends = []
    for at in (JULY, JULY + HALF_YEAR):
        bench.restore(saved)
        log = open_log(bench, Clock(at))
        log.close()
        ends.append(
            (write(bench, tmp_path, ORIGIN, name=f"first-{at}"), write(bench, tmp_path, H2 if at == JULY else NEXT))
        )
    (first, second), (_, another) = ends
    assert verify_bundles([first, second], TRUST).ok
    report = verify_bundles([first, another], TRUST)
    assert not report.ok
    assert not verify_bundles([first, second, another], TRUST).ok


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda one: one, "not carried over"),
        (lambda one: msgspec.structs.replace(one, tenant="other") if one.grant else one, "not what it says"),
        (lambda one: _detail(one, counter="2") if "counter" in one.detail else one, "another counter"),
        (
            lambda one: _detail(one, **{"left:all": f"250001 {JUNE}"}) if "left:all" in one.detail else one,
            "carried over with 250001",
        ),
    ],
    ids=["lost", "changed", "counter", "balance"],
)  # fmt: skip
def test_what_the_next_shard_begins_with_is_what_the_one_before_leads_to(
    sqlite_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, says: str
) -> None:
    from audit import commit

    real = commit.beginning

    def beginning(*arguments: Any, **options: Any) -> list[Record]:
        return [spoil(draft) for draft in real(*arguments, **options)]

    clock = Clock()
    log = open_log(sqlite_bench, clock, balances=lambda *_: LEFT)
    sqlite_bench.start_worker(log)
    sqlite_bench.request(log)
    budget = {"eps_micro": 50_000, "budget_after_micro": 250_000, "detail": {"privacy_budget": "all"}}
    sqlite_bench.authorize(log, **budget)
    clock.now = JULY
    if says == "not carried over":
        log._committer._intents.clear()
    monkeypatch.setattr(commit, "beginning", beginning)
    log.append(sqlite_bench.draft()).result()
    monkeypatch.undo()
    log.close()
    paths = [write(sqlite_bench, tmp_path, origin) for origin in (ORIGIN, H2)]
    report = verify_bundles(paths, TRUST)
    assert not report.ok
    assert says in report.links[0].verdict.detail


GRANT = Record(
    kind="budget.grant", tenant="clinic", outcome="granted", policy_digest="cd" * 32, detail={"budget": "all"}
)


def _turn(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Record], list[Record]],
    *,
    left: tuple[int, int] = LEFT["all"],
) -> None:
    """A log with everything in force that can be, whose operator writes something else at the turn."""
    from audit import commit

    real = commit.beginning

    def beginning(*arguments: Any, **options: Any) -> list[Record]:
        return [written for draft in real(*arguments, **options) for written in spoil(draft)]

    clock = Clock()
    log = open_log(bench, clock, balances=lambda *_: {"all": left})
    log.append(Record(kind="policy.change", policy_digest="cd" * 32, outcome="in-force")).result()
    log.append(GRANT).result()
    bench.start_worker(log)
    log.append(Record(kind="model.load", runtime_instance="worker-1", model="m", model_digest="ab" * 32)).result()
    budget = {"eps_micro": 50_000, "budget_after_micro": 250_000, "detail": {"privacy_budget": "all"}}
    bench.authorize(log, **budget)
    clock.now = JULY
    monkeypatch.setattr(commit, "beginning", beginning)
    log.append(bench.draft()).result()
    monkeypatch.undo()
    log.close()


def _of(kind: str, changed: Callable[[Record], list[Record]]) -> Callable[[Record], list[Record]]:
    return lambda one: changed(one) if one.detail.get("stands_for") == kind else [one]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_of("worker.start", lambda one: [_detail(one, completion_key="A" * 43)]), "what that does not say"),
        (_of("worker.start", lambda one: []), "worker.start, was in force"),
        (_of("model.load", lambda one: [msgspec.structs.replace(one, model_digest="cd" * 32)]), "does not say"),
        (_of("model.load", lambda one: []), "model.load, was in force"),
        (_of("policy.change", lambda one: [msgspec.structs.replace(one, policy_digest="ef" * 32)]), "does not say"),
        (_of("policy.change", lambda one: []), "policy.change, was in force"),
        (_of("policy.change", lambda one: [one, one]), "does not say"),
        (_of("budget.grant", lambda one: [_detail(one, epsilon="9")]), "does not say"),
        (_of("budget.grant", lambda one: []), "budget.grant, was in force"),
        (_of("budget.grant", lambda one: [_detail(one, stood_at="0")]), "does not say"),
    ],
    ids=["key", "worker", "digest", "model", "policy", "no-policy", "twice", "grant", "no-grant", "elsewhere"],
)  # fmt: skip
def test_what_was_in_force_is_in_force_after_the_turn(
    sqlite_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, says: str
) -> None:
    _turn(sqlite_bench, monkeypatch, spoil)
    report = verify_bundles([write(sqlite_bench, tmp_path, origin) for origin in (ORIGIN, H2)], TRUST)
    assert report.links[0].verdict.status == "failed"
    assert says in report.links[0].verdict.detail
    assert not report.ok


def test_an_honest_turn_says_all_of_it_again(
    sqlite_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _turn(sqlite_bench, monkeypatch, lambda one: [one])
    report = verify_bundles([write(sqlite_bench, tmp_path, origin) for origin in (ORIGIN, H2)], TRUST)
    assert states(report) == {f"{H2} follows {ORIGIN}": "ok"}
    assert report.ok
    # and through a start of the writer, and another turn
    clock = Clock(JULY + HALF_YEAR - 60_000_000)
    log = open_log(sqlite_bench, clock, balances=lambda *_: LEFT)
    clock.now = JULY + HALF_YEAR
    log.append(sqlite_bench.draft()).result()
    log.close()
    reader = sqlite_bench.reader()
    said = [entry.record for entry in reader.records(RecordFilter(kind="log.carried")).records]
    assert [one.detail["budget"] for one in said if one.detail["stands_for"] == "budget.grant"] == ["all", "all"]
    for origin in (ORIGIN, H2, NEXT):
        path = write(sqlite_bench, tmp_path, origin, name="one")
        shown = report_from_bundle(path, TRUST, name="budget", question=Question())
        for answer in (reader.report("budget", Question(shard=origin)), shown):
            (granted,) = [table.rows for table in answer.tables if table.title == "budgets granted"]
            assert [(row[2], row[5]) for row in granted] == [("all", "clinic")]
    reader.close()
    report = verify_bundles([write(sqlite_bench, tmp_path, origin) for origin in (ORIGIN, H2, NEXT)], TRUST)
    assert [link.verdict.status for link in report.links] == ["ok", "ok"], report.links


def test_a_turn_does_not_begin_a_budgets_window_anew(
    sqlite_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that would begin tomorrow explains any balance today."""
    tomorrow = JULY + 2 * DAY_US
    _turn(sqlite_bench, monkeypatch, lambda one: [one], left=(900_000, tomorrow))
    report = verify_bundles([write(sqlite_bench, tmp_path, origin) for origin in (ORIGIN, H2)], TRUST)
    assert not report.ok
    (step,) = [one for one in report.bundles[1].report.steps if one.name == "privacy budgets add up"]
    assert (step.status, "had not begun" in step.detail) == ("failed", True)


def test_a_worker_that_is_shown_again_in_a_later_shard_is_refused(sqlite_bench: Bench, tmp_path: Path) -> None:
    """Its signed completions, under its own start: by itself the later shard is without fault."""
    clock = Clock()
    log = open_log(sqlite_bench, clock)
    sqlite_bench.start_worker(log)
    begun = sqlite_bench.authorize(log)
    end = sqlite_bench.end(begun.record)
    log.append(end).result()
    log.close()
    for now in (JULY, JULY + HALF_YEAR):
        clock.now = now
        log = open_log(sqlite_bench, clock)
        log.close()
    sqlite_bench.sql("DELETE FROM record WHERE id = ?", begun.record.id)  # the writer itself would refuse the id
    log = open_log(sqlite_bench, clock)
    sqlite_bench.start_worker(log)
    sqlite_bench.authorize(log, id=begun.record.id)
    log.append(end).result()
    log.close()
    paths = [write(sqlite_bench, tmp_path, origin) for origin in (ORIGIN, H2, NEXT)]
    assert verify_bundles(paths[2:], TRUST).bundles[0].report.ok
    report = verify_bundles(paths, TRUST)
    assert not report.ok
    assert "shown again" in report.links[-1].verdict.detail


def test_two_trees_of_one_shard_are_refused_whatever_their_sizes(
    sqlite_bench: Bench, tmp_path: Path, make_sqlite_bench: Callable[[Path], Bench]
) -> None:
    live(sqlite_bench, Clock())
    folder = tmp_path / "other"
    folder.mkdir()
    forked = make_sqlite_bench(folder)
    clock = Clock()
    log = open_log(forked, clock)
    for _ in range(40):
        log.append(forked.draft()).result()
    log.close()
    mine, theirs = write(sqlite_bench, tmp_path, ORIGIN), write(forked, folder, ORIGIN)
    report = verify_bundles([mine, theirs], TRUST)
    assert not report.ok
    assert "two different trees" in report.links[0].verdict.detail


def test_bundles_of_one_shard_in_turn_must_show_that_it_grew(sqlite_bench: Bench, tmp_path: Path) -> None:
    log = open_log(sqlite_bench, Clock())
    log.append(sqlite_bench.draft()).result()
    early = write(sqlite_bench, tmp_path, ORIGIN, name="early")
    reader = sqlite_bench.reader()
    size = open_checkpoint(reader.checkpoint(), [SIGNER.verifier]).checkpoint.size
    log.append(sqlite_bench.draft()).result()
    last = reader.size() - 1
    for name, grown_from in (("shown", size), ("not-shown", None)):
        with (tmp_path / name).open("wb") as out:
            reader.export(last, last, out, consistent_with=grown_from)
    reader.close()
    log.close()
    assert verify_bundles([early, tmp_path / "shown"], TRUST).links == ()
    report = verify_bundles([tmp_path / "not-shown", early], TRUST)
    assert [link.verdict.status for link in report.links] == ["skipped"]
    assert report.ok
    assert not verify_bundles([tmp_path / "not-shown", early], TRUST, strict=True).ok


def test_growth_from_a_kept_checkpoint_goes_on_through_a_turn(shown: list[Path], bench: Bench) -> None:
    reader = bench.reader()
    kept = Given(kept=(reader.checkpoint(origin=ORIGIN),))
    reader.close()
    report = verify_bundles(shown, TRUST, strict=True, given=kept)
    assert report.ok, [bundle.report.lines() for bundle in report.bundles]
    assert not verify_bundles(shown[1:], TRUST, strict=True, given=kept).ok


def test_a_range_may_begin_within_what_was_carried_over(shown: list[Path], bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    reader = bench.reader()
    with path.open("wb") as out:
        reader.export(2, 4, out, origin=H2)
    reader.close()
    report = verify_bundles([path], TRUST)
    assert report.ok, report.bundles[0].report.lines()


def test_an_honest_turn_with_budgets_holds(sqlite_bench: Bench, tmp_path: Path) -> None:
    clock = Clock()
    log = open_log(sqlite_bench, clock, balances=lambda *_: LEFT)
    sqlite_bench.start_worker(log)
    budget = {"eps_micro": 50_000, "budget_after_micro": 250_000, "detail": {"privacy_budget": "all"}}
    sqlite_bench.authorize(log, **budget)
    clock.now = JULY
    log.append(sqlite_bench.draft()).result()
    log.close()
    paths = [write(sqlite_bench, tmp_path, origin) for origin in (ORIGIN, H2)]
    assert states(verify_bundles(paths, TRUST)) == {f"{H2} follows {ORIGIN}": "ok"}


def test_a_shard_whose_records_were_pruned_since_still_stands_in_the_chain(sqlite_bench: Bench, tmp_path: Path) -> None:
    bench, clock = sqlite_bench, Clock()
    live(bench, clock)
    clock.now = JULY + HALF_YEAR * 2
    log = open_log(bench, clock)
    rules = parse_retention(b"default_days = 100\n")
    start: int | None = 0
    while start is not None:
        with log.reading() as connection:
            found = pruning.search(connection, rules, holds.holds_in_force(connection), start=start, now_us=clock.now)
        if found.records:
            effect = pruning.pruning(found.records, rules, now_us=clock.now)
            log.append(Record(kind="retention.pruned"), effect).result()
        start = found.next
    log.close()
    reader = bench.reader()
    kept = bench.sql("SELECT count(*) FROM leaf")[0][0]
    assert kept < reader.size(origin=ORIGIN) + reader.size(origin=H2)
    names = [shard.origin for shard in reader.shards().all]
    reader.close()
    paths = [write(bench, tmp_path, origin) for origin in names]
    together = verify_bundles(paths, TRUST)
    assert together.ok, [bundle.report.lines() for bundle in together.bundles]
    gone = [step for step in together.bundles[0].report.steps if step.name.startswith("what is missing")]
    assert gone[0].status == "ok"
    alone = verify_bundles(paths[:1], TRUST)
    assert [step.status for step in alone.bundles[0].report.steps if step.name.startswith("what is missing")] == [
        "skipped"
    ]
    assert open_log(bench, clock) is not None


def _detail(record: Record, **changes: str) -> Record:
    return msgspec.structs.replace(record, detail=record.detail | changes)
