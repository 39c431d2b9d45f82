"""Indexes of what few records have: a reason, an outcome other than the usual one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make them."""
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    rare = {"reason": sa.text("reason <> ''"), "outcome": sa.text("outcome <> '' AND outcome <> 'completed'")}
    for name, where in rare.items():
        columns = [name] if on_sqlite else [name, "idx"]
        op.create_index(f"record_{name}", "record", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """A log is not undone."""
    raise NotImplementedError("a log's indexes are not taken away")
