"""Lines out of the database, on SQLite and PostgreSQL: the same bytes as from the leaves, by an index, or a refusal."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest

from audit import line_export
from audit.errors import LogDamaged, QueryRefused
from sealgate.transparency.exports.formats import FORMATS
from sealgate.transparency.exports.leaves import place
from sealgate.transparency.exports.ndjson import parse_ndjson_line


def exported(bench: Any, first: int, last: int, name: str = "ndjson", **more: Any) -> bytes:
    reader = bench.reader()
    out = io.BytesIO()
    try:
        reader.export_lines(first, last, out, form=FORMATS[name], **more)
    finally:
        reader.close()
    return out.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_over_several_chunks(bench, log, monkeypatch: Any, name: str) -> None:
    monkeypatch.setattr(line_export, "EXPORT_CHUNK_RECORDS", 7)
    for number in range(30):
        log.append(bench.draft(reason=str(number))).result()
    lines = exported(bench, 0, 30).splitlines(keepends=True)
    entries = [parse_ndjson_line(line) for line in lines]
    assert [entry.index for entry in entries] == list(range(31))
    form = FORMATS[name]
    for first, last in ((0, 30), (0, 0), (6, 7), (13, 29)):
        expected = form.header + b"".join(form.line(entry) for entry in entries[first : last + 1])
        assert exported(bench, first, last, name) == expected


def test_ranges_that_do_not_exist(bench, log, monkeypatch: Any) -> None:
    for _ in range(5):
        log.append(bench.draft()).result()
    for first, last in ((0, 6), (-1, 2), (3, 2), (100, 200)):
        with pytest.raises(QueryRefused):
            exported(bench, first, last)
    monkeypatch.setattr(line_export, "MAX_EXPORT_RECORDS", 3)
    with pytest.raises(QueryRefused):
        exported(bench, 0, 3)
    assert exported(bench, 0, 2)


def test_a_leaf_that_is_gone_and_one_that_is_damaged(bench) -> None:
    log = bench.open()
    for number in range(5):
        log.append(bench.draft(reason=str(number)))
    log.close()
    bench.sql("DELETE FROM leaf WHERE idx = 2")
    with pytest.raises(QueryRefused, match="kept=1"):
        exported(bench, 0, 4)
    kept = [parse_ndjson_line(line).index for line in exported(bench, 0, 4, kept_only=True).splitlines(keepends=True)]
    assert kept == [0, 1, 3, 4]
    assert exported(bench, 2, 2, "csv", kept_only=True) == FORMATS["csv"].header
    assert place(3, parse_ndjson_line(exported(bench, 3, 3)).leaf).record.reason == "2"
    bench.sql("UPDATE leaf SET leaf = (SELECT o.root FROM head AS o) WHERE idx = 3")
    with pytest.raises(LogDamaged):
        exported(bench, 3, 3)


def test_leaves_are_found_by_their_key(bench, log) -> None:
    log.append(bench.draft()).result()
    text = str(line_export.chunk_statement(1000, 2024).compile(compile_kwargs={"literal_binds": True}))
    assert "OFFSET" not in text
    with contextlib.closing(bench.reader()) as reader, reader._engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            plan = " / ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}"))
            assert "SEARCH leaf USING INTEGER PRIMARY KEY" in plan
            assert "TEMP B-TREE" not in plan
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # a table of two rows is scanned otherwise
            plan = " / ".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {text}"))
            assert "leaf_pkey" in plan
