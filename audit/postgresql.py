"""A log in PostgreSQL: one writer whose session holds the log's advisory lock, readers that cannot write.

The writer has one connection in its life. It takes the lock, writes on it, and when it is lost the lock is lost with
it: then nothing is written any more, and the log has failed until a restart. So no second writer can come in between
two batches of the first. One log is one database; its tables are in the schema `public`.

Trusts: the server's fsync, which it insists on, and its word that a transaction is durable (`synchronous_commit=on`).
Never: takes a password from the URL, speaks in clear to another machine, or lets a second writer in.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import psycopg
from psycopg import errors as pg_errors
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from audit.copying import CopiedRows
from audit.errors import LogDamaged, LogInUse, reason_of
from audit.limits import (
    BUSY_TIMEOUT_MS,
    CONNECT_TIMEOUT_S,
    CONNECTION_CHECK_S,
    CONNECTION_LOST_S,
    MAX_PRUNE_S,
    MAX_QUERY_S,
    MAX_READER_CONNECTIONS,
    READER_IDLE_S,
    WRITER_LOCK_WAIT_S,
)
from audit.rows import Rows
from sealgate.errors import ConfigurationError, SealgateError

_OLDEST = 150_000  # PostgreSQL 15
_LOCK = int.from_bytes(hashlib.sha256(b"sealgate audit log: its writer").digest()[:8], "big", signed=True)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_IN_URL = frozenset({"host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "passfile"})

# A session that loses its peer must end, for a dead writer's lock keeps the next one out.
_COMMON = {
    "search_path": "public,pg_temp",
    "client_connection_check_interval": "1000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class PostgresqlDatabase:
    """The database that a URL names, as `audit.database.Database` asks for it."""

    idle_check_s: float | None = CONNECTION_CHECK_S

    def __init__(self, url: str) -> None:
        self._parameters = _parameters(url)

    def open_writer(self) -> PostgresqlHold:
        """Connect, see that the server keeps what it is given, take the lock."""
        settings = {
            **_COMMON,
            "synchronous_commit": "on",
            "default_transaction_read_only": "off",
            "lock_timeout": str(BUSY_TIMEOUT_MS),
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            "idle_session_timeout": "0",
        }
        try:
            connection = self._connect("sealgate audit writer", settings)
            try:
                _require_durable(connection)
                _take_lock(connection)
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as error:
            raise ConfigurationError(
                f"the log's database cannot be reached ({type(error).__name__}); see that the server runs, that the "
                "database exists, and that this user may connect to it"
            ) from error
        return PostgresqlHold(connection)

    def reader_engine(self) -> Engine:
        """Connections whose transactions are read-only and see one snapshot; each statement is bounded in time."""
        settings = {
            **_COMMON,
            "default_transaction_read_only": "on",
            "plan_cache_mode": "force_custom_plan",  # some words are in half of all records and some in none
            "statement_timeout": str(int(MAX_QUERY_S * 1000)),
            "lock_timeout": str(BUSY_TIMEOUT_MS),
            "idle_in_transaction_session_timeout": str(int(READER_IDLE_S * 1000)),
        }

        def connect() -> psycopg.Connection[Any]:
            connection = self._connect("sealgate audit reader", settings)
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            return connection

        return create_engine(
            URL.create("postgresql+psycopg"),
            creator=connect,
            poolclass=QueuePool,
            pool_size=2,
            max_overflow=MAX_READER_CONNECTIONS - 2,
            pool_timeout=MAX_QUERY_S,
            pool_pre_ping=True,  # a server that was restarted is found again
            use_native_hstore=False,
        )

    def pruner_engine(self) -> Engine | None:
        """One connection that may delete, for a user who was granted the pruner's role. Raises ConfigurationError."""
        settings = {
            **_COMMON,
            "synchronous_commit": "on",
            "default_transaction_read_only": "off",
            "lock_timeout": str(BUSY_TIMEOUT_MS),
            "statement_timeout": str(int(MAX_PRUNE_S * 1000)),
        }
        engine = create_engine(
            URL.create("postgresql+psycopg"),
            creator=lambda: self._connect("sealgate audit pruner", settings),
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            use_native_hstore=False,
        )
        try:
            with engine.begin() as connection:
                may = connection.exec_driver_sql(
                    "SELECT has_table_privilege('leaf', 'DELETE') AND has_table_privilege('record', 'DELETE')"
                ).scalar_one()
        except DBAPIError as error:
            engine.dispose()
            raise ConfigurationError(f"the log's database cannot be reached ({reason_of(error)})") from error
        if not may:
            engine.dispose()
            raise ConfigurationError(
                "this user may not delete records: grant the role of the pruner (docs/operations.md), and run it as "
                "that user (PGUSER)"
            )
        return engine

    def scrub(self) -> bool:
        """Deleted rows stay in the server's files until it vacuums the table, and in its archives."""
        return False

    def disk_free(self) -> int:
        """The server says nothing of its disk: a full one fails a commit, and with it the log."""
        return 2**62

    def took_too_long(self, error: DBAPIError) -> bool:
        """Whether the statement timeout cut a reading off."""
        return isinstance(error.orig, pg_errors.QueryCanceled)

    def refusal(self, error: DBAPIError) -> SealgateError:
        """What to say when the log cannot be opened."""
        if isinstance(error.orig, pg_errors.InsufficientPrivilege):
            return ConfigurationError(
                "the user that opened the log's database may not do so as it stands: run `sealgate log prepare STATE` "
                "as the database's owner, and grant the role of the writer (docs/operations.md)"
            )
        if error.connection_invalidated:
            return ConfigurationError(f"the connection to the log's database was lost ({reason_of(error)})")
        return LogDamaged(f"the log's database cannot be used ({reason_of(error)})")

    def _connect(self, name: str, settings: dict[str, str]) -> psycopg.Connection[Any]:
        return psycopg.connect(
            **self._parameters,
            application_name=name,
            client_encoding="utf8",
            connect_timeout=CONNECT_TIMEOUT_S,
            tcp_user_timeout=CONNECTION_LOST_S * 1000,
            options=" ".join(f"-c {key}={value}" for key, value in settings.items()),
        )


class PostgresqlHold:
    """The writer's engine over the one connection that holds the lock."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.rows: Rows = CopiedRows()
        self._connection = connection
        self._given = False
        self._guard = threading.Lock()
        self.engine = create_engine(
            URL.create("postgresql+psycopg"),
            creator=self._give,
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            use_native_hstore=False,
        )

    def _give(self) -> psycopg.Connection[Any]:
        """Hand the connection out once. A second one would have no lock."""
        with self._guard:
            if self._given:
                raise psycopg.OperationalError("the writer's connection is gone, and its lock with it")
            self._given = True
            return self._connection

    def release(self) -> None:
        """Close the session, and with it the lock. Doing so twice is harmless."""
        with self._guard:
            self._given = True
        self.engine.dispose()
        self._connection.close()


def _require_durable(connection: psycopg.Connection[Any]) -> None:
    if connection.info.server_version < _OLDEST:
        raise ConfigurationError("the log's PostgreSQL server is older than 15")
    with connection.transaction():
        row = connection.execute(
            "SELECT current_setting('fsync'), current_setting('server_encoding'), pg_is_in_recovery()"
        ).fetchone()
    fsync, encoding, standby = row or ("", "", True)
    if standby:
        raise ConfigurationError("the log's PostgreSQL server is a standby or still recovering; write to the primary")
    if fsync != "on":
        raise ConfigurationError("the log's PostgreSQL server runs with fsync off: what it was given could be lost")
    if encoding != "UTF8":
        raise ConfigurationError("the log's PostgreSQL database has another encoding than UTF8")


def _take_lock(connection: psycopg.Connection[Any]) -> None:
    """For the life of the session. Waits a moment: the session of a writer that was killed ends a little later."""
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('lock_timeout', %s, true)", [str(int(WRITER_LOCK_WAIT_S * 1000))])
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    except pg_errors.LockNotAvailable as error:
        raise LogInUse("this log is being written by another process; stop it first") from error


def _parameters(text: str) -> dict[str, Any]:
    """What psycopg connects with. Raises ConfigurationError that does not quote the URL."""
    try:
        url = make_url(text)
        named = {**url.query, **url.translate_connect_args(username="user", database="dbname")}
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError("the log's database is no URL of PostgreSQL") from error
    if url.password is not None:
        raise ConfigurationError(
            "the URL of the log's database holds a password; put it into a file that PGPASSFILE names"
        )
    unknown = sorted(set(url.query) - _IN_URL)
    if unknown or not all(isinstance(value, str) for value in named.values() if not isinstance(value, int)):
        raise ConfigurationError(
            f"the URL of the log's database has parameters that are not taken: {', '.join(unknown) or 'repeated ones'}"
        )
    host = str(named.get("host", ""))
    if not host or not url.database:
        raise ConfigurationError(
            "the URL of the log's database must say which server and which database: "
            "postgresql+psycopg:///NAME?host=FOLDER_OF_ITS_SOCKET"
        )
    away = [name for name in host.split(",") if not name.startswith("/") and name not in _LOOPBACK]
    if away and named.setdefault("sslmode", "verify-full") != "verify-full":
        raise ConfigurationError("a log's database on another machine is reached with sslmode=verify-full only")
    return named
