"""What is PostgreSQL's alone: durability asked for, one session as the writer, its loss, snapshots, bounds, URLs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError

from audit import postgresql
from audit.database import open_database
from audit.errors import LogUnavailable
from audit.pages import page_statement
from audit.postgresql import PostgresqlDatabase
from audit.query import AuditReader, RecordFilter
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from policy.budget import BudgetExhausted
from policy.budgets import Budget, Window
from sealgate.errors import ConfigurationError
from sealgate.transparency.record import Record
from tests.policy.one_by_one import OneByOne

WRITERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"


def asked(connection: Any, *names: str) -> list[str]:
    return [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]


def kill_sessions(bench: Any, name: str = "sealgate audit writer") -> None:
    with bench.store.server.connect(bench.store.name) as admin:
        found = admin.execute(WRITERS, [name]).fetchall()
        assert found
        for (pid,) in found:
            assert admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)


def failed_for_good(bench: Any, log: Any) -> None:
    for _ in range(2):
        with pytest.raises(LogUnavailable) as caught:
            log.append(bench.draft()).result(timeout=30)
        assert caught.value.code == "log-failed"
    assert not log.state.ok


def test_commits_wait_for_the_disk_and_nothing_ends_the_session(postgres_bench) -> None:
    log = postgres_bench.open()
    with log._hold.engine.begin() as connection:
        found = asked(
            connection, "synchronous_commit", "fsync", "transaction_isolation", "idle_session_timeout", "lock_timeout"
        )
    assert found == ["on", "on", "read committed", "0", "5s"]


def test_leaves_and_index_rows_come_by_binary_copy(postgres_bench) -> None:
    log = postgres_bench.open()
    postgres_bench.sql("CREATE TABLE seen (statement text)")
    postgres_bench.sql(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO seen VALUES (current_query()); RETURN NULL; END $$"
    )
    for table in ("leaf", "record"):
        postgres_bench.sql(f"CREATE TRIGGER note AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION note()")
    log.append(postgres_bench.draft()).result()
    statements = [row[0] for row in postgres_bench.sql("SELECT statement FROM seen")]
    assert [statement.split(" (")[0] for statement in statements] == ["COPY leaf", "COPY record"]
    assert all(statement.endswith("FROM STDIN (FORMAT BINARY)") for statement in statements)


def test_texts_of_every_script_come_back(postgres_bench) -> None:
    log = postgres_bench.open()
    odd = "naïve Grüße 日本語 \U0001f512 \\ \" ' \t\n %s \\x00"
    done = log.append(postgres_bench.draft(reason=odd, purpose="x" * 512)).result()
    reader = postgres_bench.reader()
    assert reader.records(RecordFilter(reason=odd)).records[0].leaf == done.leaf
    reader.close()


# The server ----------------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_sync_is_refused(postgres_bench, postgres) -> None:
    postgres.stop()
    postgres.start("fsync=off")
    try:
        with pytest.raises(ConfigurationError, match="fsync"):
            postgres_bench.open()
    finally:
        postgres.stop()
        postgres.start()
    postgres_bench.open()


def test_a_database_of_another_encoding_is_refused(postgres_bench, postgres) -> None:
    postgres.admin("CREATE DATABASE narrow TEMPLATE template0 ENCODING 'SQL_ASCII'")
    postgres_bench.url = postgres.url("narrow")
    with pytest.raises(ConfigurationError, match="UTF8"):
        postgres_bench.open()
    postgres.drop("narrow")


def test_what_is_not_there_is_said_in_a_line(postgres_bench, postgres, tmp_path) -> None:
    for url in (
        postgres.url("nothing"),
        postgres.url(postgres_bench.store.name, "nobody"),
        f"postgresql+psycopg:///x?host={tmp_path}",
    ):
        postgres_bench.url = url
        with pytest.raises(ConfigurationError) as caught:
            postgres_bench.open()
        assert "\n" not in str(caught.value)
        reader = postgres_bench.reader()
        with pytest.raises(LogUnavailable) as unread:
            reader.size()
        assert unread.value.code == "reader"
        reader.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql+psycopg://me:hunter2@localhost/log", "password"),
        ("postgresql+psycopg://localhost", "which database"),
        ("postgresql+psycopg:///log", "which server"),
        ("postgresql+psycopg:///log?host=/run&options=-cfsync%3Doff", "options"),
        ("postgresql+psycopg:///log?host=/run&password=hunter2", "password"),
        ("postgresql+psycopg:///log?host=/run&host=/tmp", "repeated"),
        ("postgresql+psycopg://db.example.com/log?sslmode=require", "verify-full"),
        ("postgresql+psycopg:///log?host=/run,db.example.com&sslmode=disable", "verify-full"),
        ("postgresql+psycopg://localhost:port/log", "no URL"),
        ("postgresql://localhost/log", "postgresql\\+psycopg"),
        ("postgresql+asyncpg://localhost/log", "postgresql\\+psycopg"),
    ],
)
def test_urls_that_are_not_taken(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        open_database(url)
    assert "hunter2" not in str(caught.value)


def test_another_machine_is_reached_with_its_certificate_verified() -> None:
    database = open_database("postgresql+psycopg://db.example.com:5433/log")
    assert isinstance(database, PostgresqlDatabase)
    assert database._parameters == {"host": "db.example.com", "port": 5433, "dbname": "log", "sslmode": "verify-full"}


# The writer's session ------------------------------------------------------------------------------------------------


def test_a_lost_connection_fails_the_log_for_good(postgres_bench) -> None:
    log = postgres_bench.open()
    postgres_bench.start_worker(log)
    done = postgres_bench.request(log)
    open_one = postgres_bench.authorize(log)
    kill_sessions(postgres_bench)
    failed_for_good(postgres_bench, log)
    again = postgres_bench.open()  # the lock went with the session; the first one cannot come back
    after = again.append(postgres_bench.draft()).result()
    assert after.index == open_one.index + 3
    failed_for_good(postgres_bench, log)
    log.close()
    assert again.append(postgres_bench.draft()).result().index == after.index + 1
    report = postgres_bench.audit(receipts=[done.receipt, after.receipt])
    assert report.ok, report.lines()


def test_an_idle_writer_notices_too(postgres_bench, monkeypatch: Any, until: Callable[..., None]) -> None:
    monkeypatch.setattr(PostgresqlDatabase, "idle_check_s", 0.02)
    log = postgres_bench.open()
    log.append(postgres_bench.draft()).result()
    until(lambda: not log._committer.unpublished)  # from here on it has nothing to write
    assert log.state.ok
    kill_sessions(postgres_bench)
    until(lambda: not log.state.ok)
    failed_for_good(postgres_bench, log)


def test_an_effect_in_which_the_connection_is_lost_is_not_a_refusal(postgres_bench) -> None:
    log = postgres_bench.open()

    def cut(connection: Any, record: Record) -> Record:
        kill_sessions(postgres_bench)
        connection.execute(select(head_table.c.size))
        return record

    with pytest.raises(LogUnavailable) as caught:
        log.append(postgres_bench.draft(), cut).result(timeout=30)
    assert caught.value.code == "log-failed"


def test_the_writer_never_connects_again(postgres_bench) -> None:
    log = postgres_bench.open()
    log._hold.engine.dispose()
    with pytest.raises(DBAPIError, match="gone"), log._hold.engine.begin():
        pass


def test_locks_of_others_are_not_waited_for_without_end(postgres_bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(postgresql, "BUSY_TIMEOUT_MS", 100)
    log = postgres_bench.open()
    with postgres_bench.store.server.connect(postgres_bench.store.name) as other, other.transaction():
        other.execute("LOCK TABLE leaf IN ACCESS EXCLUSIVE MODE")
        failed_for_good(postgres_bench, log)
    assert "LockNotAvailable" in log.state.reason


# Readers -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(bench: Any) -> Iterator[AuditReader]:
    reader = bench.reader()
    try:
        yield reader
    finally:
        reader.close()


def test_a_readers_transaction_is_one_read_only_snapshot(postgres_bench) -> None:
    log = postgres_bench.open()
    with reading(postgres_bench) as reader, reader._engine.connect() as connection:
        with connection.begin():
            assert asked(connection, "transaction_isolation", "transaction_read_only") == ["repeatable read", "on"]
            before = connection.execute(select(head_table.c.size)).scalar_one()
            log.append(postgres_bench.draft()).result()
            assert connection.execute(select(head_table.c.size)).scalar_one() == before
            with pytest.raises(DBAPIError, match="read-only"):
                connection.execute(insert(leaf_table).values(idx=10**6, leaf=b"forged"))
        with connection.begin():
            assert connection.execute(select(head_table.c.size)).scalar_one() == before + 1


def test_a_question_that_takes_too_long_is_cut_off(postgres_bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(postgresql, "MAX_QUERY_S", 0.1)
    postgres_bench.open()
    with (
        reading(postgres_bench) as reader,
        postgres_bench.store.server.connect(postgres_bench.store.name) as other,
        other.transaction(),
    ):
        other.execute("LOCK TABLE leaf IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LogUnavailable) as caught:
            reader.records(RecordFilter())
        assert caught.value.code == "reader-busy"


def test_more_readers_than_connections_are_told_to_come_back(postgres_bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(postgresql, "MAX_READER_CONNECTIONS", 2)
    monkeypatch.setattr(postgresql, "MAX_QUERY_S", 0.1)
    postgres_bench.open()
    with reading(postgres_bench) as reader, reader._engine.connect(), reader._engine.connect():
        with pytest.raises(LogUnavailable) as caught:
            reader.size()
        assert caught.value.code == "reader-busy"


def test_readers_find_a_server_that_was_restarted(postgres_bench, postgres) -> None:
    log = postgres_bench.open()
    with reading(postgres_bench) as reader:
        assert reader.size() == 1
        log.close()
        postgres.stop()
        with pytest.raises(LogUnavailable):
            reader.size()
        postgres.start()
        assert reader.size() == 2


def test_narrow_questions_use_an_index_in_keyset_order_among_many(postgres_bench) -> None:
    postgres_bench.open().close()
    postgres_bench.sql(
        "INSERT INTO record SELECT n, 'id ' || n, n, 'kind ' || n % 500, 'tenant ' || n % 500, 'actor ' || n % 500, "
        "'model ' || n % 500, '', 'care', '', '' FROM generate_series(10, 60000) AS n"
    )
    postgres_bench.sql("INSERT INTO leaf SELECT idx, 'x' FROM record WHERE idx >= 10")
    postgres_bench.sql("ANALYZE")
    for name in ("kind", "tenant", "actor", "model"):
        for oldest in (False, True):
            wanted = RecordFilter(**{name: f"{name} 7"}, oldest_first=oldest)
            statement = page_statement(wanted, size=50_000, edge=20_000, limit=10)
            compiled = str(statement.compile(dialect=PGDialect_psycopg(), compile_kwargs={"literal_binds": True}))
            plan = "\n".join(row[0] for row in postgres_bench.sql(f"EXPLAIN {compiled}"))
            assert f"record_{name}" in plan, plan
            assert "Sort" not in plan, plan
            assert "Seq Scan" not in plan, plan


# Budgets -------------------------------------------------------------------------------------------------------------


def test_sixty_four_callers_never_overspend_a_budget_in_it(postgres_bench) -> None:
    book = OneByOne([Budget(name="daily", tenant="clinic", window=Window.DAY, requests=40)])
    log = postgres_bench.open(extra_tables=(book.tables,))
    postgres_bench.start_worker(log)
    outcomes: list[str] = []
    order = threading.Lock()

    def reserve(connection: Any, record: Record) -> Record:
        book.reserve(connection, grant=record.id, tenant="clinic", subject="s", model="m", now_us=1_700_000_000_000_000)
        return record

    def caller() -> None:
        for _ in range(2):
            try:
                begun = log.append(postgres_bench.draft("inference.authorized"), reserve).result()
            except BudgetExhausted:
                outcomes.append("refused")
                continue
            outcomes.append("served")
            with order:
                future = log.append(postgres_bench.end(begun.record))
            future.result()

    threads = [threading.Thread(target=caller) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count("served"), outcomes.count("refused")) == (40, 88)
    assert postgres_bench.sql("SELECT requests_used FROM budget_use") == [(40,)]
    report = postgres_bench.audit()
    assert report.ok, report.lines()


def test_readers_plan_for_the_word_that_is_asked_for(postgres_bench: Any) -> None:
    """A plan for any word, which PostgreSQL would keep after some questions, goes through the log for a rare one."""
    postgres_bench.open()
    engine = open_database(postgres_bench.url).reader_engine()
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW plan_cache_mode").scalar_one() == "force_custom_plan"
    engine.dispose()
