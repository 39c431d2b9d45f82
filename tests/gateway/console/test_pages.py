"""The console's pages without a browser: who sees what, after which record, under which headers."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser

import pytest

from gateway.console.presentation import VERDICTS, table_of
from gateway.limits import CONSOLE_ROWS
from sealgate.protocol import frames
from sealgate.transparency.record import KINDS
from sealgate.transparency.reports.form import Column, Table
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.gateway.conftest import LOG
from tests.gateway.console.conftest import HOSTILE, PAGES, SIGNER


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request):
    return request.param


@pytest.fixture
def overseer(consoled):
    """May read every tenant's records."""
    return consoled.client(certificate="auditor")


@pytest.fixture
def own(consoled):
    """An auditor of the clinic."""
    return consoled.client(token=consoled.token(tenant="clinic", roles=["auditor"], purposes=[]))


def form_token(client):
    return re.search(r'name="form_token" value="([^"]+)"', client.get("/console").text)[1]


def links(text):
    return [html.unescape(link) for link in re.findall(r'href="([^"]+)"', text)]


def a_record(client, **wanted):
    query = "&".join(f"{name}={value}" for name, value in wanted.items())
    return next(link for link in links(client.get(f"/console?{query}").text) if link.startswith("/console/records/"))


# Who -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, "/console/records/0"])
def test_a_stranger_is_shown_how_to_sign_in_and_counted_by_nobody(consoled, path):
    answer = consoled.client().get(path)
    assert answer.status_code == 401
    assert "<h1>Sign in</h1>" in answer.text
    assert consoled.host.told == []


@pytest.mark.parametrize("path", [*PAGES, "/console/records/0"])
def test_who_is_no_auditor_is_refused_on_record(consoled, path):
    answer = consoled.client(token=consoled.token()).get(path)
    assert (answer.status_code, answer.headers["audit-record"]) == (403, f"{LOG} 8")
    (frame,) = consoled.host.heard(frames.Deny)
    assert (frame.operation, frame.decision.reason) == ("query-audit", "no-policy-permits")


@pytest.mark.parametrize("path", [*PAGES, "/console/records/0"])
def test_each_page_is_on_record_before_it_reads(consoled, overseer, monkeypatch, path):
    assert overseer.get(path).status_code == 200
    (frame,) = consoled.host.heard(frames.AuditRead)
    assert frame.kind == "audit.query"
    assert frame.detail["question"].startswith("console ")

    consoled.host.script = lambda frame, body: (frames.Refused(status=503, code="unavailable", retry_after_s=5), b"")
    for name in ("records", "record", "record_at", "report", "checkpoint", "inclusion"):
        monkeypatch.setattr(consoled.gate.audit, name, lambda *_, **__: pytest.fail("read before it was on record"))
    monkeypatch.setattr("gateway.console.pages.read_ledger", lambda *_, **__: pytest.fail("read before it was"))
    answer = overseer.get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "<h1>Unavailable</h1>" in answer.text


def test_what_was_filtered_by_stands_in_the_record(consoled, overseer):
    overseer.get("/console?kind=inference.denied&model=wine&from=2030-01-01T00:00")
    (frame,) = consoled.host.heard(frames.AuditRead)
    assert frame.detail == {
        "question": "console timeline",
        "kind": "inference.denied",
        "model": "wine",
        "from": "2030-01-01T00:00",
    }


def test_an_auditor_of_one_tenant_sees_that_tenant_only(overseer, own):
    assert "/console?tenant=laboratory" in links(overseer.get("/console?tenant=laboratory").text)
    text = own.get("/console").text
    assert "laboratory" not in text
    assert "/console?tenant=clinic" in links(text)
    assert "No record matches" in own.get("/console?tenant=laboratory").text
    foreign = a_record(overseer, tenant="laboratory")
    assert own.get(foreign).status_code == own.get("/console/records/nothing").status_code == 404
    assert own.get(foreign).text == own.get("/console/records/nothing").text
    assert own.get(a_record(own, tenant="clinic")).status_code == 200
    assert own.get("/console/reports/access").status_code == 200
    for path in ("/console/reports/access?tenant=laboratory", "/console/reports/nonsense"):
        assert own.get(path).status_code == 404


def test_a_report_on_everything_needs_the_right_to_everything(consoled, own):
    assert own.get("/console/reports/completeness").status_code == 403
    assert consoled.host.heard(frames.Deny)[-1].decision.reason == "report-needs-every-tenant"


def test_budgets_are_the_own_tenants(overseer, own):
    assert "clinic" in own.get("/console/budgets").text
    assert "laboratory" not in own.get("/console/budgets").text
    assert overseer.get("/console/budgets").text.count('class="gauge"') >= 3


# Pages ---------------------------------------------------------------------------------------------------------------


class Inline(HTMLParser):
    """Everything in a page that a strict policy would have to allow, and where its addresses lead."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.addresses: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self._inside = tag if tag in ("script", "style") else ""
        self.found += [name for name in given if name.startswith("on") or name == "style"]
        self.found += [tag] if tag in ("style", "iframe", "object", "embed", "base") else []
        self.addresses += [given[name] for name in ("href", "src", "action", "hx-get") if given.get(name)]

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside and data.strip():
            self.found.append(f"inline {self._inside}")


def everything(client):
    """Every page, a record of every look, the pages of every problem."""
    paths = [*PAGES, "/console/sign-in", "/console/records/nothing", "/console?from=nonsense"]
    paths += [f"/console/records/{number}" for number in range(49, 53)]
    return {path: client.get(path) for path in paths}


def test_no_page_needs_what_a_strict_policy_forbids(overseer):
    for path, answer in everything(overseer).items():
        parser = Inline()
        parser.feed(answer.text)
        assert parser.found == [], path
        assert all(address.startswith(("/console", "#")) for address in parser.addresses), path


def test_every_answer_carries_the_headers(consoled, overseer):
    answers = [*everything(overseer).values(), consoled.client().get("/console")]
    assert {answer.status_code for answer in answers} == {200, 400, 401, 404}
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_hostile_words_are_shown_as_they_are_and_nothing_else(overseer):
    shown = [answer for answer in everything(overseer).values() if "onerror" in answer.text]
    assert len(shown) >= 6
    for answer in shown:
        assert "<img src=x" not in answer.text
        assert "<script>document" not in answer.text
    page = overseer.get("/console", params={"model": HOSTILE, "actor": HOSTILE})
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page.text


@pytest.mark.parametrize(
    "query",
    ["?nonsense=1", "?kind=nonsense", "?from=yesterday", "?tenant=a&tenant=b", "?cursor=x", f"?model={'m' * 2000}"],
)
def test_what_cannot_be_asked_is_a_page_that_says_so(overseer, query):
    answer = overseer.get(f"/console{query}")
    assert answer.status_code == 400
    assert "<h1>Malformed request</h1>" in answer.text


def test_filters_are_links_and_older_records_follow(overseer):
    first = overseer.get("/console").text
    found = links(first)
    assert any(link.startswith("/console?reason=") for link in found)
    older = next(link for link in found if "cursor=" in link)
    rows = re.findall(r">#(\d+)</a>", first) + re.findall(r">#(\d+)</a>", overseer.get(older).text)
    assert [int(row) for row in rows] == list(range(len(rows) - 1, -1, -1))
    part = overseer.get(older, headers={"HX-Request": "true"}).text
    assert part.lstrip().startswith("<tr")
    assert "<html" not in part


def test_a_record_is_found_by_number_and_by_id(overseer):
    by_id = overseer.get(a_record(overseer, kind="inference.completed"))
    number = re.search(r'Record <span class="number">(\d+)', by_id.text)[1]
    sent = overseer.get("/console/records", params={"record": f" #{number} "})
    assert (sent.status_code, sent.headers["location"]) == (303, f"/console/records/{number}")
    assert re.search(r'data-leaf="([^"]+)"', overseer.get(sent.headers["location"]).text)[1] in by_id.text
    away = overseer.get("/console/records", params={"record": "//evil.example/"})
    assert away.headers["location"] == "/console/records/%2F%2Fevil.example%2F"


def test_a_link_from_elsewhere_reads_nothing_until_its_reader_says_so(consoled, overseer):
    path = "/console?kind=inference.denied"
    for site in ("cross-site", "same-site"):
        answer = overseer.get(path, headers={"Sec-Fetch-Site": site})
        assert "A link from elsewhere" in answer.text
        assert path in links(answer.text)
    assert consoled.host.told == []
    assert overseer.get(path, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(
    "to", ["https://evil.example/", "//evil.example", "/console//evil", "/audit/v1/records", "javascript:1"]
)
def test_the_way_on_after_signing_in_stays_here(consoled, to):
    found = links(consoled.client().get("/console/sign-in", params={"to": to}).text)
    assert "/console" in found
    assert to not in found


def test_a_table_is_no_longer_than_a_page_can_be():
    columns = (Column("name"), Column("count", "number"), Column("first", "time"), Column("spent", "epsilon"))
    rows = tuple(("x", 1234567, None, 2_500_000) for _ in range(CONSOLE_ROWS + 3))
    shown = table_of(Table(title="t", columns=columns, rows=rows, left_out=4))
    assert (len(shown["rows"]), shown["left_out"]) == (CONSOLE_ROWS, 7)
    assert shown["rows"][0] == ["x", "1,234,567", "\u2013", "2.5"]


# Forms ---------------------------------------------------------------------------------------------------------------

FORMS = {
    "/console/evidence": {"first": "1", "last": "5"},
    "/console/reviews": {"first": "0", "last": "1", "size": "2", "root": "a" * 64, "finding": "nothing"},
    "/console/sign-out": {},
}


@pytest.mark.parametrize("path", FORMS)
def test_a_form_that_no_page_of_the_caller_made_does_nothing(consoled, overseer, own, path):
    theirs = form_token(own)
    consoled.host.told.clear()
    for given in ({}, {"form_token": ""}, {"form_token": theirs}):
        assert overseer.post(path, data=FORMS[path] | given).status_code == 400
    mine = form_token(overseer)
    consoled.host.told.clear()
    elsewhere = overseer.post(path, data=FORMS[path] | {"form_token": mine}, headers={"Sec-Fetch-Site": "cross-site"})
    assert "A link from elsewhere" in elsewhere.text
    assert consoled.host.told == []
    assert overseer.post(path, data=FORMS[path] | {"form_token": mine}).status_code == 200


def test_one_click_gives_evidence_that_verifies(consoled, overseer):
    form = FORMS["/console/evidence"] | {"form_token": form_token(overseer)}
    answer = overseer.post("/console/evidence", data=form)
    assert answer.headers["content-disposition"] == 'attachment; filename="audit-1-5.zip"'
    assert consoled.host.heard(frames.AuditRead)[-1].kind == "audit.export"
    report = verify_bundle(io.BytesIO(answer.content), LogTrust(verifiers=(SIGNER.verifier,)))
    assert {step.name for step in report.steps if step.status == "failed"} == {"workers signed what is said of them"}


def test_evidence_of_everybody_is_not_for_an_auditor_of_one(consoled, own):
    assert "Download evidence bundle" not in own.get("/console").text
    answer = own.post("/console/evidence", data=FORMS["/console/evidence"] | {"form_token": form_token(own)})
    assert answer.status_code == 403
    assert consoled.host.heard(frames.Deny)[-1].decision.reason == "export-needs-every-tenant"


def test_a_review_is_put_on_record_as_it_was_stated(consoled, overseer):
    page = overseer.get("/console/reports/reconcile?first=0&last=9").text
    fields = dict(
        re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.split("State that you looked")[1])
    )
    answer = overseer.post("/console/reviews", data=fields | {"finding": "questions", "note": "call them"})
    assert answer.status_code == 200
    assert "record <a" in answer.text
    frame = consoled.host.heard(frames.AuditRead)[-1]
    assert (frame.kind, frame.detail["finding"], frame.detail["note"]) == ("audit.review", "questions", "call them")
    assert (frame.detail["first"], frame.detail["last"]) == ("0", "9")
    assert len(frame.detail["root"]) == len(frame.detail["report_digest"]) == 64


@pytest.mark.parametrize(
    "wrong", [{"first": "5"}, {"root": "x"}, {"finding": "bliss"}, {"more": "1"}, {"note": "\x07"}]
)
def test_a_statement_that_is_none_is_refused(consoled, overseer, wrong):
    form = FORMS["/console/reviews"] | {"form_token": form_token(overseer)} | wrong
    assert overseer.post("/console/reviews", data=form).status_code == 400


def test_a_form_is_small(overseer):
    assert overseer.post("/console/evidence", data={"first": "1" * 10_000}).status_code == 413


# Files ---------------------------------------------------------------------------------------------------------------


def test_files_are_open_to_all_kept_for_long_and_named_by_their_content(consoled):
    text = consoled.client().get("/console/sign-in").text
    for link in links(text):
        if "/static/" in link:
            answer = consoled.client().get(link)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            assert "?v=" in link
    assert consoled.client().get("/console/static/../pages.py").status_code == 404
    assert consoled.client().get("/console/static/htmx.LICENSE.txt").status_code == 404


def test_there_is_no_console_where_it_is_not_wanted(deployment, host):
    import msgspec

    from sealgate.deployment import Deployment
    from tests.gateway.conftest import Running

    section = msgspec.structs.replace(deployment.settings.console, enabled=False)
    changed = Deployment(deployment.root, msgspec.structs.replace(deployment.settings, console=section))
    running = Running(changed, host)
    try:
        assert running.client(certificate="auditor").get("/console").status_code == 404
    finally:
        running.close()


def test_every_kind_of_record_has_a_word():
    assert VERDICTS.keys() == KINDS.keys()
