"""Making the roll-ups by day anew, from the leaves that are kept: for a database whose derived rows are damaged.

Holds the writer's lock meanwhile, so it never runs beside a writer; one transaction, so reports see the old roll-ups or
the new ones. Trusts: the leaves. Never: changes a leaf, an index row or the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from audit.database import open_database
from audit.days import rebuild_days
from audit.errors import LogUnavailable, reason_of
from audit.limits import RETRY_AFTER_S
from audit.tables import SCHEMA_VERSION, day_count, day_span
from audit.tables import head as head_table
from sealgate.errors import ConfigurationError


@dataclass(frozen=True)
class Rebuilt:
    """What stands there now: how many days of how many groups."""

    days: int
    groups: int


def rebuild_roll_ups(url: str, *, origin: str) -> Rebuilt:
    """Count every leaf that is kept. Raises LogInUse while a writer runs, LogDamaged for a leaf that is no record,
    ConfigurationError if the database is not this log's or this user may not, LogUnavailable if it failed."""
    hold = open_database(url).open_writer()
    try:
        with hold.engine.begin() as connection:
            head = connection.execute(select(head_table.c.origin, head_table.c.schema_version)).one_or_none()
            if head is None or head.origin != origin or head.schema_version != SCHEMA_VERSION:
                raise ConfigurationError("the database is not this log's, or no runtime of this release opened it yet")
            rebuild_days(connection)
            days = connection.execute(select(func.count()).select_from(day_span)).scalar_one()
            groups = connection.execute(select(func.count()).select_from(day_count)).scalar_one()
    except DBAPIError as error:
        if reason_of(error) == "InsufficientPrivilege":
            raise ConfigurationError("this user may not rebuild them; run it as the owner of the database") from error
        raise LogUnavailable(
            f"they could not be rebuilt ({reason_of(error)}); nothing was changed",
            code="log-failed",
            retry_after_s=RETRY_AFTER_S,
        ) from error
    finally:
        hold.release()
    return Rebuilt(days=int(days), groups=int(groups))
