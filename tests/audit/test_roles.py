"""Roles in PostgreSQL: each may do its work and nothing else, whatever it was granted before."""

from __future__ import annotations

import io
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from audit.errors import LogInUse, LogUnavailable
from audit.preparation import KINDS, prepare_database
from audit.query import AuditReader, RecordFilter
from audit.tables import METADATA
from policy.budget import BudgetBook
from sealgate.errors import ConfigurationError
from tests.audit.postgres_server import PostgresServer

OWN = sorted(METADATA.tables)
BUDGETS = sorted(BudgetBook.tables.tables)
EVERY = [*OWN, *BUDGETS, "alembic_version"]


class Roles:
    """A prepared database with records in it, and a login for each role."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.server: PostgresServer = bench.store.server
        self.name = bench.store.name
        self.owner_url = bench.url
        self.prepared = prepare_database(bench.url, extra_tables=(BudgetBook.tables,))
        for kind in KINDS:
            self.server.admin(f"CREATE ROLE {self.login(kind)} LOGIN IN ROLE {self.name}_{kind}")
        bench.url = self.server.url(self.name, self.login("writer"))
        log = bench.open(extra_tables=(BudgetBook.tables,))
        bench.start_worker(log)
        self.done = [bench.request(log) for _ in range(5)]
        self.actor = log.actor("clinic", "alice")
        self.done.append(log.append(bench.draft(actor=self.actor)).result())
        self.log = log

    def login(self, kind: str) -> str:
        return f"{self.name}_the_{kind}"

    def tries(self, kind: str, statement: str) -> list[Any]:
        with self.server.connect(self.name, self.login(kind)) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def refuses(self, kind: str, statement: str) -> None:
        with pytest.raises(InsufficientPrivilege):
            self.tries(kind, statement)

    def grants(self) -> list[Any]:
        return self.bench.sql(
            "SELECT relname, relacl::text, (SELECT string_agg(attname || attacl::text, ',' ORDER BY attnum) "
            "FROM pg_attribute WHERE attrelid = c.oid) FROM pg_class AS c "
            "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"
        )


@pytest.fixture
def roles(postgres_bench) -> Roles:
    return Roles(postgres_bench)


def test_the_writer_does_its_whole_work(roles) -> None:
    roles.log.close()
    again = roles.bench.open(extra_tables=(BudgetBook.tables,))
    assert again.actor("clinic", "alice") == roles.actor
    for future in [again.append(roles.bench.draft()) for _ in range(600)]:  # rows of the tree are made and rewritten
        future.result()
    with again._hold.engine.begin() as connection:
        again._subjects.delete(connection, roles.actor)
    again.close()
    roles.bench.url = roles.owner_url
    report = roles.bench.audit(receipts=[item.receipt for item in roles.done])
    assert report.ok, report.lines()


def test_the_writer_cannot_change_or_delete_what_was_recorded(roles) -> None:
    for table in ("leaf", "record"):
        roles.refuses("writer", f"DELETE FROM {table}")
        roles.refuses("writer", f"TRUNCATE {table}")
        roles.refuses("writer", f"ALTER TABLE {table} RENAME TO gone")
        roles.refuses("writer", f"DROP TABLE {table}")
        roles.refuses(
            "writer", f"CREATE TRIGGER t BEFORE INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        )
    roles.refuses("writer", "UPDATE leaf SET leaf = ''")
    roles.refuses("writer", "UPDATE record SET tenant = ''")
    roles.refuses("writer", "INSERT INTO leaf VALUES (0, '') ON CONFLICT (idx) DO UPDATE SET leaf = excluded.leaf")
    roles.refuses("writer", "UPDATE head SET origin = 'x'")
    roles.refuses("writer", "UPDATE head SET cursor_key = ''")
    roles.refuses("writer", "DELETE FROM head")
    roles.refuses("writer", "DELETE FROM tile")
    roles.refuses("writer", "UPDATE subject SET lookup = ''")
    roles.refuses("writer", "UPDATE alembic_version SET version_num = '9'")
    roles.refuses("writer", "CREATE TABLE public.mine (a int)")
    roles.refuses("writer", f"SET ROLE {roles.name}_pruner")


@pytest.mark.parametrize("kind", ["reader", "auditor"])
def test_readers_and_auditors_cannot_write_anything(roles, kind: str) -> None:
    for table in EVERY:
        column = roles.bench.sql(
            "SELECT column_name FROM information_schema.columns WHERE table_name = ? AND table_schema = 'public' "
            "ORDER BY ordinal_position LIMIT 1",
            table,
        )[0][0]
        roles.refuses(kind, f"INSERT INTO {table} DEFAULT VALUES")
        roles.refuses(kind, f"UPDATE {table} SET {column} = {column}")
        roles.refuses(kind, f"DELETE FROM {table}")
        roles.refuses(kind, f"TRUNCATE {table}")
        roles.refuses(kind, f"COPY {table} FROM STDIN")
    roles.refuses(kind, "CREATE TABLE public.mine (a int)")
    roles.refuses(kind, "CREATE TEMPORARY TABLE mine (a int)")
    before = roles.grants()
    roles.tries(kind, f"GRANT ALL ON leaf TO {roles.name}_{kind}")  # no error, a warning
    assert roles.grants() == before


def test_nobody_but_the_writer_reads_who_a_pseudonym_is(roles) -> None:
    assert len(roles.tries("writer", "SELECT sealed FROM subject")) == 1
    for kind in ("reader", "auditor", "pruner"):
        for column in ("*", "ref", "sealed", "lookup", "count(*)"):
            roles.refuses(kind, f"SELECT {column} FROM subject")
        roles.refuses(kind, "SELECT * FROM open_intent")
        roles.refuses(kind, "SELECT rolpassword FROM pg_authid")


def test_an_auditor_reads_the_log_and_no_secret(roles) -> None:
    assert roles.tries("auditor", "SELECT size FROM head") == [(roles.log.state.size,)]
    assert len(roles.tries("auditor", "SELECT * FROM leaf JOIN record USING (idx)")) == roles.log.state.size
    for table in ("tile", "checkpoint", *BUDGETS):
        roles.tries("auditor", f"SELECT * FROM {table}")
    roles.refuses("auditor", "SELECT cursor_key FROM head")
    roles.refuses("auditor", "SELECT * FROM head")
    reader = AuditReader(roles.server.url(roles.name, roles.login("auditor")), origin=roles.bench.origin)
    assert reader.size() == roles.log.state.size
    assert reader.inclusion(0, reader.size())
    reader.export(0, reader.size() - 1, io.BytesIO())
    with pytest.raises(LogUnavailable):
        reader.records(RecordFilter())  # pages come with cursors, and those need the key
    reader.close()


def test_the_gateways_role_answers_every_question(roles) -> None:
    reader = AuditReader(roles.server.url(roles.name, roles.login("reader")), origin=roles.bench.origin)
    first = reader.records(RecordFilter(tenant="clinic"), None, 3)
    assert first.cursor is not None
    assert reader.records(RecordFilter(tenant="clinic"), first.cursor, 3).records
    assert reader.checkpoint()
    assert reader.tile(0, 0, 1)
    assert reader.record(roles.done[0].record.id).index == roles.done[0].index
    reader.close()


def test_the_pruner_deletes_old_leaves_and_reads_none(roles) -> None:
    roles.refuses("pruner", "SELECT leaf FROM leaf")
    roles.refuses("pruner", "INSERT INTO leaf VALUES (1000, '')")
    roles.refuses("pruner", "UPDATE leaf SET leaf = ''")
    for table in ("tile", "checkpoint", "head", "subject", *BUDGETS):
        roles.refuses("pruner", f"DELETE FROM {table}")
    roles.tries("pruner", "DELETE FROM leaf WHERE idx < 2")
    roles.tries("pruner", "DELETE FROM record WHERE idx < 2 AND tenant = ''")
    assert roles.bench.sql("SELECT min(idx) FROM leaf") == [(2,)]


def test_preparing_again_changes_nothing_and_takes_away_what_was_too_much(roles) -> None:
    before = roles.grants()
    roles.log.close()
    assert prepare_database(roles.owner_url, extra_tables=(BudgetBook.tables,)).created == ()
    assert roles.grants() == before
    roles.bench.sql(
        f"GRANT UPDATE ON leaf TO {roles.name}_writer; GRANT SELECT (sealed) ON subject TO {roles.name}_auditor; "
        "GRANT SELECT ON subject TO PUBLIC"
    )
    roles.tries("auditor", "SELECT sealed FROM subject")
    prepare_database(roles.owner_url, extra_tables=(BudgetBook.tables,))
    assert roles.grants() == before
    roles.refuses("auditor", "SELECT sealed FROM subject")
    roles.refuses("writer", "UPDATE leaf SET leaf = ''")


def test_a_log_that_its_writer_made_is_taken_over(postgres_bench, postgres) -> None:
    """Tables belong to who made them, and an owner can do anything."""
    name = postgres_bench.store.name
    postgres.admin(f"CREATE ROLE {name}_maker LOGIN")
    postgres.admin(f"ALTER DATABASE {name} OWNER TO {name}_maker")
    owner = postgres_bench.url
    postgres_bench.url = postgres.url(name, f"{name}_maker")
    log = postgres_bench.open(extra_tables=(BudgetBook.tables,))
    done = log.append(postgres_bench.draft()).result()
    with pytest.raises(LogInUse):
        _prepare_impatiently(owner)
    log.close()
    postgres.admin(f"ALTER DATABASE {name} OWNER TO postgres")
    prepare_database(owner, extra_tables=(BudgetBook.tables,))
    postgres.admin(f"GRANT {name}_writer TO {name}_maker")
    with pytest.raises(InsufficientPrivilege), postgres.connect(name, f"{name}_maker") as connection:
        connection.execute("DELETE FROM leaf")
    again = postgres_bench.open(extra_tables=(BudgetBook.tables,))
    assert again.append(postgres_bench.draft()).result().index == done.index + 3


def _prepare_impatiently(url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.postgresql.WRITER_LOCK_WAIT_S", 0.1)
        prepare_database(url)


def test_whoever_may_not_is_told_what_to_do(postgres_bench, postgres) -> None:
    name = postgres_bench.store.name
    postgres.admin(f"CREATE ROLE {name}_nobody LOGIN")
    stranger = postgres.url(name, f"{name}_nobody")
    with pytest.raises(ConfigurationError, match="CREATEROLE"):
        prepare_database(stranger)
    owner, postgres_bench.url = postgres_bench.url, stranger
    with pytest.raises(ConfigurationError, match="sealgate log prepare"):
        postgres_bench.open()
    prepare_database(owner)
    with pytest.raises(ConfigurationError):
        postgres_bench.open()
    postgres.admin(f"GRANT {name}_reader TO {name}_nobody")  # a gateway's user does not become a writer
    with pytest.raises(ConfigurationError, match="grant the role of the writer"):
        postgres_bench.open()
    postgres.admin(f"GRANT {name}_writer TO {name}_nobody")
    postgres_bench.open().append(postgres_bench.draft()).result()


def test_roles_that_no_grant_can_bound_are_refused(postgres_bench, postgres) -> None:
    name = postgres_bench.store.name
    postgres.admin(f"CREATE ROLE {name}_auditor SUPERUSER")
    with pytest.raises(ConfigurationError, match="no grant takes away"):
        prepare_database(postgres_bench.url)
    with pytest.raises(psycopg.errors.UndefinedTable):
        postgres_bench.sql("SELECT * FROM leaf")  # whole, or not at all
    postgres.admin(f"DROP ROLE {name}_auditor")


def test_a_file_needs_no_roles(sqlite_bench) -> None:
    with pytest.raises(ConfigurationError, match="no preparation"):
        prepare_database(sqlite_bench.url)
    assert not sqlite_bench.path.exists()
