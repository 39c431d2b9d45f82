"""The console over a log of many records, driven in Chromium: every page answers, and none takes longer than a person
waits. The quick one is small and on both databases; the slow one has a million records."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.limits import ACTIVITY_DAYS
from benchmarks.audit_queries import build_log
from benchmarks.console_pages import measure, pages, serving, table
from gateway.limits import CONSOLE_PAGE
from tests.audit.postgres_server import PostgresServer, missing
from tests.peers.components import require_browser


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_every_page_of_a_log_opens(tmp_path: Path, database: str) -> None:
    require_browser()
    url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    server = None
    if database == "postgresql":
        if missing():
            pytest.skip(missing())
        server = PostgresServer()
        url = server.url(server.create())
    try:
        build_log(url, 3000, tmp_path / "people")
        with serving(url) as running:
            asked = pages(url)
            measure(running, asked, rounds=1)
    finally:
        if server is not None:
            server.remove()
    assert {name for name, page in asked.items() if page.refused} == set()
    assert {name for name, page in asked.items() if not page.rows} <= {
        *("a purpose that is nobody's", "a tenant, a purpose that is nobody's", "a tenant's rare reason"),
        *("a record in the middle", "the newest record", "budgets", "report: access, 30 days", "who looked"),
    }


@pytest.mark.slow
def test_the_pages_of_a_million_records_come_in_a_moment(tmp_path: Path) -> None:
    """Not how fast it is (the benchmark says that), but that nothing goes through the whole log: such a statement would
    be cut off after ten seconds, and the page be a problem."""
    require_browser()
    url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    assert build_log(url, 1_000_000, tmp_path / "people") >= 999_000
    with serving(url) as running:
        asked = pages(url)
        measure(running, asked, rounds=1)
    print(table(asked))
    bars_and_records = ACTIVITY_DAYS + CONSOLE_PAGE + 1  # the last row leads to older ones
    assert {asked[name].rows for name in ("timeline", "denied", "one tenant", "one caller")} == {bars_and_records}
    assert {name for name, page in asked.items() if page.refused} == set()
