"""The ledger of epsilon in a real PostgreSQL server: the same statements, the same answers as in SQLite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from policy.budget import Left, PrivacyBudgetExhausted
from policy.budgets import Budget, PrivacyBudget, Window
from policy.errors import PrivacyBudgetHeld
from policy.usage import read_ledger

pytest.importorskip("psycopg", reason="NEEDS the extra 'postgres': nothing of budgets in PostgreSQL was tested")
from tests.audit.postgres_server import PostgresServer, missing
from tests.policy.one_by_one import OneByOne

NOON = 1_794_997_830_000_000
DAY = 86_400_000_000
BUDGETS = (
    PrivacyBudget(name="ever", population="p", models=("m",), epsilon="4", window=Window.FOREVER),
    PrivacyBudget(name="day", population="p", models=("m",), epsilon="3", window=Window.DAY),
)
COUNTED = (Budget(name="u", tenant="clinic", window=Window.DAY, requests=100, units=1000, units_per_request=10),)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if missing():
        pytest.skip(missing())
    started = PostgresServer()
    yield started
    started.remove()


@pytest.fixture
def engine(server: PostgresServer) -> Iterator[Engine]:
    name = server.create()
    made = create_engine(server.url(name))
    OneByOne.tables.create_all(made)
    yield made
    made.dispose()
    server.drop(name)


def reserve(book: OneByOne, conn: Any, grant: str, micro: int, *, now_us: int = NOON) -> Left | None:
    asked = {"tenant": "clinic", "subject": "app", "model": "m", "now_us": now_us}
    return book.reserve(conn, grant=grant, eps_micro=micro, **asked).privacy


def test_the_same_answers_as_in_sqlite(engine: Engine) -> None:
    book = OneByOne(COUNTED, BUDGETS)
    with engine.begin() as conn:
        assert reserve(book, conn, "a", 2_000_000) == Left("day", 1_000_000)
        with pytest.raises(PrivacyBudgetHeld):
            reserve(book, conn, "b", 2_000_000)
        ended = book.settle(conn, grant="a", units=3, eps_micro=1_500_000, now_us=NOON)
        assert ended is not None
        assert (ended.spent_micro, ended.left) == (1_500_000, Left("day", 1_500_000))
        assert reserve(book, conn, "c", 1_500_000) == Left("day", 0)
        ended = book.abandon(conn, grant="c")
        assert ended is not None
        assert ended.spent_micro == 1_500_000
        with pytest.raises(PrivacyBudgetExhausted) as caught:
            reserve(book, conn, "d", 1)
        assert (caught.value.name, caught.value.code) == ("day", "privacy-budget-exhausted")
        assert reserve(book, conn, "e", 1_000_000, now_us=NOON + DAY) == Left("ever", 0)
    listed = read_ledger(engine, COUNTED, BUDGETS, now_us=NOON + DAY)
    assert [(one.budget, one.what, one.used, one.held, one.left) for one in listed] == [
        ("u", "requests", 1, 0, 99),
        ("u", "units", 0, 10, 990),
        ("ever", "epsilon", 3_000_000, 1_000_000, 0),
        ("day", "epsilon", 0, 1_000_000, 2_000_000),
    ]


def test_callers_on_connections_of_their_own_never_overspend(engine: Engine) -> None:
    book = OneByOne(COUNTED, BUDGETS[:1])
    won: list[str] = []
    failed: list[BaseException] = []

    def call(number: int) -> None:
        try:
            for turn in range(4):
                with engine.begin() as conn:
                    try:
                        reserve(book, conn, f"{number}-{turn}", 100_000)
                        won.append(f"{number}-{turn}")
                    except PrivacyBudgetExhausted:
                        continue
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with engine.connect() as conn:
        assert conn.execute(text("SELECT spent_micro, held_micro FROM privacy_use")).all() == [(0, 4_000_000)]
    assert len(won) == 40
