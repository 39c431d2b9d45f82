"""The auditor's routes over a real log: whose records, after the record of the reading, and checked offline."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from audit.log import AuditLog
from gateway.limits import EXPORT_CHUNK
from gateway.thread_stream import stream_from_thread
from sealgate.errors import LogError
from sealgate.protocol import frames
from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from sealgate.transparency.notes import NoteSigner, open_checkpoint
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.gateway.conftest import HANG, LOG, Running, copied, hosted, plain_answer, post_sealed

SIGNER = NoteSigner.from_seed(LOG, b"\x01" * 32)
READS = (
    "/audit/v1/records",
    "/audit/v1/records/x",
    "/audit/v1/checkpoint",
    "/audit/v1/proofs/inclusion?index=1&size=2",
    "/audit/v1/proofs/consistency?first=1&second=2",
    "/audit/v1/tile/0/000.p/2",
)


def write_log(deployment, count=6):
    """Records of two tenants; the log stays behind closed."""
    with AuditLog.open(f"sqlite:///{deployment.database}", signer=SIGNER, subjects_key=b"\x02" * 32, origin=LOG) as log:
        for number in range(count):
            tenant = ("clinic", "laboratory")[number % 2]
            draft = Record(kind="inference.denied", tenant=tenant, actor="a" * 32, model="wine", reason="no-role")
            log.append(draft).result(60)


@pytest.fixture(scope="module")
def _logged(provisioned):
    with copied(provisioned) as deployment, hosted(deployment) as host:
        write_log(deployment)
        running = Running(deployment, host)
        yield running
        running.close()


@pytest.fixture
def logged(_logged):
    """A gateway beside a log of eight records: opened, six denials, closed. Shared: tests only read."""
    _logged.host.script = plain_answer
    _logged.host.told.clear()
    return _logged


@pytest.fixture
def overseer(logged):
    """May read every tenant's records."""
    return logged.client(certificate="auditor")


@pytest.fixture
def own(logged):
    """An auditor of the clinic."""
    return logged.client(token=logged.token(tenant="clinic", roles=["auditor"], purposes=[]))


# Who -----------------------------------------------------------------------------------------------------------------


def test_an_overseer_sees_all_records(overseer):
    page = overseer.get("/audit/v1/records").json()
    assert page["tree_size"] == 8
    assert page["cursor"] is None
    assert [row["index"] for row in page["records"]] == list(range(7, -1, -1))
    assert {row["record"].get("tenant", "") for row in page["records"]} == {"", "clinic", "laboratory"}


def test_an_auditor_sees_the_own_tenants_records_whatever_it_asks_for(own):
    for query in ("", "?tenant=clinic"):
        page = own.get(f"/audit/v1/records{query}").json()
        assert {row["record"]["tenant"] for row in page["records"]} == {"clinic"}
        assert len(page["records"]) == 3
    page = own.get("/audit/v1/records?tenant=laboratory").json()
    assert (page["records"], page["cursor"]) == ([], None)


def test_another_tenants_record_is_not_found(overseer, own):
    rows = overseer.get("/audit/v1/records?kind=inference.denied").json()["records"]
    for row in rows:
        answer = own.get(f"/audit/v1/records/{row['record']['id']}")
        if row["record"]["tenant"] == "clinic":
            assert answer.json() == row
        else:
            missing = own.get("/audit/v1/records/nothing")
            assert answer.status_code == missing.status_code == 404
            assert answer.content == missing.content


@pytest.mark.parametrize("path", [*READS, "/audit/v1/exports?first=0&last=1"])
def test_callers_who_are_no_auditors_are_refused_on_record(logged, path):
    client = logged.client(token=logged.token())
    answer = client.get(path)
    assert answer.status_code == 403
    assert answer.headers["audit-record"] == f"{LOG} 8"
    (frame,) = logged.host.heard(frames.Deny)
    assert frame.operation == ("export-audit" if "exports" in path else "query-audit")
    assert frame.decision.reason == "no-policy-permits"
    assert logged.client().get(path).status_code == 401


def test_an_auditor_of_one_tenant_cannot_export_a_range_of_all(logged, own):
    answer = own.get("/audit/v1/exports?first=0&last=1")
    assert answer.status_code == 403
    (frame,) = logged.host.heard(frames.Deny)
    assert frame.decision.reason == "export-needs-every-tenant"


# The record of the reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*READS, "/audit/v1/exports?first=0&last=1"])
def test_a_read_that_cannot_be_recorded_reads_nothing(logged, overseer, monkeypatch, path):
    logged.host.script = lambda frame, body: (frames.Refused(status=503, code="unavailable", retry_after_s=5), b"")
    for name in ("records", "record", "checkpoint", "inclusion", "consistency", "tile", "export"):
        monkeypatch.setattr(logged.gate.audit, name, lambda *_, **__: pytest.fail("read before it was on record"))
    answer = overseer.get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_each_read_is_recorded_with_what_was_asked(logged, overseer):
    answer = overseer.get("/audit/v1/records?kind=inference.denied&model=wine&limit=2&unknown=1")
    assert answer.headers["audit-record"] == f"{LOG} 8"
    assert base64.urlsafe_b64decode(answer.headers["audit-receipt"] + "==") == b"receipt of 8"
    overseer.get("/audit/v1/records/abc")
    overseer.get("/audit/v1/exports?first=1&last=3")
    asked = logged.host.heard(frames.AuditRead, 3)
    assert [frame.kind for frame in asked] == ["audit.query", "audit.query", "audit.export"]
    assert asked[0].detail == {"question": "records", "kind": "inference.denied", "model": "wine", "limit": "2"}
    assert asked[1].detail == {"question": "record", "identifier": "abc"}
    assert asked[2].detail == {"question": "export", "first": "1", "last": "3"}
    assert {(frame.caller.tenant, frame.caller.subject) for frame in asked} == {("oversight", "auditor")}
    assert asked[0].decision.policy_ids == ("oversight-reads-every-record",)


def test_what_is_recorded_of_a_question_is_short_and_printable(logged, overseer):
    overseer.get("/audit/v1/records", params={"actor": "\x00\u2028é" + "x" * 500})
    (frame,) = logged.host.heard(frames.AuditRead)
    assert frame.detail["actor"] == "???" + "x" * 125


@pytest.mark.parametrize(
    "path",
    [
        "/audit/v1/records?tenant=clinic&tenant=laboratory",
        "/audit/v1/records?tenant=clinic&kind=policy.change&tenant=clinic",
        "/audit/v1/proofs/inclusion?index=1&index=0&size=2",
        "/audit/v1/exports?first=7&first=0&last=7",
    ],
)
def test_a_parameter_said_twice_is_refused_since_only_one_of_them_could_be_recorded(logged, overseer, path):
    answer = overseer.get(path)
    assert answer.status_code == 400
    assert not logged.host._of(frames.AuditRead)
    assert logged.client().get(path).status_code == 401


# What is read --------------------------------------------------------------------------------------------------------


def test_filters_pages_and_order(overseer):
    first = overseer.get("/audit/v1/records?kind=inference.denied&limit=4&order=oldest").json()
    second = overseer.get(
        "/audit/v1/records",
        params={"kind": "inference.denied", "limit": 4, "order": "oldest", "cursor": first["cursor"]},
    ).json()
    indexes = [row["index"] for row in first["records"] + second["records"]]
    assert indexes == [1, 2, 3, 4, 5, 6]
    assert second["cursor"] is None


def test_a_row_is_the_leaf(overseer):
    for row in overseer.get("/audit/v1/records").json()["records"]:
        assert parse_leaf(canonical_json(row["record"])).log == LOG


def test_proofs_and_tiles_hold_against_the_checkpoint(overseer):
    note = overseer.get("/audit/v1/checkpoint").content
    checkpoint = open_checkpoint(note, [SIGNER.verifier]).checkpoint
    assert checkpoint.size == 8
    row = overseer.get("/audit/v1/records?limit=1&order=oldest").json()["records"][0]
    proof = overseer.get("/audit/v1/proofs/inclusion?index=0&size=8").json()
    hashes = [base64.b64decode(one) for one in proof["hashes"]]
    leaf = leaf_hash(canonical_json(row["record"]))
    verify_inclusion(hashed_leaf=leaf, index=0, size=8, proof=hashes, root=checkpoint.root)
    grown = overseer.get("/audit/v1/proofs/consistency?first=1&second=8").json()
    between = [base64.b64decode(one) for one in grown["hashes"]]
    verify_consistency(first=1, second=8, first_root=leaf, second_root=checkpoint.root, proof=between)
    tile = overseer.get("/audit/v1/tile/0/000.p/8").content
    assert (len(tile), tile[:32]) == (256, leaf)


def test_without_witnesses_there_is_no_cosigned_checkpoint_and_the_question_is_on_record(logged, overseer):
    answer = overseer.get("/audit/v1/checkpoint?cosigned=1")
    assert answer.status_code == 404
    (frame,) = logged.host.heard(frames.AuditRead)
    assert frame.detail == {"question": "checkpoint", "cosigned": "1"}
    assert overseer.get("/audit/v1/checkpoint?cosigned=2").status_code == 400
    assert overseer.get("/audit/v1/checkpoint?cosigned=0").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/audit/v1/records?kind=nonsense", 400),
        ("/audit/v1/records?order=sideways", 400),
        ("/audit/v1/records?cursor=AAAA", 400),
        ("/audit/v1/records?limit=1001", 400),
        ("/audit/v1/records?from_us=-1", 400),
        ("/audit/v1/records?tenant=" + "x" * 200, 400),
        ("/audit/v1/records?actor=" + "x" * 2000, 400),
        ("/audit/v1/proofs/inclusion?index=8&size=8", 404),
        ("/audit/v1/proofs/consistency?first=0&second=8", 404),
        ("/audit/v1/proofs/consistency?first=2&second=9", 404),
        ("/audit/v1/tile/0/000", 404),
        ("/audit/v1/tile/0/0", 404),
        ("/audit/v1/tile/0/000.p/0", 404),
        ("/audit/v1/tile/9/000.p/1", 404),
        ("/audit/v1/tile/0/x001/x002/x003/x004/005", 404),
        ("/audit/v1/exports?first=5&last=2", 404),
        ("/audit/v1/exports?first=0&last=99", 404),
        ("/audit/v1/exports?first=0", 400),
    ],
)
def test_questions_that_cannot_be_answered(overseer, path, status):
    answer = overseer.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["detail"].endswith(".")


def test_a_log_that_is_not_there_is_an_outage(gateway):
    answer = gateway.client(certificate="auditor").get("/audit/v1/records")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:sealgate:problem:unavailable")


# Exports -------------------------------------------------------------------------------------------------------------


def test_an_export_verifies_offline(overseer, tmp_path):
    answer = overseer.get("/audit/v1/exports?first=0&last=7")
    assert answer.headers["content-type"] == "application/zip"
    assert 'filename="audit-0-7.zip"' in answer.headers["content-disposition"]
    path = tmp_path / "bundle.zip"
    path.write_bytes(answer.content)
    report = verify_bundle(path, LogTrust(verifiers=(SIGNER.verifier,)))
    report.require()
    path.write_bytes(answer.content.replace(b"no-role", b"no-rule", 1))
    changed = verify_bundle(path, LogTrust(verifiers=(SIGNER.verifier,)))
    with pytest.raises(LogError):
        changed.require()


def test_an_export_is_streamed_and_cut_off_when_it_fails(logged, overseer, monkeypatch):
    def fails_late(first, last, out, *, consistent_with=None, origin=None):
        out.write(b"x" * (EXPORT_CHUNK * 40))
        raise RuntimeError("the disk went away")

    monkeypatch.setattr(logged.gate.audit, "export", fails_late)
    parts = []
    with overseer.stream("GET", "/audit/v1/exports?first=0&last=1") as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            parts.extend(answer.iter_raw())
    logged.until(lambda: logged.gate.reading.requests == 0)


def test_a_reader_that_goes_away_ends_the_export(logged, overseer, monkeypatch):
    ended = threading.Event()

    def endless(first, last, out, *, consistent_with=None, origin=None):
        try:
            while True:
                out.write(b"x" * EXPORT_CHUNK)
        finally:
            ended.set()

    monkeypatch.setattr(logged.gate.audit, "export", endless)
    with overseer.stream("GET", "/audit/v1/exports?first=0&last=1") as answer:
        assert next(answer.iter_raw())
    overseer.close()
    assert ended.wait(60)
    logged.until(lambda: logged.gate.reading.requests == 0)


def test_a_slow_reader_holds_the_writer_back():
    """The thread is never more than a few pieces ahead."""
    written = []

    def write(out):
        for number in range(200):
            out.write(bytes([number]) * EXPORT_CHUNK)
            written.append(number)

    async def read():
        digest, count = hashlib.sha256(), 0
        async for piece in stream_from_thread(write):
            await asyncio.sleep(0)
            digest.update(piece)
            count += 1
            assert len(written) - count <= 20
        return digest.hexdigest()

    expected = io.BytesIO()
    for number in range(200):
        expected.write(bytes([number]) * EXPORT_CHUNK)
    assert asyncio.run(read()) == hashlib.sha256(expected.getvalue()).hexdigest()


def test_audit_reads_at_once_are_bounded(logged, overseer, monkeypatch):
    monkeypatch.setattr(logged.gate.reading, "_requests_max", 0)
    answer = overseer.get("/audit/v1/checkpoint")
    assert (answer.status_code, answer.json()["title"]) == (503, "Busy")
    assert json.loads(answer.content)["status"] == 503
    assert logged.host.script is plain_answer


def test_callers_without_rights_cannot_fill_the_way_to_the_host(gateway, monkeypatch):
    """A refusal waits for its record. However slow that is, and however many ask, sealed requests get through."""
    monkeypatch.setattr(gateway.gate.asking, "_requests_max", 3)
    gateway.host.script = lambda frame, body: HANG if isinstance(frame, frames.Deny) else plain_answer(frame, body)
    token = gateway.token()
    clients = [gateway.client(token=token) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.get, "/audit/v1/checkpoint") for client in clients]
        gateway.host.heard(frames.Deny, 3)
        fourth = gateway.client(token=token)
        assert fourth.get("/audit/v1/checkpoint").json()["title"] == "Busy"
        assert gateway.client().get("/audit/v1/checkpoint").status_code == 401
        assert post_sealed(fourth).status_code == 200
        gateway.host.stop()
        assert {one.result(60).status_code for one in waiting} == {503}
