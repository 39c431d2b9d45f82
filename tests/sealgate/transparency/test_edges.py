"""A shard that begins, ends or carries over as no shard does is refused, by itself."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from sealgate.transparency.carried import begins_shard, ends_shard, restate, restated, stood_at
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from sealgate.transparency.verifier import LogTrust, Step, verify_bundle
from tests.sealgate.transparency.conftest import ORIGIN, MemoryLog

SIGNER = NoteSigner.from_seed(ORIGIN, b"\x01" * 32)
SHARD = f"{ORIGIN}/2027h2"
NAME = "the shard begins and ends as shards do"
PREVIOUS = {"previous_origin": ORIGIN, "previous_size": "7", "previous_root": "ab" * 32}


def shard(origin: str = SHARD, **previous: str) -> MemoryLog:
    log = MemoryLog(origin=origin, signer=SIGNER.under(origin))
    log.append(kind="log.opened", outcome="turned", detail={**PREVIOUS, **previous})
    return log


def step(log: MemoryLog, **options: int) -> Step | None:
    report = verify_bundle(log.bundle(**options), LogTrust(verifiers=(SIGNER.verifier,)))
    return next((one for one in report.steps if one.name == NAME), None)


def carry(log: MemoryLog) -> None:
    log.append(kind="log.carried", detail={"stands_for": "policy.change", "stood_at": "1"}, policy_digest="cd" * 32)


def test_what_a_shard_says_of_its_neighbours_is_told() -> None:
    log = shard()
    carry(log)
    carry(log)
    log.append(kind="log.closed", outcome="turned", detail={"next": f"{ORIGIN}/2028h2"})
    told = step(log)
    assert told is not None
    assert told.status == "ok"
    assert f"follows {ORIGIN} of 7 records; {ORIGIN}/2028h2 follows it" in told.detail
    report = verify_bundle(log.bundle(), LogTrust(verifiers=(SIGNER.verifier,)))
    assert any("verifies them together" in text for text in report.limits)


def test_a_log_of_one_shard_has_nothing_to_say() -> None:
    log = MemoryLog()
    log.append(kind="log.opened", outcome="opened")
    log.append(kind="log.closed", outcome="closed")
    assert step(log) is None


@pytest.mark.parametrize(
    "previous",
    [
        {"previous_origin": f"{ORIGIN}/2027h2"},
        {"previous_origin": f"{ORIGIN}/2028h1"},
        {"previous_origin": "example.com/other"},
        {"previous_size": "0"},
        {"previous_size": "07"},
        {"previous_root": "ab" * 31},
    ],
)
def test_a_predecessor_that_cannot_be_is_refused(previous: dict[str, str]) -> None:
    told = step(shard(**previous))
    assert told is not None
    assert told.status == "failed"


def test_a_shard_that_does_not_say_what_it_follows_is_refused() -> None:
    log = MemoryLog(origin=SHARD, signer=SIGNER.under(SHARD))
    log.append(kind="log.opened", outcome="opened")
    assert (told := step(log)) is not None
    assert told.status == "failed"
    assert (told := step(shard(ORIGIN))) is not None
    assert told.status == "failed"


def test_a_shard_that_begins_before_its_half_year_is_refused() -> None:
    boundary = int(datetime(2027, 7, 1, tzinfo=UTC).timestamp()) * 1_000_000
    for ts_us, status in ((boundary - 61_000_000, "failed"), (boundary - 59_000_000, "ok"), (boundary, "ok")):
        log = MemoryLog(origin=SHARD, signer=SIGNER.under(SHARD))
        log.append(kind="log.opened", outcome="turned", detail=PREVIOUS, ts_us=ts_us)
        assert (told := step(log)) is not None
        assert (ts_us - boundary, told.status) == (ts_us - boundary, status)


def test_a_shard_that_goes_on_beyond_its_half_year_says_so() -> None:
    log = shard()
    carry(log)
    late = log.append(kind="inference.denied", reason="purpose", ts_us=log.began_us + 200 * 86_400_000_000)
    report = verify_bundle(log.bundle(), LogTrust(verifiers=(SIGNER.verifier,)))
    assert (told := step(log)) is not None
    assert told.status == "ok"
    assert [text for text in report.limits if text.startswith(f"records from {log.records.index(late)} on")]


def test_a_range_cut_out_of_what_is_carried_over_is_accepted() -> None:
    log = shard()
    for _ in range(4):
        carry(log)
    report = verify_bundle(log.bundle(2, 4), LogTrust(verifiers=(SIGNER.verifier,)))
    assert report.ok, report.lines()


def test_carrying_over_in_the_middle_is_refused() -> None:
    log = shard()
    carry(log)
    log.append(kind="inference.denied", outcome="denied", reason="purpose", tenant="clinic")
    assert (told := step(log)) is not None
    assert told.status == "ok"
    carry(log)
    assert (told := step(log)) is not None
    assert told.status == "failed"
    first = MemoryLog()
    first.append(kind="log.opened", outcome="opened")
    carry(first)
    assert (told := step(first)) is not None
    assert told.status == "failed"


@pytest.mark.parametrize("following", [SHARD, f"{ORIGIN}/2027h1", "example.com/other/2028h1", "x"])
def test_an_end_that_names_no_later_shard_is_refused(following: str) -> None:
    log = shard()
    log.append(kind="log.closed", outcome="turned", detail={"next": following})
    assert (told := step(log)) is not None
    assert told.status == "failed"


def test_nothing_comes_after_the_end_and_no_beginning_in_the_middle() -> None:
    log = shard()
    log.append(kind="log.closed", outcome="turned", detail={"next": f"{ORIGIN}/2028h1"})
    log.append(kind="log.opened", outcome="opened")
    for options in ({}, {"last": 1}):
        assert (told := step(log, **options)) is not None
        assert told.status == "failed"
    log = shard()
    log.append(kind="log.opened", outcome="turned", detail=PREVIOUS)
    assert (told := step(log)) is not None
    assert told.status == "failed"


def test_a_restatement_of_a_restatement_stands_for_the_first_record() -> None:
    begun = Record(kind="inference.authorized", id="abc", tenant="clinic", eps_micro=5, detail={"privacy_budget": "p"})
    once = msgspec.structs.replace(restate(begun, index=4), id="d")
    twice = msgspec.structs.replace(restate(once, index=2), id="e")
    for carried in (once, twice):
        original = restated(carried)
        assert (original.kind, original.id, original.eps_micro, original.detail) == (
            "inference.authorized",
            "abc",
            5,
            {"privacy_budget": "p"},
        )
        assert carried.grant == "abc"
    assert (stood_at(once), stood_at(twice)) == (4, 2)
    assert not begins_shard(once)
    assert not ends_shard(once)
