"""The sealed path from any httpx-based program: what goes out, what comes back, and both drivers alike."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import httpx
import pytest

from sealgate.client.credentials import Credential
from sealgate.client.errors import ServiceRefused, UnsealedAnswer, UsageError
from sealgate.client.exchange import SealedAnswer
from sealgate.client.transport import AsyncSealedTransport, SealedTransport
from sealgate.errors import DecodeError, EvidenceError
from sealgate.limits import CHUNKED_ABOVE
from sealgate.protocol import bhttp
from sealgate.protocol.binding import bind_token
from sealgate.protocol.hpke import Kem
from sealgate.transparency.receipt import verify_receipt

TOKEN = "header.payload.signature"
JSON_REQUEST = {
    "inputs": [{"name": "features", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 10, 20, 30]}],
}


def make_client(service: Any, **options: Any) -> httpx.Client:
    arguments = {"purpose": "diagnosis", "token": TOKEN} | options
    transport = SealedTransport(
        service.trust(), outer=service.transport(), clock=service.clock, trust_env=False, **arguments
    )
    return httpx.Client(transport=transport, base_url="https://anything.invalid")


def infer(client: httpx.Client, **options: Any) -> httpx.Response:
    return client.post("/v2/models/toy/infer", json=JSON_REQUEST, **options)


def test_an_ordinary_request_comes_back_opened_with_its_verified_receipt(service: Any) -> None:
    service.credential_binding = bind_token(TOKEN)
    with make_client(service) as client:
        response = infer(client)
    assert response.status_code == 200
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    assert outputs == {"scores": [0.75, 0.25, 0.125, 0.875], "label": [0, 1]}
    answer = response.extensions["sealgate"]
    assert isinstance(answer, SealedAnswer)
    assert answer.receipt.record.kind == "inference.completed"
    assert answer.receipt == verify_receipt(answer.receipt_bytes, service.trust().log_keys)
    assert answer.evidence.grade == "software"
    assert answer.key_config.kem is Kem.MLKEM768_X25519
    assert {check.outcome for check in answer.checked.transcript} == {"pass"}


def test_nothing_of_the_request_is_visible_outside_and_the_token_never_enters_the_seal(service: Any) -> None:
    with make_client(service) as client:
        infer(client, headers={"x-study": "secret-study", "traceparent": "00-trace", "cookie": "a=b"})
    outer, inner = service.requests[-1], service.inner[-1]
    assert outer.headers["authorization"] == f"Bearer {TOKEN}"
    assert outer.headers["traceparent"] == "00-trace"
    assert "x-study" not in outer.headers
    assert b"features" not in outer.content
    names = {name for name, _ in inner.fields}
    assert {"date", "purpose", "credential-binding", "content-type", "x-study"} <= names
    assert names.isdisjoint({"authorization", "host", "cookie", "user-agent", "traceparent", "content-length"})
    assert TOKEN not in repr(inner.fields)


def test_a_trace_header_that_is_not_plain_text_stays_at_home(service: Any) -> None:
    with make_client(service) as client:
        infer(client, headers={b"traceparent": b"00-\xff"})  # type: ignore[dict-item]
    assert "traceparent" not in service.requests[-1].headers


def test_the_async_twin_does_the_same(service: Any) -> None:
    async def ask() -> httpx.Response:
        async def token() -> str:
            return TOKEN

        transport = AsyncSealedTransport(
            service.trust(), purpose="diagnosis", token=token, outer=service.transport(), clock=service.clock
        )
        async with httpx.AsyncClient(transport=transport, base_url="https://anything.invalid") as client:
            await client.get("/v2/models/toy")
            return await client.post("/v2/models/toy/infer", json=JSON_REQUEST)

    response = asyncio.run(ask())
    assert response.json()["outputs"][1]["data"] == [0, 1]
    assert response.extensions["sealgate"].receipt.record.operation == "infer"
    assert service.count("/.well-known/attestation") == 1


def test_a_bearer_token_of_the_program_is_used_where_the_transport_has_none(service: Any) -> None:
    service.credential_binding = bind_token(TOKEN)
    with make_client(service, token=None) as client:
        assert infer(client, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_token_source_is_asked_for_every_request(service: Any) -> None:
    asked = []
    with make_client(service, token=lambda: asked.append(1) or TOKEN) as client:
        infer(client)
        infer(client)
    assert len(asked) == 2


def test_large_requests_are_sealed_in_chunks_and_so_are_their_answers(service: Any) -> None:
    rows = CHUNKED_ABOVE // 3
    data = [1.5] * (3 * rows)
    large = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [rows, 3], "data": data}]}
    with make_client(service) as client:
        response = client.post("/v2/models/toy/infer", json=large)
        assert len(response.json()["outputs"][1]["data"]) == rows
        assert service.requests[-1].headers["content-type"] == "message/ohttp-chunked-req"
        infer(client)
        assert service.requests[-1].headers["content-type"] == "message/ohttp-req"


def test_evidence_is_verified_once_and_again_when_it_expires(service: Any) -> None:
    with make_client(service) as client:
        infer(client)
        service.clock.advance(seconds=3599)
        infer(client)
        assert service.count("/.well-known/attestation") == 1
        service.clock.advance(seconds=1)
        infer(client)
        assert service.count("/.well-known/attestation") == 2
    nonces = {request.url.params["nonce"] for request in service.requests if "attestation" in request.url.path}
    assert len(nonces) == 2


def test_keys_that_rotated_are_refetched_reverified_and_the_request_retried_once(service: Any) -> None:
    with make_client(service) as client:
        infer(client)
        service.instance.rotate(9)
        response = infer(client)
    answer = response.extensions["sealgate"]
    assert answer.retried
    assert answer.key_config.key_id == 9
    assert service.count("/.well-known/attestation") == 2
    assert service.count("/sealed/") == 3
    sealed = [request.content for request in service.requests if "/sealed/" in request.url.path]
    assert len(set(sealed)) == 3


def test_a_replaced_worker_is_followed_to_its_new_instance(service: Any) -> None:
    with make_client(service) as client:
        infer(client)
        service.instance = type(service.instance)("instance-2")
        service.instance.rotate(20)
        response = infer(client)
    assert response.extensions["sealgate"].receipt.record.runtime_instance == "instance-2"


def test_a_service_that_always_says_unknown_key_is_asked_twice_and_no_more(service: Any) -> None:
    def refuse(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        return service.problem(400, "unknown-key") if "/sealed/" in request.url.path else response

    service.meddle = refuse
    with make_client(service) as client, pytest.raises(ServiceRefused) as refused:
        infer(client)
    assert refused.value.code == "unknown-key"
    assert service.count("/sealed/") == 2
    assert service.count("/.well-known/attestation") == 2


def test_keys_that_change_between_evidence_and_key_list_cost_one_more_look(service: Any) -> None:
    rotations = iter([5])

    def rotate_in_between(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if "attestation" in request.url.path:
            for key_id in rotations:
                service.instance.rotate(key_id)
                break
        return response

    service.meddle = rotate_in_between
    with make_client(service) as client:
        assert infer(client).status_code == 200
    assert service.count("/.well-known/attestation") == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/toy/infer"),
        ("POST", "/v2/models/toy"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/"),
        ("GET", "/v2/models/toy?x=1"),
    ],
)
def test_requests_that_name_no_model_are_refused_before_anything_is_sent(service: Any, method: str, path: str) -> None:
    with make_client(service) as client, pytest.raises(UsageError, match="cannot be sealed"):
        client.request(method, path)
    assert service.requests == []


def test_a_purpose_is_required_and_a_header_overrides_it(service: Any) -> None:
    with make_client(service, purpose="") as client:
        with pytest.raises(UsageError, match="purpose"):
            infer(client)
        assert infer(client, headers={"purpose": "diagnosis"}).status_code == 200


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ünï", "x" * 20_000])
def test_tokens_that_would_break_a_header_are_refused_without_being_shown(service: Any, token: str) -> None:
    with make_client(service, token=token) as client, pytest.raises(UsageError) as refused:
        infer(client)
    assert not token or token not in str(refused.value)
    assert service.count("/sealed/") == 0


def test_a_request_without_any_credential_is_not_sent(service: Any) -> None:
    with make_client(service, token=None) as client, pytest.raises(UsageError, match="credential"):
        infer(client)
    assert service.count("/sealed/") == 0


def test_a_credential_never_shows_its_token() -> None:
    assert TOKEN not in repr(Credential(token=TOKEN, certificate=None))


def test_a_model_that_is_not_served_is_named_without_sending_anything_sealed(service: Any) -> None:
    with make_client(service) as client, pytest.raises(EvidenceError, match="served: toy") as refused:
        client.post("/v2/models/other/infer", json=JSON_REQUEST)
    assert refused.value.code == "model-not-served"
    assert service.count("/sealed/") == 0


def test_redirects_are_not_followed(service: Any) -> None:
    def redirect(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if "/sealed/" in request.url.path:
            location = {"location": "https://elsewhere.test/sealed/toy"}
            return httpx.Response(307, headers=location, stream=httpx.ByteStream(b""))
        return response

    service.meddle = redirect
    with make_client(service) as client, pytest.raises(UnsealedAnswer):
        infer(client)
    assert {request.url.host for request in service.requests} == {"sealgate.test"}


def test_an_answer_larger_than_allowed_is_cut_off(service: Any) -> None:
    def flood(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        headers = {"content-type": "application/eat+cwt"}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(b"x" * 300_000))

    service.meddle = flood
    with make_client(service) as client, pytest.raises(DecodeError) as refused:
        infer(client)
    assert refused.value.code == "too-large"


def test_inner_errors_come_back_as_ordinary_responses_with_their_receipt(service: Any) -> None:
    with make_client(service) as client:
        metadata = client.get("/v2/models/toy").json()
        assert metadata["inputs"][0]["name"] == "features"
        error = json.dumps({"error": "no"}).encode()
        service.inner_response = bhttp.Response(400, (("content-type", "application/json"),), error)
        response = infer(client)
    assert response.status_code == 400
    assert response.extensions["sealgate"].receipt.record.kind == "inference.failed"


def test_threads_share_one_transport(service: Any) -> None:
    with make_client(service) as client:
        infer(client)  # evidence once; the stand-in's log is not made for threads, so requests are serialised there
        handle, lock = service.handle, Lock()

        def one_at_a_time(request: httpx.Request) -> httpx.Response:
            with lock:
                return handle(request)

        client._transport._client._transport = httpx.MockTransport(one_at_a_time)  # type: ignore[attr-defined]
        with ThreadPoolExecutor(4) as pool:
            responses = list(pool.map(lambda _: infer(client), range(8)))
    indices = {response.extensions["sealgate"].receipt.index for response in responses}
    assert len(indices) == 8
    assert service.count("/.well-known/attestation") == 1
