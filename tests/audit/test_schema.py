"""The tables are made, recognised and migrated: by the writer, in one transaction, the same way whichever way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from audit import migrations, schema
from audit.database import open_database
from audit.errors import LogInUse, LogUnavailable
from audit.migrations import configuration, upgrade
from audit.tables import METADATA, REVISION
from policy.budget import BudgetBook

# Adds a column and a row; BREAK makes it fail half-way.
LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "7000", "NEWEST"


def upgrade():
    op.add_column("checkpoint", sa.Column("later", sa.Integer, nullable=True))
    op.execute("UPDATE head SET schema_version = 1")
    BREAK
"""


def layout(bench: Any, connection: Connection) -> Any:
    """Everything the database says of its tables, in a form that can be compared."""
    found = inspect(connection)
    names = sorted(found.get_table_names())
    if bench.url.startswith("sqlite"):
        told = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
        return names, sorted((kind, name, " ".join(sql.split())) for kind, name, sql in told)
    columns = connection.exec_driver_sql(
        "SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    ).all()
    indexes = connection.exec_driver_sql("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1").all()
    rules = connection.exec_driver_sql(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace "
        "ORDER BY 1"
    ).all()
    return names, list(map(tuple, columns)), list(map(tuple, indexes)), list(map(tuple, rules))


def within(bench: Any, work: Any) -> Any:
    hold = open_database(bench.url).open_writer()
    try:
        with hold.engine.begin() as connection:
            return work(connection)
    finally:
        hold.release()


def stamp(bench: Any) -> list[tuple[str]]:
    return [tuple(row) for row in bench.sql("SELECT version_num FROM alembic_version")]


def back_to_the_first_layout(bench: Any) -> None:
    """As a release from before there were migrations left it."""
    for statement in (
        "ALTER TABLE head DROP COLUMN seal",
        "DROP TABLE cosigned",
        "DROP TABLE day_count",
        "DROP TABLE day_span",
        "DROP TABLE shard",
        "DROP INDEX record_reason",
        "DROP INDEX record_outcome",
        "DROP INDEX record_purpose",
        "DROP INDEX record_model_digest",
        "ALTER TABLE head DROP COLUMN holds",
        "DROP TABLE alembic_version",
    ):
        bench.sql(statement)


def test_created_and_migrated_are_the_same(tmp_path: Path, make_bench) -> None:
    found = []
    for name, make in (("created", schema.bring_up_to_date), ("migrated", lambda c: upgrade(c, None))):
        (tmp_path / name).mkdir()
        bench = make_bench(tmp_path / name)
        within(bench, make)
        found.append(within(bench, lambda c, bench=bench: layout(bench, c)))
        assert stamp(bench) == [(REVISION,)]
    assert found[0] == found[1]
    assert set(METADATA.tables) | {"alembic_version"} == set(found[0][0])


def test_the_revision_in_the_code_is_the_newest_migration() -> None:
    scripts = ScriptDirectory.from_config(configuration())
    assert scripts.get_current_head() == REVISION
    assert len(list(scripts.walk_revisions())) == len(list(Path(scripts.versions).glob("r*.py")))


def test_a_log_from_before_there_were_migrations_is_recognised_and_goes_on(before_seals, bench) -> None:
    log = bench.open()
    bench.start_worker(log)
    done = bench.request(log)
    log.close()
    back_to_the_first_layout(bench)
    again = bench.open()
    assert stamp(bench) == [(REVISION,)]
    again.append(bench.draft()).result()
    report = bench.audit(receipts=[done.receipt])
    assert report.ok, report.lines()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = '7777'",
        "DROP TABLE alembic_version; UPDATE head SET schema_version = 2",
    ],
)
def test_a_newer_releases_log_is_left_alone(bench, change: str) -> None:
    bench.open().close()
    for statement in change.split("; "):
        bench.sql(statement)
    before = bench.sql("SELECT count(*) FROM leaf")
    with pytest.raises(LogInUse, match="another release"):
        bench.open()
    assert bench.sql("SELECT count(*) FROM leaf") == before


def test_readers_do_not_guess_at_another_layout(bench, log) -> None:
    bench.sql("UPDATE head SET schema_version = 2")
    reader = bench.reader()
    with pytest.raises(LogUnavailable):
        reader.size()
    reader.close()


@pytest.mark.parametrize("breaks", [False, True])
def test_an_older_log_is_migrated_whole_or_not_at_all(bench, tmp_path: Path, monkeypatch: Any, breaks: bool) -> None:
    log = bench.open()
    bench.start_worker(log)
    done = bench.request(log)
    log.close()
    place = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, place, ignore=shutil.ignore_patterns("__pycache__"))
    later = LATER.replace("NEWEST", REVISION).replace("BREAK", "raise ZeroDivisionError" if breaks else "")
    (place / "versions" / "r7000_later.py").write_text(later)
    monkeypatch.setattr(migrations, "_PLACE", place)
    monkeypatch.setattr(schema, "REVISION", "7000")
    if breaks:
        with pytest.raises(ZeroDivisionError):
            bench.open()
        assert stamp(bench) == [(REVISION,)]
        monkeypatch.undo()
        bench.open()
        return
    bench.open().append(bench.draft()).result()
    assert stamp(bench) == [("7000",)]
    assert bench.sql("SELECT count(later) FROM checkpoint") == [(0,)]
    report = bench.audit(receipts=[done.receipt])
    assert report.ok, report.lines()


def test_readers_never_make_tables(bench) -> None:
    reader = bench.reader()
    with pytest.raises(LogUnavailable):
        reader.size()
    reader.close()
    bench.open().close()
    bench.sql("DROP TABLE alembic_version")
    reader = bench.reader()
    assert reader.size() == 2
    reader.close()
    with pytest.raises(Exception, match="alembic_version"):
        stamp(bench)


def test_tables_of_others_are_added_to_a_log_that_is_there(bench) -> None:
    bench.open().close()
    for _ in range(2):
        bench.open(extra_tables=(BudgetBook.tables,)).close()
    assert {tuple(row) for row in bench.sql("SELECT count(*) FROM budget_use")} == {(0,)}


def test_opening_a_file_loads_neither_alembic_nor_psycopg(tmp_path: Path) -> None:
    """They cost a third of a second, and a log in SQLite needs neither."""
    script = (
        "import sys\nfrom audit.log import AuditLog\nfrom sealgate.transparency.notes import NoteSigner\n"
        "signer = NoteSigner.from_seed('example.com/log', b'\\x01' * 32)\n"
        "for _ in range(2):\n"
        "    AuditLog.open(sys.argv[1], signer=signer, subjects_key=b'\\x02' * 32, origin='example.com/log').close()\n"
        "print([name for name in ('alembic', 'psycopg') if name in sys.modules])\n"
    )
    url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    said = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
