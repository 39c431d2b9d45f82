"""The twelve steps, end to end, over the real processes: what a client gets, and what the log says of it."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest

from sealgate import AsyncSealedTransport, SealedTransport
from sealgate.client.errors import InferenceFailed, ServiceRefused
from sealgate.protocol.tensors import tensor_from_list
from sealgate.transparency.record import Record
from tests.live import MODEL, Live, wait_until


def ends_of(records: list[Record], grant: str) -> list[Record]:
    return [record for record in records if record.grant == grant]


def test_a_client_with_a_token_gets_an_answer_and_a_receipt(live: Live) -> None:
    with live.session() as session:
        result = session.infer(MODEL, live.rows[:5])
    assert result.labels is not None
    assert set(result.labels) <= {"malignant", "benign"}
    assert len(result.labels) == 5
    assert all(abs(sum(scores) - 1) < 1e-4 for scores in result.outputs["scores"])

    end = result.receipt.record
    assert (end.kind, end.outcome, end.units, end.purpose, end.operation) == (
        "inference.completed",
        "completed",
        5,
        "treatment",
        "infer",
    )
    assert end.assurance == "software"
    with live.http(certificate="auditor") as auditor:
        found = auditor.get("/audit/v1/records", params={"kind": "inference.authorized", "limit": 1000}).json()
    intents = [item for item in found["records"] if item["record"]["id"] == end.grant]
    assert [item["index"] for item in intents] == [end.intent_seq]
    assert intents[0]["record"]["req_commit"] == end.req_commit
    assert "triage-app" not in str(found), "the log names a pseudonym, never a subject"


def test_an_integration_with_a_certificate_gets_an_answer(live: Live) -> None:
    with live.session(certificate=live.certificate("integration")) as session:
        result = session.infer(MODEL, live.rows[:1])
    assert result.receipt.record.authn == "mtls"
    assert result.labels


@pytest.mark.parametrize("kem", ["MLKEM768_X25519", "X25519"])
def test_both_kems_are_served(live: Live, kem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sealgate.client import exchange

    def choose(evidence: object) -> object:
        return next(config for config in evidence.key_configs if config.kem.name == kem)  # type: ignore[attr-defined]

    monkeypatch.setattr(exchange, "choose_config", choose)
    with live.session() as session:
        assert session.infer(MODEL, live.rows[:1]).labels


def test_a_request_over_64_kib_travels_in_chunks(live: Live) -> None:
    rows = live.rows[:1] * 2000  # 240 kB of FP32
    with live.session() as session:
        result = session.infer(MODEL, rows)
    assert result.labels is not None
    assert len(set(result.labels)) == 1
    assert len(result.labels) == 2000


def test_any_httpx_program_can_use_the_transports(live: Live) -> None:
    row = live.rows[0]
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30], "data": row}]}
    path = f"/v2/models/{MODEL}/infer"
    sealed = SealedTransport(live.trust, purpose="treatment", token=live.token(), trust_env=False)
    with httpx.Client(transport=sealed, base_url=live.url) as client:
        metadata = client.get(f"/v2/models/{MODEL}").json()
        body["inputs"][0]["name"] = metadata["inputs"][0]["name"]
        answer = client.post(path, json=body)
    assert answer.status_code == 200
    assert answer.json()["outputs"]

    async def ask() -> httpx.Response:
        transport = AsyncSealedTransport(live.trust, purpose="treatment", token=live.token(), trust_env=False)
        async with httpx.AsyncClient(transport=transport, base_url=live.url) as client:
            answers = await asyncio.gather(*(client.post(path, json=body) for _ in range(8)))
        assert all(one.json()["outputs"] == answers[0].json()["outputs"] for one in answers)
        return answers[0]

    assert asyncio.run(ask()).json() == answer.json()


def test_bad_input_is_answered_inside_the_seal_and_recorded_as_failed(live: Live) -> None:
    short = tensor_from_list("features", "FP32", (1, 3), [1.0, 2.0, 3.0])
    with live.session() as session, pytest.raises(InferenceFailed) as caught:
        session.infer(MODEL, [short])
    assert "input 'features' has shape [1, 3], expected [rows, 30]" in str(caught.value)
    assert (caught.value.status, caught.value.receipt.record.reason) == (400, "bad-input")


def test_a_wrong_shape_reaches_the_worker_and_its_error_names_the_input(live: Live) -> None:
    sealed = SealedTransport(live.trust, purpose="treatment", token=live.token(), trust_env=False)
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
    with httpx.Client(transport=sealed, base_url=live.url) as client:
        answer = client.post(f"/v2/models/{MODEL}/infer", json=body)
    assert answer.status_code == 400
    assert "input" in answer.json()["error"]
    checked = answer.extensions["sealgate"]
    assert checked.receipt.record.kind == "inference.failed"


def test_a_purpose_that_is_not_allowed_is_denied_on_record(live: Live) -> None:
    with live.session(purpose="marketing") as session, pytest.raises(ServiceRefused) as caught:
        session.infer(MODEL, live.rows[:1])
    assert (caught.value.status, caught.value.code) == (403, "forbidden")
    assert caught.value.receipt is not None
    assert caught.value.receipt.record.kind == "inference.denied"


def test_an_exhausted_budget_is_told_and_recorded(live: Live) -> None:
    token = live.token(subject="trial-app")
    refusals: list[ServiceRefused] = []
    with live.session(token=token) as session:
        for _ in range(8):
            try:
                session.infer(MODEL, live.rows[:1])
            except ServiceRefused as error:
                refusals.append(error)
    # One request reads the model's metadata, so of five allowed requests four are answers.
    assert [(error.code, error.status) for error in refusals] == [("budget-exhausted", 429)] * 4
    for error in refusals:
        assert error.retry_after_s
        assert error.receipt is not None
        assert error.receipt.record.detail["budget"] == "trial-app-day"


def test_an_auditor_cannot_infer_and_a_client_cannot_audit(live: Live) -> None:
    with live.session(certificate=live.certificate("auditor")) as session, pytest.raises(ServiceRefused) as caught:
        session.infer(MODEL, live.rows[:1])
    assert caught.value.code == "forbidden"
    with live.http() as client:
        answer = client.get("/audit/v1/records", headers={"authorization": f"Bearer {live.token()}"})
    assert answer.status_code == 403


def test_a_hangup_signal_rotates_the_keys_and_clients_go_on(live: Live) -> None:
    with live.http() as plain, live.session() as session:
        assert session.infer(MODEL, live.rows[:1]).labels
        before = plain.get("/.well-known/ohttp-gateway").content
        live.processes["runtime"].send_signal(signal.SIGHUP)
        wait_until(
            lambda: plain.get("/.well-known/ohttp-gateway").content != before, within_s=60, what="other published keys"
        )
        assert session.infer(MODEL, live.rows[:1]).labels, "sealed to the old key, which is stale and still opened"
    with live.session() as session:
        assert session.infer(MODEL, live.rows[:1]).labels
