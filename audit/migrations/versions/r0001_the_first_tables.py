"""The tables that a log began with: leaves, their index, open requests, tree, checkpoints, pseudonyms.

Not for logs that have them without a stamp: those are stamped with this one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("size", _Big, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("cursor_key", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "leaf",
        sa.Column("idx", _Big, primary_key=True, autoincrement=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    words = ("kind", "tenant", "actor", "model", "model_digest", "purpose", "outcome", "reason")
    op.create_table(
        "record",
        sa.Column("idx", _Big, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("ts_us", _Big, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in words),
        sqlite_strict=True,
    )
    op.create_index("record_id", "record", ["id"], unique=True)
    op.create_index("record_ts", "record", ["ts_us"])
    order = [] if op.get_context().dialect.name == "sqlite" else ["idx"]  # SQLite's entries end with it anyway
    for column in ("kind", "tenant", "actor", "model"):
        op.create_index(f"record_{column}", "record", [column, *order])
    _make_the_rest()


def _make_the_rest() -> None:
    op.create_table(
        "open_intent",
        sa.Column("grant_id", sa.Text, primary_key=True),
        sa.Column("idx", _Big, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tile",
        sa.Column("level", sa.Integer, primary_key=True),
        sa.Column("idx", _Big, primary_key=True),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "checkpoint",
        sa.Column("size", _Big, primary_key=True, autoincrement=False),
        sa.Column("ts_us", _Big, nullable=False),
        sa.Column("note", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "subject",
        sa.Column("ref", sa.Text, primary_key=True),
        sa.Column("lookup", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_us", _Big, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """A log is not undone."""
    raise NotImplementedError("a log's tables are not taken away")
