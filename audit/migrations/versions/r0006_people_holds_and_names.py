"""A key for each person, the chain of holds, and indexes of purposes and of models' digests.

Lookups go when the log is opened and each person has a key; until then they stand in the same column.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them."""
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.add_column("head", sa.Column("holds", sa.LargeBinary, nullable=True))
    if on_sqlite:
        _let_lookups_be_null()
    else:
        op.alter_column("subject", "lookup", nullable=True)
    for name, column in (("purpose", sa.text("purpose")), ("model_digest", sa.text("substr(model_digest, 1, 8)"))):
        where = sa.text(f"{name} <> ''")
        columns = [column] if on_sqlite else [column, sa.text("idx")]
        op.create_index(f"record_{name}", "record", columns, sqlite_where=where, postgresql_where=where)


def _let_lookups_be_null() -> None:
    """SQLite changes no column; a table is small enough to be written anew."""
    op.rename_table("subject", "subject_before")
    op.create_table(
        "subject",
        sa.Column("ref", sa.Text, primary_key=True),
        sa.Column("lookup", sa.LargeBinary, nullable=True, unique=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_us", _Big, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO subject SELECT ref, lookup, sealed, created_us FROM subject_before")
    op.drop_table("subject_before")


def downgrade() -> None:
    """A log is not undone."""
    raise NotImplementedError("a log's tables are not taken away")
