"""The form of a report: tables of text and integers, what was found wrong, and how far all of it is proven.

A report is canonical JSON of its own (`document`), so that its SHA-256 can be put on record by a review. Times are
microseconds, epsilon is in millionths. Trusts: nothing. Never: holds floats, or says "proven" without a checkpoint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.record import Record

Unit = Literal["text", "number", "time", "epsilon"]
Cell = str | int | None
"""None where there is nothing to say, a time that never came for example."""


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A heading, and how its cells are to be read."""

    name: str
    unit: Unit = "text"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rows under headings; every row has a cell for every column. `left_out` counts rows beyond the bound."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left_out: int = 0


class Basis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the answer was computed from.

    `proven` means that every record first..last was there and led to the root of a checkpoint that a trusted log key
    signed. Otherwise it is the word of the service's database, in a snapshot of `size` records.
    """

    source: Literal["bundle", "database"]
    origin: str
    first: int
    last: int  # -1 with first 0: nothing
    size: int
    root: str = ""
    proven: bool = False


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One answer. `findings` are contradictions; `limits` say what the answer does not show."""

    name: str
    question: dict[str, str]
    basis: Basis
    tables: tuple[Table, ...]
    findings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing that was looked at contradicts itself."""
        return not self.findings

    def document(self) -> bytes:
        """The canonical bytes."""
        return canonical_json(self)

    def digest(self) -> str:
        """SHA-256 of the document: what a review puts on record."""
        return hashlib.sha256(self.document()).hexdigest()


def require_own_word(report: Report, *, name: str) -> None:
    """Raises DecodeError for an answer of a service that is of another report or that calls itself proven."""
    if report.name != name or report.basis.proven or report.basis.source != "database":
        raise DecodeError("the service's answer is not its own word on this report", code="other-report")
    for table in report.tables:
        for row in table.rows:
            if len(row) != len(table.columns) or any(
                _unreadable(*pair) for pair in zip(table.columns, row, strict=True)
            ):
                raise DecodeError("the service's report is malformed")


def _unreadable(column: Column, cell: Cell) -> bool:
    if cell is None:
        return False
    whole = column.unit in ("time", "epsilon")
    return not isinstance(cell, int) if whole else column.unit == "text" and not isinstance(cell, str)


@dataclass(frozen=True)
class Part:
    """Which records a fold was shown: first..last of a log of `size` (0: not known), and whether all of them or only
    those it selects."""

    first: int
    last: int
    whole: bool
    size: int = 0

    @property
    def from_start(self) -> bool:
        return self.first == 0


@dataclass(frozen=True)
class Answer:
    """What a fold found; `Report` adds the question and the basis."""

    tables: tuple[Table, ...]
    findings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


class Fold(Protocol):
    """A report on its way: sees records in the order of the log, then answers."""

    def see(self, index: int, record: Record, leaf: bytes) -> None: ...

    def answer(self, part: Part) -> Answer: ...
