"""Alembic's migrations of the log's tables, one module each in `versions`, run by the log's writer.

`audit.schema` decides when. To write one: change `audit.tables`, add a module with the next number, set `REVISION`.
Every migration runs in one transaction on both databases. Trusts: nothing. Never: touches what a leaf says.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from audit.errors import LogInUse

_PLACE = Path(__file__).parent


def configuration(connection: Connection | None = None) -> Config:
    """What Alembic needs to know; with a connection, migrations run in its transaction."""
    config = Config()
    config.set_main_option("script_location", str(_PLACE).replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, stamp: str | None, *, to: str = "head") -> None:
    """Run what is missing since `stamp`, in the caller's transaction. Raises LogInUse if no release knows the stamp."""
    config = configuration(connection)
    if stamp is not None:
        try:
            ScriptDirectory.from_config(config).get_revision(stamp)
        except CommandError as error:
            raise LogInUse("the log was written by another release; its tables have another layout") from error
    command.upgrade(config, to)
