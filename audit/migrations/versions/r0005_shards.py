"""The trees of half-years. A log that has none goes on as its own first shard: the writer says so when it opens it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "shard",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("origin", sa.Text, nullable=False, unique=True),
        sa.Column("first_idx", _Big, nullable=False),
        sa.Column("half_year", sa.Integer, nullable=False),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """A log is not undone."""
    raise NotImplementedError("a log's tables are not taken away")
