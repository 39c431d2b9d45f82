"""The tables of a log are those of this release: made, recognised, or brought up to date, by the writer alone.

    nothing there           the tables are created as they are today, and stamped with the newest migration
    a log without a stamp   one from before there were migrations: it has the tables of the first one
    a stamp of the past     the migrations since then run, in the transaction that opens the log
    a stamp of the future   refused: a newer release wrote this log

Alembic is loaded only if there is something to migrate, so that opening a log costs nothing for it; a test holds that
creating and migrating lead to the same tables. Trusts: the stamp. Never: commits, or touches a log it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select

from audit.errors import LogInUse
from audit.tables import METADATA, REVISION, SCHEMA_VERSION, head
from sealgate.errors import ConfigurationError

_FIRST = "0001"  # what a log without a stamp is

# As Alembic makes it.
_STAMP = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def bring_up_to_date(connection: Connection, *, extra_tables: Sequence[MetaData] = ()) -> None:
    """See above; in the caller's transaction. `extra_tables` of other packages are created where they are missing.

    Raises LogInUse for a log of another release, ConfigurationError if Alembic is needed and missing.
    """
    there = set(inspect(connection).get_table_names())
    if _STAMP.name in there:
        stamp = connection.execute(select(_STAMP.c.version_num)).scalar_one_or_none()
    elif head.name in there:
        _require_first_layout(connection)
        stamp = _FIRST
        _put_stamp(connection, stamp)
    else:
        METADATA.create_all(connection)
        stamp = REVISION
        _put_stamp(connection, stamp)
    if stamp != REVISION:
        _migrate(connection, stamp)
    for metadata in extra_tables:
        if not {table.name for table in metadata.sorted_tables} <= there:
            metadata.create_all(connection)


def _put_stamp(connection: Connection, revision: str) -> None:
    _STAMP.create(connection)
    connection.execute(insert(_STAMP).values(version_num=revision))


def _require_first_layout(connection: Connection) -> None:
    versions = connection.execute(select(head.c.schema_version)).scalars().all()
    if any(version != SCHEMA_VERSION for version in versions):
        raise LogInUse("the log was written by another release; its tables have another layout")


def _migrate(connection: Connection, stamp: str | None) -> None:
    try:
        from audit.migrations import upgrade
    except ImportError as error:
        raise ConfigurationError(
            "the log's tables must be brought up to date, which needs the extra 'server'"
        ) from error
    upgrade(connection, stamp)
