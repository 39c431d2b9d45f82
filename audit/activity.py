"""How many records of each kind there were a day, from the day roll-ups: what a chart over time is drawn from.

Bounded whatever is asked: at most MAX_ACTIVITY_DAYS days, the newest of those that were asked for; without a beginning,
ACTIVITY_DAYS. Days are whole and UTC. Trusts: the roll-ups, which are no evidence. Never: reads leaves or index rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Select, func, select

from audit.limits import ACTIVITY_DAYS, MAX_ACTIVITY_DAYS
from audit.tables import day_count, day_span
from sealgate.transparency.reports.counting import DAY_US

if TYPE_CHECKING:
    from audit.pages import RecordFilter

_NAMES = ("tenant", "actor", "model", "purpose", "reason")


@dataclass(frozen=True, kw_only=True)
class Activity:
    """`counts` of days (since 1970) and kinds, between two days, both included; a day without records is not there.
    `cut` says that more days were asked for."""

    first_day: int
    last_day: int
    counts: tuple[tuple[int, str, int], ...]
    cut: bool = False


def read_activity(connection: Connection, asked: RecordFilter, *, kinds: Sequence[str]) -> Activity | None:
    """The records of these kinds that a filter leaves, a day; None where the roll-ups do not know a word of it, or
    where there is no such day."""
    if asked.model_digest is not None or asked.outcome is not None:
        return None
    oldest, newest = connection.execute(select(func.min(day_span.c.day), func.max(day_span.c.day))).one()
    if newest is None:
        return None
    last = newest if asked.to_us is None else min(newest, (asked.to_us - 1) // DAY_US)
    first = last - ACTIVITY_DAYS + 1 if asked.from_us is None else asked.from_us // DAY_US
    first, most = max(first, oldest), last - MAX_ACTIVITY_DAYS + 1
    cut, first = first < most, max(first, most)
    if first > last:
        return None
    rows = connection.execute(activity_statement(asked, first=first, last=last, kinds=kinds))
    counts = tuple((row.day, row.kind, int(row.counted)) for row in rows)
    return Activity(first_day=first, last_day=last, counts=counts, cut=cut)


def activity_statement(
    asked: RecordFilter, *, first: int, last: int, kinds: Sequence[str]
) -> Select[tuple[int, str, int]]:
    """The one statement behind it: roll-ups of the days first..last."""
    table = day_count
    statement = select(table.c.day, table.c.kind, func.sum(table.c.counted).label("counted")).where(
        table.c.day >= first, table.c.day <= last, table.c.kind.in_(list(kinds))
    )
    for name in _NAMES:
        if (value := getattr(asked, name)) is not None:
            statement = statement.where(table.c[name] == value)
    return statement.group_by(table.c.day, table.c.kind).order_by(table.c.day)
