"""What may be missing from a range, and what an auditor is told of it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.transparency.checks import Range
from sealgate.transparency.pruned import INDICES, KIND, SHORTEST, Indices, Pruned
from sealgate.transparency.record import Record

DAY_US = 86_400_000_000
NOW_US = 400 * DAY_US


def announced(indices: str, *, shortest_days: int = 184, ts_us: int = NOW_US) -> Record:
    return Record(kind=KIND, ts_us=ts_us, detail={INDICES: indices, SHORTEST: str(shortest_days * DAY_US)})


def judged(entries: dict[int, Record | None], *, size: int = 0) -> tuple[str, str]:
    check = Pruned()
    for index, record in sorted(entries.items()):
        if record is None:
            check.miss(index, b"")
        else:
            check.see(index, record, b"")
    part = Range(min(entries), max(entries), size or max(entries) + 1)
    verdict = check.verdict(part)
    assert check.count == sum(record is None for record in entries.values())
    assert all((index in check) == (record is None) for index, record in entries.items())
    return verdict.status, verdict.detail


def old(days: int = 300) -> Record:
    return Record(kind="inference.denied", ts_us=NOW_US - days * DAY_US)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 400), min_size=1))
def test_indices_are_read_as_they_are_written(wanted: set[int]) -> None:
    made = Indices.of(sorted(wanted))
    again = Indices.parse(str(made))
    assert again == made
    assert list(again) == sorted(wanted)
    assert again.count == len(wanted)
    assert {index for index in range(402) if index in again} == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1 1", "2 1", "1 2", "1-2 3", "1-1", "3-1", "01", "1-02", "1 ", " 1", "1,2", "-1", "1-", "1-3-5"),
        *("1\n", "1" * 9000, "1" * 17, "0x1"),
    ],
)
def test_no_other_form_is_read(text: str) -> None:
    with pytest.raises(DecodeError):
        Indices.parse(text)


def test_nothing_is_missing() -> None:
    assert judged({0: old(), 1: old()}) == ("ok", "nothing is missing")


def test_what_is_announced_is_pruned() -> None:
    status, detail = judged({0: old(), 1: None, 2: None, 3: old(), 4: None, 5: announced("1-2 4")})
    assert status == "ok"
    assert "3 records" in detail
    assert detail.endswith("record 5")


def test_several_announcements_explain_one_gap() -> None:
    entries = {0: old(), **dict.fromkeys(range(1, 8), None), 8: announced("1-2 4 6"), 9: announced("2-3 5 7")}
    assert judged(entries)[0] == "ok"
    del entries[9]
    assert judged(entries) == ("failed", "3 of 7 missing records were never announced: they are withheld")


def test_what_was_announced_may_still_be_there() -> None:
    assert judged({0: old(), 1: None, 2: old(), 3: announced("0-2")})[0] == "ok"


def test_withheld_records_are_not_pruned_ones() -> None:
    status, detail = judged({0: old(), 1: None, 2: None, 3: announced("1")})
    assert (status, detail) == ("failed", "1 of 2 missing records were never announced: they are withheld")


def test_a_range_that_ends_early_cannot_tell() -> None:
    assert judged({0: old(), 1: None, 2: old()}, size=4)[0] == "skipped"
    assert judged({0: old(), 1: None, 2: old()}, size=3)[0] == "failed"


def test_a_record_cannot_announce_what_comes_after_it() -> None:
    assert judged({0: announced("0-2"), 1: None, 2: old()})[0] == "failed"


def test_young_records_are_not_pruned() -> None:
    young = {0: old(100), 1: None, 2: announced("1")}
    assert judged(young)[0] == "failed"
    assert judged({**young, 2: announced("1", shortest_days=100)})[0] == "ok"
    assert judged({1: None, 2: announced("1")})[0] == "ok"  # nothing before it says how old it was


def test_a_clock_that_was_set_back_accuses_nobody() -> None:
    entries = {0: old(100), 1: None, 2: old(300), 3: announced("1")}
    assert judged(entries)[0] == "ok"
    assert judged({**entries, 2: old(120)})[0] == "failed"


def test_a_clock_that_was_set_ahead_prunes_nothing() -> None:
    """Half a year forward, `privacy prune` by the rules as they stand, and back again."""
    entries = {0: old(3), 1: None, 2: old(2), 3: announced("1", ts_us=NOW_US + 300 * DAY_US), 4: old(1), 5: old(0)}
    status, detail = judged(entries)
    assert (status, "by a clock that was ahead" in detail) == ("failed", True)
    # A year later, too; and if the clock had gone on for some records, and several announcements were needed.
    assert judged({**entries, 6: Record(kind="log.opened", ts_us=NOW_US + 600 * DAY_US)})[0] == "failed"
    later = {7: announced("2", ts_us=NOW_US + 301 * DAY_US), 8: old(0)}
    ahead = {**entries, 2: None, 4: Record(kind="log.opened", ts_us=NOW_US + 300 * DAY_US), 6: old(1), **later}
    assert judged(ahead)[0] == "failed"


def test_a_clock_that_broke_later_accuses_nobody() -> None:
    entries = {0: old(300), 1: None, 2: announced("1"), 3: Record(kind="log.opened", ts_us=5 * DAY_US), 4: old(0)}
    assert judged(entries)[0] == "ok"
    assert judged({**entries, 3: old(1), 4: old(-1)})[0] == "ok"


def test_nothing_is_pruned_while_the_whole_log_is_held() -> None:
    placed = Record(kind="hold.placed", ts_us=NOW_US - DAY_US, reason="case-7")
    released = Record(kind="hold.released", ts_us=NOW_US - DAY_US, reason="case-7")
    held = {0: old(), 1: None, 2: placed, 3: announced("1")}
    status, detail = judged(held)
    assert (status, "although a hold over the whole log" in detail) == ("failed", True)
    assert judged({0: old(), 1: None, 2: placed, 3: released, 4: announced("1")})[0] == "ok"
    of_a_tenant = Record(kind="hold.placed", ts_us=NOW_US - DAY_US, reason="case-7", tenant="clinic")
    assert judged({**held, 2: of_a_tenant})[0] == "ok"


def test_the_verdict_says_what_age_the_rules_had() -> None:
    assert "none younger than 1 days" in judged({0: old(), 1: None, 2: announced("1", shortest_days=1)})[1]


@pytest.mark.parametrize("split", [False, True])
def test_many_gaps_and_many_announcements_are_judged_in_time(split: bool) -> None:
    """Every other record of 200,000 is another tenant's: a million of them took a quarter of an hour. `split`: the rest
    was pruned later, so that one gap is explained by every announcement."""
    count = 200_000
    entries: dict[int, Record | None] = {index: None if index % 2 or split else old() for index in range(count)}
    for rest in (1, 0) if split else (1,):
        for first in range(rest, count, 1500):
            indices = range(first, min(first + 1500, count), 2)
            entries[len(entries)] = announced(" ".join(map(str, indices)))
    began = time.process_time()
    assert judged(entries)[0] == "ok"
    assert time.process_time() - began < 15


@pytest.mark.parametrize("detail", [{}, {INDICES: "1"}, {INDICES: "1", SHORTEST: "-5"}, {INDICES: "x", SHORTEST: "5"}])
def test_an_announcement_that_says_nothing_is_none(detail: dict[str, str]) -> None:
    assert judged({0: old(), 1: None, 2: Record(kind=KIND, ts_us=NOW_US, detail=detail)})[0] == "failed"


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 60), min_size=1), st.lists(st.sets(st.integers(1, 60), min_size=1), max_size=4))
def test_everything_missing_must_be_announced(missing: set[int], said: list[set[int]]) -> None:
    entries: dict[int, Record | None] = {index: old() for index in range(61)}
    entries.update(dict.fromkeys(missing))
    entries.update({61 + at: announced(str(Indices.of(sorted(one)))) for at, one in enumerate(said)})
    told = set().union(*said)
    assert judged(entries)[0] == ("ok" if missing <= told else "failed")
