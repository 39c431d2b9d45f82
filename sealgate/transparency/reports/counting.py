"""Counting records in groups, so that a day's roll-up counts like the records it was made of.

`Counted` is one group's sum: a record is one by itself, a row of the database's day roll-ups is one for a whole day.
Pure, in memory bounded by the number of groups. Trusts: its caller for what the rows say. Never: counts a record twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from sealgate.limits import MAX_REPORT_GROUPS
from sealgate.transparency.record import ENDS, Record

DAY_US = 86_400_000_000


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Records that agree in kind, tenant, actor, model, operation, purpose and reason, added up.

    `count` is how often it happened (one record of `auth.failed` stands for many); units and epsilon are those of ends.
    """

    kind: str
    tenant: str = ""
    actor: str = ""
    model: str = ""
    operation: str = ""
    purpose: str = ""
    reason: str = ""
    records: int = 1
    count: int = 1
    units: int = 0
    eps_micro: int = 0
    first_us: int
    last_us: int

    @property
    def group(self) -> tuple[str, ...]:
        """What its records agree in."""
        return (self.kind, self.tenant, self.actor, self.model, self.operation, self.purpose, self.reason)


def counted(record: Record) -> Counted:
    """A record as a group of one."""
    ends = record.kind in ENDS
    return Counted(
        kind=record.kind,
        tenant=record.tenant,
        actor=record.actor,
        model=record.model,
        operation=record.operation,
        purpose=record.purpose,
        reason=record.reason,
        count=_times(record),
        units=record.units if ends else 0,
        eps_micro=record.eps_micro if ends else 0,
        first_us=record.ts_us,
        last_us=record.ts_us,
    )


def add_up(groups: Iterable[Counted]) -> list[Counted]:
    """The same groups with equals joined, in the order in which they first came."""
    sums: dict[tuple[str, ...], Counted] = {}
    for one in groups:
        before = sums.get(one.group)
        sums[one.group] = one if before is None else join(before, one)
    return list(sums.values())


def join(one: Counted, *others: Counted) -> Counted:
    """Some of the same group as one."""
    every = (one, *others)
    return msgspec.structs.replace(
        one,
        records=sum(each.records for each in every),
        count=sum(each.count for each in every),
        units=sum(each.units for each in every),
        eps_micro=sum(each.eps_micro for each in every),
        first_us=min(each.first_us for each in every),
        last_us=max(each.last_us for each in every),
    )


def _times(record: Record) -> int:
    """How often what the record says happened; what says it unreadably happened once."""
    text = record.detail.get("count", "") if record.kind == "auth.failed" else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else 1


@dataclass
class Tally:
    """The running sums of one row of a report."""

    begun: int = 0
    completed: int = 0
    failed: int = 0
    aborted: int = 0
    count: int = 0
    units: int = 0
    eps_micro: int = 0
    first_us: int | None = None
    last_us: int | None = None

    def take(self, one: Counted) -> None:
        """Add a group."""
        ends = {"inference.authorized": "begun", "inference.completed": "completed", "inference.failed": "failed"}
        name = ends.get(one.kind, "aborted" if one.kind == "inference.aborted" else "")
        if name:
            setattr(self, name, getattr(self, name) + one.count)
        self.count += one.count
        self.units += one.units
        self.eps_micro += one.eps_micro
        self.first_us = one.first_us if self.first_us is None else min(self.first_us, one.first_us)
        self.last_us = one.last_us if self.last_us is None else max(self.last_us, one.last_us)


class Tallies:
    """Tallies by key, a bounded number of them: what does not fit is counted as left out, and said so."""

    def __init__(self, key_of: Callable[[Counted], tuple[str, ...]]) -> None:
        self._key_of = key_of
        self._rows: dict[tuple[str, ...], Tally] = {}
        self.left_out = 0

    def take(self, one: Counted) -> None:
        """Add a group to its row."""
        key = self._key_of(one)
        tally = self._rows.get(key)
        if tally is None:
            if len(self._rows) >= MAX_REPORT_GROUPS:
                self.left_out += one.count
                return
            tally = self._rows[key] = Tally()
        tally.take(one)

    def rows(self) -> list[tuple[tuple[str, ...], Tally]]:
        """Sorted by key."""
        return sorted(self._rows.items())
