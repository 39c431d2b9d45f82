"""What was used, for a bill: requests, rows, units, epsilon, processor time and energy of every request that ended.

    usage    sums by tenant, model, operation and purpose, over all ends in a span of time

Of what stands in a record, some a worker signed and some is the runtime's word; the answer says which. Pure: a fold of
ends in any order. Trusts: the records. Never: estimates what a record does not state, or names a person.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sealgate.limits import MAX_REPORT_GROUPS
from sealgate.transparency.record import ENDS, Record
from sealgate.transparency.reports.form import Answer, Cell, Column, Part, Table
from sealgate.transparency.reports.question import Question

SIGNED = "requests, units and epsilon of completed and failed requests are as their workers signed them"
STATED = (
    "rows, cpu and energy are the runtime's word, on record since the request ended and signed by no worker; "
    "energy by 'declared' is an estimate: processor time times the watts that the operator states"
)
_DIGITS = 15
TITLE = "usage"


@dataclass
class UsageRow:
    """The sums of one group. Times are microseconds, energy microjoules."""

    requests: int = 0
    completed: int = 0
    units: int = 0
    eps_micro: int = 0
    rows: int = 0
    cpu_us: int = 0
    energy_uj: int = 0
    unstated: int = 0  # requests whose record says nothing of rows and processor time
    energy_by: set[str] = field(default_factory=set)

    def take(self, record: Record) -> None:
        """Add an end."""
        self.requests += 1
        self.completed += record.kind == "inference.completed"
        self.units += record.units
        self.eps_micro += record.eps_micro
        detail = record.detail
        if "cpu_us" not in detail:
            self.unstated += 1
            return
        self.rows += amount(detail, "rows")
        self.cpu_us += amount(detail, "cpu_us")
        if "energy_uj" in detail:
            self.energy_uj += amount(detail, "energy_uj")
            self.energy_by.add(detail.get("energy_by", ""))


def amount(detail: dict[str, str], name: str) -> int:
    """A whole number in a detail; 0 for what is none."""
    text = detail.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else 0


class Usage:
    """What was used, by whom, of what, for what."""

    kinds = tuple(sorted(ENDS))

    def __init__(self, question: Question) -> None:
        self._question = question
        self._rows: dict[tuple[str, str, str, str], UsageRow] = {}
        self._left_out = 0

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        question = self._question
        if record.kind not in ENDS or not question.covers_time(record.ts_us) or not question.matches(record):
            return
        key = (record.tenant, record.model, record.operation, record.purpose)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_REPORT_GROUPS:
                self._left_out += 1
                return
            row = self._rows[key] = UsageRow()
        row.take(record)

    def answer(self, part: Part) -> Answer:
        columns = (
            *(Column(name) for name in ("tenant", "model", "operation", "purpose")),
            *(Column(name, "number") for name in ("requests", "completed", "units")),
            Column("epsilon", "epsilon"),
            *(Column(name, "number") for name in ("rows", "cpu us", "energy uJ", "not stated")),
            Column("energy by"),
        )
        table = Table(
            title=TITLE,
            columns=columns,
            rows=tuple((*key, *_cells(row)) for key, row in sorted(self._rows.items())),
            left_out=self._left_out,
        )
        return Answer((table,), limits=(SIGNED, STATED, "records that are no longer kept are in no sum"))


def _cells(row: UsageRow) -> tuple[Cell, ...]:
    known = row.requests - row.unstated
    return (
        row.requests,
        row.completed,
        row.units,
        row.eps_micro,
        row.rows if known else None,
        row.cpu_us if known else None,
        row.energy_uj if row.energy_by else None,
        row.unstated,
        " ".join(sorted(row.energy_by)),
    )
