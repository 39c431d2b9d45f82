"""Reports over the real processes: what was asked and answered is in them, from the service and from a bundle alike;
a review stands in the log; and budgets replay exactly, although the host was killed in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.transparency.reports.catalogue import REPORTS
from tests.live import MODEL, Live, run_sealgate
from tests.stories.test_private_prediction import BUDGET, POLICY


@pytest.fixture
def live(fresh: Callable[[], Live]) -> Live:
    made = fresh()
    (made.deployment.policy / "own.cedar").write_text(POLICY)
    with (made.deployment.policy / "budgets.toml").open("a") as file:
        file.write(BUDGET.format(epsilon="5000"))
    made.start()
    made.ready()
    return made


def auditing(live: Live) -> Callable[..., Any]:
    certificate, key = live.certificate("auditor")
    credential = ("--client-cert", certificate, "--client-key", key)

    def ask(*words: Any, offline: bool = False, code: int = 0) -> str:
        more = () if offline else credential
        done = run_sealgate("audit", *words, "--trust", live.trust, *more, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return ask


def table(text: str, title: str) -> list[list[Any]]:
    document = json.loads(text)
    (found,) = (one for one in document["tables"] if one["title"] == title)
    return list(found["rows"])


def test_auditors_get_their_reports_from_the_service_and_proven_from_a_bundle(live: Live, tmp_path: Path) -> None:
    with live.session() as session:
        for _ in range(3):
            session.infer(MODEL, live.rows[:2])
    live.kill("runtime")
    live.start("runtime")
    live.ready()
    with live.session() as session:
        session.infer(MODEL, live.rows[:3])
    ask = auditing(live)
    bundle = tmp_path / "evidence.zip"
    ask("export", "--out", bundle)
    size = json.loads(ask("report", "completeness", "--bundle", bundle, "--json", offline=True))["basis"]["last"] + 1

    for name in REPORTS:
        assert "NOT PROVEN" in ask("report", name)
        assert f"PROVEN from records 0 to {size - 1}" in ask("report", name, "--bundle", bundle, offline=True)

    told = ask("report", "access", "--json")
    shown = ask("report", "access", "--bundle", bundle, "--json", offline=True)
    assert table(told, "use of models") == table(shown, "use of models")
    rows = [row for row in table(told, "use of models") if row[3] == "infer"]
    ((tenant, _, model, _, _, begun, completed, *_, epsilon, _, _),) = rows
    assert (tenant, model, begun, completed) == ("clinic", MODEL, 4, 4)
    assert epsilon == (2 + 2 + 2 + 3) * 500_000

    (budget,) = table(ask("report", "budget", "--bundle", bundle, "--json", offline=True), "privacy budgets")
    used = json.loads(run_sealgate("budget", "show", live.root, "--json").stdout)["budgets"]
    kept = next(one for one in used if one["budget"] == "patients-ever")
    assert (budget[0], budget[1], budget[4], budget[5]) == ("patients-ever", 4, 0, kept["left"])

    facts = dict(row[:2] for row in table(ask("report", "in-force", "--json"), "policy"))
    assert facts["policy"] in run_sealgate("policy", "history", live.root, "--json").stdout
    assert [row[0] for row in table(ask("report", "in-force", "--json"), "models")] == [MODEL]
    assert "privacy budgets add up: 4 noised requests" in ask("verify", bundle, offline=True)


def test_a_review_stands_in_the_log_and_a_record_is_shown_by_its_index(live: Live, tmp_path: Path) -> None:
    with live.session() as session:
        session.infer(MODEL, live.rows[:2])
    ask = auditing(live)
    bundle, report, receipt = (tmp_path / name for name in ("evidence.zip", "report.json", "review.receipt"))
    ask("export", "--out", bundle)
    report.write_text(ask("report", "access", "--bundle", bundle, "--json", offline=True))
    said = ask("review", "--bundle", bundle, "--finding", "nothing", "--report", report, "--receipt-out", receipt)
    index = said.split()[3].rstrip(":")
    shown = json.loads(ask("show", index, "--json"))
    assert (shown["index"], shown["record"]["kind"]) == (int(index), "audit.review")
    assert "proven" in ask("show", "--receipt", receipt, offline=True)
    reviews, unseen = (table(ask("report", "review", "--json"), title) for title in REVIEW_TABLES)
    assert [row[0] for row in reviews] == [int(index)]
    assert unseen[0][0] == reviews[0][5] + 1, "all before is covered"
    operations = table(ask("report", "break-glass", "--json"), "operations")
    assert int(index) in [row[0] for row in operations]


REVIEW_TABLES = ("reviews", "records that no review covers")
