"""Key names, token hashes and URLs of proofs of possession: the RFCs' own values, and what must count as the same."""

from __future__ import annotations

import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.protocol.dpop import from_base64url, public_jwk, target_url, thumbprint, to_base64url, token_hash


def test_the_thumbprint_of_rfc_9449_section_6() -> None:
    key = {
        "kty": "EC",
        "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
        "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
        "crv": "P-256",
    }
    assert thumbprint(key) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    assert thumbprint({**key, "kid": "any", "alg": "ES256"}) == thumbprint(key)


def test_the_thumbprint_of_rfc_8037_appendix_a() -> None:
    raw = from_base64url("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
    jwk = public_jwk(Ed25519PublicKey.from_public_bytes(raw))
    assert jwk == {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert thumbprint(jwk) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_the_token_hash_of_rfc_9449_section_7() -> None:
    assert token_hash("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU") == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), jwt.algorithms.ECAlgorithm),
        (ec.generate_private_key(ec.SECP384R1()), jwt.algorithms.ECAlgorithm),
        (Ed25519PrivateKey.generate(), jwt.algorithms.OKPAlgorithm),
        (rsa.generate_private_key(65537, 2048), jwt.algorithms.RSAAlgorithm),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA"],
)
def test_keys_are_written_as_another_library_writes_them(key: object, algorithm: type) -> None:
    public = key.public_key()  # type: ignore[attr-defined]
    theirs = json.loads(algorithm.to_jwk(public))  # type: ignore[attr-defined]
    ours = public_jwk(public)
    assert ours == {name: theirs[name] for name in ours}
    assert set(theirs) - set(ours) <= {"key_ops"}


def test_other_curves_have_no_name_here() -> None:
    with pytest.raises(DecodeError):
        public_jwk(ec.generate_private_key(ec.SECP256K1()).public_key())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTPS://Example.ORG/a", "https://example.org/a"),
        ("https://example.org:443/a", "https://example.org/a"),
        ("https://example.org:0443/a", "https://example.org/a"),
        ("https://example.org:/a", "https://example.org/a"),
        ("https://example.org", "https://example.org/"),
        ("https://example.org?x=/", "https://example.org/"),
        ("https://example.org/a?b=c#d", "https://example.org/a"),
        ("https://example.org/%7euser/%c3%a4", "https://example.org/~user/%C3%A4"),
        ("https://[2001:DB8::1]:8443/x", "https://[2001:db8::1]:8443/x"),
    ],
)
def test_two_writings_of_one_url_are_one(one: str, other: str) -> None:
    assert target_url(one) == target_url(other) == other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://example.org/a", "https://example.org/A"),
        ("https://example.org/a", "https://example.org/a/"),
        ("https://example.org/a/b", "https://example.org/a%2Fb"),
        ("https://example.org/a/../b", "https://example.org/b"),
        ("https://example.org:8443/a", "https://example.org/a"),
        ("https://example.org./a", "https://example.org/a"),
        ("https://example.org/a", "https://example.net/a"),
    ],
)
def test_two_urls_are_two(one: str, other: str) -> None:
    assert target_url(one) != target_url(other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/a",
        "//example.org/a",
        "http://example.org/a",
        "https:/example.org/a",
        "https://user@example.org/a",
        "https://user:secret@example.org/",
        "https://example.org:port/",
        "https://example.org:123456/",
        "https://exa mple.org/",
        "https://example.org/\n",
        "https://example.org/ä",
        "https://[::1/",
        "https:///a",
        "javascript:https://example.org/",
        "https://example.org/" + "a" * 2048,
    ],
)
def test_what_is_no_https_url(text: str) -> None:
    with pytest.raises(DecodeError):
        target_url(text)


@settings(max_examples=60)
@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40))
def test_a_normal_form_stays_as_it_is(path: str) -> None:
    normal = target_url("https://example.org:444/" + path)
    assert target_url(normal) == normal
    assert "?" not in normal
    assert "#" not in normal


@settings(max_examples=60)
@given(st.binary(max_size=70))
def test_base64url_there_and_back(data: bytes) -> None:
    assert from_base64url(to_base64url(data)) == data


@pytest.mark.parametrize("text", ["AA==", "AB", "A", "A+", "A/A", "AA\n", " AAA", "AA.A", "ÄÄÄ", "AAF"])
def test_there_is_one_base64url_text_for_each_value(text: str) -> None:
    with pytest.raises(DecodeError):
        from_base64url(text)
