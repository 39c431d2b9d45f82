"""Bundles of a log that was pruned: what is shown, what is checked, and what a dishonest exporter cannot do."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.transparency.bundle import Bundle, PrunedEntry
from sealgate.transparency.merkle import leaf_hash
from sealgate.transparency.pruned import INDICES, KIND, SHORTEST, Indices
from sealgate.transparency.verifier import LogTrust, Report, verify_bundle

LIMIT = "records are no longer kept"


def announce(log: Any, indices: Iterable[int], *, shortest_us: int = 0) -> None:
    detail = {INDICES: str(Indices.of(sorted(indices))), SHORTEST: str(shortest_us)}
    log.append(kind=KIND, outcome="pruned", detail=detail)


def cut(log: Any, gone: Iterable[int], first: int = 0, last: int | None = None) -> io.BytesIO:
    last = len(log.leaves) - 1 if last is None else last
    gone = set(gone)
    entries = [
        PrunedEntry(leaf_hash(leaf)) if index in gone else leaf
        for index, leaf in enumerate(log.leaves)
        if first <= index <= last
    ]
    return log.bundle(first, last, leaves=entries)  # type: ignore[no-any-return]


def check(log: Any, bundle: io.BytesIO, **options: Any) -> Report:
    return verify_bundle(bundle, LogTrust(verifiers=(log.signer.verifier,)), **options)


def by_name(report: Report) -> dict[str, tuple[str, str]]:
    return {step.name: (step.status, step.detail) for step in report.steps}


MISSING = "what is missing was pruned, and the log says so"
ENDS = "every authorized request has exactly one end"


def test_whole_requests_that_were_pruned(log: Any) -> None:
    kept = log.checkpoint()
    announce(log, range(2, 6))
    bundle = cut(log, range(2, 6))
    report = verify_bundle(bundle, LogTrust(verifiers=(log.signer.verifier,), kept_checkpoint=kept))
    assert report.ok, report.lines()
    steps = by_name(report)
    assert steps[MISSING] == (
        "ok",
        "4 records, only their hashes are left, none younger than 0 days by its rules then; announced by record 9",
    )
    assert "recomputed from the entries" in steps["log grew out of the kept checkpoint"][1]
    assert steps[ENDS] == ("ok", "1 paired")
    assert steps["workers' counters have no gap"] == (
        "skipped",
        "2 counters are missing, as pruned records may have carried them",
    )
    assert steps["privacy budgets add up"][0] == "skipped"
    assert any(text.startswith("4 ") and LIMIT in text for text in report.limits)
    assert [step.number for step in report.steps] == list(range(1, len(report.steps) + 1))
    assert not check(log, bundle, strict=True).ok  # what cannot be read is not verified


def test_nothing_pruned_has_no_such_step(log: Any) -> None:
    announce(log, [3])
    report = check(log, cut(log, []))
    assert MISSING not in by_name(report)
    assert not [text for text in report.limits if LIMIT in text]


def test_an_exporter_that_withholds(log: Any) -> None:
    report = check(log, cut(log, [4]))
    assert by_name(report)[MISSING] == ("failed", "1 of 1 missing records were never announced: they are withheld")
    announce(log, [2, 3])
    assert by_name(check(log, cut(log, [2, 3, 4])))[MISSING][0] == "failed"
    assert by_name(check(log, cut(log, [4], 0, 5)))[MISSING][0] == "skipped"  # may be announced later
    assert not check(log, cut(log, [4], 0, 5), strict=True).ok


def test_another_hash_in_a_pruned_place(log: Any) -> None:
    announce(log, [3])
    leaves = [*log.leaves[:3], PrunedEntry(b"\x07" * 32), *log.leaves[4:]]
    report = check(log, log.bundle(leaves=leaves))
    assert by_name(report)["entries lead to the checkpoint's root"][0] == "failed"


def test_receipts_of_pruned_records_still_count(log: Any) -> None:
    receipt, other = log.receipt(3), log.receipt(5)
    announce(log, [3])
    report = check(log, cut(log, [3]), receipts=[receipt, other])
    assert by_name(report)["given receipts are in this log"][1].startswith("2 match")
    log.leaves[3] = log.leaves[3].replace(b"clinic", b"cliniC")
    rewritten = check(log, cut(log, [3]), receipts=[receipt])
    assert by_name(rewritten)["given receipts are in this log"][0] == "failed"


def test_half_of_a_request(log: Any) -> None:
    """Authorization or end alone: not decided, and nobody is accused."""
    announce(log, [2])
    steps = by_name(check(log, cut(log, [2])))
    assert steps[ENDS] == ("skipped", "2 paired; 1 ends belong to requests before the range or pruned ones")
    log.append(kind="log.opened", outcome="opened")
    log.request()
    announce(log, [5])
    steps = by_name(check(log, cut(log, [2, 5])))
    assert steps[ENDS][0] == "skipped"
    assert "may be among the pruned records" in steps[ENDS][1]


def test_an_end_twice_is_still_a_second_end(log: Any) -> None:
    announce(log, [2])
    log.complete(2, log.records[2])
    assert by_name(check(log, cut(log, [2])))[ENDS][0] == "failed"


def test_a_missing_start_of_a_worker_is_not_held_against_it(log: Any) -> None:
    announce(log, [1])
    steps = by_name(check(log, cut(log, [1])))
    assert steps["workers signed what is said of them"][0] == "skipped"


def test_more_counters_are_missing_than_records(log: Any) -> None:
    log.seq += 5
    log.request()
    announce(log, [3])
    assert by_name(check(log, cut(log, [3])))["workers' counters have no gap"][0] == "failed"


def test_pruned_before_its_time(log: Any) -> None:
    announce(log, [3], shortest_us=5 * 86_400_000_000)
    assert by_name(check(log, cut(log, [3])))[MISSING] == (
        "failed",
        "record 3 was pruned before its time, as record 9 states it",
    )


def test_who_needs_every_record_is_told(log: Any) -> None:
    bundle = Bundle(cut(log, [3]))
    with pytest.raises(DecodeError, match="no longer kept"):
        list(bundle.entries())
    items = list(bundle.items())
    assert items[3] == PrunedEntry(leaf_hash(log.leaves[3]))
    assert items[:3] == log.leaves[:3]


@pytest.mark.parametrize(
    "line",
    [
        b"-",
        b"-" + base64.b64encode(b"x" * 31),
        b"-" + base64.b64encode(b"x" * 33),
        b"-" + base64.b64encode(b"x" * 32)[:-1],
        b"-" + base64.b64encode(b"x" * 32) + b" ",
        b"- " + base64.b64encode(b"x" * 32),
        b"-" + base64.b64encode(b"x" * 32).replace(b"A", b"B").replace(b"g=", b"h="),
    ],
)
def test_no_other_form_stands_for_a_record(log: Any, line: bytes) -> None:
    bundle = log.bundle(leaves=[*log.leaves[:3], line, *log.leaves[4:]])
    report = check(log, bundle)
    assert by_name(report)["every entry is a record of this log"][0] == "failed"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gone=st.sets(st.integers(0, 7)), said=st.sets(st.integers(0, 7), min_size=1), first=st.integers(0, 7))
def test_whatever_is_missing_it_fails_exactly_if_it_was_not_announced(
    log: Any, gone: set[int], said: set[int], first: int
) -> None:
    length = len(log.leaves)
    announce(log, said)
    try:
        report = check(log, cut(log, gone, first))
        shown = {index for index in gone if index >= first}
        status = by_name(report).get(MISSING, ("none", ""))[0]
        assert status == ("none" if not shown else "ok" if shown <= said else "failed")
        for name in ("entries lead to the checkpoint's root", "every entry is a record of this log"):
            assert by_name(report)[name][0] == "ok"
        assert report.ok == (shown <= said), report.lines()
    finally:
        del log.leaves[length:], log.records[length:]
