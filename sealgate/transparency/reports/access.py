"""Who used which model, for which purpose, how often, and how it ended.

    access    authorized requests and their ends, by tenant, actor, model, operation and purpose
    denials   refused requests by reason, and failed authentications, which name nobody

Both only count, so days that are over can come from roll-ups. Trusts: the records. Never: names a person: an actor is
a random pseudonym, and who is behind it stands in the report on a subject.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from sealgate.transparency.record import ENDS, Record
from sealgate.transparency.reports.counting import Counted, Tallies, Tally, counted
from sealgate.transparency.reports.form import Answer, Cell, Column, Part, Table
from sealgate.transparency.reports.question import Question

_WHO = tuple(Column(name) for name in ("tenant", "actor", "model", "operation", "purpose"))
_WHEN = (Column("first (UTC)", "time"), Column("last (UTC)", "time"))


def _used(row: Tally) -> tuple[Cell, ...]:
    ends = (row.begun, row.completed, row.failed, row.aborted)
    return (*ends, row.units, row.eps_micro, row.first_us, row.last_us)


class Counts(ABC):
    """A report that only counts: a fold that takes whole groups too."""

    kinds: tuple[str, ...] = ()

    def __init__(self, question: Question) -> None:
        self._question = question

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if record.kind in self.kinds and self._question.covers_time(record.ts_us):
            self.take(counted(record))

    def take(self, one: Counted) -> None:
        """Add a group; all of it must lie in the span that was asked for."""
        if one.kind in self.kinds and self._question.matches(one):
            self._add(one)

    @abstractmethod
    def answer(self, part: Part) -> Answer:
        """What was counted."""

    @abstractmethod
    def _add(self, one: Counted) -> None: ...


class Access(Counts):
    """Used: by whom, what, for what."""

    kinds = ("inference.authorized", *sorted(ENDS))

    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self._used = Tallies(lambda one: (one.tenant, one.actor, one.model, one.operation, one.purpose))

    def _add(self, one: Counted) -> None:
        self._used.take(one)

    def answer(self, part: Part) -> Answer:
        numbers = tuple(Column(name, "number") for name in ("begun", "completed", "failed", "aborted", "units"))
        rows = tuple((*key, *_used(row)) for key, row in self._used.rows())
        table = Table(
            title="use of models",
            columns=(*_WHO, *numbers, Column("epsilon", "epsilon"), *_WHEN),
            rows=rows,
            left_out=self._used.left_out,
        )
        return Answer((table,))


class Denials(Counts):
    """Refused: whom, and why."""

    kinds = ("auth.failed", "inference.denied")

    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self._denied = Tallies(lambda one: (one.tenant, one.actor, one.model, one.operation, one.purpose, one.reason))
        self._reasons = Tallies(lambda one: (one.kind, one.reason))

    def _add(self, one: Counted) -> None:
        self._reasons.take(one)
        if one.kind == "inference.denied":
            self._denied.take(one)

    def answer(self, part: Part) -> Answer:
        count = Column("count", "number")
        reasons = Table(
            title="refusals by reason",
            columns=(Column("kind"), Column("reason"), count, *_WHEN),
            rows=tuple((*key, row.count, row.first_us, row.last_us) for key, row in self._reasons.rows()),
            left_out=self._reasons.left_out,
        )
        denied = Table(
            title="requests that were denied",
            columns=(*_WHO, Column("reason"), count, *_WHEN),
            rows=tuple((*key, row.count, row.first_us, row.last_us) for key, row in self._denied.rows()),
            left_out=self._denied.left_out,
        )
        return Answer(
            (reasons, denied),
            limits=("who failed to authenticate is not known: those are counted by reason, source and minute",),
        )
