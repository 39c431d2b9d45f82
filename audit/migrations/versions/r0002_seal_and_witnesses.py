"""The writer's seal over the head, and the checkpoints that witnesses cosigned.

A log that has no seal yet gets one when it is opened, if its newest checkpoint is of all its records.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them."""
    op.add_column("head", sa.Column("seal", sa.LargeBinary, nullable=True))
    op.create_table(
        "cosigned",
        sa.Column("size", _Big, primary_key=True, autoincrement=False),
        sa.Column("ts_us", _Big, nullable=False),
        sa.Column("note", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """A log is not undone."""
    raise NotImplementedError("a log's tables are not taken away")
