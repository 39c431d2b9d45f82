"""Where a log's shards stand in its tables: positions count through all of them, indices within one tree.

    position   `idx` of leaves and index rows: from 0, through all shards
    index      a record's place in the tree of its shard: position minus the position of the shard's first record

Trusts: the database, as readers do: what is proven is proven against signed roots. The writer compares the newest rows
with what its leaves say (`opening`). Never: guesses a shard that is not there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from audit.errors import QueryRefused
from audit.tables import shard as shard_table

_READ = select(shard_table.c.number, shard_table.c.origin, shard_table.c.first_idx, shard_table.c.half_year).order_by(
    shard_table.c.number
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tree. `first` is the position of its first record."""

    number: int
    origin: str
    first: int
    half_year: int


class Shards:
    """All shards of a log that has `size` records in all, oldest first; there is at least one. `indexed` is up to where
    they have index rows: the writer may be a moment behind with them."""

    def __init__(self, shards: Sequence[Shard], size: int, *, indexed: int | None = None) -> None:
        self.all = tuple(shards)
        self.size = size
        self.indexed = size if indexed is None else min(indexed, size)
        self._firsts = [shard.first for shard in shards]

    def as_indexed(self) -> Shards:
        """The log as the index has it."""
        return Shards(self.all, self.indexed)

    @property
    def newest(self) -> Shard:
        return self.all[-1]

    def of(self, position: int) -> Shard:
        """The shard that holds this position."""
        return self.all[bisect_right(self._firsts, position) - 1]

    def index(self, position: int) -> int:
        """The record's index in its shard."""
        return position - self.of(position).first

    def named(self, origin: str | None) -> Shard:
        """The shard of this origin, the newest for None; raises QueryRefused (`not-found`)."""
        if origin is None:
            return self.newest
        for shard in self.all:
            if shard.origin == origin:
                return shard
        raise QueryRefused("this log has no shard of that name", code="not-found")

    def end(self, shard: Shard) -> int:
        """The position after the shard's last record."""
        following = shard.number + 1
        return self.all[following].first if following < len(self.all) else self.size

    def size_of(self, shard: Shard) -> int:
        """How many records the shard has."""
        return self.end(shard) - shard.first

    def edges(self) -> frozenset[int]:
        """Positions of the records that chain shards: the last one of each closed shard and the first of the next."""
        return frozenset(position for first in self._firsts[1:] for position in (first - 1, first))


def read_shards(connection: Connection, *, origin: str, size: int, indexed: int | None = None) -> Shards:
    """The shards of the log of this name. A log that its writer has not opened since there are shards is its own."""
    rows = connection.execute(_READ).all()
    found = [Shard(number=row[0], origin=row[1], first=row[2], half_year=row[3]) for row in rows]
    return Shards(found or [Shard(number=0, origin=origin, first=0, half_year=0)], size, indexed=indexed)


def add_shard(connection: Connection, shard: Shard) -> None:
    """Note a shard, in the writer's transaction."""
    connection.execute(
        insert(shard_table).values(
            number=shard.number, origin=shard.origin, first_idx=shard.first, half_year=shard.half_year
        )
    )
