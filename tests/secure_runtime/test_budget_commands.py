"""`sealgate budget show` over a real ledger: amounts, gauges, renewals, JSON; and what it says of nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from gateway.provisioning import provision
from policy.errors import LedgerUnreadable
from policy.history import PolicyHistory
from policy.store import load_files
from policy.usage import Usage
from sealgate.ambient import now_us
from sealgate.cli import main
from sealgate.deployment import Deployment, open_deployment
from secure_runtime.budget_commands import _gauge
from tests.policy.one_by_one import OneByOne

BUDGETS = """
[[budget]]
name = "clinic-day"
tenant = "clinic"
requests = 10
window = "day"

[[privacy_budget]]
name = "patients-ever"
population = "patients"
models = ["m"]
epsilon = "4"
window = "forever"
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    root = tmp_path / "d"
    provision(root, audience="localhost:1", origin="localhost/test", profile="strict")
    (root / "policy" / "budgets.toml").write_text(BUDGETS)
    return open_deployment(root)


def spend(deployment: Deployment) -> None:
    """What a host would have written: one request of 1.25 settled, one of 1 under way."""
    files = load_files(deployment.policy)
    book = OneByOne(files.budgets, files.privacy_budgets)
    engine = create_engine(f"sqlite:///{deployment.database}")
    with engine.begin() as conn:
        book.tables.create_all(conn)
        for grant, micro in (("a", 2_000_000), ("b", 1_000_000)):
            book.reserve(conn, grant=grant, tenant="clinic", subject="app", model="m", eps_micro=micro, now_us=now_us())
        book.settle(conn, grant="a", units=1, eps_micro=1_250_000, now_us=now_us())
    engine.dispose()


def shown(deployment: Deployment, capsys: Any, *more: str) -> str:
    assert main(["budget", "show", str(deployment.root), *more]) == 0
    return str(capsys.readouterr().out)


def test_what_is_used_held_and_left(deployment: Deployment, capsys: Any) -> None:
    spend(deployment)
    lines = shown(deployment, capsys).splitlines()
    assert lines[0].split()[:6] == ["budget", "of", "counts", "used", "held", "left"]
    day, ever = (line.split() for line in lines[2:4])
    assert day[0] == "clinic-day"
    assert day[2:8] == ["requests", "2", "0", "8", "10", "####................"]
    assert ever[0] == "patients-ever"
    assert ever[-8:] == ["epsilon", "1.25", "1", "1.75", "4", "#######+++++........", "forever", "never"]
    assert "patients: everybody, m" in lines[3]


def test_json_for_monitors(deployment: Deployment, capsys: Any) -> None:
    spend(deployment)
    [day, ever] = json.loads(shown(deployment, capsys, "--json"))["budgets"]
    assert ever == {
        "budget": "patients-ever", "of": "patients: everybody, m", "counts": "epsilon_micro", "used": 1_250_000,
        "held": 1_000_000, "left": 1_750_000, "limit": 4_000_000, "window": "forever", "renews": None,
    }  # fmt: skip
    assert (day["used"], day["left"]) == (2, 8)
    assert day["renews"].endswith("T00:00:00Z")


def test_one_tenants_budgets_and_those_of_everybody(deployment: Deployment, capsys: Any) -> None:
    names = [
        one["budget"] for one in json.loads(shown(deployment, capsys, "--json", "--tenant", "oversight"))["budgets"]
    ]
    assert names == ["patients-ever"]


def test_a_deployment_that_never_started_used_nothing(deployment: Deployment, capsys: Any) -> None:
    assert not deployment.database.exists()
    assert "  4      4" in shown(deployment, capsys)
    assert not deployment.database.exists(), "looking creates nothing"


def test_the_budgets_of_the_policy_in_force_count_not_those_being_edited(deployment: Deployment, capsys: Any) -> None:
    from policy.history import InForce

    history = PolicyHistory(deployment.policy_history)
    history.replace_current(InForce(digest=history.store(deployment.policy)))
    (deployment.policy / "budgets.toml").write_text("")
    assert "patients-ever" in shown(deployment, capsys)


def test_no_budget_at_all(deployment: Deployment, capsys: Any) -> None:
    (deployment.policy / "budgets.toml").write_text("")
    assert "No budget is in force" in shown(deployment, capsys)


def test_a_database_that_is_none_is_one_line(deployment: Deployment, capsys: Any) -> None:
    deployment.database.parent.mkdir(parents=True, exist_ok=True)
    deployment.database.write_bytes(b"not a database, but long enough to be read as one" * 40)
    assert main(["budget", "show", str(deployment.root)]) != 0
    said = capsys.readouterr()
    assert "the log's database cannot be read" in said.err
    assert said.err.count("\n") == 1
    assert LedgerUnreadable.code == "ledger-unreadable"


@pytest.mark.parametrize(
    ("used", "held", "limit", "bar"),
    [
        (0, 0, 10, "." * 20),
        (1, 0, 10**6, "#" + "." * 19),
        (0, 1, 10**6, "+" + "." * 19),
        (10**6 - 1, 0, 10**6, "#" * 19 + "."),
        (10**6, 0, 10**6, "#" * 20),
        (5, 5, 10, "#" * 10 + "+" * 10),
        (30, 0, 10, "#" * 20),
        (0, 0, 0, "." * 20),
    ],
)
def test_a_gauge_shows_anything_used_and_is_full_only_when_nothing_is_left(
    used: int, held: int, limit: int, bar: str
) -> None:
    usage = Usage(budget="b", what="units", whose="", window="day", limit=limit, used=used, held=held, renews_us=1)
    assert _gauge(usage) == bar
