"""Reports and reviews over HTTPS: about whom, after the record of the question, and as the database says it."""

from __future__ import annotations

import base64

import msgspec
import pytest

from sealgate.protocol import frames
from sealgate.transparency.reports.catalogue import REPORTS
from sealgate.transparency.reports.form import Report
from tests.gateway.conftest import LOG, Running, copied, hosted, plain_answer
from tests.gateway.test_audit_routes import write_log

STATEMENT = {"first": 0, "last": 5, "size": 8, "root": "ab" * 32, "finding": "questions", "note": "why so m\u00e4ny?"}


@pytest.fixture(scope="module")
def _reported(provisioned):
    with copied(provisioned) as deployment, hosted(deployment) as host:
        write_log(deployment)
        running = Running(deployment, host)
        yield running
        running.close()


@pytest.fixture
def reported(_reported):
    """A gateway beside a log of eight records: opened, six denials of two tenants, closed."""
    _reported.host.script = plain_answer
    _reported.host.told.clear()
    return _reported


@pytest.fixture
def overseer(reported):
    return reported.client(certificate="auditor")


@pytest.fixture
def own(reported):
    """An auditor of the clinic."""
    return reported.client(token=reported.token(tenant="clinic", roles=["auditor"], purposes=[]))


def denied(answer) -> dict[str, int]:
    report = msgspec.json.decode(answer.content, type=Report)
    (table,) = (table for table in report.tables if table.title == "requests that were denied")
    return {str(row[0]): int(row[6] or 0) for row in table.rows}


@pytest.mark.parametrize("name", REPORTS)
def test_an_overseer_gets_every_report_and_it_claims_no_proof(reported, overseer, name):
    answer = overseer.get(f"/audit/v1/reports/{name}")
    report = msgspec.json.decode(answer.content, type=Report)
    assert (answer.status_code, report.name, report.ok) == (200, name, True), answer.text
    assert (report.basis.source, report.basis.proven, report.basis.size) == ("database", False, 8)
    assert answer.headers["audit-record"] == f"{LOG} 8"
    (frame,) = reported.host.heard(frames.AuditRead)
    assert (frame.kind, frame.detail) == ("audit.query", {"question": "report", "name": name})


def test_an_auditor_of_one_tenant_gets_that_tenants_part(overseer, own):
    assert denied(overseer.get("/audit/v1/reports/denials")) == {"clinic": 3, "laboratory": 3}
    assert denied(own.get("/audit/v1/reports/denials")) == {"clinic": 3}
    assert denied(own.get("/audit/v1/reports/denials?tenant=clinic")) == {"clinic": 3}
    assert own.get("/audit/v1/reports/denials?tenant=laboratory").status_code == 404


@pytest.mark.parametrize("name", [name for name, kind in REPORTS.items() if not kind.of_one_tenant])
def test_reports_on_everybody_need_the_right_to_every_tenant(reported, own, name):
    answer = own.get(f"/audit/v1/reports/{name}")
    assert answer.status_code == 403
    (frame,) = reported.host.heard(frames.Deny)
    assert frame.decision.reason == "report-needs-every-tenant"


def test_callers_who_are_no_auditors_get_nothing(reported):
    client = reported.client(token=reported.token())
    assert client.get("/audit/v1/reports/access").status_code == 403
    assert client.post("/audit/v1/reviews", json=STATEMENT).status_code == 403
    assert not reported.host._of(frames.AuditRead)
    for answer in (
        reported.client().get("/audit/v1/reports/access"),
        reported.client().post("/audit/v1/reviews", content=b"no statement"),
    ):
        assert answer.status_code == 401


def test_a_report_that_cannot_be_recorded_reads_nothing(reported, overseer, monkeypatch):
    reported.host.script = lambda frame, body: (frames.Refused(status=503, code="unavailable", retry_after_s=5), b"")
    monkeypatch.setattr(reported.gate.audit, "report", lambda *_: pytest.fail("read before it was on record"))
    assert overseer.get("/audit/v1/reports/access").status_code == 503


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing", 404),
        ("access?first=1", 400),
        ("reconcile?tenant=clinic", 400),
        ("access?from_us=9&to_us=9", 400),
        ("access?tenant=" + "x" * 300, 400),
        ("completeness?first=0&last=99", 404),
        ("in-force?at_us=-1", 400),
        ("access?tenant=clinic&tenant=laboratory", 400),
    ],
)
def test_what_cannot_be_asked(overseer, path, status):
    answer = overseer.get(f"/audit/v1/reports/{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text


def test_a_record_is_found_by_its_index_too(overseer, own):
    rows = {row["index"]: row for row in overseer.get("/audit/v1/records").json()["records"]}
    for index, row in rows.items():
        assert overseer.get(f"/audit/v1/records/{index}").json() == row
        mine = row["record"].get("tenant") == "clinic"
        assert own.get(f"/audit/v1/records/{index}").status_code == (200 if mine else 404)
    assert own.get("/audit/v1/records/0").content == own.get("/audit/v1/records/999").content
    for odd in ("01", "-1", "1e3", "9" * 30, "\u0661"):
        assert overseer.get(f"/audit/v1/records/{odd}").status_code == 404


# Reviews --------------------------------------------------------------------------------------------------------------


def test_a_review_becomes_a_record_as_it_was_stated(reported, overseer):
    answer = overseer.post("/audit/v1/reviews", json=STATEMENT)
    assert (answer.status_code, answer.content) == (200, b"receipt of 8")
    assert base64.urlsafe_b64decode(answer.headers["audit-receipt"] + "==") == answer.content
    (frame,) = reported.host.heard(frames.AuditRead)
    assert frame.kind == "audit.review"
    assert frame.detail == {name: str(value) for name, value in STATEMENT.items()}
    assert (frame.caller.tenant, frame.caller.subject) == ("oversight", "auditor")


def test_an_auditor_of_one_tenant_cannot_have_reviewed_everybodys_records(reported, own):
    assert own.post("/audit/v1/reviews", json=STATEMENT).status_code == 403
    (frame,) = reported.host.heard(frames.Deny)
    assert frame.decision.reason == "report-needs-every-tenant"


@pytest.mark.parametrize(
    "change",
    [
        {"first": 6},
        {"last": 8},
        {"first": -1},
        {"root": "AB" * 32},
        {"finding": "fine"},
        {"note": "two\nlines"},
        {"note": "x" * 301},
        {"report_digest": "ab"},
        {"more": "fields"},
        {"last": 2**53},
    ],
)
def test_a_statement_that_is_none_is_not_recorded(reported, overseer, change):
    answer = overseer.post("/audit/v1/reviews", json=STATEMENT | change)
    assert answer.status_code == 400
    assert not reported.host._of(frames.AuditRead)


def test_a_statement_is_read_with_a_bound(reported, overseer):
    json = {"Content-Type": "application/json"}
    assert overseer.post("/audit/v1/reviews", content=b"[" * 9000, headers=json).status_code == 413
    assert overseer.post("/audit/v1/reviews", content=b"[" * 8000, headers=json).status_code == 400
    assert not reported.host._of(frames.AuditRead)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_no_form_of_another_sites_page_states_a_review(reported, overseer, media_type):
    """A browser shows the auditor's certificate to whoever has it send a form (enctype=text/plain, of any text)."""
    content = msgspec.json.encode(STATEMENT)
    answer = overseer.post("/audit/v1/reviews", content=content, headers={"Content-Type": media_type})
    assert answer.status_code == 400
    assert not reported.host._of(frames.AuditRead)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["reports/access", "records", "exports?first=0&last=7", "checkpoint"])
def test_no_image_of_another_sites_page_reads_under_the_auditors_name(reported, overseer, path, site):
    answer = overseer.get(f"/audit/v1/{path}", headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 400
    assert not reported.host._of(frames.AuditRead)
    assert overseer.get("/audit/v1/checkpoint", headers={"Sec-Fetch-Site": "none"}).status_code == 200
