"""One report over several logs: the same question to each, the answers laid together by time; each row says its log.

Every log answers for itself, with a basis of its own: there is no proof over several logs, only one for each. Numbers
are not added up across logs: each host keeps its own budgets and counters. Trusts: the reports it is given. Never:
hides that a log did not answer, or calls the whole proven when one part is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sealgate.errors import DecodeError
from sealgate.transparency.reports.bundles import report_from_bundle
from sealgate.transparency.reports.catalogue import REPORTS
from sealgate.transparency.reports.form import Basis, Cell, Column, Report, Table
from sealgate.transparency.reports.question import RANGE, Question
from sealgate.transparency.several import missing_logs
from sealgate.transparency.verifier import LogTrust

_APART = "each log answers for itself: nothing is added up across logs, and budgets are kept by each host on its own"
_LOG = Column("log")
_NEVER = 2**63  # behind every time


class JointReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers of several logs. `bases` has one for each log; `missing` names those that did not answer."""

    name: str
    question: dict[str, str]
    bases: tuple[Basis, ...]
    tables: tuple[Table, ...]
    missing: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing contradicts itself, and every log answered."""
        return not (self.findings or self.missing)


def join_reports(reports: Sequence[Report], *, missing: Sequence[str] = ()) -> JointReport:
    """The answers of several logs to one question. Raises DecodeError for answers to different ones, or to none."""
    if not reports or len({(report.name, tuple(sorted(report.question.items()))) for report in reports}) != 1:
        raise DecodeError("these are not answers of several logs to one question", code="report-parameter")
    _require_apart([report.basis for report in reports])
    limits = dict.fromkeys(f"{report.basis.origin}: {limit}" for report in reports for limit in report.limits)
    common = [text for text in reports[0].limits if all(text in report.limits for report in reports)]
    apart = [text for text in limits if text.partition(": ")[2] not in common]
    return JointReport(
        name=reports[0].name,
        question=reports[0].question,
        bases=tuple(report.basis for report in reports),
        tables=_joined([(report.basis.origin, table) for report in reports for table in report.tables]),
        missing=tuple(missing),
        findings=tuple(f"{report.basis.origin}: {finding}" for report in reports for finding in report.findings),
        limits=(_APART, *common, *apart),
    )


def report_from_bundles(
    paths: Sequence[Path], trust: LogTrust, *, name: str, question: Question, logs: Sequence[str] = ()
) -> JointReport:
    """The answer out of bundles of several logs, each proven as by `report_from_bundle`; raises LogError as that does.
    `logs` names those that must be there (none: all that `trust` knows)."""
    require_joint(name, question)
    reports = [report_from_bundle(path, trust, name=name, question=question) for path in paths]
    wanted = logs or tuple(dict.fromkeys(verifier.name for verifier in trust.verifiers))
    return join_reports(reports, missing=missing_logs(wanted, [report.basis.origin for report in reports]))


def require_joint(name: str, question: Question) -> None:
    """Raise DecodeError for a question that means something else in each log."""
    if name in REPORTS and any(getattr(question, one) is not None for one in RANGE):
        raise DecodeError("records have numbers of their own in each log: ask for a range of one log", code="range")


def _require_apart(bases: Sequence[Basis]) -> None:
    """No record may count twice."""
    ordered = sorted(bases, key=lambda basis: (basis.origin, basis.first))
    for before, after in itertools.pairwise(ordered):
        if before.origin == after.origin and after.first <= before.last:
            raise DecodeError(f"two of these hold the same records of {after.origin}", code="range")


def _joined(tables: Sequence[tuple[str, Table]]) -> tuple[Table, ...]:
    """Tables of one title and form are one; rows in the order of their time, and of the logs where there is none."""
    alike: dict[tuple[str, tuple[Column, ...]], list[tuple[str, Table]]] = {}
    for origin, table in tables:
        alike.setdefault((table.title, table.columns), []).append((origin, table))
    return tuple(_one_table(title, columns, parts) for (title, columns), parts in alike.items())


def _one_table(title: str, columns: tuple[Column, ...], parts: Sequence[tuple[str, Table]]) -> Table:
    at = next((number for number, column in enumerate(columns) if column.unit == "time"), None)
    rows: list[tuple[Cell, ...]] = [(origin, *row) for origin, table in parts for row in table.rows]
    if at is not None:
        rows.sort(key=lambda row: _moment(row[at + 1]))
    left_out = sum(table.left_out for _, table in parts)
    return Table(title=title, columns=(_LOG, *columns), rows=tuple(rows), left_out=left_out)


def _moment(cell: Cell) -> int:
    return cell if isinstance(cell, int) else _NEVER
