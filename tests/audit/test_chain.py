"""The shards of a log are verified together, and a chain that is not whole is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit import holds, pruning
from audit.retention import DAY_US, parse_retention
from sealgate.transparency.record import Record
from sealgate.transparency.several import SeveralReport, verify_bundles
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
