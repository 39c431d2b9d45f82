"""Exports as lines, over a real gateway and a real log: each form whole, in parts that fit, refused and recorded."""

from __future__ import annotations

import csv
import io
import json

import httpx
import msgspec
import pytest

from gateway.limits import EXPORT_CHUNK
from sealgate.protocol import frames
from sealgate.transparency.exports.formats import FORMATS
from sealgate.transparency.exports.leaves import place
from sealgate.transparency.exports.ndjson import parse_ndjson_line
from tests.gateway.conftest import Running, copied, hosted, plain_answer
from tests.gateway.test_audit_routes import write_log


class Row(msgspec.Struct):
    record: msgspec.Raw


class Page(msgspec.Struct):
    records: list[Row]


@pytest.fixture(scope="module")
def _logged(provisioned):
    with copied(provisioned) as deployment, hosted(deployment) as host:
        write_log(deployment)
        running = Running(deployment, host)
        yield running
        running.close()


@pytest.fixture
def logged(_logged):
    """A gateway beside a log of eight records: opened, six denials, closed."""
    _logged.host.script = plain_answer
    _logged.host.told.clear()
    return _logged


@pytest.fixture
def overseer(logged):
    return logged.client(certificate="auditor")


def lines_of(overseer, name, first, last):
    answer = overseer.get(f"/audit/v1/exports?format={name}&first={first}&last={last}")
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("name", FORMATS)
def test_a_form_is_what_its_function_makes_of_each_leaf(overseer, name):
    form = FORMATS[name]
    page = msgspec.json.decode(overseer.get("/audit/v1/records?order=oldest").content, type=Page)
    leaves = [bytes(row.record) for row in page.records]
    answer = lines_of(overseer, name, 0, 7)
    assert answer.headers["content-type"].startswith(form.media_type)
    assert f'filename="audit-0-7.{form.suffix}"' in answer.headers["content-disposition"]
    expected = form.header + b"".join(form.line(place(index, leaf)) for index, leaf in enumerate(leaves))
    assert answer.content == expected


@pytest.mark.parametrize("name", FORMATS)
def test_parts_fit(overseer, name):
    form = FORMATS[name]
    whole = lines_of(overseer, name, 0, 7).content
    parts = [lines_of(overseer, name, first, last).content for first, last in ((0, 2), (3, 3), (4, 7))]
    assert form.header + b"".join(part.removeprefix(form.header) for part in parts) == whole


def test_the_lines_say_where_they_stand(overseer):
    lines = lines_of(overseer, "ndjson", 2, 5).content.splitlines(keepends=True)
    assert [parse_ndjson_line(line).index for line in lines] == [2, 3, 4, 5]
    events = lines_of(overseer, "ocsf", 2, 5).content.splitlines()
    assert [json.loads(event)["class_uid"] for event in events] == [6003] * 4
    table = list(csv.DictReader(io.StringIO(lines_of(overseer, "csv", 2, 5).text, newline="")))
    assert [row["tenant"] for row in table] == ["laboratory", "clinic", "laboratory", "clinic"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("format=xml&first=0&last=1", 400),
        ("format=&first=0&last=1", 400),
        ("format=ndjson&first=0", 400),
        ("format=ndjson&first=0&last=1&consistent_with=1", 400),
        ("format=ndjson&first=0&last=1&format=csv", 400),
        ("format=ndjson&first=5&last=2", 404),
        ("format=ndjson&first=0&last=8", 404),
    ],
)
def test_what_cannot_be_exported_is_a_problem(overseer, query, status):
    answer = overseer.get(f"/audit/v1/exports?{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_export_of_lines_is_on_record_before_it_reads(logged, overseer, monkeypatch):
    lines_of(overseer, "syslog", 1, 3)
    (frame,) = logged.host.heard(frames.AuditRead)
    assert frame.kind == "audit.export"
    assert frame.detail == {"question": "export", "first": "1", "last": "3", "format": "syslog"}
    logged.host.script = lambda frame, body: (frames.Refused(status=503, code="unavailable", retry_after_s=5), b"")
    monkeypatch.setattr(logged.gate.audit, "export_lines", lambda *_, **__: pytest.fail("read before it was on record"))
    assert overseer.get("/audit/v1/exports?format=csv&first=0&last=1").status_code == 503


def test_an_auditor_of_one_tenant_may_not(logged):
    own = logged.client(token=logged.token(tenant="clinic", roles=["auditor"], purposes=[]))
    assert own.get("/audit/v1/exports?format=csv&first=0&last=1").status_code == 403


def test_what_breaks_later_breaks_the_connection_off(logged, overseer, monkeypatch):
    def fails_late(first, last, out, *, form, **_):
        out.write(b"x" * (EXPORT_CHUNK * 40))
        raise RuntimeError("the disk went away")

    monkeypatch.setattr(logged.gate.audit, "export_lines", fails_late)
    with overseer.stream("GET", "/audit/v1/exports?format=ndjson&first=0&last=1") as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            list(answer.iter_raw())
    logged.until(lambda: logged.gate.reading.requests == 0)
