"""An auditor opens the console of a live deployment: sees a client's request, verifies it, and is seen doing so."""

from __future__ import annotations

import io
import re
from pathlib import Path

from sealgate.client.transport import open_trust
from sealgate.transparency.record import Record
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.live import MODEL, Live
from tests.peers.components import require_browser


def test_an_answer_is_found_verified_and_taken_away(live: Live, tmp_path: Path) -> None:
    program = require_browser()
    from playwright.sync_api import sync_playwright

    with live.session() as session:
        session.infer(MODEL, live.rows[:2])
    trust = open_trust(live.trust)
    before = len(_told(live))  # the deployment is shared: other stories were told too
    certificate, key = live.certificate("auditor")
    shown = {"origin": live.url, "certPath": str(certificate), "keyPath": str(key)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(ignore_https_errors=True, client_certificates=[shown])
        page = context.new_page()
        page.goto(f"{live.url}/console?kind=inference.completed&model={MODEL}")
        page.locator("td.num a").first.click()
        page.wait_for_selector("#vkey")
        number = int(re.search(r"Record\s+(\d+)", page.inner_text("h1"))[1])
        page.fill("#vkey", trust.log_keys[0].vkey)
        page.click("#verify-form button")
        page.wait_for_selector("#verdict p")
        assert page.inner_text("#verdict").startswith(f"Verified: record {number} (inference.completed)")
        with page.expect_download() as download:
            page.click("text=Download evidence bundle")
        bundle = Path(download.value.path()).read_bytes()
        for name in ("policy", "budgets", "readers", "reports/in-force", "reports/reconcile", "reports/budget"):
            answer = page.goto(f"{live.url}/console/{name}")
            assert answer is not None
            assert answer.status == 200, name
            assert page.locator(".alarm").count() == 0, name
        page.goto(f"{live.url}/console/reports/completeness")
        page.check("input[value=nothing]")
        page.click("text=Put it on record")
        page.wait_for_selector("h1:has-text('On record')")
        browser.close()

    verify_bundle(io.BytesIO(bundle), LogTrust(verifiers=trust.log_keys)).require()
    told = _told(live)[before:]
    assert [record.detail.get("question", record.detail.get("finding")) for record in told] == [
        "console timeline",
        "console record",
        "console evidence",
        "console policy",
        "console budgets",
        "console readers",
        *["console report"] * 4,
        "nothing",
    ]


def _told(live: Live) -> list[Record]:
    """What auditors of the oversight did, oldest first."""
    return [record for record in live.records() if record.kind.startswith("audit.") and record.tenant == "oversight"]
