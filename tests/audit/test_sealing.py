"""Whoever can write the database, but has no key, cannot add records that the next start would take over."""

from __future__ import annotations

import pytest

from audit.errors import LogDamaged
from audit.query import RecordFilter
from audit.sealing import HeadSeal
from sealgate.errors import LogError
from sealgate.transparency.notes import NoteSigner
from tests.audit.conftest import SIGNER

STRANGER = NoteSigner.from_seed(SIGNER.name, b"\x66" * 32)
HEAD = "UPDATE head SET seal = ?"


def unpublished(bench, count: int = 5) -> bytes:
    """A log whose newest records no stored checkpoint covers, as a crash leaves it; its head's seal."""
    log = bench.open()
    bench.start_worker(log)
    bench.request(log)
    log.close()
    covered = bench.sql("SELECT size, ts_us, note FROM checkpoint")
    log = bench.open()
    for number in range(count):
        log.append(bench.draft(reason=f"after {number}")).result()
    log.close()
    bench.sql("DELETE FROM checkpoint")
    for row in covered:
        bench.sql("INSERT INTO checkpoint VALUES (?, ?, ?)", *row)
    ((seal,),) = bench.sql("SELECT seal FROM head")
    return bytes(seal)


def append_without_the_key(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole writer's work, consistent in every hash, by somebody who has another key."""
    monkeypatch.setattr("audit.opening.HeadSeal.require", lambda *_, **__: None)
    monkeypatch.setattr("audit.opening.open_checkpoint", _as_signed_by_anybody)
    log = bench.open(signer=STRANGER)
    log.append(bench.draft(tenant="clinic", reason="never-happened")).result()
    log.close()
    monkeypatch.undo()


def _as_signed_by_anybody(note: bytes, _verifiers: object) -> object:
    from sealgate.transparency.notes import open_checkpoint

    return open_checkpoint(note, [SIGNER.verifier, STRANGER.verifier])


def test_what_a_crash_leaves_beyond_the_newest_checkpoint_is_taken_over(bench) -> None:
    unpublished(bench)
    bench.open().close()
    reader = bench.reader()
    assert len(reader.records(RecordFilter(kind="inference.denied")).records) == 5
    reader.close()
    assert bench.audit().ok


@pytest.mark.parametrize("cover", ["the old seal", "no seal", "nonsense"])
def test_consistent_records_of_somebody_else_are_not(bench, monkeypatch, cover: str) -> None:
    bench.open().close()
    ((old,),) = bench.sql("SELECT seal FROM head")
    covered = bench.sql("SELECT size, ts_us, note FROM checkpoint")
    append_without_the_key(bench, monkeypatch)
    bench.sql("DELETE FROM checkpoint")
    for row in covered:
        bench.sql("INSERT INTO checkpoint VALUES (?, ?, ?)", *row)
    ((forged,),) = bench.sql("SELECT seal FROM head")
    assert forged != old
    bench.sql(HEAD, {"the old seal": bytes(old), "no seal": None, "nonsense": b"\0" * 32}[cover])
    before = bench.sql("SELECT count(*) FROM leaf")
    with pytest.raises(LogDamaged, match=r"seal|not written by this log's writer"):
        bench.open()
    assert bench.sql("SELECT count(*) FROM leaf") == before


def test_the_forgers_own_seal_is_not_the_writers_either(bench, monkeypatch) -> None:
    bench.open().close()
    covered = bench.sql("SELECT size, ts_us, note FROM checkpoint")
    append_without_the_key(bench, monkeypatch)
    bench.sql("DELETE FROM checkpoint")
    for row in covered:
        bench.sql("INSERT INTO checkpoint VALUES (?, ?, ?)", *row)
    with pytest.raises(LogDamaged, match="not written by this log's writer"):
        bench.open()


@pytest.mark.parametrize("first", ["kept", "deleted", "another"])
def test_without_its_seal_no_log_is_rolled_back_to_an_older_checkpoint(bench, first: str) -> None:
    """All that it takes is to write the database: the older checkpoint stands in it, signed."""
    log = bench.open()
    log.append(bench.draft()).result()
    log.close()
    (head,) = bench.sql("SELECT size, root FROM head")
    (note,) = bench.sql("SELECT size, ts_us, note FROM checkpoint ORDER BY size DESC LIMIT 1")
    log = bench.open()
    log.append(bench.draft(reason="what must go")).result()
    log.close()
    for table in ("leaf", "record"):
        bench.sql(f"DELETE FROM {table} WHERE idx >= ?", head[0])
    bench.sql("DELETE FROM checkpoint")
    bench.sql("INSERT INTO checkpoint VALUES (?, ?, ?)", *note)
    bench.sql("UPDATE tile SET hashes = substr(hashes, 1, ?) WHERE level = 0", 32 * head[0])
    bench.sql("UPDATE head SET size = ?, root = ?, seal = NULL", *head)
    if first == "deleted":
        bench.sql("DELETE FROM leaf WHERE idx = 0")
    if first == "another":
        ((leaf,),) = bench.sql("SELECT leaf FROM leaf WHERE idx = 1")
        bench.sql("UPDATE leaf SET leaf = ? WHERE idx = 0", leaf)
    with pytest.raises(LogDamaged):
        bench.open()


def test_a_log_from_before_there_were_seals_gets_one_if_all_of_it_is_signed(bench, before_seals) -> None:
    log = bench.open()
    log.append(bench.draft()).result()
    log.close()
    bench.sql(HEAD, None)
    bench.open().close()
    ((seal,),) = bench.sql("SELECT seal FROM head")
    assert len(seal) == 32
    assert bench.audit().ok


def test_a_log_from_before_there_were_seals_that_crashed_is_left_to_that_release(bench, before_seals) -> None:
    unpublished(bench)
    bench.sql(HEAD, None)
    with pytest.raises(LogDamaged, match="start it once more and stop it in order"):
        bench.open()


def test_a_seal_is_for_one_log_one_size_one_root_and_its_holds() -> None:
    seal, root, holds = HeadSeal(SIGNER), b"\x01" * 32, b"\x03" * 32
    made = seal.over(5, root, holds=holds)
    seal.require(made, size=5, root=root, holds=holds)
    for other in (
        lambda: seal.require(made, size=6, root=root, holds=holds),
        lambda: seal.require(made, size=5, root=b"\x02" * 32, holds=holds),
        lambda: seal.require(made, size=5, root=root, holds=bytes(32)),
        lambda: seal.require(made, size=5, root=root, holds=None),
        lambda: HeadSeal(STRANGER).require(made, size=5, root=root, holds=holds),
        lambda: HeadSeal(NoteSigner.from_seed("example.com/else", b"\x01" * 32)).require(
            made, size=5, root=root, holds=holds
        ),
        lambda: seal.require(b"", size=5, root=root, holds=holds),
    ):
        with pytest.raises(LogError):
            other()
