"""The trees as they are stored: rows of 256 hashes (C2SP tile shape), written as they fill, read back for proofs.

Level 0 rows are written when full; until then the leaves themselves are hashed. A row of a higher level holds the roots
of full rows below and is rewritten as it grows, once per 256 leaves. So 255 appends in 256 write no row at all. When a
shard ends, its last row is written as it is: its leaves may be pruned one day.

A shard's rows stand in levels of their own, SHARD_LEVELS apart: no tree is that high.
Trusts: the database for speed only: every proof is checked against a signed root by whoever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, select

from audit.errors import LogDamaged
from audit.limits import TILE_HEIGHT, TILE_WIDTH
from audit.rows import Statement
from audit.shards import Shard
from audit.tables import leaf as leaf_table
from audit.tables import tile as tile_table
from sealgate.transparency.merkle import HASH_SIZE, leaf_hash, root_of

SHARD_LEVELS = 16

# The same text for SQLite and PostgreSQL.
_PUT_TILE = Statement("""
    INSERT INTO tile (level, idx, hashes) VALUES (:level, :idx, :hashes)
    ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes
""")


def cut(hashes: bytes) -> list[bytes]:
    """A row's hashes, one by one."""
    return [hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE)]


def read_tile(connection: Connection, shard: Shard, level: int, index: int, width: int) -> bytes:
    """The first `width` hashes of one row; raises LogDamaged if the database does not hold them."""
    stored_level = shard.number * SHARD_LEVELS + level
    stored = connection.execute(
        select(tile_table.c.hashes).where(tile_table.c.level == stored_level, tile_table.c.idx == index)
    ).scalar_one_or_none()
    if stored is None and level == 0:
        first = shard.first + (index << TILE_HEIGHT)
        rows = connection.execute(
            select(leaf_table.c.leaf)
            .where(leaf_table.c.idx >= first, leaf_table.c.idx < first + width)
            .order_by(leaf_table.c.idx)
        ).scalars()
        stored = b"".join(leaf_hash(row) for row in rows)
    if stored is None or len(stored) < width * HASH_SIZE:
        raise LogDamaged("hashes of the tree are missing from the database")
    return bytes(stored[: width * HASH_SIZE])


class StoredTree:
    """A `HashSource` over the tables for a shard's tree of `size` leaves, within one transaction. Remembers what it
    read."""

    def __init__(self, connection: Connection, shard: Shard, size: int) -> None:
        self._connection = connection
        self._shard = shard
        self._size = size
        self._rows: dict[tuple[int, int], list[bytes]] = {}

    def __call__(self, level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        start = index << height
        tile_index, offset = start >> TILE_HEIGHT, start % TILE_WIDTH
        row = self._row(tile_level, tile_index)
        wanted = row[offset : offset + (1 << height)]
        return wanted[0] if height == 0 else root_of(wanted)

    def _row(self, level: int, index: int) -> list[bytes]:
        row = self._rows.get((level, index))
        if row is None:
            complete = self._size >> (TILE_HEIGHT * level)  # entries that this level has in all
            width = min(TILE_WIDTH, complete - (index << TILE_HEIGHT))
            row = cut(read_tile(self._connection, self._shard, level, index, width))
            self._rows[level, index] = row
        return row


class TileWriter:
    """The growing edge of the rows, in the writer's memory. Owned by the writer thread."""

    def __init__(self, shard: Shard, size: int, read: Callable[[int, int, int], bytes]) -> None:
        """`read(level, index, width)` gives the partial rows at the right edge of a tree of `size` leaves."""
        self._lowest = shard.number * SHARD_LEVELS
        self._edges: list[list[bytes]] = []  # per level, the hashes of its last row, fewer than 256
        self._indexes: list[int] = []  # per level, which row that is
        while size:
            index, width = size >> TILE_HEIGHT, size % TILE_WIDTH
            level = len(self._edges)
            self._edges.append(cut(read(level, index, width)) if width else [])
            self._indexes.append(index)
            size >>= TILE_HEIGHT

    def append(
        self, hashes: Sequence[bytes], completed: Mapping[tuple[int, int], bytes], connection: Connection
    ) -> None:
        """Add leaf hashes; write the rows that became full or grew, in the caller's transaction. `completed` are the
        subtrees (level, position) that these leaves completed: the roots of full rows are among them."""
        changed: dict[tuple[int, int], bytes] = {}
        for item in hashes:
            self._add(0, item, changed, completed)
        self._put(changed, connection)

    def close(self, connection: Connection) -> None:
        """The tree grows no more: write its last row of leaves' hashes, which is not full."""
        if self._edges and self._edges[0]:
            self._put({(0, self._indexes[0]): b"".join(self._edges[0])}, connection)

    def _put(self, changed: dict[tuple[int, int], bytes], connection: Connection) -> None:
        if changed:
            rows = changed.items()
            _PUT_TILE.run(
                connection,
                [{"level": self._lowest + level, "idx": index, "hashes": row} for (level, index), row in rows],
            )

    def _add(
        self,
        level: int,
        item: bytes,
        changed: dict[tuple[int, int], bytes],
        completed: Mapping[tuple[int, int], bytes],
    ) -> None:
        if level == len(self._edges):
            self._edges.append([])
            self._indexes.append(0)
        edge, index = self._edges[level], self._indexes[level]
        edge.append(item)
        full = len(edge) == TILE_WIDTH
        if level > 0 or full:
            changed[level, index] = b"".join(edge)
        if full:
            self._edges[level], self._indexes[level] = [], index + 1
            self._add(level + 1, completed[TILE_HEIGHT * (level + 1), index], changed, completed)
