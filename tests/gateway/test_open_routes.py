"""What is open to all: keys, evidence, health, the OpenAPI document; and what the framework answers by itself."""

from __future__ import annotations

import base64
import threading

import httpx
import msgspec
import pytest

from gateway.errors import PROBLEMS, Problem
from gateway.gate import source_network
from gateway.limits import EVIDENCE_IN_FLIGHT
from sealgate.protocol import frames
from sealgate.protocol.hpke import Kem
from sealgate.protocol.ohttp import KeyConfig, decode_key_configs, encode_key_configs
from sealgate.transparency.reports.reviewing import ReviewStatement
from tests.gateway.conftest import HANG, KEYS, post_sealed

# Keys ----------------------------------------------------------------------------------------------------------------


def test_the_key_configurations_are_the_runtimes_own_bytes(shared):
    answer = shared.client().get("/.well-known/ohttp-gateway")
    assert answer.headers["content-type"] == "application/ohttp-keys"
    assert answer.content == shared.host.state.key_configs
    assert decode_key_configs(answer.content) == KEYS


def test_one_bare_configuration_for_clients_that_want_it(shared):
    answer = shared.client().get("/.well-known/ohttp-gateway?format=single")
    assert KeyConfig.decode(answer.content) == KEYS[1]
    assert KEYS[1].kem is Kem.X25519


def test_without_a_classic_key_the_newest_is_the_bare_one(gateway):
    gateway.host.push(key_configs=encode_key_configs(KEYS[:1]))
    gateway.until(lambda: gateway.gate.link.state.key_configs != encode_key_configs(KEYS))
    answer = gateway.client().get("/.well-known/ohttp-gateway?format=single")
    assert KeyConfig.decode(answer.content) == KEYS[0]


def test_new_keys_are_given_at_once(gateway):
    newer = encode_key_configs(KEYS[::-1])
    gateway.host.push(key_configs=newer)
    gateway.until(lambda: gateway.client().get("/.well-known/ohttp-gateway").content == newer)


def test_no_keys_yet_is_unavailable(gateway):
    gateway.host.push(key_configs=b"", ready=False)
    gateway.until(lambda: gateway.client().get("/.well-known/ohttp-gateway").status_code == 503)


def test_an_unknown_format_is_refused(shared):
    assert shared.client().get("/.well-known/ohttp-gateway?format=xml").status_code == 400


# Evidence ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonce", [b"", b"\x00", b"\xff" * 64])
def test_evidence_is_over_the_callers_nonce(shared, nonce):
    text = base64.urlsafe_b64encode(nonce).rstrip(b"=").decode()
    answer = shared.client().get("/.well-known/attestation", params={"nonce": text})
    assert answer.headers["content-type"] == "application/eat+cwt"
    assert answer.content == b"evidence over " + nonce
    assert shared.host.heard(frames.EvidenceWanted)[0].nonce == nonce


@pytest.mark.parametrize(
    "nonce", ["A", "AA!A", "é", "A" * 200, "A" * 5000, base64.urlsafe_b64encode(b"x" * 65).decode()]
)
def test_a_nonce_that_is_none_is_refused(shared, nonce):
    answer = shared.client().get("/.well-known/attestation", params={"nonce": nonce})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert shared.host.told == []


def test_evidence_that_the_runtime_does_not_give_is_unavailable(shared):
    shared.host.script = lambda frame, body: (frames.Refused(status=503, code="unavailable"), b"")
    assert shared.client().get("/.well-known/attestation").status_code == 503


def _from(gateway, address):
    """A client at this address of the loopback network."""
    transport = httpx.HTTPTransport(verify=gateway.tls(), local_address=address)
    return httpx.Client(transport=transport, base_url=f"https://localhost:{gateway.port}", timeout=60)


def test_requests_for_evidence_are_bounded_for_each_source_and_for_all(gateway):
    gateway.host.script = lambda frame, body: HANG
    share = EVIDENCE_IN_FLIGHT - EVIDENCE_IN_FLIGHT // 4
    clients = [_from(gateway, "127.0.0.1" if at < share else "127.0.0.2") for at in range(EVIDENCE_IN_FLIGHT)]
    threads = [
        threading.Thread(target=lambda one=one: one.get("/.well-known/attestation"), daemon=True) for one in clients
    ]
    for thread in threads[:share]:
        thread.start()
    gateway.host.heard(frames.EvidenceWanted, share)
    with _from(gateway, "127.0.0.1") as one:
        answer = one.get("/.well-known/attestation")
    assert (answer.status_code, answer.json()["title"]) == (429, "Too many requests")
    for thread in threads[share:]:
        thread.start()
    gateway.host.heard(frames.EvidenceWanted, EVIDENCE_IN_FLIGHT)
    with _from(gateway, "127.0.0.3") as one:
        answer = one.get("/.well-known/attestation")
    assert (answer.status_code, answer.json()["title"]) == (503, "Busy")
    gateway.host.stop()
    for thread in threads:
        thread.join(60)
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("client", "source"),
    [
        (("203.0.113.9", 4711), "203.0.113.9"),
        (("::ffff:203.0.113.9", 4711, 0, 0), "203.0.113.9"),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 4711, 0, 0), "2001:db8:1:2::/64"),
        (None, None),
        (("", 0), None),
    ],
)
def test_a_source_is_an_address_or_what_one_subscriber_has(client, source):
    assert source_network(client) == source


# Health --------------------------------------------------------------------------------------------------------------


def test_ready_says_what_kind_of_runtime_it_is(shared):
    answer = shared.client().get("/health/ready")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "runtime": "connected",
        "log": "ok",
        "assurance": "software",
        "profile": "dev",
        "degraded": True,
        "detail": "serving",
    }


def test_witnesses_that_do_not_cosign_are_named_and_the_gateway_stays_ready(gateway):
    gateway.host.push(witnesses="witness.example/b: it cannot be reached")
    gateway.until(lambda: gateway.gate.link.state.witnesses)
    answer = gateway.client().get("/health/ready")
    assert (answer.status_code, answer.json()["witnesses"]) == (200, "witness.example/b: it cannot be reached")
    gateway.host.push(witnesses="")
    gateway.until(lambda: not gateway.gate.link.state.witnesses)
    assert "witnesses" not in gateway.client().get("/health/ready").json()


def test_a_runtime_that_is_not_ready_says_why(gateway):
    gateway.host.push(ready=False, detail="the audit log has failed", log_state="failed: disk full")
    gateway.until(lambda: gateway.client().get("/health/ready").status_code == 503)
    answer = gateway.client().get("/health/ready")
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert (document["detail"], document["log"], document["ready"]) == (
        "the audit log has failed",
        "failed: disk full",
        False,
    )
    assert document["type"] == "urn:sealgate:problem:unavailable"


def test_a_runtime_with_another_policy_is_not_ready(gateway):
    gateway.host.push(policy_digest="0" * 64)
    gateway.until(lambda: gateway.client().get("/health/ready").status_code == 503)
    assert "policy in force is not loaded" in gateway.client().get("/health/ready").json()["detail"]


# The framework's own answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/sealed/wine", 405, "method-not-allowed"),
        ("DELETE", "/health/live", 405, "method-not-allowed"),
        ("GET", "/audit/v1/records?limit=0", 400, "malformed-request"),
        ("GET", "/audit/v1/records?limit=many", 400, "malformed-request"),
        ("GET", "/audit/v1/proofs/inclusion?index=1", 400, "malformed-request"),
        ("GET", "/audit/v1/tile/x/001", 404, "not-found"),
    ],
)
def test_everything_is_a_problem_document(shared, method, path, status, code):
    answer = shared.client(token=shared.token()).request(method, path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:sealgate:problem:{code}"
    if status == 405:
        assert answer.headers["allow"]


def test_an_unexpected_exception_says_nothing_to_the_caller(gateway, monkeypatch):
    def broken(*_):
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(type(gateway.gate.policy), "decide", broken)
    answer = post_sealed(gateway.client(token=gateway.token()))
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:sealgate:problem:internal")
    assert "secret" not in answer.text
    gateway.until(lambda: gateway.events("unexpected") != [])
    (line,) = gateway.events("unexpected")
    assert line["error"] == "RuntimeError"
    assert "test_open_routes.py" in line["place"]
    assert "secret" not in gateway.log.getvalue()


def test_every_problem_has_a_document_and_a_known_status():
    for code, kind in PROBLEMS.items():
        document = Problem(code).document()
        assert document["status"] == kind.status
        assert 400 <= kind.status < 600
        assert document["detail"].endswith(".")
        assert ("Retry-After" in Problem(code).headers) == kind.retry
        assert msgspec.json.decode(msgspec.json.encode(document)) == document


# OpenAPI -------------------------------------------------------------------------------------------------------------


def test_the_openapi_document_names_every_route(shared):
    document = shared.client().get("/schema/openapi.json").json()
    assert set(document["paths"]) == {
        "/sealed/{model}",
        "/.well-known/ohttp-gateway",
        "/.well-known/attestation",
        "/health/live",
        "/health/ready",
        "/audit/v1/records",
        "/audit/v1/records/{identifier}",
        "/audit/v1/checkpoint",
        "/audit/v1/proofs/inclusion",
        "/audit/v1/proofs/consistency",
        "/audit/v1/tile/{level}/{tile}",
        "/audit/v1/logs",
        "/audit/v1/holds",
        "/audit/v1/erasures",
        "/audit/v1/exports",
        "/audit/v1/reports/{name}",
        "/audit/v1/reviews",
    }
    review = document["paths"]["/audit/v1/reviews"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(review["properties"]) == set(ReviewStatement.__struct_fields__)
    assert set(review["required"]) == {"first", "last", "size", "root", "finding"}
    sealed = document["paths"]["/sealed/{model}"]["post"]
    assert set(sealed["requestBody"]["content"]) == {"message/ohttp-req", "message/ohttp-chunked-req"}
    names = {parameter["name"] for parameter in sealed["parameters"]}
    assert names == {"model", "Purpose", "Sealed-Operation", "Accept-Receipt"}
    assert sealed["security"] == [{"token": []}, {"bound-token": []}, {"certificate": []}]
    assert document["components"]["securitySchemes"]["bound-token"]["scheme"] == "dpop"
    assert set(sealed["responses"]) == {"200", "400", "401", "403", "408", "413", "415", "429", "503", "504"}
    generic = document["paths"]["/.well-known/ohttp-gateway"]["post"]
    assert "Sealed-Model" in {parameter["name"] for parameter in generic["parameters"]}
    assert document["components"]["securitySchemes"]["certificate"]["type"] == "mutualTLS"
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert operation["description"]
