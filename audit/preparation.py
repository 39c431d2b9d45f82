"""Making a PostgreSQL database ready for a log: tables, roles, grants. What the owner runs and the writer may not.

Holds the writer's lock meanwhile, so it never runs beside a writer; one transaction, so it happens whole or not at all;
doing it again changes nothing. Trusts: whoever may create tables and roles there. Never: gives a role a login.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import MetaData, inspect
from sqlalchemy.exc import DBAPIError, ProgrammingError

from audit.database import open_database
from audit.errors import reason_of
from audit.schema import bring_up_to_date
from audit.tables import REVISION
from sealgate.errors import ConfigurationError

_ROLES = Path(__file__).parent / "migrations" / "roles.sql"
KINDS = ("writer", "reader", "auditor", "pruner")


@dataclass(frozen=True)
class Prepared:
    """What stands there now. `roles` are to be granted to roles that log in; `created` says which tables are new."""

    revision: str
    created: tuple[str, ...]
    roles: tuple[str, ...]


def prepare_database(url: str, *, extra_tables: Sequence[MetaData] = ()) -> Prepared:
    """Create or migrate the tables, create the roles, grant what each may do. Raises ConfigurationError, LogInUse."""
    database = open_database(url)
    if not url.startswith("postgresql"):
        raise ConfigurationError("a log in an SQLite file needs no preparation: the file's owner is its writer")
    hold = database.open_writer()
    try:
        with hold.engine.begin() as connection:
            before = set(inspect(connection).get_table_names())
            bring_up_to_date(connection, extra_tables=extra_tables)
            created = set(inspect(connection).get_table_names()) - before
            _run(connection.connection.driver_connection)
            name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
    except DBAPIError as error:
        raise _refusal(error) from error
    finally:
        hold.release()
    return Prepared(REVISION, tuple(sorted(created)), tuple(f"{name}_{kind}" for kind in KINDS))


def _run(raw: object) -> None:
    """The file has no parameters; only without any does psycopg leave its percent signs alone."""
    import psycopg

    assert isinstance(raw, psycopg.Connection)
    try:
        raw.execute(_ROLES.read_bytes())
    except psycopg.Error as error:
        raise ProgrammingError(str(_ROLES.name), None, error) from error


def _refusal(error: DBAPIError) -> ConfigurationError:
    reason = reason_of(error)
    if reason == "InsufficientPrivilege":
        return ConfigurationError(
            "this user may not prepare the log's database; be its owner and have CREATEROLE, or be a superuser"
        )
    if reason == "RaiseException":
        message = getattr(getattr(error.orig, "diag", None), "message_primary", "") or reason
        return ConfigurationError(f"the log's database cannot be prepared: {message}")
    return ConfigurationError(f"the log's database cannot be prepared ({reason})")
