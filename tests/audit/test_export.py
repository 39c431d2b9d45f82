"""Evidence bundles out of the database: whole, in part, while the log is written to, and of a forged database."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest

from audit import export as export_module
from audit.errors import LogDamaged, LogUnavailable, QueryRefused
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.verifier import LogTrust, verify_bundle


def exported(bench: Any, first: int, last: int, **options: Any) -> io.BytesIO:
    reader = bench.reader()
    out = io.BytesIO()
    try:
        reader.export(first, last, out, **options)
    finally:
        reader.close()
    return out


def test_whole_and_part_verify_in_strict_mode(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(export_module, "EXPORT_CHUNK_RECORDS", 100)
    bench.start_worker(log)
    receipts = [bench.request(log).receipt for _ in range(150)]
    kept = log.checkpoint()
    receipts += [bench.request(log).receipt for _ in range(10)]
    report = bench.audit(strict=True, kept=kept, receipts=receipts)
    assert report.ok, report.lines()
    size = open_checkpoint(kept, [bench.verifier]).checkpoint.size
    trust = LogTrust(verifiers=(bench.verifier,), kept_checkpoint=kept)
    for first, last in ((0, 0), (1, 7), (250, 260), (300, 321), (256, 300)):
        part = verify_bundle(exported(bench, first, last, consistent_with=size), trust)
        assert part.ok, part.lines()
        assert [step.status for step in part.steps[:5]] == ["ok"] * 5, part.lines()


def test_the_newest_record_can_be_exported_at_once(bench, log) -> None:
    """The writer stores its checkpoint a moment later; the export waits for it."""
    for _ in range(5):
        done = log.append(bench.draft()).result()
        bundle = exported(bench, done.index, done.index)
        assert verify_bundle(bundle, LogTrust(verifiers=(bench.verifier,)), receipts=[done.receipt]).ok


def test_exports_while_the_log_is_written_to(bench, log) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            log.append(bench.draft()).result()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2):
            assert bench.audit().ok
    finally:
        stop.set()
        writer.join()


def test_ranges_that_do_not_exist(bench, log, monkeypatch: Any) -> None:
    for _ in range(5):
        log.append(bench.draft()).result()
    for first, last in ((0, 6), (-1, 2), (3, 2), (100, 200)):
        with pytest.raises(QueryRefused):
            exported(bench, first, last)
    for size in (0, 7, -1):
        with pytest.raises(QueryRefused):
            exported(bench, 0, 5, consistent_with=size)
    monkeypatch.setattr(export_module, "MAX_EXPORT_RECORDS", 3)
    with pytest.raises(QueryRefused):
        exported(bench, 0, 3)
    assert exported(bench, 0, 2).getvalue()


def test_without_a_checkpoint_there_is_no_bundle(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(export_module, "PUBLISH_WAIT_S", 0.0)
    log.close()
    bench.sql("DELETE FROM checkpoint")
    with pytest.raises(LogUnavailable) as caught:
        exported(bench, 0, 0)
    assert caught.value.code == "not-published"


FORGERIES = {
    "a field": ("UPDATE leaf SET leaf = CAST(replace(leaf, '\"care\"', '\"pray\"') AS BLOB) WHERE idx = 4", {4}),
    "two leaves swapped": (
        "UPDATE leaf SET leaf = (SELECT o.leaf FROM leaf AS o WHERE o.idx = 7 - leaf.idx) WHERE idx IN (3, 4)",
        {4},
    ),
    "the tiles": ("UPDATE tile SET hashes = zeroblob(length(hashes))", {4}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_database_gives_a_bundle_that_does_not_verify(bench, name: str) -> None:
    log = bench.open()
    for number in range(300):
        log.append(bench.draft(reason=str(number)))
    log.close()
    statement, failing = FORGERIES[name]
    bench.sql(statement)
    first = 290 if name == "the tiles" else 0
    report = verify_bundle(exported(bench, first, 301), LogTrust(verifiers=(bench.verifier,)))
    assert {step.number for step in report.failures} == failing, report.lines()


def test_a_leaf_that_no_pruning_can_have_deleted_is_damage(bench, log) -> None:
    for _ in range(5):
        log.append(bench.draft()).result()
    log.close()
    bench.sql("DELETE FROM leaf WHERE idx = 2")
    with pytest.raises(LogDamaged):
        exported(bench, 0, 4)
