"""Bundles of several logs: each verified by itself, and a log that is left out is said, in verdicts and in reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sealgate.errors import ConfigurationError, DecodeError, LogError
from sealgate.transparency.bundle import PrunedEntry
from sealgate.transparency.merkle import leaf_hash
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.pruned import INDICES, KIND, SHARD, SHORTEST
from sealgate.transparency.reports.form import Basis, Report
from sealgate.transparency.reports.joint import join_reports, report_from_bundles
from sealgate.transparency.reports.question import Question
from sealgate.transparency.several import Given, verify_bundles
from sealgate.transparency.verifier import LogTrust

from .conftest import MemoryLog

NAMES = ("one.example/log", "two.example/log")


@pytest.fixture
def hosts() -> list[MemoryLog]:
    """Two logs; the second one's records come between those of the first."""
    logs = []
    for number, name in enumerate(NAMES):
        log = MemoryLog(origin=name, signer=NoteSigner.from_seed(name, bytes([number + 1]) * 32))
        log.append(kind="log.opened", outcome="opened")
        log.worker_start(f"worker-{number}")
        for tenant in ("clinic", "ward"):
            at, begun = log.authorize(tenant=tenant, model=f"m{number}")
            log.complete(at, begun, instance=f"worker-{number}")
        logs.append(log)
    return logs


@pytest.fixture
def trust(hosts: list[MemoryLog]) -> LogTrust:
    return LogTrust(verifiers=tuple(log.signer.verifier for log in hosts))


@pytest.fixture
def files(hosts: list[MemoryLog], tmp_path: Path) -> list[Path]:
    return [write(log, tmp_path / f"{number}.zip") for number, log in enumerate(hosts)]


def write(log: MemoryLog, path: Path, *given: Any, **more: Any) -> Path:
    path.write_bytes(log.bundle(*given, **more).getvalue())
    return path


def test_all_logs_together_hold(hosts: list[MemoryLog], trust: LogTrust, files: list[Path]) -> None:
    several = verify_bundles(files, trust, given=Given(kept=tuple(log.checkpoint() for log in hosts)), strict=True)
    assert several.ok
    assert [bundle.origin for bundle in several.bundles] == list(NAMES)
    assert (several.missing, several.unused) == ((), ())


def test_a_missing_log_is_named_and_not_accepted_strictly(
    hosts: list[MemoryLog], trust: LogTrust, files: list[Path]
) -> None:
    kept = Given(kept=(hosts[0].checkpoint(),))
    for strict in (False, True):
        several = verify_bundles(files[:1], trust, strict=strict, given=kept)
        assert several.missing == (NAMES[1],)
        assert several.bundles[0].report.ok
        assert several.ok is not strict
    assert verify_bundles(files[:1], trust, strict=True, given=kept, logs=NAMES[:1]).ok
    with pytest.raises(ConfigurationError, match=r"three\.example"):
        verify_bundles(files, trust, logs=["three.example/log"])


def test_a_bundle_that_does_not_hold_stands_for_no_log(
    hosts: list[MemoryLog], trust: LogTrust, files: list[Path]
) -> None:
    forged = MemoryLog(origin=NAMES[1], signer=NoteSigner.from_seed(NAMES[1], b"\x55" * 32))
    forged.append(kind="log.opened")
    write(forged, files[1])
    several = verify_bundles(files, trust)
    assert (several.ok, several.missing) == (False, (NAMES[1],))
    files[1].write_bytes(b"no bundle")
    several = verify_bundles(files, trust)
    assert (several.ok, several.missing) == (False, (NAMES[1],))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        verify_bundles([*files, files[0].with_name("nowhere")], trust)


def test_what_is_handed_in_is_compared_with_its_own_log(
    hosts: list[MemoryLog], trust: LogTrust, files: list[Path]
) -> None:
    receipts = (hosts[1].receipt(2), hosts[0].receipt(3))
    several = verify_bundles(files, trust, given=Given(receipts=receipts))
    for bundle in several.bundles:
        (step,) = [step for step in bundle.report.steps if "receipts" in step.name]
        assert (step.status, step.detail.startswith("1 match")) == ("ok", True)
    several = verify_bundles(files[:1], trust, given=Given(receipts=receipts, kept=(hosts[1].checkpoint(),)))
    assert len(several.unused) == 2
    assert all(NAMES[1] in text for text in several.unused)
    changed = receipts[0][:-9] + b"AAAA" + receipts[0][-5:]
    several = verify_bundles(files, trust, given=Given(receipts=(changed,)))
    assert not several.ok
    with pytest.raises(ConfigurationError, match="one of each log"):
        verify_bundles(files, trust, given=Given(kept=(hosts[0].checkpoint(2), hosts[0].checkpoint(3))))


def test_a_kept_checkpoint_of_a_history_that_was_rewritten_fails_in_its_log_only(
    hosts: list[MemoryLog], trust: LogTrust, files: list[Path]
) -> None:
    other = MemoryLog(origin=NAMES[1], signer=hosts[1].signer)
    other.append(kind="log.opened", outcome="another")
    several = verify_bundles(files, trust, given=Given(kept=(other.checkpoint(), hosts[0].checkpoint(2))))
    assert [bundle.report.ok for bundle in several.bundles] == [True, False]


def test_what_one_log_lacks_no_other_log_explains(hosts: list[MemoryLog], trust: LogTrust, tmp_path: Path) -> None:
    """Whose operator need not be the same one."""
    held, other = hosts
    leaves: list[Any] = [PrunedEntry(leaf_hash(leaf)) if 2 <= at <= 3 else leaf for at, leaf in enumerate(held.leaves)]
    other.append(kind=KIND, outcome="pruned", detail={INDICES: "2-3", SHORTEST: "0", SHARD: held.origin})
    paths = [tmp_path / "held.zip", tmp_path / "other.zip"]
    paths[0].write_bytes(held.bundle(leaves=leaves).getvalue())
    write(other, paths[1])
    several = verify_bundles(paths, trust)
    (step,) = [step for step in several.bundles[0].report.steps if step.name.startswith("what is missing")]
    assert (step.status, "withheld" in step.detail) == ("failed", True)


# Reports -------------------------------------------------------------------------------------------------------------


def test_a_report_over_several_logs_says_of_each_row_which_log(trust: LogTrust, files: list[Path]) -> None:
    report = report_from_bundles(files, trust, name="access", question=Question())
    assert report.ok
    (table,) = report.tables
    assert table.columns[0].name == "log"
    assert [row[0] for row in table.rows] == [NAMES[0], NAMES[1], NAMES[0], NAMES[1]]  # by their first use
    assert [row[3] for row in table.rows] == ["m0", "m1", "m0", "m1"]
    assert [(basis.origin, basis.proven) for basis in report.bases] == [(name, True) for name in NAMES]
    one = report_from_bundles(files, trust, name="access", question=Question(tenant="ward"))
    assert [row[1] for row in one.tables[0].rows] == ["ward", "ward"]


@pytest.mark.parametrize(
    "name", ["denials", "budget", "in-force", "reconcile", "completeness", "break-glass", "review"]
)
def test_every_report_can_be_laid_together(trust: LogTrust, files: list[Path], name: str) -> None:
    report = report_from_bundles(files, trust, name=name, question=Question())
    assert len(report.bases) == 2
    for table in report.tables:
        assert all(len(row) == len(table.columns) and row[0] in NAMES for row in table.rows)


def test_a_report_says_which_log_is_missing(trust: LogTrust, files: list[Path]) -> None:
    report = report_from_bundles(files[1:], trust, name="access", question=Question())
    assert (report.missing, report.ok) == ((NAMES[0],), False)
    assert report_from_bundles(files[1:], trust, name="access", question=Question(), logs=NAMES[1:]).ok


def test_what_one_log_contradicts_is_said_of_that_log(
    hosts: list[MemoryLog], trust: LogTrust, files: list[Path]
) -> None:
    hosts[1].append(kind="inference.completed", grant="nothing", intent_seq=999)
    write(hosts[1], files[1])
    report = report_from_bundles(files, trust, name="reconcile", question=Question())
    assert report.findings
    assert all(finding.startswith(NAMES[1]) for finding in report.findings)


def test_no_report_comes_out_of_what_is_not_proven_or_counts_twice(
    hosts: list[MemoryLog], trust: LogTrust, files: list[Path]
) -> None:
    with pytest.raises(DecodeError, match="same records"):
        report_from_bundles([*files, files[0]], trust, name="access", question=Question())
    with pytest.raises(DecodeError, match="one log"):
        report_from_bundles(files, trust, name="reconcile", question=Question(first=0, last=1))
    raw = bytearray(files[1].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[1].write_bytes(raw)
    with pytest.raises(LogError):
        report_from_bundles(files, trust, name="access", question=Question())


def test_answers_to_different_questions_are_not_laid_together() -> None:
    def answer(name: str, question: dict[str, str], origin: str) -> Report:
        basis = Basis(source="bundle", origin=origin, first=0, last=0, size=1)
        return Report(name=name, question=question, basis=basis, tables=())

    for other in (answer("denials", {}, "b"), answer("access", {"tenant": "ward"}, "b")):
        with pytest.raises(DecodeError):
            join_reports([answer("access", {}, "a"), other])
    with pytest.raises(DecodeError):
        join_reports([])
