"""How long the console's pages take in Chromium over a log of a million records, or ten.

A gateway as it runs (TLS, a client certificate) over a log of `benchmarks.audit_bulk`; beside it a host that only says
that each read is on record, so that its fsync is not what is measured. Chromium asks each page once a round, in turn.
The page's time is the browser's own, from the request to the load event (Navigation Timing): the server's part, the
transfer, the drawing. What is left out of a page's way to the auditor is the network between them.

`python -m benchmarks.console_pages [--records 1000000] [--log FILE] [--database sqlite|postgresql] [--rounds 5]
[--shots FOLDER]`. `--log` reads an SQLite log that `benchmarks.audit_queries --build-only FILE` made. `--shots` keeps a
picture of every page, light and dark, wide and narrow.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from audit.query import AuditReader, RecordFilter
from benchmarks.audit_bulk import ORIGIN
from benchmarks.audit_mix import DAY_US, START_US
from benchmarks.audit_queries import build_log
from gateway.console.presentation import minute_of
from gateway.provisioning import provision
from sealgate.deployment import Deployment, open_deployment
from sealgate.terminal import render_table
from tests.audit.postgres_server import PostgresServer
from tests.gateway.conftest import LOG, Running, hosted, plain_answer
from tests.peers.components import require_browser

WINDOWS: dict[str, Any] = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 390, "height": 844}}


@dataclass
class Page:
    """One page of the table."""

    path: str
    server_ms: list[float] = field(default_factory=list)
    loaded_ms: list[float] = field(default_factory=list)
    bytes: int = 0
    rows: int = 0
    refused: int = 0  # that often, the first round included, the log said that the question takes too long


@contextmanager
def serving(url: str, *, origin: str = ORIGIN) -> Iterator[Running]:
    """A gateway over the log at `url`, in a deployment of its own."""
    root = Path(tempfile.mkdtemp(prefix="sg-", dir="/tmp"))  # short: a UNIX socket's path must be
    try:
        provision(root / "state", audience="localhost:8443", origin=origin, profile="dev")
        made = open_deployment(root / "state")
        log = msgspec.structs.replace(made.settings.log, database=url)
        deployment = Deployment(made.root, msgspec.structs.replace(made.settings, log=log))
        with hosted(deployment) as host:
            host.state = msgspec.structs.replace(host.state, log=origin)
            host.script = lambda frame, body: _named(plain_answer(frame, body), origin)
            running = Running(deployment, host)
            yield running
            running.close()
    finally:
        shutil.rmtree(root)


def _named(answer: tuple[Any, bytes], origin: str) -> tuple[Any, bytes]:
    frame, body = answer
    return (msgspec.structs.replace(frame, log=origin) if getattr(frame, "log", "") == LOG else frame), body


def pages(url: str) -> dict[str, Page]:
    """What auditors open, and filters that have little or nothing to find."""
    reader = AuditReader(url, origin=ORIGIN)
    size = reader.size()
    newest = reader.records(RecordFilter(kind="inference.denied"), limit=1).records[0].record
    reader.close()
    days = (newest.ts_us - START_US) // DAY_US
    middle = START_US + days // 2 * DAY_US
    since, until = minute_of(middle), minute_of(middle + DAY_US)
    month = minute_of(middle - 30 * DAY_US)
    asked = {
        "timeline": "",
        "denied": "?kind=inference.denied",
        "one tenant": "?tenant=lab",
        "one caller": f"?actor={newest.actor}",
        "a tenant's rare reason": "?tenant=lab&reason=privacy-budget-exhausted",
        "a purpose that is nobody's": "?purpose=no-such-purpose",
        "a tenant, a purpose that is nobody's": "?tenant=lab&purpose=no-such-purpose",
        "oldest first": "?order=oldest",
        "a day in the middle": f"?from={since}&to={until}",
        "a tenant's day in the middle": f"?tenant=lab&from={since}&to={until}",
        "the whole year's chart": f"?from={minute_of(START_US)}",
        "a record in the middle": f"/records/{size // 2}",
        "the newest record": f"/records/{size - 3}",
        "who looked": "/readers",
        "policy": "/policy",
        "budgets": "/budgets",
        "report: access, 30 days": f"/reports/access?from={month}&to={since}",
        "report: access, everything": "/reports/access",
        "report: in force": "/reports/in-force",
        "report: completeness": "/reports/completeness",
    }
    return {name: Page(f"/console{path}") for name, path in asked.items()}


def measure(running: Running, asked: dict[str, Page], *, rounds: int, shots: Path | None = None) -> None:
    """Fill the pages in. Raises AssertionError for one that is neither answered nor refused for taking too long."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_browser(), args=["--no-sandbox"])
        base = f"https://localhost:{running.port}"
        key = running.deployment.pki / "clients" / "auditor"
        shown = [{"origin": base, "certPath": f"{key}.pem", "keyPath": f"{key}.key"}]
        common: dict[str, Any] = {"ignore_https_errors": True, "client_certificates": shown}
        window = browser.new_context(**common, viewport=WINDOWS["wide"]).new_page()
        window.set_default_timeout(60_000)
        for number in range(rounds + 1):
            for name, page in asked.items():
                answer = window.goto(base + page.path)
                assert answer is not None, name
                assert answer.status in (200, 503), (name, answer.status)
                page.refused += answer.status == 503
                timing = window.evaluate("performance.getEntriesByType('navigation')[0].toJSON()")
                if number:  # the first round warms up
                    page.server_ms.append(timing["responseStart"] - timing["requestStart"])
                    page.loaded_ms.append(timing["loadEventEnd"] - timing["requestStart"])
                page.bytes = timing["decodedBodySize"]
                page.rows = window.locator("tbody tr").count()
        if shots is not None:
            for scheme in ("light", "dark"):
                for size, viewport in WINDOWS.items():
                    _shoot(
                        browser.new_context(**common, color_scheme=scheme, viewport=viewport),
                        base,
                        asked,
                        shots / f"{scheme}-{size}",
                    )
        browser.close()


def _shoot(context: Any, base: str, asked: dict[str, Page], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    window = context.new_page()
    window.set_default_timeout(60_000)
    for name, page in asked.items():
        window.goto(base + page.path)
        window.screenshot(path=folder / f"{name.replace(' ', '-').replace(':', '')}.png", full_page=True)
    context.close()


def table(asked: dict[str, Page]) -> str:
    """As it is printed."""
    rows = [
        (name, _shown(page.server_ms), _shown(page.loaded_ms), f"{page.bytes:,}", str(page.rows), str(page.refused))
        for name, page in asked.items()
    ]
    return render_table(
        ("page", "server, ms: median (range)", "loaded, ms: median (range)", "bytes", "rows", "refused"), rows
    )


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Build, serve, open every page, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--log", type=Path, help="an SQLite log that audit_queries --build-only made; it is kept")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shots", type=Path, help="keep pictures of the pages there")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sealgate-bench-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url = f"sqlite:///{arguments.log or folder / 'audit.sqlite'}"
        if arguments.database == "postgresql":
            server = PostgresServer()
            stack.callback(server.remove)
            url = server.url(server.create())
        if arguments.log is None:
            build_log(url, arguments.records, folder / "people")
        with serving(url) as running:
            asked = pages(url)
            measure(running, asked, rounds=arguments.rounds, shots=arguments.shots)
    print(table(asked))


if __name__ == "__main__":
    main()
