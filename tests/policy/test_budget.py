"""The ledger on real SQLite files: exact under 64 callers, across windows, and after a kill at any moment."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from policy.budget import BudgetExhausted, window_of
from policy.budgets import Budget, Window
from policy.errors import PolicyError
from tests.policy.one_by_one import OneByOne

NOON = int(datetime(2026, 11, 18, 12, 0, 30, tzinfo=UTC).timestamp()) * 1_000_000
MINUTE = 60_000_000


def open_engine(url: str) -> Engine:
    """As the audit writer does it: autocommit driver, our own BEGIN IMMEDIATE."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=NORMAL").fetchall()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_engine(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    OneByOne.tables.create_all(engine)
    return engine


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        yield connection


def _budget(name: str = "b", **changes: Any) -> Budget:
    return Budget(**{"name": name, "tenant": "clinic", "window": Window.DAY, **changes})


def _reserve(book: OneByOne, conn: Connection, grant: str = "g", **changes: Any) -> int | None:
    asked = {"tenant": "clinic", "subject": "app", "model": "m", "now_us": NOON, **changes}
    return book.reserve(conn, grant=grant, **asked).requests


def _use(conn: Connection, name: str = "b") -> tuple[int, int, int]:
    query = text("SELECT requests_used, units_used, units_held FROM budget_use WHERE budget = :name")
    row = conn.execute(query, {"name": name}).one_or_none()
    return (0, 0, 0) if row is None else tuple(row)  # type: ignore[return-value]


def _holds(conn: Connection) -> int:
    return int(conn.execute(text("SELECT COUNT(*) FROM budget_hold")).scalar_one())


# What applies, and how much is left ----------------------------------------------------------------------------------


def test_requests_are_counted_down_and_then_refused(conn):
    book = OneByOne([_budget(requests=3)])
    assert [_reserve(book, conn, f"g{n}") for n in range(3)] == [2, 1, 0]
    with pytest.raises(BudgetExhausted) as caught:
        _reserve(book, conn, "g3")
    assert caught.value.name == "b"
    assert caught.value.renews_us == int(datetime(2026, 11, 19, tzinfo=UTC).timestamp()) * 1_000_000
    assert caught.value.code == "budget-exhausted"
    assert _use(conn) == (3, 0, 0)


def test_no_budget_applies(conn):
    book = OneByOne([_budget(requests=0)])
    assert _reserve(book, conn, tenant="other") is None
    assert _use(conn) == (0, 0, 0)


@pytest.mark.parametrize(
    ("budget", "counted"),
    [
        ({}, True),
        ({"subject": "app"}, True),
        ({"subject": "app2"}, False),
        ({"model": "m"}, True),
        ({"model": "n"}, False),
        ({"subject": "app", "model": "m"}, True),
        ({"subject": "app", "model": "n"}, False),
        ({"tenant": "other"}, False),
    ],
)
def test_which_requests_count(conn, budget, counted):
    assert _reserve(OneByOne([_budget(requests=5, **budget)]), conn) == (4 if counted else None)
    assert _use(conn) == ((1, 0, 0) if counted else (0, 0, 0))


@pytest.mark.parametrize("limits", [{"requests": 0}, {"units": 0}, {"units": 9, "units_per_request": 10}])
def test_a_limit_too_small_for_the_first_request(conn, limits):
    with pytest.raises(BudgetExhausted):
        _reserve(OneByOne([_budget(**limits)]), conn)
    assert _use(conn) == (0, 0, 0)
    assert _holds(conn) == 0


def test_the_tightest_budget_decides_and_a_refusal_takes_from_none(conn):
    roomy, tight = _budget("roomy", requests=10, units=1000), _budget("tight", requests=1)
    for order in ([roomy, tight], [tight, roomy]):
        conn.execute(text("DELETE FROM budget_use"))
        conn.execute(text("DELETE FROM budget_hold"))
        book = OneByOne(order)
        assert _reserve(book, conn, "g0") == 0
        before = _use(conn, "roomy"), _use(conn, "tight"), _holds(conn)
        with pytest.raises(BudgetExhausted, match="tight"):
            _reserve(book, conn, "g1")
        assert (_use(conn, "roomy"), _use(conn, "tight"), _holds(conn)) == before


def test_a_refusal_in_a_fresh_window_leaves_nothing_counted(conn):
    book = OneByOne([_budget("minute", window=Window.MINUTE, requests=5), _budget("day", requests=1)])
    _reserve(book, conn, "g0")
    with pytest.raises(BudgetExhausted, match="day"):
        _reserve(book, conn, "g1", now_us=NOON + MINUTE)
    assert _use(conn, "minute") == (0, 0, 0)


# Units ---------------------------------------------------------------------------------------------------------------


def test_units_are_held_then_settled(conn):
    book = OneByOne([_budget(units=100, units_per_request=30)])
    assert [_reserve(book, conn, f"g{n}") for n in range(3)] == [2, 1, 0]
    assert _use(conn) == (3, 0, 90)
    with pytest.raises(BudgetExhausted):
        _reserve(book, conn, "g3")
    book.settle(conn, grant="g0", units=5, now_us=NOON)
    assert _use(conn) == (3, 5, 60)
    assert _reserve(book, conn, "g3") == 0
    assert _use(conn) == (4, 5, 90)


def test_settling_twice_or_abandoning_after_settling_changes_nothing(conn):
    book = OneByOne([_budget(units=100, units_per_request=30)])
    _reserve(book, conn)
    book.settle(conn, grant="g", units=7, now_us=NOON)
    for again in (
        lambda: book.settle(conn, grant="g", units=9, now_us=NOON),
        lambda: book.abandon(conn, grant="g"),
        lambda: book.settle(conn, grant="never", units=9, now_us=NOON),
    ):
        again()
        assert _use(conn) == (1, 7, 0)
        assert _holds(conn) == 0


def test_an_abandoned_hold_is_spent_whole(conn):
    book = OneByOne([_budget(units=100, units_per_request=30)])
    _reserve(book, conn)
    book.abandon(conn, grant="g")
    assert _use(conn) == (1, 30, 0)


def test_a_grant_reserves_once(conn):
    book = OneByOne([_budget(units=100, units_per_request=10)])
    _reserve(book, conn)
    with pytest.raises(IntegrityError):
        _reserve(book, conn)


def test_units_above_the_hold_are_charged_in_full(conn):
    book = OneByOne([_budget(units=100, units_per_request=10)])
    _reserve(book, conn)
    book.settle(conn, grant="g", units=250, now_us=NOON)
    assert _use(conn) == (1, 250, 0)
    with pytest.raises(BudgetExhausted):
        _reserve(book, conn, "g1")


def test_amounts_never_overflow(conn):
    most = 2**53 - 1
    book = OneByOne([_budget(units=most, units_per_request=1)])
    for number in range(3):
        conn.execute(text("UPDATE budget_use SET units_used = 0"))
        _reserve(book, conn, f"g{number}")
    for number in range(3):
        book.settle(conn, grant=f"g{number}", units=most, now_us=NOON)
    assert _use(conn) == (3, most, 0)


@pytest.mark.parametrize("units", [-1, 2**53, -(2**70)])
def test_amounts_that_are_none(conn, units):
    book = OneByOne([_budget(units=1000)])
    _reserve(book, conn)
    with pytest.raises(PolicyError):
        book.settle(conn, grant="g", units=units, now_us=NOON)
    assert _use(conn) == (1, 0, 256)


# Windows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "starts", "ends"),
    [
        (Window.MINUTE, "2026-11-18T12:00:00", "2026-11-18T12:01:00"),
        (Window.HOUR, "2026-11-18T12:00:00", "2026-11-18T13:00:00"),
        (Window.DAY, "2026-11-18T00:00:00", "2026-11-19T00:00:00"),
        (Window.MONTH, "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
        (Window.YEAR, "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
    ],
)
def test_windows_renew(conn, window, starts, ends):
    first, following = (int(datetime.fromisoformat(f"{at}+00:00").timestamp()) * 1_000_000 for at in (starts, ends))
    book = OneByOne([_budget(window=window, requests=1)])
    assert _reserve(book, conn, "g0", now_us=first) == 0
    for moment in (first, NOON, following - 1):
        with pytest.raises(BudgetExhausted) as caught:
            _reserve(book, conn, "g1", now_us=moment)
        assert caught.value.renews_us == following
    assert _reserve(book, conn, "g2", now_us=following) == 0


@settings(max_examples=300)
@given(
    st.sampled_from([window for window in Window if window is not Window.FOREVER]),
    st.integers(0, 4_000_000_000_000_000),
)
def test_windows_tile_time(window, now_us):
    starts, ends = window_of(window, now_us)
    assert starts <= now_us < ends
    assert window_of(window, starts) == window_of(window, ends - 1) == (starts, ends)
    assert window_of(window, ends)[0] == ends
    longest = {
        Window.MINUTE: MINUTE,
        Window.HOUR: 60 * MINUTE,
        Window.DAY: 1440 * MINUTE,
        Window.MONTH: 31 * 1440 * MINUTE,
        Window.YEAR: 366 * 1440 * MINUTE,
    }
    assert ends - starts <= longest[window]


def test_what_was_held_in_an_old_window_does_not_burden_the_new_one(conn):
    book = OneByOne([_budget(window=Window.MINUTE, units=100, units_per_request=60)])
    _reserve(book, conn, "old")
    _reserve(book, conn, "new", now_us=NOON + MINUTE)
    assert _use(conn) == (1, 0, 60)
    book.settle(conn, grant="old", units=50, now_us=NOON + MINUTE)
    assert _use(conn) == (1, 0, 60)
    book.settle(conn, grant="new", units=50, now_us=NOON + MINUTE)
    assert _use(conn) == (1, 50, 0)


def test_a_clock_that_goes_back_gets_no_second_window(conn):
    book = OneByOne([_budget(window=Window.MINUTE, requests=2)])
    assert _reserve(book, conn, "g0", now_us=NOON + MINUTE) == 1
    assert _reserve(book, conn, "g1", now_us=NOON) == 0
    for moment in (NOON, NOON - 1440 * MINUTE, NOON + MINUTE):
        with pytest.raises(BudgetExhausted):
            _reserve(book, conn, "g2", now_us=moment)


def test_after_a_clock_that_went_back_a_refusal_says_when_the_budget_really_renews(conn):
    ahead = NOON + 3 * 365 * 1440 * MINUTE
    book = OneByOne([_budget(window=Window.DAY, requests=1)])
    _reserve(book, conn, "while the clock was wrong", now_us=ahead)
    with pytest.raises(BudgetExhausted) as caught:
        _reserve(book, conn, "afterwards", now_us=NOON)
    renews_us = caught.value.renews_us
    with pytest.raises(BudgetExhausted):
        _reserve(book, conn, "just before", now_us=renews_us - 1)
    assert _reserve(book, conn, "then", now_us=renews_us) == 0


def test_usage_survives_new_limits_and_restarts(engine):
    for requests, left in ((3, 2), (3, 1), (10, 7)):
        with engine.begin() as connection:
            assert _reserve(OneByOne([_budget(requests=requests)]), connection, f"g{left}") == left
    with engine.begin() as connection, pytest.raises(BudgetExhausted):
        _reserve(OneByOne([_budget(requests=2)]), connection, "g9")


# Any sequence, against a ledger that a child could write -------------------------------------------------------------

steps = st.one_of(
    st.tuples(st.just("reserve"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 40)),
    st.tuples(st.just("abandon"), st.integers(0, 20)),
    st.tuples(st.just("later"), st.integers(0, 2)),
)
LIMITS = {"all": (None, 6, None), "a": ("a", None, 50), "b": ("b", 2, 40)}
HOLD = 15


@settings(max_examples=120, deadline=None)
@given(st.lists(steps, max_size=40))
def test_any_sequence_agrees_with_a_plain_ledger(sequence):
    book = OneByOne(
        [
            _budget(name, subject=who, requests=requests, units=units, units_per_request=HOLD, window=Window.MINUTE)
            for name, (who, requests, units) in LIMITS.items()
        ]
    )
    engine = open_engine("sqlite://")
    with engine.begin() as conn:
        OneByOne.tables.create_all(conn)
        now, grants, spent = NOON, 0, []  # spent: (minute, who, units, grant or None when settled)
        for step in sequence:
            if step[0] == "later":
                now += step[1] * MINUTE
            elif step[0] == "reserve":
                current = [entry for entry in spent if entry[0] == now]
                fits = True
                for who, requests, units in LIMITS.values():
                    mine = [entry for entry in current if who in (None, entry[1])]
                    if who not in (None, step[1]):
                        continue
                    fits &= requests is None or len(mine) < requests
                    fits &= units is None or sum(entry[2] for entry in mine) + HOLD <= units
                try:
                    left = _reserve(book, conn, f"g{grants}", subject=step[1], now_us=now)
                    assert fits
                    assert left is not None
                    spent.append([now, step[1], HOLD, f"g{grants}"])
                except BudgetExhausted:
                    assert not fits
                grants += 1
            else:
                if step[0] == "settle":
                    book.settle(conn, grant=f"g{step[1]}", units=step[2], now_us=now)
                else:
                    book.abandon(conn, grant=f"g{step[1]}")
                for entry in spent:
                    if entry[3] == f"g{step[1]}":
                        entry[2], entry[3] = (step[2] if step[0] == "settle" else HOLD), None
        for name, (who, _, units) in LIMITS.items():
            rows = conn.execute(text("SELECT * FROM budget_use WHERE budget = :name"), {"name": name}).mappings().all()
            for row in rows:
                mine = [
                    entry
                    for entry in spent
                    if entry[0] // MINUTE * MINUTE == row["starts_us"] and who in (None, entry[1])
                ]
                assert row["requests_used"] == len(mine)
                if units is not None:
                    assert row["units_used"] == sum(entry[2] for entry in mine if entry[3] is None)
                    assert row["units_held"] == sum(entry[2] for entry in mine if entry[3] is not None)
    engine.dispose()


# Many callers, and kills ---------------------------------------------------------------------------------------------


def test_64_threads_never_overspend(engine):
    """100 requests and 1,000 units for 64 callers who ask for far more; each has a connection of its own."""
    book = OneByOne([_budget("requests", requests=100), _budget("units", units=1000, units_per_request=9)])
    won: list[str] = []
    lost: list[str] = []
    failed: list[BaseException] = []
    start = threading.Barrier(64)

    def call(number: int) -> None:
        try:
            start.wait()
            for turn in range(4):
                grant = f"{number}-{turn}"
                with engine.begin() as connection:
                    try:
                        _reserve(book, connection, grant)
                        won.append(grant)
                    except BudgetExhausted:
                        lost.append(grant)
                        continue
                if turn % 2:
                    with engine.begin() as connection:
                        book.settle(connection, grant=grant, units=7, now_us=NOON)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(won) + len(lost) == 256
    assert len(won) == 100, "neither more nor, since the units would have sufficed, fewer"
    with engine.begin() as connection:
        assert _use(connection, "requests") == (100, 0, 0)
        requests, units_used, units_held = _use(connection, "units")
        settled = sum(grant.endswith(("-1", "-3")) for grant in won)
        assert (requests, units_used, units_held) == (100, settled * 7, (100 - settled) * 9)
        assert _holds(connection) == 100 - settled


def test_64_threads_through_the_audit_log(tmp_path):
    """In its real place: reservation and record are one transaction of the log's writer, a refusal becomes a denial."""
    from audit.log import AuditLog
    from sealgate.transparency.notes import NoteSigner
    from sealgate.transparency.record import Record

    book = OneByOne([_budget("roomy", units=10**6), _budget("tight", requests=40)])

    def effect(connection: Connection, draft: Record) -> Record:
        try:
            _reserve(book, connection, draft.id)
        except BudgetExhausted as error:
            return msgspec.structs.replace(draft, kind="inference.denied", reason=error.code)
        return draft

    kinds: list[str] = []
    url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    signer = NoteSigner.from_seed("test/log", bytes(32))
    settings_ = {"signer": signer, "subjects_key": bytes(32), "origin": "test/log", "extra_tables": (book.tables,)}
    with AuditLog.open(url, **settings_) as log:
        draft = Record(kind="inference.authorized", tenant="clinic", model="m")
        threads = [
            threading.Thread(target=lambda: kinds.append(log.append(draft, effect).result(60).record.kind))
            for _ in range(64)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(kinds) == ["inference.authorized"] * 40 + ["inference.denied"] * 24
    with open_engine(url).begin() as connection:
        assert _use(connection, "tight") == (40, 0, 0)
        assert _use(connection, "roomy") == (40, 0, 40 * 256)
        assert _holds(connection) == 40

    # The process ends here with 40 requests under way: at the next start each is aborted, and its hold is spent.
    def abandon(connection: Connection, draft: Record) -> Record:
        book.abandon(connection, grant=draft.grant)
        return draft

    AuditLog.open(url, on_abort=abandon, **settings_).close()
    with open_engine(url).begin() as connection:
        assert _use(connection, "roomy") == (40, 40 * 256, 0)
        assert _holds(connection) == 0


CHILD = """
import sys
from sqlalchemy import text
sys.path.insert(0, {folder!r})
from test_budget import NOON, _budget, _reserve, open_engine
from tests.policy.one_by_one import OneByOne
book = OneByOne([_budget(requests=10**9, units=10**9, units_per_request=10)])
engine = open_engine(sys.argv[1])
run = sys.argv[2]
for number in range(10**9):
    grant = f"{{run}}-{{number}}"
    with engine.begin() as conn:
        _reserve(book, conn, grant)
        conn.execute(text("INSERT INTO journal VALUES (:g, -1)"), {{"g": grant}})
    print("reserved", flush=True)
    if number % 3:
        with engine.begin() as conn:
            book.settle(conn, grant=grant, units=number % 10, now_us=NOON)
            conn.execute(text("UPDATE journal SET units = :u WHERE grant_id = :g"), {{"g": grant, "u": number % 10}})
        print("settled", flush=True)
"""


def test_a_kill_at_any_moment_neither_doubles_nor_loses(tmp_path, engine):
    """A child reserves and settles, and writes beside it, in the same transactions, what it did. After SIGKILL the
    ledger and that journal agree to the unit; what was under way is charged whole once it is abandoned."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE journal (grant_id TEXT PRIMARY KEY, units INTEGER)"))
    chance = random.Random(20261118)
    script = CHILD.format(folder=str(Path(__file__).parent))
    book = OneByOne([_budget(requests=10**9, units=10**9, units_per_request=10)])
    for run in range(8):
        child = subprocess.Popen([sys.executable, "-c", script, url, str(run)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(chance.randrange(1, 60)):
            assert child.stdout.readline()
        for _ in range(chance.randrange(0, 20_000)):
            pass  # so that the kill falls anywhere in a transaction, not only after a line
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        with engine.begin() as conn:
            journal = conn.execute(text("SELECT grant_id, units FROM journal")).all()
            under_way = [grant for grant, units in journal if units < 0]
            spent = sum(units for _, units in journal if units >= 0)
            assert _use(conn) == (len(journal), spent, 10 * len(under_way))
            assert _holds(conn) == len(under_way)
            for grant in under_way:
                book.abandon(conn, grant=grant)
                conn.execute(text("UPDATE journal SET units = 10 WHERE grant_id = :g"), {"g": grant})
            assert _use(conn) == (len(journal), spent + 10 * len(under_way), 0)
            assert _holds(conn) == 0
