"""The provider that the stories rely on does what they take it to do, seen with other eyes than the gateway's."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.peers.identity_provider import (
    CLAIMS,
    DPOP,
    MTLS,
    PLAIN,
    SELF_SIGNED,
    Credentials,
    IdentityProvider,
    running_provider,
)

RESOURCE = "https://gateway.example"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    with running_provider(tmp_path_factory.mktemp("provider"), resource=RESOURCE) as made:
        yield made


def get(provider: IdentityProvider, path: str) -> Any:
    with httpx.Client(verify=provider.tls(), trust_env=False, timeout=20) as client:
        return client.get(provider.issuer + path).json()


def verified(provider: IdentityProvider, token: str) -> dict[str, Any]:
    """The claims, by PyJWT's own rules."""
    keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(get(provider, "/jwks")).keys}
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "at+jwt"
    found: dict[str, Any] = jwt.decode(
        token, keys[header["kid"]], [header["alg"]], audience=RESOURCE, issuer=provider.issuer
    )
    return found


def thumbprint(credentials: Credentials) -> str:
    digest = hashlib.sha256(credentials.leaf[0].public_bytes(Encoding.DER)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"])
def test_metadata_name_the_issuer_and_its_keys(provider: IdentityProvider, path: str) -> None:
    metadata = get(provider, path)
    assert metadata["issuer"] == provider.issuer
    assert metadata["jwks_uri"] == f"{provider.issuer}/jwks"


def test_a_plain_token_has_every_claim_of_the_profile(provider: IdentityProvider) -> None:
    claims = verified(provider, provider.token())
    assert claims.keys() >= {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"}  # RFC 9068 section 2.2
    assert {name: claims[name] for name in CLAIMS} == CLAIMS
    assert (claims["sub"], claims["client_id"]) == (PLAIN, PLAIN)
    assert "cnf" not in claims


def test_certificates_bind_tokens(provider: IdentityProvider) -> None:
    for client_id, credentials in ((MTLS, provider.machine), (SELF_SIGNED, provider.lone_machine)):
        claims = verified(provider, provider.token(client_id, credentials=credentials))
        assert claims["cnf"] == {"x5t#S256": thumbprint(credentials)}
    assert provider.ask(MTLS, credentials=provider.lone_machine).status_code == 401
    assert provider.ask(SELF_SIGNED, credentials=provider.machine).status_code == 401


def test_a_dpop_key_binds_tokens(provider: IdentityProvider) -> None:
    assert provider.ask(DPOP).status_code == 400
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    jwk = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    claims = {"jti": "1", "htm": "POST", "htu": provider.token_endpoint, "iat": 1}
    headers = {"typ": "dpop+jwt", "jwk": jwk}
    stale = provider.ask(DPOP, headers={"DPoP": jwt.encode(claims, key, "ES256", headers=headers)})
    assert (stale.status_code, stale.json()["error"]) == (400, "use_dpop_nonce")
    claims |= {"nonce": stale.headers["dpop-nonce"], "jti": "2"}
    answer = provider.ask(DPOP, headers={"DPoP": jwt.encode(claims, key, "ES256", headers=headers)}).json()
    assert answer["token_type"] == "DPoP"
    digest = hashlib.sha256(json.dumps(jwk, separators=(",", ":")).encode()).digest()  # RFC 7638
    jkt = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert verified(provider, answer["access_token"])["cnf"] == {"jkt": jkt}


def test_keys_are_added_used_and_withdrawn(provider: IdentityProvider) -> None:
    def published() -> list[str]:
        return [key["kid"] for key in get(provider, "/jwks")["keys"]]

    def signer() -> str:
        return str(jwt.get_unverified_header(provider.token())["kid"])

    old = signer()
    new = provider.add_key()
    assert (published(), signer()) == ([old, new], old)
    provider.sign_with(new)
    assert signer() == new
    provider.withdraw(old)
    assert published() == [new]
    assert not {"d", "p", "q"} & get(provider, "/jwks")["keys"][0].keys()


def test_it_fails_as_it_is_told(provider: IdentityProvider) -> None:
    with httpx.Client(verify=provider.tls(), trust_env=False, timeout=20) as client:
        found = {}
        for kind in ("status", "garbage", "oversize", "redirect"):
            provider.fault(kind)
            answer = client.get(f"{provider.issuer}/jwks")
            found[kind] = (answer.status_code, len(answer.content) > 1_000_000)
        assert found == {
            "status": (503, False), "garbage": (200, False), "oversize": (200, True), "redirect": (302, False)
        }  # fmt: skip
        provider.fault("stall")
        with pytest.raises(httpx.ReadTimeout):
            client.get(f"{provider.issuer}/jwks", timeout=httpx.Timeout(20, read=0.3))
        provider.fault(None)
        provider.cache_control("max-age=77")
        before = provider.fetches()["jwks"]
        assert client.get(f"{provider.issuer}/jwks").headers["cache-control"] == "max-age=77"
        assert provider.fetches()["jwks"] == before + 1
        provider.down()
        with pytest.raises(httpx.TransportError):
            client.get(f"{provider.issuer}/jwks")
        provider.up()
        assert client.get(f"{provider.issuer}/jwks").status_code == 200
    provider.cache_control(None)
