"""Epsilon on real SQLite files: held, settled and abandoned exactly, under 64 callers, across windows and kills."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import NullPool, StaticPool

from policy.budget import BudgetExhausted, Left, NoPrivacyBudget, PrivacyBudgetExhausted, Reserved
from policy.budgets import Budget, PrivacyBudget, Window, parse_budgets
from policy.errors import PolicyError, PolicyFileError, PrivacyBudgetHeld
from policy.usage import Usage, read_usage
from tests.policy.one_by_one import OneByOne

NOON = int(datetime(2026, 11, 18, 12, 0, 30, tzinfo=UTC).timestamp()) * 1_000_000
DAY = 86_400_000_000


def open_engine(url: str, **options: Any) -> Engine:
    """As the audit writer does it: autocommit driver, our own BEGIN IMMEDIATE."""
    engine = create_engine(url, **{"poolclass": NullPool, "connect_args": {"timeout": 60}, **options})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
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


def whole(name: str = "p", epsilon: str = "10", **changes: Any) -> PrivacyBudget:
    values = {"name": name, "population": "patients", "models": ("m",), "window": Window.FOREVER, **changes}
    return PrivacyBudget(epsilon=epsilon, **values)


def reserve(book: OneByOne, conn: Connection, grant: str = "g", eps_micro: int = 10**6, **changes: Any) -> Reserved:
    asked = {"tenant": "clinic", "subject": "app", "model": "m", "now_us": NOON, **changes}
    return book.reserve(conn, grant=grant, eps_micro=eps_micro, **asked)


def use(conn: Connection, name: str = "p") -> tuple[int, int]:
    query = text("SELECT spent_micro, held_micro FROM privacy_use WHERE budget = :name")
    row = conn.execute(query, {"name": name}).one_or_none()
    return (0, 0) if row is None else (row[0], row[1])


def holds(conn: Connection) -> int:
    return int(conn.execute(text("SELECT COUNT(*) FROM privacy_hold")).scalar_one())


# The ledger -----------------------------------------------------------------------------------------------------------


def test_epsilon_is_held_then_settled_and_the_rest_comes_back(conn: Connection) -> None:
    book = OneByOne([], [whole(epsilon="3")])
    assert reserve(book, conn, eps_micro=2_000_000).privacy == Left("p", 1_000_000)
    assert use(conn) == (0, 2_000_000)
    ended = book.settle(conn, grant="g", units=4, eps_micro=500_000, now_us=NOON)
    assert ended is not None
    assert (ended.spent_micro, ended.left) == (500_000, Left("p", 2_500_000))
    assert use(conn) == (500_000, 0)
    assert holds(conn) == 0
    assert reserve(book, conn, "h", eps_micro=2_500_000).privacy == Left("p", 0)


def test_what_nobody_knows_is_spent_whole_and_only_once(conn: Connection) -> None:
    book = OneByOne([], [whole()])
    reserve(book, conn)
    ended = book.abandon(conn, grant="g")
    assert ended is not None
    assert ended.spent_micro == 1_000_000
    assert book.abandon(conn, grant="g") is None
    assert book.settle(conn, grant="g", units=0, eps_micro=0, now_us=NOON) is None
    assert use(conn) == (1_000_000, 0)


def test_more_than_was_held_is_refused_and_stays_held(engine: Engine) -> None:
    book = OneByOne([], [whole()])
    with engine.begin() as conn:
        reserve(book, conn)
    for grant, micro in (("g", 1_000_001), ("g", -1), ("never", 1)):
        with pytest.raises(PolicyError), engine.begin() as conn:
            book.settle(conn, grant=grant, units=0, eps_micro=micro, now_us=NOON)
    with engine.begin() as conn:
        assert (use(conn), holds(conn)) == ((0, 1_000_000), 1)


def test_an_exhausted_budget_is_named_and_never_renews(conn: Connection) -> None:
    book = OneByOne([], [whole(epsilon="1.5")])
    reserve(book, conn)
    book.settle(conn, grant="g", units=0, eps_micro=500_001, now_us=NOON)
    with pytest.raises(PrivacyBudgetExhausted) as caught:
        reserve(book, conn, "h")
    assert (caught.value.name, caught.value.renews_us, caught.value.code) == ("p", 0, "privacy-budget-exhausted")
    assert isinstance(caught.value, BudgetExhausted)
    assert (use(conn), holds(conn)) == ((500_001, 0), 0)
    with pytest.raises(PrivacyBudgetExhausted):
        reserve(book, conn, "i", now_us=NOON + 10_000 * DAY)


def test_what_others_hold_is_told_apart_from_what_is_spent(conn: Connection) -> None:
    book = OneByOne([], [whole(epsilon="1.5")])
    reserve(book, conn)
    with pytest.raises(PrivacyBudgetHeld) as caught:
        reserve(book, conn, "h")
    assert (caught.value.name, caught.value.code) == ("p", "privacy-budget-held")
    assert (use(conn), holds(conn)) == ((0, 1_000_000), 1)
    book.settle(conn, grant="g", units=0, eps_micro=500_000, now_us=NOON)
    assert reserve(book, conn, "i").privacy == Left("p", 0)


def test_a_first_request_above_the_whole_is_refused(conn: Connection) -> None:
    with pytest.raises(PrivacyBudgetExhausted):
        reserve(OneByOne([], [whole(epsilon="0.999999")]), conn)
    assert use(conn) == (0, 0)


@pytest.mark.parametrize(
    ("window", "renews"),
    [(Window.DAY, "2026-11-19"), (Window.MONTH, "2026-12-01"), (Window.YEAR, "2027-01-01")],
)
def test_windows_renew_and_what_was_held_in_an_old_one_pays_there(
    conn: Connection, window: Window, renews: str
) -> None:
    book = OneByOne([], [whole(epsilon="1", window=window)])
    reserve(book, conn, "old")
    with pytest.raises(PrivacyBudgetExhausted) as caught:
        reserve(book, conn, "no")
    moment = int(datetime.fromisoformat(f"{renews}T00:00:00+00:00").timestamp()) * 1_000_000
    assert caught.value.renews_us == moment
    reserve(book, conn, "new", now_us=moment)
    book.settle(conn, grant="old", units=0, eps_micro=900_000, now_us=moment)
    assert use(conn) == (0, 1_000_000)
    with pytest.raises(PrivacyBudgetExhausted):
        reserve(book, conn, "back", now_us=NOON)  # a clock that goes back gets no second window


def test_after_a_clock_that_went_back_a_refusal_says_when_the_budget_really_renews(conn: Connection) -> None:
    book = OneByOne([], [whole(epsilon="1", window=Window.YEAR)])
    reserve(book, conn, "while the clock was wrong", now_us=NOON + 3 * 365 * DAY)
    book.settle(conn, grant="while the clock was wrong", units=0, eps_micro=1_000_000, now_us=NOON)
    with pytest.raises(PrivacyBudgetExhausted) as caught:
        reserve(book, conn, "afterwards")
    renews_us = caught.value.renews_us
    with pytest.raises(PrivacyBudgetExhausted):
        reserve(book, conn, "just before", now_us=renews_us - 1)
    assert reserve(book, conn, "then", now_us=renews_us).privacy == Left("p", 0)


def test_no_noise_needs_no_budget_and_noise_without_one_is_refused(conn: Connection) -> None:
    book = OneByOne([Budget(name="r", tenant="clinic", window=Window.DAY, requests=5)], [whole(models=("other",))])
    assert reserve(book, conn, eps_micro=0) == Reserved(4, None)
    with pytest.raises(NoPrivacyBudget):
        reserve(book, conn, "h")
    used = conn.execute(text("SELECT requests_used FROM budget_use")).scalar_one()
    assert used == 1, "the refused one was given back"


def test_a_share_alone_is_no_budget(conn: Connection) -> None:
    share = whole("share", tenant="clinic", subject="app")
    with pytest.raises(NoPrivacyBudget):
        reserve(OneByOne([], [share]), conn)


def test_every_budget_that_applies_is_spent_and_a_refusal_takes_from_none(conn: Connection) -> None:
    both = [whole(epsilon="10"), whole("share", "1", tenant="clinic", subject="app", window=Window.DAY)]
    counted = Budget(name="r", tenant="clinic", window=Window.DAY, units=1000, units_per_request=10)
    book = OneByOne([counted], both)
    assert reserve(book, conn).privacy == Left("share", 0)
    before = use(conn), use(conn, "share"), holds(conn)
    with pytest.raises(PrivacyBudgetExhausted) as caught:
        reserve(book, conn, "h")
    assert caught.value.name == "share"
    assert (use(conn), use(conn, "share"), holds(conn)) == before
    assert conn.execute(text("SELECT requests_used, units_held FROM budget_use")).one() == (1, 10)
    assert reserve(book, conn, "i", subject="else").privacy == Left("p", 8_000_000)


def test_a_budget_that_left_the_policy_is_still_settled(conn: Connection) -> None:
    reserve(OneByOne([], [whole()]), conn)
    ended = OneByOne([], []).settle(conn, grant="g", units=0, eps_micro=300_000, now_us=NOON)
    assert ended is not None
    assert (ended.spent_micro, ended.left) == (300_000, None)
    assert use(conn) == (300_000, 0)


# Conservation, for any sequence ---------------------------------------------------------------------------------------


class Conservation(RuleBasedStateMachine):
    """Whatever is asked in whatever order: the ledger is the sum of what was settled and what is held, and never above
    a budget."""

    grants = Bundle("grants")
    LIMITS = {"all": 5_000_000, "a": 2_000_000, "day": 3_000_000}

    def __init__(self) -> None:
        super().__init__()
        self.engine = open_engine("sqlite://", poolclass=StaticPool)
        OneByOne.tables.create_all(self.engine)
        self.book = OneByOne(
            [],
            [
                whole("all", "5"),
                whole("a", "2", tenant="clinic", subject="a"),
                whole("day", "3", window=Window.DAY),
            ],
        )
        self.now, self.count = NOON, 0
        self.held: dict[str, tuple[str, int, int]] = {}  # grant: subject, amount, day
        self.spent: list[tuple[str, int, int]] = []

    @rule(target=grants, subject=st.sampled_from(["a", "b"]), amount=st.integers(1, 1_500_000))
    def reserve(self, subject: str, amount: int) -> str:
        grant, self.count = f"g{self.count}", self.count + 1
        entry = (subject, amount, self.now // DAY)
        fits = all(
            self._total(name) + amount <= limit for name, limit in self.LIMITS.items() if name != "a" or subject == "a"
        )
        with self.engine.begin() as conn:
            try:
                reserve(self.book, conn, grant, amount, subject=subject, now_us=self.now)
                assert fits
                self.held[grant] = entry
            except PrivacyBudgetExhausted:
                assert not fits
        return grant

    @rule(grant=grants, share=st.integers(0, 100))
    def settle(self, grant: str, share: int) -> None:
        subject, amount, day = self.held.pop(grant, ("", 0, 0))
        with self.engine.begin() as conn:
            self.book.settle(conn, grant=grant, units=0, eps_micro=amount * share // 100, now_us=self.now)
        self.spent.append((subject, amount * share // 100, day))

    @rule(grant=grants)
    def abandon(self, grant: str) -> None:
        entry = self.held.pop(grant, None)
        with self.engine.begin() as conn:
            self.book.abandon(conn, grant=grant)
        self.spent += [entry] if entry else []

    @precondition(lambda self: self.now < NOON + 3 * DAY)
    @rule()
    def tomorrow(self) -> None:
        self.now += DAY

    def _counts(self, name: str, entry: tuple[str, int, int], day: int) -> bool:
        return (name != "a" or entry[0] == "a") and (name != "day" or entry[2] == day)

    def _sum(self, name: str, entries: Any, day: int) -> int:
        return sum(entry[1] for entry in entries if self._counts(name, entry, day))

    def _total(self, name: str) -> int:
        day = self.now // DAY
        return self._sum(name, self.spent, day) + self._sum(name, self.held.values(), day)

    @invariant()
    def the_ledger_is_what_happened(self) -> None:
        with self.engine.begin() as conn:
            for name, limit in self.LIMITS.items():
                row = conn.execute(
                    text("SELECT spent_micro, held_micro, starts_us FROM privacy_use WHERE budget = :name"),
                    {"name": name},
                ).one_or_none()
                if row is None:
                    assert self._total(name) == 0
                    continue
                day = row[2] // DAY if name == "day" else 0
                assert row[0] == self._sum(name, self.spent, day)
                assert row[1] == self._sum(name, self.held.values(), day)
                assert row[0] + row[1] <= limit
            assert holds(conn) == sum(3 if entry[0] == "a" else 2 for entry in self.held.values())

    def teardown(self) -> None:
        self.engine.dispose()


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


# Many callers, and kills ----------------------------------------------------------------------------------------------


def test_64_threads_never_overspend_requests_units_or_epsilon(engine: Engine) -> None:
    """64 callers with connections of their own, four rounds each, against three budgets that bind in turn."""
    book = OneByOne(
        [
            Budget(name="r", tenant="clinic", window=Window.DAY, requests=200),
            Budget(name="u", tenant="clinic", window=Window.DAY, units=2000, units_per_request=9),
        ],
        [whole(epsilon="40")],
    )
    failed: list[BaseException] = []
    settled: list[int] = []
    kept: list[str] = []
    start = threading.Barrier(64)

    def call(number: int) -> None:
        try:
            start.wait()
            for turn in range(4):
                grant, spends = f"{number}-{turn}", (number + turn) % 2 * 250_000
                with engine.begin() as connection:
                    try:
                        reserve(book, connection, grant, 1_000_000)
                    except BudgetExhausted:
                        continue
                if turn == 3:
                    kept.append(grant)
                    continue
                with engine.begin() as connection:
                    book.settle(connection, grant=grant, units=3, eps_micro=spends, now_us=NOON)
                    settled.append(spends)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with engine.begin() as connection:
        spent, held = use(connection)
        assert (spent, held) == (sum(settled), len(kept) * 1_000_000)
        assert spent + held <= 40_000_000
        assert holds(connection) == len(kept)
        rows = connection.execute(text("SELECT requests_used, units_used, units_held FROM budget_use ORDER BY 1")).all()
        done, open_still = len(settled), len(kept)
        assert rows == [(done + open_still, 0, 0), (done + open_still, done * 3, open_still * 9)]
        assert done + open_still <= 200


CHILD = """
import sys
from sqlalchemy import text
sys.path.insert(0, {folder!r})
from test_privacy_budget import NOON, open_engine, reserve, whole
from tests.policy.one_by_one import OneByOne
book = OneByOne([], [whole(epsilon="9000000")])
engine = open_engine(sys.argv[1])
run = sys.argv[2]
for number in range(10**9):
    grant = f"{{run}}-{{number}}"
    with engine.begin() as conn:
        reserve(book, conn, grant, 10)
        conn.execute(text("INSERT INTO journal VALUES (:g, -1)"), {{"g": grant}})
    print("reserved", flush=True)
    if number % 3:
        with engine.begin() as conn:
            book.settle(conn, grant=grant, units=0, eps_micro=number % 10, now_us=NOON)
            conn.execute(text("UPDATE journal SET spent = :u WHERE grant_id = :g"), {{"g": grant, "u": number % 10}})
        print("settled", flush=True)
"""


def test_a_kill_at_any_moment_neither_doubles_nor_loses(tmp_path: Path, engine: Engine) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE journal (grant_id TEXT PRIMARY KEY, spent INTEGER)"))
    chance = random.Random(20261122)
    script = CHILD.format(folder=str(Path(__file__).parent))
    book = OneByOne([], [whole(epsilon="9000000")])
    for run in range(6):
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
            journal = conn.execute(text("SELECT grant_id, spent FROM journal")).all()
            under_way = [grant for grant, spent in journal if spent < 0]
            spent = sum(amount for _, amount in journal if amount >= 0)
            assert (use(conn), holds(conn)) == ((spent, 10 * len(under_way)), len(under_way))
            for grant in under_way:
                book.abandon(conn, grant=grant)
                conn.execute(text("UPDATE journal SET spent = 10 WHERE grant_id = :g"), {"g": grant})
            assert (use(conn), holds(conn)) == ((spent + 10 * len(under_way), 0), 0)


# What is shown --------------------------------------------------------------------------------------------------------


def test_usage_shows_the_present_window_only(conn: Connection) -> None:
    counted = Budget(name="r", tenant="clinic", window=Window.DAY, requests=5, units=50, units_per_request=10)
    book = OneByOne([counted], [whole(epsilon="3"), whole("day", "2", window=Window.DAY)])
    reserve(book, conn)
    reserve(book, conn, "h", 250_000)
    book.settle(conn, grant="h", units=7, eps_micro=125_000, now_us=NOON)

    def shown(now_us: int) -> dict[tuple[str, str], tuple[int, int, int]]:
        listed = read_usage(conn, [counted], [whole(epsilon="3"), whole("day", "2", window=Window.DAY)], now_us=now_us)
        return {(one.budget, one.what): (one.used, one.held, one.left) for one in listed}

    assert shown(NOON) == {
        ("r", "requests"): (2, 0, 3),
        ("r", "units"): (7, 10, 33),
        ("p", "epsilon"): (125_000, 1_000_000, 1_875_000),
        ("day", "epsilon"): (125_000, 1_000_000, 875_000),
    }
    assert shown(NOON + DAY) == {
        ("r", "requests"): (0, 0, 5),
        ("r", "units"): (0, 0, 50),
        ("p", "epsilon"): (125_000, 1_000_000, 1_875_000),
        ("day", "epsilon"): (0, 0, 2_000_000),
    }


def test_usage_of_what_was_never_counted() -> None:
    [one] = read_usage(None, [], [whole(epsilon="3")], now_us=NOON)
    assert one == Usage(
        budget="p",
        what="epsilon",
        whose="patients: everybody, m",
        window="forever",
        limit=3_000_000,
        used=0,
        held=0,
        renews_us=None,
    )
    with open_engine("sqlite://").begin() as empty:
        assert read_usage(empty, [], [whole(epsilon="3")], now_us=NOON) == [one]


# The file -------------------------------------------------------------------------------------------------------------

PRIVACY: dict[str, Any] = {
    "name": "p", "population": "patients", "models": ["m"], "epsilon": "1.5", "window": "forever"
}  # fmt: skip


def written(*tables: dict[str, Any]) -> bytes:
    def value(given: Any) -> str:
        return str(given).replace("'", '"') if isinstance(given, list) else f'"{given}"'

    return "".join(
        "[[privacy_budget]]\n" + "".join(f"{name} = {value(given)}\n" for name, given in table.items())
        for table in tables
    ).encode()


def test_a_privacy_budget_as_it_is_written() -> None:
    share = {**PRIVACY, "name": "s", "tenant": "clinic", "subject": "app", "window": "month"}
    found = parse_budgets(written(PRIVACY, share), known_tenants={"clinic"}).privacy
    assert [(one.name, one.epsilon_micro, one.window, one.is_share) for one in found] == [
        ("p", 1_500_000, Window.FOREVER, False),
        ("s", 1_500_000, Window.MONTH, True),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epsilon": "0"}, r"privacy_budget\[0\]\.epsilon: above 0"),
        ({"epsilon": "0.0000001"}, "number 1 epsilon must be .* a number"),
        ({"epsilon": "1e3"}, "number 1 epsilon must be .* a number"),
        ({"epsilon": "-1"}, "number 1 epsilon must be .* a number"),
        ({"epsilon": "9999999"}, r"privacy_budget\[0\]\.epsilon: above 0 and at most 1000000"),
        ({"models": []}, "number 1 models must be a list"),
        ({"models": ["m", "m"]}, r"models: a model is there twice"),
        ({"window": "hour"}, r"window is day, month, year or forever"),
        ({"window": "week"}, "number 1 window must be one of"),
        ({"tenant": "nobody"}, r"tenant: there is no tenant 'nobody'"),
        ({"subject": "app"}, r"subject: name the tenant too"),
        ({"tenant": "clinic"}, r"a share of population 'patients' for model 'm'"),
        ({"population": ""}, "number 1 population must be text"),
        ({"rows": "3"}, "number 1 has no setting 'rows'"),
    ],
)
def test_privacy_budgets_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        parse_budgets(written({**PRIVACY, **change}), known_tenants={"clinic"})
    assert re.search(says, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_share_must_lie_within_its_own_population_and_model() -> None:
    for whole_change in ({"population": "others"}, {"models": ["n"]}):
        share = {**PRIVACY, "name": "s", "tenant": "clinic"}
        with pytest.raises(PolicyFileError, match=r"privacy_budget\[1\]: a share of population"):
            parse_budgets(written({**PRIVACY, **whole_change}, share), known_tenants={"clinic"})


def test_names_are_unique_among_all_budgets() -> None:
    counted = b'[[budget]]\nname = "p"\ntenant = "clinic"\nwindow = "day"\nrequests = 1\n'
    with pytest.raises(PolicyFileError, match=r"privacy_budget\[0\].name: 'p' is there twice"):
        parse_budgets(counted + written(PRIVACY), known_tenants={"clinic"})
    with pytest.raises(PolicyFileError, match="requests and units renew"):
        parse_budgets(counted.replace(b'"day"', b'"forever"'), known_tenants={"clinic"})


def test_what_is_left_of_each_budget_that_was_used_can_be_carried_over(conn: Connection) -> None:
    book = OneByOne((), (whole(), whole("day", window=Window.DAY), whole("other", models=("n",))))
    reserve(book, conn, "g", eps_micro=3 * 10**6)
    reserve(book, conn, "h", eps_micro=10**6)
    book.settle(conn, grant="g", units=1, eps_micro=2 * 10**6, now_us=NOON)
    midnight = NOON // DAY * DAY
    assert book.balances(conn) == {"day": (7 * 10**6, midnight), "p": (7 * 10**6, 0)}
    assert OneByOne(()).balances(conn) == {}  # of another policy: nothing that it knows
