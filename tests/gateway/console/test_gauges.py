"""Budget gauges while budgets are at work: what a request holds, what it cost, and when nothing is left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from audit.log import AuditLog, Connection
from policy.budget import BudgetExhausted
from policy.decide import load_policy
from sealgate.transparency.record import Record
from tests.gateway.conftest import Running, copied, hosted
from tests.gateway.console.conftest import Watched, logged_in, opened
from tests.policy.one_by_one import OneByOne

MODEL = "breast-cancer"
PRIVATE = """
[[privacy_budget]]
name = "patients-ever"
population = "patients"
models = ["breast-cancer"]
epsilon = "10"
window = "forever"
"""


class Spending:
    """A host's part: holds at the beginning of a request and settles at its end, in the log's transactions."""

    def __init__(self, running: Running, log: AuditLog, book: OneByOne) -> None:
        self.running, self._log, self._book = running, log, book

    def begin(self, *, eps_micro: int = 0) -> Record:
        def reserve(connection: Connection, draft: Record) -> Record:
            try:
                self._book.reserve(
                    connection, grant=draft.id, tenant="clinic", subject="trial-app", model=MODEL,
                    eps_micro=eps_micro, now_us=self.running.clock(),
                )  # fmt: skip
            except BudgetExhausted as error:
                return msgspec.structs.replace(draft, kind="inference.denied", reason=error.code)
            return draft

        draft = Record(kind="inference.authorized", tenant="clinic", model=MODEL, purpose="treatment")
        return self._log.append(draft, reserve).result(60).record

    def end(self, begun: Record, *, units: int, eps_micro: int | None = None) -> None:
        def settle(connection: Connection, draft: Record) -> Record:
            self._book.settle(
                connection, grant=draft.grant, units=units, eps_micro=eps_micro, now_us=self.running.clock()
            )
            return draft

        draft = Record(kind="inference.completed", outcome="completed", grant=begun.id, model=MODEL, units=units)
        self._log.append(draft, settle).result(60)

    def gauges(self) -> dict[str, str]:
        """What the page says of each limit."""
        text = self.running.client(certificate="auditor").get("/console/budgets").text
        found = re.findall(r'<h2>(\S+) <span class="small">(\w+)</span>.*?aria-label="([^"]*)"', text, re.DOTALL)
        return {f"{name} {what}": said for name, what, said in found}


@contextmanager
def _spending(provisioned: Any, database: str) -> Iterator[Spending]:
    with copied(provisioned) as copy, logged_in(copy, database) as deployment:
        with (deployment.policy / "budgets.toml").open("a") as file:
            file.write(PRIVATE)
        policy = load_policy(deployment.policy)
        book = OneByOne(policy.budgets, policy.privacy_budgets)
        with hosted(deployment) as host, opened(deployment, extra_tables=(book.tables,)) as log:
            running = Running(deployment, host)
            yield Spending(running, log, book)
            running.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_gauge_moves_with_every_request(provisioned: Any, database: str) -> None:
    with _spending(provisioned, database) as spending:
        fresh = spending.gauges()
        assert fresh["trial-app-day requests"] == "0 of 5 used, 0 held, 5 left"
        assert fresh["patients-ever epsilon"] == "0 of 10 used, 0 held, 10 left"
        begun = spending.begin(eps_micro=4_000_000)
        held = spending.gauges()
        assert held["trial-app-day requests"] == "1 of 5 used, 0 held, 4 left"
        assert held["patients-ever epsilon"] == "0 of 10 used, 4 held, 6 left"
        assert re.fullmatch("0 of 50,000,000 used, [1-9][0-9,]* held, .* left", held["clinic-day units"])
        spending.end(begun, units=3, eps_micro=1_500_000)
        spent = spending.gauges()
        assert spent["patients-ever epsilon"] == "1.5 of 10 used, 0 held, 8.5 left"
        assert spent["clinic-day units"] == "3 of 50,000,000 used, 0 held, 49,999,997 left"
        for _ in range(4):
            spending.end(spending.begin(), units=1)
        assert spending.begin().kind == "inference.denied"
        assert spending.gauges()["trial-app-day requests"] == "5 of 5 used, 0 held, 0 left"


def test_the_browser_draws_what_is_said(provisioned: Any, chromium: Any) -> None:
    with _spending(provisioned, "sqlite") as spending:
        first, _ = spending.begin(eps_micro=4_000_000), spending.begin(eps_micro=2_000_000)
        spending.end(first, units=3, eps_micro=3_000_000)
        base = f"https://localhost:{spending.running.port}"
        key = spending.running.deployment.pki / "clients" / "auditor"
        shown = [{"origin": base, "certPath": f"{key}.pem", "keyPath": f"{key}.key"}]
        context = chromium.new_context(ignore_https_errors=True, client_certificates=shown)
        window = Watched(context.new_page(), base)
        window.open("/console/budgets")
        gauge = window.page.locator('article:has(h2:has-text("patients-ever")) .gauge')
        assert gauge.get_attribute("aria-label") == "3 of 10 used, 2 held, 5 left"
        whole, used, held = (gauge.locator(f".{name}").bounding_box()["width"] for name in ("left", "used", "held"))
        assert (round(used / whole * 100), round(held / whole * 100)) == (30, 20)
        window.require_quiet()
        context.close()
