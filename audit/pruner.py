"""The pruner: a user of PostgreSQL who may delete records and nothing else, and does so after they were announced.

Trusts: the index, which the log's writer cannot change, and its own reading of the rules; an announcement only for what
may go at most. Never: reads a leaf, or deletes what no durable record announces.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from audit.database import open_database
from audit.errors import LogUnavailable, PrivacyRefused, reason_of
from audit.holds import Hold, holds_by_index
from audit.limits import RETRY_AFTER_S
from audit.pruning import delete_announced, log_shards, search
from audit.retention import Retention
from sealgate.errors import ConfigurationError
from sealgate.transparency.pruned import Indices


@dataclass(frozen=True, kw_only=True)
class HoldOnRecord:
    """A hold in force, and the record that placed it: `index` in the shard of that `origin`."""

    hold: Hold
    origin: str
    index: int


class Pruner:
    """One connection. Raises ConfigurationError if this user may not delete; `needed` is false where the log's writer
    deletes by itself."""

    def __init__(self, url: str) -> None:
        self._engine: Engine | None = open_database(url).pruner_engine()

    @property
    def needed(self) -> bool:
        return self._engine is not None

    def delete(self, indices: Indices, retention: Retention, *, now_us: int) -> None:
        """Delete what a record announced. Raises ConfigurationError if something of it must be kept after all, or the
        database does not do it; then nothing is deleted."""
        assert self._engine is not None
        try:
            delete_announced(self._engine, indices, retention, now_us=now_us)
        except PrivacyRefused as error:
            raise ConfigurationError(f"not deleted: {error}, by the rules and holds of now; run it again") from error
        except DBAPIError as error:
            raise ConfigurationError(f"the log's database did not delete them ({reason_of(error)})") from error

    def close(self) -> None:
        """Disconnect. Doing so twice is harmless."""
        if self._engine is not None:
            self._engine.dispose()


def count_due(url: str, retention: Retention, *, now_us: int) -> Counter[tuple[str, str]]:
    """How many records are due by the index, per tenant and purpose. Raises LogUnavailable."""
    due: Counter[tuple[str, str]] = Counter()
    start: int | None = 0
    engine = open_database(url).reader_engine()
    try:
        while start is not None:
            with engine.begin() as connection:
                held = holds_by_index(connection)
                found = search(connection, retention, held, start=start, now_us=now_us)
            due.update((record.tenant, record.purpose) for record in found.records)
            start = found.next
    except DBAPIError as error:
        raise _unreadable() from error
    finally:
        engine.dispose()
    return due


def read_holds(url: str) -> list[HoldOnRecord]:
    """The holds in force, by the index. Raises LogUnavailable."""
    engine = open_database(url).reader_engine()
    try:
        with engine.begin() as connection:
            shards = log_shards(connection)
            return [
                HoldOnRecord(hold=hold, origin=shards.of(hold.position).origin, index=shards.index(hold.position))
                for hold in holds_by_index(connection)
            ]
    except DBAPIError as error:
        raise _unreadable() from error
    finally:
        engine.dispose()


def _unreadable() -> LogUnavailable:
    return LogUnavailable(
        "the log's database cannot be read; is it there, and may you read it?",
        code="reader",
        retry_after_s=RETRY_AFTER_S,
    )
