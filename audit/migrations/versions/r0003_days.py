"""Roll-ups by day. They are empty at first: the writer counts what the log holds already when it opens it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "day_count",
        sa.Column("day", _Big, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("tenant", "actor", "model", "operation")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("purpose", "reason")),
        *(sa.Column(name, _Big, nullable=False) for name in ("records", "counted", "units", "eps_micro")),
        *(sa.Column(name, _Big, nullable=False) for name in ("first_us", "last_us")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "day_span",
        sa.Column("day", _Big, primary_key=True, autoincrement=False),
        sa.Column("first_idx", _Big, nullable=False),
        sa.Column("last_idx", _Big, nullable=False),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """A log is not undone."""
    raise NotImplementedError("a log's tables are not taken away")
