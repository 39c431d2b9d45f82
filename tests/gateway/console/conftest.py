"""A gateway beside a log that an auditor would look at, and a Chromium that looks at it.

The log holds one record of every look that the pages know, and one whose every field is an attempt to break out of the
page. Browsers show a client certificate, as an auditor's would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from audit.log import AuditLog
from sealgate.deployment import Deployment
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from tests.audit.postgres_server import PostgresServer, missing
from tests.gateway.conftest import LOG, Running, copied, hosted, plain_answer
from tests.peers.components import require_browser

SIGNER = NoteSigner.from_seed(LOG, b"\x01" * 32)
HOSTILE = "\"'><img src=x onerror=document.title='broken'><script>document.title='broken'</script>{{7*7}}"
PAGES = (
    "/console",
    "/console?kind=inference.denied&model=breast-cancer",
    "/console/readers",
    "/console/readers?kind=audit.export",
    "/console/policy",
    "/console/budgets",
    "/console/reports",
    "/console/reports/access",
    "/console/reports/denials",
    "/console/reports/completeness",
    "/console/reports/break-glass",
)


def fill(log: AuditLog, *, rounds: int = 16) -> None:
    """Requests of two tenants with their ends, refusals, readers, and one hostile record."""
    for number in range(rounds):
        who: dict[str, Any] = {
            "tenant": ("clinic", "laboratory")[number % 2],
            "actor": f"{number % 3:032x}",
            "model": "breast-cancer",
            "purpose": "treatment",
            "authn": "jwt",
        }
        begun = log.append(Record(kind="inference.authorized", operation="infer", **who)).result(60).record.id
        ids = ("clients-infer", "more")
        end = Record(kind="inference.completed", outcome="completed", units=3, grant=begun, policy_ids=ids, **who)
        if number % 4 == 3:
            end = Record(kind="inference.failed", outcome="failed", reason="too-many-rows", grant=begun, **who)
        log.append(end).result(60)
        log.append(Record(kind="inference.denied", reason="no-policy-permits", **who)).result(60)
    log.append(Record(kind="auth.failed", reason="token-expired", detail={"count": "3", "source": "public"})).result(60)
    log.append(
        Record(kind="audit.query", tenant="clinic", actor="e" * 32, authn="mtls", detail={"question": "records"})
    ).result(60)
    log.append(
        Record(
            kind="inference.denied",
            tenant=HOSTILE,
            actor=HOSTILE,
            authn=HOSTILE,
            model=HOSTILE,
            model_digest=HOSTILE,
            certificate_digest=HOSTILE,
            policy_digest=HOSTILE,
            policy_ids=(HOSTILE,),
            operation=HOSTILE,
            purpose=HOSTILE,
            outcome=HOSTILE,
            reason=HOSTILE,
            assurance=HOSTILE,
            detail={HOSTILE: HOSTILE},
        )
    ).result(60)
    log.append(Record(kind="audit.export", tenant=HOSTILE, actor=HOSTILE, detail={HOSTILE: HOSTILE})).result(60)


@contextmanager
def filled(deployment: Deployment) -> Iterator[None]:
    with opened(deployment) as log:
        fill(log)
    yield


def opened(deployment: Deployment, **more: Any) -> AuditLog:
    return AuditLog.open(
        deployment.log_url,
        signer=SIGNER,
        subjects_key=b"\x02" * 32,
        person_keys=deployment.person_keys,
        origin=LOG,
        **more,
    )


@contextmanager
def logged_in(deployment: Deployment, database: str) -> Iterator[Deployment]:
    """The deployment with its log in that database."""
    if database == "sqlite":
        yield deployment
        return
    if missing():
        pytest.skip(missing())
    server = PostgresServer()
    log = msgspec.structs.replace(deployment.settings.log, database=server.url(server.create()))
    yield Deployment(deployment.root, msgspec.structs.replace(deployment.settings, log=log))
    server.remove()


@pytest.fixture(scope="module")
def database() -> str:
    """Where the log stands; a module that is about both says so."""
    return "sqlite"


@pytest.fixture(scope="module")
def _consoled(provisioned: Any, database: str) -> Iterator[Running]:
    with (
        copied(provisioned) as copy,
        logged_in(copy, database) as deployment,
        hosted(deployment) as host,
        filled(deployment),
    ):
        running = Running(deployment, host)
        yield running
        running.close()


@pytest.fixture
def consoled(_consoled: Running) -> Running:
    """A gateway with a filled log. Shared: tests only read."""
    _consoled.host.script = plain_answer
    _consoled.host.told.clear()
    return _consoled


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser. Its driver keeps an event loop running in this thread, so it must not outlive the module that needs
    it: `asyncio.run` of other tests would be refused."""
    program = require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and everything that it must not do."""

    def __init__(self, page: Any, base: str) -> None:
        self.page = page
        self.base = base
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:")):
            self.elsewhere.append(request.url)

    def open(self, path: str) -> Any:
        return self.page.goto(self.base + path)

    def require_quiet(self) -> None:
        """Neither errors nor violations of the policy on the console, nor requests to elsewhere."""
        assert self.said == []
        assert self.elsewhere == []


@pytest.fixture
def browse(chromium: Any, consoled: Running) -> Iterator[Callable[..., Watched]]:
    """Opens a browser window; it shows the overseer's certificate unless told otherwise."""
    contexts = []

    def window(*, running: Running = consoled, certificate: str | None = "auditor", **more: Any) -> Watched:
        base = f"https://localhost:{running.port}"
        if certificate is not None:
            path = running.deployment.pki / "clients" / certificate
            more["client_certificates"] = [
                {"origin": base, "certPath": f"{path}.pem", "keyPath": f"{path}.key"},
            ]
        context = chromium.new_context(ignore_https_errors=True, **more)
        context.set_default_timeout(60_000)
        contexts.append(context)
        return Watched(context.new_page(), base)

    yield window
    for context in contexts:
        context.close()
