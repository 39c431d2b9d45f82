"""Tokens bound to a key, from our client: proofs that another library checks, and nonces as servers hand them out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.client.audit import AuditClient
from sealgate.client.credentials import Credential
from sealgate.client.dpop import DpopKey, Prover, wants_nonce
from sealgate.client.errors import ServiceRefused
from sealgate.client.transport import AsyncSealedTransport, SealedTransport
from sealgate.errors import ConfigurationError
from sealgate.protocol.binding import bind_token
from sealgate.protocol.dpop import to_base64url

TOKEN = "header.payload.signature"
URL = "https://sealgate.test:8443"
KEYS = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": Ed25519PrivateKey.generate,
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
}
REQUEST = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
ATH = to_base64url(hashlib.sha256(TOKEN.encode()).digest())


def opened(proof: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a proof whose signature holds under the key that it brings."""
    header = jwt.get_unverified_header(proof)
    return header, jwt.decode(
        proof, jwt.PyJWK(header["jwk"], header["alg"]), [header["alg"]], options={"verify_iat": False}
    )


class Door:
    """A resource server in front of the service (RFC 9449 sections 7 and 9). Its nonce changes when a test says so."""

    def __init__(self, service: Any, key: DpopKey) -> None:
        self.service, self.key = service, key
        self.nonce = "nonce-1"
        self.proofs: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.never = False

    def handle(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.startswith(("/sealed/", "/audit/")):
            return self.service.handle(request)  # type: ignore[no-any-return]
        header, claims = opened(request.headers["dpop"])
        assert header["typ"] == "dpop+jwt"
        assert not {"d", "p", "q"} & set(header["jwk"])
        assert DpopKey.__repr__(self.key) == f"DpopKey({self.key.jkt})"
        assert claims["ath"] == ATH
        assert claims["htm"] == request.method
        assert claims["htu"] == str(request.url.copy_with(query=None))
        assert request.headers["authorization"] == f"DPoP {TOKEN}"
        self.proofs.append(claims)
        self.bodies.append(request.content)
        if self.never or claims.get("nonce") != self.nonce:
            headers = {
                "dpop-nonce": self.nonce,
                "www-authenticate": 'Bearer, DPoP error="use_dpop_nonce", algs="ES256"',
            }
            document = {"type": "urn:sealgate:problem:unauthenticated", "status": 401}
            kind = {"content-type": "application/problem+json"}
            return httpx.Response(401, headers=headers | kind, stream=httpx.ByteStream(json.dumps(document).encode()))
        request.headers["authorization"] = f"Bearer {TOKEN}"
        return self.service.handle(request)  # type: ignore[no-any-return]


def make_client(service: Any, door: Door, **options: Any) -> httpx.Client:
    arguments = {"purpose": "diagnosis", "token": TOKEN, "dpop_key": door.key} | options
    transport = SealedTransport(
        service.trust(), outer=httpx.MockTransport(door.handle), clock=service.clock, trust_env=False, **arguments
    )
    return httpx.Client(transport=transport, base_url="https://anything.invalid")


def infer(client: httpx.Client, **options: Any) -> httpx.Response:
    return client.post("/v2/models/toy/infer", json=REQUEST, **options)


@pytest.mark.parametrize("kind", list(KEYS))
def test_a_proof_holds_for_another_library(kind: str) -> None:
    key = DpopKey(KEYS[kind]())
    prover = Prover(key, clock=lambda: 1_800_000_000_999_999)
    header, claims = opened(prover.proof("POST", "https://Sealgate.TEST:443/sealed/a%2fb?x=y", token=TOKEN))
    assert header["alg"] == kind
    assert claims.pop("jti")
    assert claims == {
        "htm": "POST",
        "htu": "https://sealgate.test/sealed/a%2Fb",
        "iat": 1_800_000_000,
        "ath": ATH,
    }
    numbers = json.dumps({name: header["jwk"][name] for name in sorted(header["jwk"])}, separators=(",", ":"))
    assert key.jkt == to_base64url(hashlib.sha256(numbers.encode()).digest())


def test_no_proof_is_made_twice() -> None:
    prover = Prover(DpopKey.generate(), clock=lambda: 1_800_000_000_000_000)
    proofs = [opened(prover.proof("GET", URL, token=None))[1] for _ in range(20)]
    assert len({proof["jti"] for proof in proofs}) == 20
    assert not any("ath" in proof or "nonce" in proof for proof in proofs)


def test_a_sealed_request_goes_with_a_proof_and_learns_the_nonce_once(service: Any) -> None:
    service.credential_binding = bind_token(TOKEN)
    door = Door(service, DpopKey.generate())
    with make_client(service, door) as client:
        assert infer(client).status_code == 200
        assert infer(client).status_code == 200
    assert [proof.get("nonce") for proof in door.proofs] == [None, "nonce-1", "nonce-1"]
    assert len({proof["jti"] for proof in door.proofs}) == 3
    assert door.bodies[0] == door.bodies[1]  # turned away at the door: the same sealed request goes again
    assert {proof["iat"] for proof in door.proofs} == {service.clock() // 1_000_000}
    for request in service.inner:
        assert request.field("dpop") is None


def test_a_nonce_that_changes_costs_one_more_request(service: Any) -> None:
    door = Door(service, DpopKey.generate())
    with make_client(service, door) as client:
        infer(client)
        door.nonce = "nonce-2"
        assert infer(client).status_code == 200
    assert [proof.get("nonce") for proof in door.proofs] == [None, "nonce-1", "nonce-1", "nonce-2"]


def test_a_nonce_that_is_told_in_time_costs_nothing(service: Any) -> None:
    door = Door(service, DpopKey.generate())

    def tell(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path.startswith("/sealed/"):
            door.nonce = "nonce-2"
            response.headers["dpop-nonce"] = door.nonce
        return response

    service.meddle = tell
    with make_client(service, door) as client:
        infer(client)
        infer(client)
    assert [proof.get("nonce") for proof in door.proofs] == [None, "nonce-1", "nonce-2"]


def test_a_service_that_always_wants_another_nonce_is_asked_twice(service: Any) -> None:
    door = Door(service, DpopKey.generate())
    door.never = True
    with make_client(service, door) as client, pytest.raises(ServiceRefused) as caught:
        infer(client)
    assert caught.value.code == "unauthenticated"
    assert len(door.proofs) == 2


def test_the_async_transport_does_the_same(service: Any) -> None:
    door = Door(service, DpopKey.generate())

    async def ask() -> int:
        transport = AsyncSealedTransport(
            service.trust(),
            purpose="diagnosis",
            token=TOKEN,
            dpop_key=door.key,
            outer=httpx.MockTransport(door.handle),
            clock=service.clock,
            trust_env=False,
        )
        async with httpx.AsyncClient(transport=transport, base_url="https://anything.invalid") as client:
            return (await client.post("/v2/models/toy/infer", json=REQUEST)).status_code

    assert asyncio.run(ask()) == 200
    assert len(door.proofs) == 2


def test_a_token_in_the_programs_own_field_is_bound_too(service: Any) -> None:
    door = Door(service, DpopKey.generate())
    with make_client(service, door, token=None) as client:
        for scheme in ("DPoP", "Bearer"):
            fields = {"Authorization": f"{scheme} {TOKEN}", "DPoP": "what another layer made"}
            assert infer(client, headers=fields).status_code == 200
    assert all(request.field("dpop") is None for request in service.inner)


def test_auditors_are_bound_too(service: Any) -> None:
    door = Door(service, DpopKey.generate())
    client = AuditClient(
        service.trust(), token=TOKEN, dpop_key=door.key, outer=httpx.MockTransport(door.handle), trust_env=False
    )
    with client:
        assert client.records({"kind": "log.opened"}).entries
        client.checkpoint()
    assert [proof.get("nonce") for proof in door.proofs] == [None, "nonce-1", "nonce-1"]
    assert door.proofs[0]["htu"] == f"{URL}/audit/v1/records"


def test_without_a_token_there_is_no_proof() -> None:
    credential = Credential(token=None, certificate=b"der", prover=Prover(DpopKey.generate()))
    assert credential.headers("POST", URL) == ()
    assert not credential.wants_again(401, {"dpop-nonce": "n", "www-authenticate": 'DPoP error="use_dpop_nonce"'})


@pytest.mark.parametrize(
    ("wanted", "status", "challenge", "nonce"),
    [
        (True, 401, 'DPoP error="use_dpop_nonce"', "abc"),
        (True, 401, 'Bearer, DPoP algs="ES256", error=use_dpop_nonce', "abc"),
        (False, 400, 'DPoP error="use_dpop_nonce"', "abc"),
        (False, 401, 'DPoP error="invalid_token"', "abc"),
        (False, 401, "Bearer", "abc"),
        (False, 401, 'DPoP error="use_dpop_nonce"', ""),
        (False, 401, 'DPoP error="use_dpop_nonce"', "with a space"),
        (False, 401, 'DPoP error="use_dpop_nonce"', "x" * 257),
        (False, 401, 'DPoP error="use_dpop_nonce_not"', "abc"),
    ],
)
def test_what_counts_as_a_wish_for_a_nonce(wanted: bool, status: int, challenge: str, nonce: str) -> None:
    assert wants_nonce(status, {"www-authenticate": challenge, "dpop-nonce": nonce}) is wanted


# Keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KEYS))
def test_a_key_is_kept_for_its_owner_alone(tmp_path: Path, kind: str) -> None:
    key, path = DpopKey(KEYS[kind]()), tmp_path / "dpop.pem"
    key.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert DpopKey.load(path).jkt == key.jkt
    with pytest.raises(ConfigurationError, match="cannot be written"):
        DpopKey.generate().write(path)
    assert DpopKey.load(path).jkt == key.jkt


def test_a_key_shows_nothing_of_itself(tmp_path: Path) -> None:
    key = DpopKey.generate()
    key.write(tmp_path / "dpop.pem")
    body = "".join((tmp_path / "dpop.pem").read_text().splitlines()[1:-1])
    assert body[40:80] not in repr(key)
    assert re.fullmatch(r"DpopKey\([A-Za-z0-9_-]{43}\)", repr(key))
    with pytest.raises(TypeError):
        pickle.dumps(key)


def pem(key: Any) -> bytes:
    return key.private_bytes(  # type: ignore[no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


LOCKED = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        LOCKED,
        pem(ec.generate_private_key(ec.SECP521R1())),
        pem(ec.generate_private_key(ec.SECP256K1())),
        pem(x25519.X25519PrivateKey.generate()),
        b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 20_000,
    ],
    ids=["empty", "text", "locked", "P-521", "secp256k1", "X25519", "large"],
)
def test_a_file_that_holds_no_usable_key_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "dpop.pem"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"dpop\.pem") as caught:
        DpopKey.load(path)
    assert "\n" not in str(caught.value)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        DpopKey.load(tmp_path / "none.pem")
