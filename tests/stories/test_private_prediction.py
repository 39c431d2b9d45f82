"""Private prediction over the real processes: noised answers, what they cost, and the end of a budget."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.client.errors import BudgetSpent, InferenceFailed
from sealgate.client.session import Session
from sealgate.errors import SealgateError
from sealgate.protocol.frames import Obligations
from sealgate.transparency.budget_replay import BudgetReplay
from sealgate.transparency.record import ENDS
from tests.live import MODEL, Live, run_sealgate, wait_until

POLICY = """
@id("private-answers")
@says("every answer is noised")
@noise_epsilon("0.5")
@noise_rows("4")
@receipt_required("true")
permit (principal is Client, action == Action::"infer", resource is Model);
"""
BUDGET = """
[[privacy_budget]]
name = "patients-ever"
population = "patients"
models = ["breast-cancer"]
epsilon = "{epsilon}"
window = "forever"
"""


@pytest.fixture
def private(fresh: Callable[[], Live]) -> Callable[[str], Live]:
    def make(epsilon: str) -> Live:
        live = fresh()
        (live.deployment.policy / "own.cedar").write_text(POLICY)
        with (live.deployment.policy / "budgets.toml").open("a") as file:
            file.write(BUDGET.format(epsilon=epsilon))
        live.start()
        live.ready()
        return live

    return make


def usage(live: Live) -> dict[str, Any]:
    listed = json.loads(run_sealgate("budget", "show", live.root, "--json").stdout)["budgets"]
    return next(one for one in listed if one["budget"] == "patients-ever")


def ask_until_refused(session: Session, live: Live) -> BudgetSpent:
    """One row at a time; each request holds four."""
    for _ in range(10):
        try:
            session.infer(MODEL, live.rows[:1])
        except BudgetSpent as refused:
            return refused
    raise AssertionError("the budget has no end")


def test_noised_answers_are_paid_for_until_the_budget_is_used_up(
    private: Callable[[str], Live], tmp_path: Path
) -> None:
    live = private("6")
    with live.session() as session:
        results = [session.infer(MODEL, live.rows[:3]) for _ in range(2)]
        for result in results:
            assert result.obligations == Obligations(round_digits=6, noise_epsilon_micro=500_000, receipt_required=True)
            assert result.receipt.record.eps_micro == 1_500_000
            scores = result.outputs["scores"]
            assert [max(range(2), key=row.__getitem__) for row in scores] == result.outputs["label"]
        assert [result.receipt.record.budget_after_micro for result in results] == [4_500_000, 3_000_000]
        assert usage(live)["used"] == 3_000_000

        with pytest.raises(InferenceFailed, match="at most 4 rows") as failed:
            session.infer(MODEL, live.rows[:5])
        assert failed.value.receipt.record.eps_micro == 0
        assert usage(live)["left"] == 3_000_000

        rows, token = tmp_path / "rows.csv", tmp_path / "token"
        names = session.metadata(MODEL).parameters.columns
        rows.write_text(",".join(names) + "\n" + ",".join(str(value) for value in live.rows[0]) + "\n")
        token.write_text(live.token())
        asking = ("infer", "--trust", live.trust, "--token-file", token, "--model", MODEL, "--purpose", "treatment")
        said = run_sealgate(*asking, "--rows", rows).stdout
        assert "noised    epsilon 0.5 a row, 0.5 spent; not the model's own answers" in said
        assert "obliged   valid with its receipt only" in said

        refused = ask_until_refused(session, live)
        assert (refused.status, refused.code, refused.budget, refused.renews) == (
            403,
            "privacy-budget-exhausted",
            "patients-ever",
            None,
        )
        assert refused.receipt is not None
        assert refused.receipt.record.reason == "privacy-budget-exhausted"

        done = run_sealgate(*asking, "--rows", rows, check=False)
        assert done.returncode != 0
        [line] = [line for line in done.stderr.splitlines() if "patients-ever" in line]
        assert "does not renew" in line
        assert session.metadata(MODEL).name == MODEL, "what a model states of itself costs nothing"
    found = usage(live)
    assert (found["held"], found["left"]) == (0, 6_000_000 - found["used"])
    ends = [record for record in live.records() if record.kind in ENDS]
    assert sum(end.eps_micro for end in ends) == found["used"] <= 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["runtime", "worker"])
def test_kills_under_load_never_lose_or_double_what_was_spent(private: Callable[[str], Live], victim: str) -> None:
    live = private("5000")
    stop, answered = threading.Event(), threading.Semaphore(0)

    def ask() -> None:
        with live.session(timeout=20.0) as session:
            while not stop.is_set():
                try:
                    session.infer(MODEL, live.rows[:3])
                    answered.release()
                except SealgateError:
                    stop.wait(0.02)

    callers = [threading.Thread(target=ask) for _ in range(6)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(3):
            for _ in range(30):
                assert answered.acquire(timeout=120)
            live.kill(victim)
            if victim == "runtime":
                live.start("runtime")
            live.ready()
        for _ in range(30):
            assert answered.acquire(timeout=120)
    finally:
        stop.set()
        for caller in callers:
            caller.join(60)
    wait_until(lambda: usage(live)["held"] == 0, within_s=60, what="every request's end")
    ends = [record for record in live.records() if record.kind in ENDS and record.operation == "infer"]
    found = usage(live)
    assert sum(end.eps_micro for end in ends) == found["used"]
    assert {end.eps_micro for end in ends if end.kind == "inference.completed"} == {1_500_000}
    assert {end.eps_micro for end in ends if not end.runtime_sig} <= {2_000_000}, "what nobody knows is spent whole"
    assert found["left"] == 5_000_000_000 - found["used"]
    replay = BudgetReplay()
    for index, record in enumerate(live.records()):
        replay.see(index, record, b"")
    assert replay.problems.found == [], "an auditor can follow every change"
    assert (replay.spent, replay.books["patients-ever"].left) == (found["used"], found["left"])
