"""A report over an evidence bundle, in the very pass that verifies it.

There is a report only if the bundle's form, the checkpoint's signature, the entries and the root hold; whatever else
the verifier finds wrong is among its findings. Trusts: the log keys that the auditor trusts. Never: answers from
records that were not proven to be exactly first..last of the signed tree.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from sealgate.errors import LogError
from sealgate.transparency.record import Record
from sealgate.transparency.reports.catalogue import require_report
from sealgate.transparency.reports.form import Basis, Fold, Part, Report
from sealgate.transparency.reports.question import Question
from sealgate.transparency.verifier import LogTrust, verify_bundle

_PROVING_STEPS = 4  # form, signature, entries, root


class _Within:
    """Shows a fold those records that lie in the range that was asked for."""

    def __init__(self, fold: Fold, question: Question) -> None:
        self._fold = fold
        self._first = question.first or 0
        self._last = 2**53 if question.last is None else question.last
        self.shown = 0

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if self._first <= index <= self._last:
            self._fold.see(index, record, leaf)
            self.shown += 1


def report_from_bundle(path: Path | BinaryIO, trust: LogTrust, *, name: str, question: Question) -> Report:
    """The answer from the records of a bundle. Raises LogError if they are not proven, or do not cover the question."""
    fold = require_report(name, question).begin(question)
    within = _Within(fold, question)
    verified = verify_bundle(path, trust, onlookers=(within,))
    for step in verified.steps[:_PROVING_STEPS]:
        if step.status != "ok":
            raise LogError(f"the bundle proves nothing: {step}", code="bundle")
    checkpoint = verified.checkpoint
    assert checkpoint is not None  # its step is ok
    if question.shard not in (None, checkpoint.origin):
        raise LogError(f"the bundle is of {checkpoint.origin}", code="bundle-range")
    first, last = _covered(question, verified.first, verified.last)
    answer = fold.answer(Part(first, last, whole=True, size=checkpoint.size))
    wrong = tuple(f"step {step.number} of the bundle's verification: {step}" for step in verified.failures)
    limits = list(answer.limits)
    if name not in ("reconcile", "completeness") and (first > 0 or last < checkpoint.size - 1):
        limits.append(f"of the log's {checkpoint.size} records only {first} to {last} were looked at")
    if missing := last - first + 1 - within.shown:
        limits.append(f"{missing} records of the range are no longer kept, and are not in this answer")
    basis = Basis(
        source="bundle",
        origin=checkpoint.origin,
        first=first,
        last=last,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        proven=True,
    )
    return Report(
        name=name,
        question=question.given(),
        basis=basis,
        tables=answer.tables,
        findings=tuple(dict.fromkeys((*answer.findings, *wrong))),
        limits=(*limits, *verified.limits),
    )


def _covered(question: Question, first: int, last: int) -> tuple[int, int]:
    """The range that was asked for; raises LogError if the bundle does not hold all of it."""
    asked_first = first if question.first is None else question.first
    asked_last = last if question.last is None else question.last
    if not first <= asked_first <= asked_last <= last:
        raise LogError(f"the bundle holds records {first} to {last} only", code="bundle-range")
    return asked_first, asked_last
