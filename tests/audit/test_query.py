"""Reading beside the writer: filters against a plain Python oracle, cursors, proofs, tiles, plans, read-only."""

from __future__ import annotations

import base64
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pymerkle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, insert
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError, OperationalError

from audit import query, sqlite
from audit.database import open_database
from audit.errors import LogDamaged, LogUnavailable, QueryRefused
from audit.pages import narrowest, page_statement, probe_statement
from audit.query import AuditReader, RecordFilter
from audit.tables import leaf as leaf_table
from sealgate.transparency.merkle import leaf_hash, root_of, verify_consistency, verify_inclusion
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.record import Record

DAY_US = 86_400_000_000
FIELDS = ("tenant", "actor", "model", "model_digest", "purpose", "kind", "outcome", "reason")
VALUES = {
    "tenant": ["clinic", "lab"],
    "actor": ["a" * 32, "b" * 32, "c" * 32],
    "model": ["m", "n"],
    "model_digest": ["", "ab" * 32],
    "purpose": ["care", "research"],
    "kind": ["inference.denied", "audit.query"],
    "outcome": ["denied", ""],
    "reason": ["purpose", "budget"],
}


@pytest.fixture
def filled(bench) -> Any:
    return fill(bench)


@pytest.fixture
def sqlite_filled(sqlite_bench) -> Any:
    return fill(sqlite_bench)


def fill(bench: Any) -> Any:
    """A log of 240 varied records; ts_us does not always rise."""
    log = bench.open()
    futures = []
    for number in range(239):
        fields = {
            name: values[number * 7 // (at + 1) % len(values)] for at, (name, values) in enumerate(VALUES.items())
        }
        futures.append(log.append(Record(ts_us=1_700_000_000_000_000 + number * 10 % 977, **fields)))
    bench.done = [future.result() for future in futures]
    bench.live = log
    reader = bench.reader()
    opened = reader.records(RecordFilter(kind="log.opened")).records[0].record
    reader.close()
    bench.all = [opened, *(item.record for item in bench.done)]
    return bench


def everything(reader: AuditReader, wanted: RecordFilter, limit: int) -> tuple[list[int], int]:
    found, cursor, pages = [], None, 0
    while True:
        page = reader.records(wanted, cursor, limit)
        assert len(page.records) <= limit
        found += [entry.index for entry in page.records]
        pages += 1
        cursor = page.cursor
        if cursor is None:
            return found, pages


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}),
    low=st.none() | st.integers(0, 1000),
    high=st.none() | st.integers(0, 1000),
    limit=st.integers(7, 300),
    oldest=st.booleans(),
)
def test_filters_against_an_oracle(filled, wanted, low, high, limit: int, oldest: bool) -> None:
    base = 1_700_000_000_000_000
    moments = {"from_us": None if low is None else base + low, "to_us": None if high is None else base + high}
    reader = filled.reader()
    found, pages = everything(reader, RecordFilter(**wanted, **moments, oldest_first=oldest), limit)
    reader.close()
    expected = [
        index
        for index, record in enumerate(filled.all)
        if all(getattr(record, name) == value for name, value in wanted.items())
        and (low is None or record.ts_us >= base + low)
        and (high is None or record.ts_us < base + high)
    ]
    assert found == (expected if oldest else expected[::-1])
    assert pages == max(1, -(-len(expected) // limit))


def test_pages_do_not_shift_while_the_log_grows(filled) -> None:
    reader = filled.reader()
    first = reader.records(RecordFilter(), None, 100)
    for _ in range(50):
        filled.live.append(filled.draft()).result()
    second = reader.records(RecordFilter(), first.cursor, 100)
    third = reader.records(RecordFilter(), second.cursor, 100)
    indexes = [entry.index for page in (first, second, third) for entry in page.records]
    assert indexes == list(range(239, -1, -1))
    assert (second.tree_size, third.tree_size, third.cursor) == (240, 240, None)
    rising = reader.records(RecordFilter(oldest_first=True), None, 230)
    filled.live.append(filled.draft()).result()
    rest = reader.records(RecordFilter(oldest_first=True), rising.cursor, 1000)
    assert [entry.index for entry in rest.records] == list(range(230, 290))
    reader.close()


def test_cursors_cannot_be_made_changed_or_moved(filled) -> None:
    reader = filled.reader()
    cursor = reader.records(RecordFilter(tenant="clinic"), None, 10).cursor
    assert cursor is not None
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for bit in range(0, len(raw) * 8, 3):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(QueryRefused):
            reader.records(RecordFilter(tenant="clinic"), base64.urlsafe_b64encode(bytes(changed)).decode(), 10)
    for other in (RecordFilter(tenant="lab"), RecordFilter(), RecordFilter(tenant="clinic", oldest_first=True)):
        with pytest.raises(QueryRefused):
            reader.records(other, cursor, 10)
    for garbage in ("", "x", "\u00e4", "A" * 5000, cursor[:-1] + "!", cursor + "AAAA"):
        with pytest.raises(QueryRefused):
            reader.records(RecordFilter(tenant="clinic"), garbage, 10)
    second_process = filled.reader()  # any reader of the same log accepts it
    assert second_process.records(RecordFilter(tenant="clinic"), cursor, 10).records
    second_process.close()
    reader.close()


@pytest.mark.parametrize("limit", [0, -1, 1001, 10**9])
def test_limits_are_bounded(filled, limit: int) -> None:
    reader = filled.reader()
    with pytest.raises(QueryRefused):
        reader.records(RecordFilter(), None, limit)
    assert len(reader.records(RecordFilter(), None, 1000).records) == 240
    reader.close()


@pytest.mark.parametrize("wanted", [{"kind": "made.up"}, {"tenant": "x" * 129}, {"from_us": -1}, {"to_us": 2**53}])
def test_filters_that_cannot_match_are_refused(filled, wanted: dict[str, Any]) -> None:
    reader = filled.reader()
    with pytest.raises(QueryRefused):
        reader.records(RecordFilter(**wanted))
    for odd in ("x' OR 1=1 --", "%", "\u20ac", "\\x00"):
        assert reader.records(RecordFilter(reason=odd)).records == ()
    with pytest.raises(QueryRefused):
        reader.records(RecordFilter(reason="nul\0"))
    reader.close()


def test_one_record_by_id(filled) -> None:
    reader = filled.reader()
    entry = reader.record(filled.done[5].record.id)
    assert (entry.index, entry.leaf, entry.record) == (6, filled.done[5].leaf, filled.done[5].record)
    with pytest.raises(QueryRefused) as caught:
        reader.record("nothing")
    assert caught.value.code == "not-found"
    with pytest.raises(QueryRefused):
        reader.record("nul\0")
    reader.close()


# Proofs --------------------------------------------------------------------------------------------------------------


def test_proofs_and_tiles_from_stored_rows(bench, until) -> None:
    """700 records: two full rows, a partial one, and a row above them; pymerkle keeps the same tree."""
    log = bench.open()
    done = [future.result() for future in [log.append(bench.draft(reason=str(n))) for n in range(699)]]
    reader = bench.reader()
    until(lambda: open_checkpoint(reader.checkpoint(), [bench.verifier]).checkpoint.size == 700)
    checkpoint = open_checkpoint(reader.checkpoint(), [bench.verifier]).checkpoint
    leaves = [reader.records(RecordFilter(kind="log.opened")).records[0].leaf, *(item.leaf for item in done)]
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        oracle.append_entry(leaf)
    assert checkpoint.root == oracle.get_state(700)
    for size in (1, 2, 255, 256, 257, 511, 512, 513, 699, 700):
        for index in {0, 1, size // 2, size - 1, max(0, size - 256)} & set(range(size)):
            proof = reader.inclusion(index, size)
            verify_inclusion(
                hashed_leaf=leaf_hash(leaves[index]), index=index, size=size, proof=proof, root=oracle.get_state(size)
            )
        verify_consistency(
            first=size,
            second=700,
            first_root=oracle.get_state(size),
            second_root=checkpoint.root,
            proof=reader.consistency(size, 700),
        )
    hashes = [leaf_hash(leaf) for leaf in leaves]
    assert reader.tile(0, 0) == b"".join(hashes[:256])
    assert reader.tile(0, 2, 188) == b"".join(hashes[512:])
    assert reader.tile(0, 2, 5) == b"".join(hashes[512:517])
    assert reader.tile(1, 0, 2) == root_of(hashes[:256]) + root_of(hashes[256:512])
    for level, index, width in (
        (0, 2, 189),
        (0, 3, 1),
        (1, 0, 3),
        (2, 0, 1),
        (-1, 0, 1),
        (0, -1, 1),
        (0, 0, 0),
        (9, 0, 1),
    ):
        with pytest.raises(QueryRefused):
            reader.tile(level, index, width)
    for bad in ((700, 700), (-1, 5), (0, 701), (5, 5)):
        with pytest.raises(QueryRefused):
            reader.inclusion(*bad)
    for bad in ((0, 5), (6, 5), (1, 701)):
        with pytest.raises(QueryRefused):
            reader.consistency(*bad)
    reader.close()


# How it asks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted", [{"reason": "budget"}, {"outcome": "denied"}, {"reason": "budget", "tenant": "lab"}, {"reason": ""}]
)
def test_a_rare_word_is_found_by_the_index_of_rare_words(bench: Any, database: str, wanted: dict[str, str]) -> None:
    log = bench.open()
    log.append(bench.draft()).result()
    reasons = "CASE WHEN n % 900 = 0 THEN 'budget' WHEN n % 9 = 0 THEN 'policy' ELSE '' END"
    outcomes = "CASE WHEN n % 900 = 1 THEN 'denied' WHEN n % 2 = 0 THEN 'completed' ELSE '' END"
    numbers = "WITH RECURSIVE r(n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM r WHERE n < 20000)"
    bench.sql(
        f"{numbers} INSERT INTO record SELECT n, 'id ' || n, n, 'audit.query', CASE WHEN n % 3 = 0 THEN 'lab' ELSE "
        f"'clinic' END, 'a', 'm', '', 'care', {outcomes}, {reasons} FROM r"
    )
    if database == "postgresql":
        bench.sql("ANALYZE record")
    statement = page_statement(RecordFilter(**wanted), size=30_000, edge=None, limit=100)
    engine = open_database(bench.url).reader_engine()
    with engine.begin() as connection:
        compiled = statement.compile(connection, compile_kwargs={"render_postcompile": True})
        text, values = str(compiled), compiled.params
        if database == "sqlite":
            values = tuple(values[name] for name in compiled.positiontup or ())
        explain = "EXPLAIN QUERY PLAN" if database == "sqlite" else "EXPLAIN"
        plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {text}", values))
    engine.dispose()
    rare = [name for name in ("reason", "outcome") if wanted.get(name)]
    assert all(f"record_{name}" in plan for name in rare), plan
    assert "Seq Scan" not in plan or not rare, plan
    if not rare:
        assert "record_reason" not in plan, plan


@pytest.mark.parametrize("oldest", [False, True])
def test_the_next_page_costs_what_the_first_one_does(sqlite_filled: Any, oldest: bool) -> None:
    """SQLite seeks to where the page begins; it does not go there record by record."""
    raw = sqlite3.connect(sqlite_filled.path)
    raw.execute("DROP INDEX record_ts")
    rows = "WITH RECURSIVE r(n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM r WHERE n < 60000)"
    raw.execute(f"{rows} INSERT INTO record SELECT n, n, n, '', '', '', '', '', '', '', '' FROM r")
    steps: list[int] = []
    raw.set_progress_handler(lambda: steps.append(1) or 0, 100)  # type: ignore[func-returns-value]
    cost = []
    for edge in (None, 30_000):
        statement = page_statement(RecordFilter(oldest_first=oldest), size=60_000, edge=edge, limit=50)
        text = str(statement.compile(dialect=sqlite_dialect.dialect(), compile_kwargs={"literal_binds": True}))
        steps.clear()
        raw.execute(text).fetchall()
        cost.append(len(steps))
    raw.rollback()
    raw.close()
    assert cost[1] <= 2 * cost[0] + 1, cost


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"tenant": "clinic", "actor": "a" * 32, "model": "m"}, "actor"),
        ({"tenant": "clinic", "reason": "budget", "model": "m"}, "reason"),
        ({"tenant": "clinic", "kind": "audit.query"}, "kind"),
        ({"tenant": "clinic", "kind": "inference.completed"}, "tenant"),
        ({"kind": "inference.completed", "purpose": "care"}, "purpose"),
        ({"model": "m", "model_digest": "ab" * 32, "purpose": "care"}, "model_digest"),
    ],
)
def test_sqlite_is_led_to_the_index_of_fewest_records(sqlite_filled: Any, wanted: dict[str, str], index: str) -> None:
    statement = page_statement(RecordFilter(**wanted), size=240, edge=100, limit=10)
    text = str(statement.compile(dialect=sqlite_dialect.dialect(), compile_kwargs={"literal_binds": True}))
    raw = sqlite3.connect(sqlite_filled.path)
    plan = " / ".join(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}"))
    raw.close()
    assert f"USING INDEX record_{index} " in plan, plan
    assert "TEMP B-TREE" not in plan, plan


NAMES = {"tenant": ("many", "few"), "model": ("large", "small"), "purpose": ("care", "research")}


@pytest.mark.parametrize("rare", [*NAMES, "model_digest", None])
def test_of_several_names_the_rare_one_is_looked_for(bench: Any, database: str, rare: str | None) -> None:
    """Whichever it is: who asks for a usual tenant and a rare purpose must not go through all of the tenant's."""
    log = bench.open()
    log.append(bench.draft()).result()
    some = {name: f"CASE WHEN n % 3000 = 7 THEN '{few}' ELSE '{many}' END" for name, (many, few) in NAMES.items()}
    digest = f"CASE WHEN n % 3000 = 8 THEN '{'cd' * 32}' ELSE '{'ab' * 32}' END"
    numbers = "WITH RECURSIVE r(n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM r WHERE n < 9000)"
    bench.sql(
        f"{numbers} INSERT INTO record SELECT n, 'id ' || n, n, 'audit.query', {some['tenant']}, 'a', {some['model']}, "
        f"{digest}, {some['purpose']}, '', '' FROM r"
    )
    if database == "postgresql":
        bench.sql("ANALYZE record")
    values = {name: few if name == rare else many for name, (many, few) in NAMES.items()}
    wanted = RecordFilter(**values, model_digest=("cd" if rare == "model_digest" else "ab") * 32)
    engine = open_database(bench.url).reader_engine()
    with engine.begin() as connection:
        by = narrowest(connection, wanted)
        page = page_statement(wanted, size=30_000, edge=None, limit=100, by=by)
        compiled = page.compile(connection, compile_kwargs={"render_postcompile": True})
        text, given = str(compiled), compiled.params
        if database == "sqlite":
            given = tuple(given[name] for name in compiled.positiontup or ())
        explain = "EXPLAIN QUERY PLAN" if database == "sqlite" else "EXPLAIN"
        plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {text}", given))
        found = connection.exec_driver_sql(text, given).all()
    engine.dispose()
    assert found == []  # leaves are read last, and these records have none
    assert f"record_{rare}" in plan if rare else "Seq Scan on record" not in plan, plan


def test_what_is_looked_at_to_find_the_rare_name_is_an_index_and_bounded(sqlite_filled: Any) -> None:
    raw = sqlite3.connect(sqlite_filled.path)
    for name in ("tenant", "actor", "model", "kind", "purpose", "model_digest", "reason", "outcome"):
        statement = probe_statement(name, "x" * 32)
        text = str(statement.compile(dialect=sqlite_dialect.dialect(), compile_kwargs={"literal_binds": True}))
        plan = " / ".join(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}"))
        assert f"SEARCH record USING COVERING INDEX record_{name} " in plan or (
            name == "model_digest" and f"SEARCH record USING INDEX record_{name} " in plan
        ), plan
        assert "LIMIT 2000" in text
    raw.close()


@pytest.mark.parametrize("name", ["tenant", "actor", "model", "kind"])
def test_narrow_questions_use_an_index_in_keyset_order(sqlite_filled, name: str) -> None:
    statement = page_statement(RecordFilter(**{name: VALUES[name][0]}), size=240, edge=100, limit=10)
    text = str(statement.compile(compile_kwargs={"literal_binds": True}))
    assert "OFFSET" not in text
    raw = sqlite3.connect(sqlite_filled.path)
    plan = " / ".join(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}"))
    raw.close()
    assert f"USING INDEX record_{name}" in plan or f"USING COVERING INDEX record_{name}" in plan, plan
    assert "TEMP B-TREE" not in plan, plan


def test_no_question_sorts_or_scans_leaves(sqlite_filled) -> None:
    raw = sqlite3.connect(sqlite_filled.path)
    for wanted in ({}, {"purpose": "care"}, {"reason": "budget", "outcome": "denied"}, {"from_us": 5, "to_us": 9}):
        for oldest in (False, True):
            statement = page_statement(RecordFilter(**wanted, oldest_first=oldest), size=240, edge=None, limit=10)
            text = str(statement.compile(compile_kwargs={"literal_binds": True}))
            plan = " / ".join(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}"))
            assert "SCAN leaf" not in plan, plan
    raw.close()


def test_a_day_is_found_where_it_stands(bench) -> None:
    """Not by going through all that came since: its page looks at no record before or after the day's own."""
    day = DAY_US
    log = bench.open(clock=lambda: 20 * day)
    for number in range(60):  # in order, but for one record whose clock was a day ahead
        ts_us = (20 + number // 10) * day + number + (day if number == 33 else 0)
        log.append(bench.draft(ts_us=ts_us)).result()
    reader = bench.reader()
    said: list[Any] = []

    def hear(_connection: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        if text.startswith("SELECT") and "record.ts_us" in text:
            said.append(set(values.values()) if isinstance(values, dict) else set(values))

    event.listen(Engine, "before_cursor_execute", hear)
    for low, high, found in (
        (23 * day, 24 * day, [index for index in range(31, 41) if index != 34]),
        (24 * day, 25 * day, [34, *range(41, 51)]),
        (None, 21 * day, range(11)),
        (25 * day, None, range(51, 61)),
        (90 * day, None, ()),
        (None, 20 * day, ()),
    ):
        said.clear()
        wanted = RecordFilter(from_us=low, to_us=high, oldest_first=True)
        assert everything(reader, wanted, 4)[0] == list(found)
        assert min(found, default=0) in {0, *said[0]}
        assert all(max(found, default=-1) + 1 in values for values in said)
    event.remove(Engine, "before_cursor_execute", hear)
    reader.close()


def test_readers_cannot_write(filled) -> None:
    reader = filled.reader()
    with pytest.raises(DBAPIError), reader._engine.begin() as connection:
        connection.execute(insert(leaf_table).values(idx=10**6, leaf=b"forged"))
    reader.close()


def test_readers_of_the_file_cannot_write_even_if_they_say_so(sqlite_filled) -> None:
    plain = sqlite.reader_engine(sqlite_filled.path)
    with plain.begin() as connection:
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        with pytest.raises(OperationalError):
            connection.exec_driver_sql("DELETE FROM leaf")
    plain.dispose()


@pytest.mark.skipif(os.geteuid() != 0, reason="NEEDS ROOT to read as another user")
@pytest.mark.root
def test_another_user_reads_without_write_access(sqlite_filled) -> None:
    """The gateway may run as a user that can only read the file."""
    filled = sqlite_filled
    for parent in (filled.path.parent, *filled.path.parent.parents):
        if parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    for path in filled.path.parent.iterdir():
        path.chmod(0o644)
    script = (
        "import os, sys\n"
        "from audit.query import AuditReader, RecordFilter\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(len(AuditReader(sys.argv[1], origin='example.com/log').records(RecordFilter(), None, 1000).records))\n"
    )
    other = subprocess.run([sys.executable, "-c", script, filled.url], capture_output=True, text=True)
    assert other.stdout == "240\n", other.stderr


def test_a_question_that_takes_too_long_is_cut_off(sqlite_filled, monkeypatch: Any) -> None:
    monkeypatch.setattr(sqlite, "MAX_QUERY_S", 0.0)
    monkeypatch.setattr(sqlite, "_PROGRESS_OPCODES", 10)
    reader = sqlite_filled.reader()
    with pytest.raises(LogUnavailable) as caught:
        reader.records(RecordFilter(purpose="nothing like it"))
    assert caught.value.code == "reader-busy"
    reader.close()


def test_a_damaged_leaf_is_said_to_be_damaged(filled) -> None:
    filled.sql("UPDATE leaf SET leaf = X'7b7d' WHERE idx = 9")
    filled.sql("DELETE FROM tile")
    reader = filled.reader()
    with pytest.raises(LogDamaged):
        reader.records(RecordFilter(), None, 1000)
    with pytest.raises(LogDamaged):
        reader.record(filled.done[8].record.id)
    reader.close()


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("tenant", "clinic", {"tenant": "clinic"}),
        ("kind", "policy.change", {"kind": "policy.change"}),
        ("ts_us", 20 * DAY_US + 5, {"to_us": 20 * DAY_US + 10}),
        ("ts_us", 21 * DAY_US - 5, {"from_us": 21 * DAY_US - 10}),
    ],
)
def test_an_index_that_lies_about_a_leaf_lets_nobody_read_it(
    bench, column: str, value: object, wanted: dict[str, Any]
) -> None:
    log = bench.open(clock=lambda: 20 * DAY_US + 100)
    other = log.append(bench.draft(tenant="laboratory")).result()
    bench.sql(f"UPDATE record SET {column} = ? WHERE idx = ?", value, other.index)
    reader = bench.reader()
    with pytest.raises(LogDamaged, match="index says"):
        reader.records(RecordFilter(**wanted))
    reader.close()


def test_no_database_another_log_and_an_empty_one(bench, tmp_path: Path) -> None:
    absent = AuditReader(f"sqlite:///{tmp_path / 'absent.sqlite'}", origin=bench.origin)
    with pytest.raises(LogUnavailable):
        absent.records(RecordFilter())
    log = bench.open()
    wrong = AuditReader(bench.url, origin="example.com/other")
    with pytest.raises(LogUnavailable):
        wrong.checkpoint()
    log.close()
    bench.sql("DELETE FROM checkpoint")
    reader = bench.reader()
    with pytest.raises(LogUnavailable) as caught:
        reader.checkpoint()
    assert caught.value.code == "not-published"
    for opened in (absent, wrong, reader):
        opened.close()
    assert query.MAX_PAGE == 1000
