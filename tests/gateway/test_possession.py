"""Tokens bound to a key, over real TLS to a real gateway: what passes, what does not, and that it passes once."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.authentication.possession import open_possession
from gateway.errors import CHALLENGE, CHALLENGE_NONCE
from gateway.limits import NONCE_WINDOW_S, PROOF_AGE_S
from policy.decide import load_policy
from policy.tenants import FILE as TENANTS
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from tests.gateway.conftest import Running, plain_answer, sealed_request
from tests.gateway.proving import Prover

PATH = "/sealed/wine"
URL = f"https://localhost:8443{PATH}"  # what the deployment is called, not the port that the test listens on


class Caller:
    """A key, a token for it, and requests to one gateway."""

    def __init__(self, gateway: Running, *, certificate: str | None = None, **token: Any) -> None:
        self.prover = Prover()
        self.gateway = gateway
        self.token = gateway.token(confirmation={"jkt": self.prover.jkt}, **token)
        self.client = gateway.client(certificate=certificate)
        self.nonce = ""

    def claims(self, **changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "htm": "POST",
            "htu": URL,
            "iat": self.gateway.clock() // 1_000_000,
            "nonce": self.nonce or None,
        }
        return self.prover.claims(self.token, **(given | changes))

    def proof(self, **changes: Any) -> str:
        return self.prover.sign(self.prover.header(), self.claims(**changes))

    def post(self, *proofs: str, scheme: str = "DPoP", token: str = "", path: str = PATH) -> httpx.Response:
        raw, media_type = sealed_request()
        fields = [("Content-Type", media_type), ("Purpose", "treatment"), *(("DPoP", proof) for proof in proofs)]
        fields.append(("Authorization", f"{scheme} {token or self.token}"))
        return self.client.post(path, content=raw, headers=fields)

    def learn(self) -> None:
        """Be told the nonce, as RFC 9449 section 9 has it."""
        answer = self.post(self.proof())
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == CHALLENGE_NONCE
        self.nonce = answer.headers["dpop-nonce"]


@pytest.fixture
def caller(shared: Running) -> Caller:
    made = Caller(shared)
    made.learn()
    assert reasons(shared) == ["proof-nonce-stale"]
    shared.host.told.clear()
    return made


def reasons(gateway: Running, count: int = 1) -> list[str]:
    return [frame.reason for frame in gateway.host.heard(frames.AuthFailed, count)]


def test_a_proof_passes_once(shared: Running, caller: Caller) -> None:
    proof = caller.proof()
    answer = caller.post(proof)
    assert answer.status_code == 200, answer.text
    assert "dpop-nonce" not in answer.headers  # told only when it changed
    frame = shared.host.heard(frames.Submit)[0]
    assert frame.caller.authn == "jwt"
    assert caller.post(proof).status_code == 401
    assert caller.post(caller.proof()).status_code == 200
    assert reasons(shared) == ["proof-replayed"]


def test_the_nonce_changes_and_is_told_in_time(run_gateway: Callable[..., Running]) -> None:
    gateway = run_gateway()
    caller = Caller(gateway)
    caller.learn()
    gateway.clock.later_s += NONCE_WINDOW_S
    answer = caller.post(caller.proof())
    assert answer.status_code == 200
    newer = answer.headers["dpop-nonce"]
    assert newer != caller.nonce
    assert answer.headers["cache-control"] == "no-store"
    gateway.clock.later_s += NONCE_WINDOW_S
    assert caller.post(caller.proof()).headers["www-authenticate"] == CHALLENGE_NONCE
    assert caller.post(caller.proof(nonce=newer)).status_code == 200


def test_a_refusal_after_authentication_tells_the_nonce_too(run_gateway: Callable[..., Running]) -> None:
    gateway = run_gateway()
    caller = Caller(gateway, purposes=["other"])
    caller.learn()
    gateway.clock.later_s += NONCE_WINDOW_S
    answer = caller.post(caller.proof())
    assert answer.status_code == 403
    assert answer.headers["dpop-nonce"] != caller.nonce


def test_every_wrong_way_looks_the_same(shared: Running, caller: Caller) -> None:
    plain, other, stranger = shared.token(), Caller(shared), Prover()
    used = caller.proof()
    assert caller.post(used).status_code == 200
    attempts: list[tuple[str, Callable[[], httpx.Response]]] = [
        ("scheme-mismatch", lambda: caller.post(caller.proof(), scheme="Bearer")),
        ("scheme-mismatch", lambda: caller.post(scheme="Bearer")),
        ("scheme-mismatch", lambda: caller.post(caller.proof(), token=plain)),
        ("scheme-mismatch", lambda: caller.post(token=plain)),
        ("proof-unexpected", lambda: caller.post(caller.proof(), token=plain, scheme="Bearer")),
        ("proof-missing", lambda: caller.post()),
        ("proof-repeated", lambda: caller.post(caller.proof(), caller.proof())),
        ("proof-malformed", lambda: caller.post("")),
        ("proof-malformed", lambda: caller.post("a.b.c")),
        ("proof-too-large", lambda: caller.post("a" * 5000)),
        ("proof-replayed", lambda: caller.post(used)),
        ("proof-method-mismatch", lambda: caller.post(caller.proof(htm="GET"))),
        ("proof-url-mismatch", lambda: caller.post(caller.proof(htu=URL.replace("wine", "beer")))),
        ("proof-url-mismatch", lambda: caller.post(caller.proof(), path="/sealed/beer")),
        ("proof-token-mismatch", lambda: caller.post(caller.proof(ath="x"))),
        ("proof-key-mismatch", lambda: other.post(caller.proof())),
        (
            "proof-key-mismatch",
            lambda: caller.post(stranger.sign(stranger.header(), caller.claims())),
        ),
        (
            "proof-signature-invalid",
            lambda: caller.post(stranger.sign(caller.prover.header(), caller.claims())),
        ),
        ("proof-expired", lambda: caller.post(caller.proof(iat=shared.clock() // 1_000_000 - PROOF_AGE_S - 1))),
        ("proof-not-yet-valid", lambda: caller.post(caller.proof(iat=shared.clock() // 1_000_000 + 100))),
        ("token-malformed", lambda: caller.post(caller.proof(), token="x")),
    ]
    shared.host.told.clear()
    answers = [attempt() for _, attempt in attempts]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["www-authenticate"] for answer in answers} == {CHALLENGE}
    assert len({tuple(sorted(set(answer.headers) - {"date"})) for answer in answers}) == 1
    assert reasons(shared, len(attempts)) == [reason for reason, _ in attempts]
    assert shared.host.bodies() == []


def test_the_request_for_a_nonce_differs_in_nothing_but_the_challenge(shared: Running, caller: Caller) -> None:
    wanted, other = caller.post(caller.proof(nonce="old")), caller.post()
    assert wanted.content == other.content
    assert wanted.headers["www-authenticate"] == CHALLENGE_NONCE
    assert set(wanted.headers) == set(other.headers)
    assert reasons(shared, 2) == ["proof-nonce-stale", "proof-missing"]


def test_only_who_holds_token_and_key_is_asked_for_a_nonce(shared: Running, caller: Caller) -> None:
    """Otherwise the challenge would tell a thief what of the loot is good."""
    stranger = Prover()
    nonceless = caller.claims(nonce=None)
    spoilt = caller.token[:-6] + "AAAAAA"
    for answer in (
        caller.post(stranger.sign(stranger.header(), nonceless)),
        caller.post(stranger.sign(caller.prover.header(), nonceless)),
        caller.post(caller.proof(nonce=None), token=spoilt),
        caller.post(caller.proof(nonce=None, htm="PUT")),
    ):
        assert answer.headers["www-authenticate"] == CHALLENGE


def test_the_host_field_decides_nothing(shared: Running, caller: Caller) -> None:
    caller.client.headers["Host"] = "evil.example"
    assert caller.post(caller.proof(htu=f"https://evil.example{PATH}")).status_code == 401
    assert caller.post(caller.proof()).status_code == 200
    assert reasons(shared) == ["proof-url-mismatch"]


def test_other_urls_of_the_deployment(run_gateway: Callable[..., Running]) -> None:
    gateway = run_gateway(dpop_urls=("https://proxy.example.net/inference",))
    caller = Caller(gateway)
    caller.learn()
    assert caller.post(caller.proof(htu=f"https://proxy.example.net/inference{PATH}")).status_code == 200
    assert caller.post(caller.proof(htu=f"https://proxy.example.net{PATH}")).status_code == 401


@pytest.mark.parametrize("url", ["http://proxy.example.net", "proxy.example.net", "https://proxy.example.net/?a=b"])
def test_a_url_that_cannot_be_one_stops_the_start(deployment: Deployment, url: str) -> None:
    section = msgspec.structs.replace(deployment.settings.gateway, dpop_urls=(url,))
    changed = Deployment(deployment.root, msgspec.structs.replace(deployment.settings, gateway=section))
    with pytest.raises(ConfigurationError, match="dpop_urls"):
        open_possession(changed)


def test_two_gateways_of_a_deployment_share_nonces_and_memory(run_gateway: Callable[..., Running]) -> None:
    """A memory in each process would let a proof be used once in each of them."""
    one, other = run_gateway(), run_gateway()
    caller = Caller(one)
    caller.learn()
    proof = caller.proof()
    assert caller.post(proof).status_code == 200
    caller.client = other.client()
    assert caller.post(proof).status_code == 401
    assert caller.post(caller.proof()).status_code == 200


def test_a_gateway_that_started_anew_takes_no_proof_of_before(run_gateway: Callable[..., Running]) -> None:
    first = run_gateway()
    caller = Caller(first)
    caller.learn()
    proof = caller.proof()
    assert caller.post(proof).status_code == 200
    first.close()
    caller.client = run_gateway().client()
    answer = caller.post(proof)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == CHALLENGE_NONCE


def test_a_memory_that_cannot_be_written_closes_the_way_for_proofs_alone(gateway: Running) -> None:
    caller = Caller(gateway)
    caller.learn()
    gateway.gate.authenticator._possession._store.close()
    answer = caller.post(caller.proof())
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert caller.post(caller.proof(htm="GET")).status_code == 401
    assert caller.post(token=gateway.token(), scheme="Bearer").status_code == 200
    gateway.host.told.clear()
    assert caller.post(caller.proof()).status_code == 503
    assert reasons(gateway) == ["proof-store-unavailable"]


def test_a_certificate_with_a_proof_but_no_token_is_nobody(shared: Running, caller: Caller) -> None:
    raw, media_type = sealed_request()
    fields = {"Content-Type": media_type, "Purpose": "treatment", "DPoP": caller.proof()}
    assert shared.client(certificate="integration").post(PATH, content=raw, headers=fields).status_code == 401
    assert reasons(shared) == ["proof-unexpected"]


def test_a_request_that_is_decided_twice_has_used_its_proof_itself(gateway: Running) -> None:
    """The host changes its policy between our decision and its record: the caller is authenticated again."""
    caller = Caller(gateway)
    caller.learn()
    sent_back = [frames.Refused(status=503, code="policy-changed")]

    def script(frame: Any, body: bytes) -> Any:
        if isinstance(frame, frames.Submit) and sent_back:
            return sent_back.pop(), b""
        return plain_answer(frame, body)

    gateway.host.script = script
    proof = caller.proof()
    assert caller.post(proof).status_code == 200
    assert sent_back == []
    assert caller.post(proof).status_code == 401


# What a tenant demands ----------------------------------------------------------------------------------------------


def demanding(gateway_of: Callable[..., Running], state: Path, demand: str) -> Running:
    path = state / "policy" / TENANTS
    path.write_text(path.read_text().replace('token_binding = "none"', f'token_binding = "{demand}"', 1))
    return gateway_of()


@pytest.mark.parametrize(
    ("demand", "served"),
    [
        ("none", {"bearer", "dpop", "mtls", "both", "certificate"}),
        ("any", {"dpop", "mtls", "both", "certificate"}),
        ("mtls", {"mtls", "both", "certificate"}),
        ("dpop", {"dpop", "both"}),
    ],
)
def test_a_tenant_gets_what_it_demands(
    run_gateway: Callable[..., Running], deployment: Any, host: Any, demand: str, served: set[str]
) -> None:
    gateway = demanding(run_gateway, deployment.root, demand)
    host.push(policy_digest=load_policy(deployment.policy).digest)
    pem = (deployment.pki / "clients" / "integration.pem").read_text()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
    x5t = {"x5t#S256": base64.urlsafe_b64encode(digest).rstrip(b"=").decode()}
    by_key, by_both = Caller(gateway), Caller(gateway, certificate="integration")
    by_both.token = gateway.token(confirmation={"jkt": by_both.prover.jkt, **x5t})
    for one in (by_key, by_both):
        one.learn()
    raw, media_type = sealed_request()
    fields = {"Content-Type": media_type, "Purpose": "treatment"}

    def post(certificate: str | None, token: str | None) -> httpx.Response:
        return gateway.client(certificate=certificate, token=token).post(PATH, content=raw, headers=fields)

    answers = {
        "bearer": post(None, gateway.token()),
        "dpop": by_key.post(by_key.proof()),
        "mtls": post("integration", gateway.token(confirmation=x5t)),
        "both": by_both.post(by_both.proof()),
        "certificate": post("integration", None),
    }
    assert {answer.status_code for answer in answers.values()} <= {200, 403}
    assert {name for name, answer in answers.items() if answer.status_code == 200} == served
    denied = [frame.decision.policy_ids for frame in host._of(frames.Deny)]
    assert denied == [("token-binding-where-demanded",)] * (5 - len(served))


def test_a_token_bound_to_both_needs_both(shared: Running) -> None:
    caller = Caller(shared)
    caller.token = shared.token(confirmation={"jkt": caller.prover.jkt, "x5t#S256": "A" * 43})
    assert caller.post(caller.proof()).headers["www-authenticate"] == CHALLENGE
    assert reasons(shared) == ["token-bound-elsewhere"]
