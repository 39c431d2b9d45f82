"""The auditor's client against an honest service and a lying one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.client.audit import AuditClient
from sealgate.client.errors import ServiceRefused
from sealgate.client.session import Session
from sealgate.errors import DecodeError, LogError, SealgateError
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.verifier import LogTrust, verify_bundle

TOKEN = "header.payload.signature"


@pytest.fixture
def auditor(service: Any) -> Iterator[AuditClient]:
    """An auditor, after three inferences."""
    with Session(
        service.trust(), purpose="diagnosis", token=TOKEN, outer=service.transport(), clock=service.clock
    ) as session:
        for _ in range(3):
            session.infer("toy", [[1, 2, 3]])
    with AuditClient(service.trust(), token=TOKEN, outer=service.transport()) as client:
        yield client


def on_path(service: Any, path: str, change: Any) -> None:
    service.meddle = lambda request, response: change(response) if path in request.url.path else response


def test_records_come_filtered_in_pages_of_exact_leaves(service: Any, auditor: AuditClient) -> None:
    page = auditor.records({"kind": "inference.completed"}, limit=2)
    assert [entry.record.kind for entry in page.entries] == ["inference.completed"] * 2
    assert page.entries[0].index > page.entries[1].index
    assert all(entry.leaf == service.log.leaves[entry.index] for entry in page.entries)
    rest = auditor.records({"kind": "inference.completed"}, cursor=page.cursor, limit=2)
    assert rest.cursor is None
    assert rest.tree_size == len(service.log.leaves)
    oldest = auditor.records({"order": "oldest"}, limit=1)
    assert oldest.entries[0].index == 0


def test_one_record_is_proven_to_stand_where_it_is_said_to(auditor: AuditClient) -> None:
    entry = auditor.records({"kind": "inference.completed"}, limit=1).entries[0]
    again = auditor.record(entry.record.id)
    assert again == entry
    assert auditor.prove(again).checkpoint.size > entry.index


def test_a_record_at_another_index_or_altered_is_not_proven(auditor: AuditClient) -> None:
    entry = auditor.record("record-3")
    for changed in (
        type(entry)(entry.index - 1, entry.leaf, entry.record),
        type(entry)(entry.index, entry.leaf.replace(b'"diagnosis"', b'"marketing"'), entry.record),
    ):
        with pytest.raises(LogError):
            auditor.prove(changed)


def test_a_record_that_no_checkpoint_covers_yet_is_not_proven(auditor: AuditClient) -> None:
    entry = auditor.record("record-3")
    with pytest.raises(LogError) as failure:
        auditor.prove(type(entry)(10_000, entry.leaf, entry.record))
    assert failure.value.code == "not-covered"


def test_another_record_than_asked_for_is_refused(service: Any, auditor: AuditClient, meddling: Any) -> None:
    other = msgspec.json.encode({"index": 2, "record": msgspec.Raw(service.log.leaves[2])})
    on_path(service, "/records/", lambda response: meddling.replaced(response, body=other))
    with pytest.raises(LogError) as failure:
        auditor.record("record-3")
    assert failure.value.code == "other-record"


def test_a_log_that_only_grew_is_shown_to_have(service: Any, auditor: AuditClient) -> None:
    kept = auditor.checkpoint()
    assert auditor.prove_growth(kept.note)[1].checkpoint == kept.checkpoint
    service.log.append(msgspec.structs.replace(auditor.record("record-0").record, kind="log.opened"))
    old, new = auditor.prove_growth(kept.note)
    assert (old.checkpoint.size + 1, old.checkpoint) == (new.checkpoint.size, kept.checkpoint)


def test_a_log_that_was_rewritten_or_cut_is_noticed(service: Any, auditor: AuditClient) -> None:
    kept = auditor.checkpoint().note
    leaves = list(service.log.leaves)
    service.log.leaves[1] = leaves[0]
    with pytest.raises(LogError):
        auditor.prove_growth(kept)
    service.log.append(auditor.record("record-0").record)
    with pytest.raises(LogError):
        auditor.prove_growth(kept)
    service.log.leaves[:] = leaves[:-1]
    with pytest.raises(LogError) as failure:
        auditor.prove_growth(kept)
    assert failure.value.code == "log-rolled-back"


def test_a_checkpoint_of_another_key_is_refused(service: Any, auditor: AuditClient) -> None:
    service.log.signer = NoteSigner.from_seed("example.test/log", b"\x08" * 32)
    with pytest.raises(LogError):
        auditor.checkpoint()


def test_an_export_verifies_offline(service: Any, auditor: AuditClient) -> None:
    out = io.BytesIO()
    last = auditor.checkpoint().checkpoint.size - 1
    size = auditor.export(0, last, out)
    assert size == len(out.getvalue())
    report = verify_bundle(io.BytesIO(out.getvalue()), LogTrust(verifiers=service.trust().log_keys))
    assert report.require().size == last + 1


def test_a_refusal_is_told_in_words(service: Any) -> None:
    client = AuditClient(service.trust(), token="other.token.here", outer=service.transport())
    with client, pytest.raises(ServiceRefused) as failure:
        client.checkpoint()
    assert (failure.value.status, failure.value.code) == (403, "forbidden")
    assert "auditors may" in str(failure.value), "it is told that the log was asked, and by whom it can be"


def test_more_records_than_asked_for_are_refused(service: Any, auditor: AuditClient, meddling: Any) -> None:
    rows = [{"index": 0, "record": msgspec.Raw(service.log.leaves[0])}] * 3
    body = msgspec.json.encode({"records": rows, "cursor": None, "tree_size": 9})
    on_path(service, "/records", lambda response: meddling.replaced(response, body=body))
    with pytest.raises(DecodeError):
        auditor.records({}, limit=2)


def test_a_record_that_is_not_canonical_is_refused(service: Any, auditor: AuditClient, meddling: Any) -> None:
    leaf = service.log.leaves[0].replace(b'"v":1', b'"v": 1')
    body = msgspec.json.encode({"index": 0, "record": msgspec.Raw(leaf)})
    on_path(service, "/records/", lambda response: meddling.replaced(response, body=body))
    with pytest.raises(DecodeError):
        auditor.record("record-0")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=st.binary(max_size=80), status=st.sampled_from([200, 204, 302, 404, 500]), which=st.integers(0, 4))
def test_garbage_is_a_typed_error(service: Any, meddling: Any, body: bytes, status: int, which: int) -> None:
    service.meddle = lambda request, response: meddling.replaced(response, body=body, status=status)
    kept = service.log.checkpoint()
    with AuditClient(service.trust(), token=TOKEN, outer=service.transport()) as client:
        asks: list[Any] = [
            lambda: client.records({}),
            lambda: client.record("record-0"),
            client.checkpoint,
            lambda: client.prove_growth(kept),
            lambda: client._hashes("/audit/v1/proofs/inclusion", {"index": "0", "size": "1"}),
        ]
        with pytest.raises(SealgateError):
            asks[which]()


def test_an_endless_answer_is_cut_off(service: Any) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 65536

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return endless()

    service.meddle = lambda request, response: httpx.Response(200, stream=Stream())
    client = AuditClient(service.trust(), token=TOKEN, outer=service.transport())
    with client, pytest.raises(DecodeError) as failure:
        client.checkpoint()
    assert failure.value.code == "too-large"
