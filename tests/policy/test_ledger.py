"""A batch's ledger in memory agrees with statements that run one after the other, in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import StaticPool

from policy.budget import BudgetBook
from policy.budgets import Budget, PrivacyBudget, Window
from policy.errors import BudgetExhausted, NoPrivacyBudget, PolicyError
from policy.ledger import Ledger
from policy.limits import MAX_AMOUNT
from tests.audit.postgres_server import PostgresServer, missing
from tests.policy import statement_by_statement
from tests.policy.test_privacy_budget import open_engine

NOON = 1_794_997_830_000_000
MINUTE, DAY = 60_000_000, 86_400_000_000
COUNTED = (
    Budget(name="all", tenant="t", window=Window.DAY, requests=9),
    Budget(name="a", tenant="t", subject="a", window=Window.MINUTE, units=60, units_per_request=15),
    Budget(name="b", tenant="t", subject="b", window=Window.MINUTE, requests=3, units=40, units_per_request=15),
    Budget(name="year", tenant="t", window=Window.YEAR, units=MAX_AMOUNT, units_per_request=7),
    Budget(name="none", tenant="t", model="m0", window=Window.DAY, requests=0),
)
PRIVACY = (
    PrivacyBudget(name="ever", population="p", models=("m", "n"), epsilon="4", window=Window.FOREVER),
    PrivacyBudget(name="day", population="p", models=("m",), epsilon="2", window=Window.DAY),
    PrivacyBudget(
        name="mine", population="p", models=("m", "s"), epsilon="1", window=Window.DAY, tenant="t", subject="a"
    ),
)
BOOK = BudgetBook(COUNTED, PRIVACY)
TABLES = ("budget_use", "budget_hold", "privacy_use", "privacy_hold")

reservations = st.tuples(
    st.just("reserve"),
    st.sampled_from("ab"),
    st.sampled_from(["m", "n", "s", "m0"]),
    st.sampled_from([0, 0, 300_000, 1_000_000, 1_500_000, 2_500_000]),
)
ends = st.tuples(
    st.sampled_from(["settle", "abandon"]),
    st.integers(0, 25),
    st.sampled_from([0, 7, 40, MAX_AMOUNT]),
    st.sampled_from([None, None, 0, 200_000, 1_000_000]),
)
turns = st.tuples(
    st.one_of(reservations, ends),
    st.sampled_from([False, False, False, True]),  # whether the record is refused after its effect
    st.sampled_from([0, 0, 0, 0, MINUTE, -MINUTE, DAY, -3 * DAY]),
)
batches = st.lists(st.lists(turns, min_size=1, max_size=8), max_size=8)


class _Refused(Exception):
    """The record broke a rule of the log after its effect had run."""


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BudgetExhausted as error:
        return type(error), error.name, error.renews_us
    except NoPrivacyBudget as error:
        return type(error)


def in_memory(conn: Connection, batch: list[Any], first: int, now_us: int) -> list[Any]:
    """As the audit writer does it."""
    ledger = Ledger()
    claims = {}
    for grant, (step, _, _) in enumerate(batch, first):
        if step[0] == "reserve":
            claims[grant] = BOOK.claim(tenant="t", subject=step[1], model=step[2], eps_micro=step[3])
            BOOK.expect(ledger, claims[grant])
        else:
            BOOK.expect_end(ledger, grant=f"g{step[1]}", noised=step[0] == "abandon" or step[3] is not None)
    ledger.load(conn)
    told = []
    for grant, (step, refused, moved) in enumerate(batch, first):
        now_us += moved
        ledger.begin()
        try:
            if step[0] == "reserve":
                told.append(outcome(lambda: BOOK.reserve(ledger, claims[grant], grant=f"g{grant}", now_us=now_us)))  # noqa: B023
            elif step[0] == "settle":
                told.append(BOOK.settle(ledger, grant=f"g{step[1]}", units=step[2], eps_micro=step[3], now_us=now_us))
            else:
                told.append(BOOK.abandon(ledger, grant=f"g{step[1]}"))
            if refused:
                raise _Refused
        except (PolicyError, _Refused) as error:
            ledger.undo()
            told.append(type(error))
    ledger.store(conn)
    return told


def by_statements(conn: Connection, batch: list[Any], first: int, now_us: int) -> list[Any]:
    """One after the other, each in a savepoint."""
    told = []
    for grant, (step, refused, moved) in enumerate(batch, first):
        now_us += moved
        conn.exec_driver_sql("SAVEPOINT one")
        try:
            if step[0] == "reserve":
                claim = BOOK.claim(tenant="t", subject=step[1], model=step[2], eps_micro=step[3])
                told.append(
                    outcome(
                        lambda: statement_by_statement.reserve(conn, claim, grant=f"g{grant}", now_us=now_us)  # noqa: B023
                    )
                )
            else:
                units, micro = (step[2], step[3]) if step[0] == "settle" else (None, None)
                noised = step[0] == "abandon" or micro is not None
                told.append(
                    statement_by_statement.end(
                        conn, PRIVACY, grant=f"g{step[1]}", units=units, micro=micro, noised=noised
                    )
                )
            if refused:
                raise _Refused
        except (PolicyError, _Refused) as error:
            conn.exec_driver_sql("ROLLBACK TO SAVEPOINT one")
            told.append(type(error))
        conn.exec_driver_sql("RELEASE SAVEPOINT one")
    return told


def rows(conn: Connection) -> dict[str, list[Any]]:
    return {
        table: [tuple(row) for row in conn.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))] for table in TABLES
    }


def agree(one: Engine, other: Engine, sequence: list[Any]) -> None:
    grants, now_us = 0, NOON
    for batch in sequence:
        with one.begin() as conn:
            told = in_memory(conn, batch, grants, now_us)
        with other.begin() as conn:
            assert told == by_statements(conn, batch, grants, now_us)
        grants += len(batch)
        now_us += sum(moved for _, _, moved in batch)
        with one.begin() as conn, other.begin() as by_hand:
            assert rows(conn) == rows(by_hand)


@settings(max_examples=80, deadline=None)
@given(batches)
def test_a_batch_in_memory_is_one_statement_after_the_other_in_sqlite(sequence: list[Any]) -> None:
    engines = [open_engine("sqlite://", poolclass=StaticPool) for _ in range(2)]
    for engine in engines:
        BudgetBook.tables.create_all(engine)
    agree(*engines, sequence)
    for engine in engines:
        engine.dispose()


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Engine]]:
    pytest.importorskip("psycopg", reason="NEEDS the extra 'postgres': batches in PostgreSQL were not tested")
    if missing():
        pytest.skip(missing())
    server = PostgresServer()
    engines = [create_engine(server.url(server.create())) for _ in range(2)]
    for engine in engines:
        BudgetBook.tables.create_all(engine)
    yield engines
    for engine in engines:
        engine.dispose()
    server.remove()


@settings(max_examples=15, deadline=None)
@given(batches)
def test_a_batch_in_memory_is_one_statement_after_the_other_in_postgresql(
    servers: list[Engine], sequence: list[Any]
) -> None:
    for engine in servers:
        with engine.begin() as conn:
            conn.execute(text(f"TRUNCATE {', '.join(TABLES)}"))
    agree(servers[0], servers[1], sequence)


def test_what_was_not_loaded_is_not_unused() -> None:
    ledger = Ledger()
    with pytest.raises(LookupError):
        ledger.requests.use(("all", "day"))


def test_a_grant_reserves_once_within_a_batch() -> None:
    ledger, claim = Ledger(), BOOK.claim(tenant="t", subject="a", model="m")
    BOOK.expect(ledger, claim)
    BOOK.reserve(ledger, claim, grant="g", now_us=NOON)
    with pytest.raises(PolicyError):
        BOOK.reserve(ledger, claim, grant="g", now_us=NOON)
