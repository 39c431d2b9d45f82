"""One proof of possession: the RFC's own, honest ones of every algorithm, and each way to be wrong with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.authentication.dpop import VerifiedProof, accepted_targets, verify_proof
from gateway.authentication.nonces import Nonces
from gateway.authentication.proof_keys import _WEAK_Y, ALGORITHMS, parse_callers_key
from gateway.errors import CHALLENGE, CHALLENGE_NONCE, Unauthenticated
from gateway.limits import NONCE_WINDOW_S, PROOF_AGE_S, PROOF_AHEAD_S
from sealgate.protocol.dpop import from_base64url, public_jwk, thumbprint, to_base64url
from tests.gateway.proving import KINDS, Prover, b64

NOW_S = 1_800_000_000
BASE = "https://inference.example.org"
PATH = "/sealed/wine"
TOKEN = "eyJ.eyJ.c2ln"
PROVERS = {name: Prover(name) for name in KINDS}
P256 = PROVERS["ES256"]
NONCES = Nonces(bytes(32), clock=lambda: NOW_S * 1_000_000)


def check(proof: str, *, prover: Prover = P256, now_s: float = NOW_S, **changes: Any) -> VerifiedProof:
    asked: dict[str, Any] = {
        "jkt": prover.jkt,
        "method": "POST",
        "targets": accepted_targets([BASE], PATH),
        "access_token": TOKEN,
        "nonces": NONCES,
        "now_us": int(now_s * 1_000_000),
    }
    return verify_proof(proof, **(asked | changes))


def honest(prover: Prover = P256, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"htm": "POST", "htu": BASE + PATH, "iat": NOW_S, "nonce": NONCES.current()}
    return prover.claims(TOKEN, **(given | changes))


def refused(proof: str, **how: Any) -> str:
    with pytest.raises(Unauthenticated) as caught:
        check(proof, **how)
    return caught.value.code


def test_the_proof_of_rfc_9449_section_7_holds_but_has_no_nonce_of_ours() -> None:
    proof = (
        "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpD"
        "a0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6"
        "IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGx"
        "lLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk"
        "1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJp"
        "LjA"
    )
    asked: dict[str, Any] = {
        "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        "method": "GET",
        "targets": accepted_targets(["https://resource.example.org"], "/protectedresource"),
        "access_token": "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
        "now_s": 1562262618,
    }
    assert refused(proof, **asked) == "proof-nonce-stale"
    assert refused(proof, **asked | {"access_token": "another"}) == "proof-token-mismatch"
    assert refused(proof[:-8] + "AAAAAAAA", **asked) == "proof-signature-invalid"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_that_the_challenge_names(algorithm: str) -> None:
    prover = PROVERS[algorithm]
    claims = honest(prover)
    found = check(prover.sign(prover.header(), claims), prover=prover)
    assert found == VerifiedProof(
        jkt=prover.jkt, jti=claims["jti"], nonce=NONCES.current(), expires_us=(NOW_S + PROOF_AGE_S) * 1_000_000
    )
    for challenge in (CHALLENGE, CHALLENGE_NONCE):
        assert f'algs="{" ".join(ALGORITHMS)}"' in challenge


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_has_one_name_whatever_else_is_written_beside_it(algorithm: str) -> None:
    prover = PROVERS[algorithm]
    found = parse_callers_key({**prover.jwk, "kid": "x", "ext": True})
    assert found.thumbprint == prover.jkt == thumbprint(public_jwk(found.key))


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("proof-type-mismatch", {"typ": "JWT"}),
        ("proof-type-mismatch", {"typ": "at+jwt"}),
        ("proof-type-mismatch", {"typ": 1}),
        ("proof-algorithm-refused", {"alg": "none"}),
        ("proof-algorithm-refused", {"alg": "nOnE"}),
        ("proof-algorithm-refused", {"alg": "HS256"}),
        ("proof-algorithm-refused", {"alg": "ES512"}),
        ("proof-algorithm-refused", {"alg": "ES384"}),
        ("proof-algorithm-refused", {"alg": "RS256"}),
        ("proof-algorithm-refused", {"alg": ["ES256"]}),
        ("proof-algorithm-refused", {"alg": None}),
        ("proof-algorithm-refused", {"jwk": {**P256.jwk, "alg": "ES384"}}),
        ("proof-algorithm-refused", {"jwk": {**P256.jwk, "alg": []}}),
        ("proof-key-refused", {"jwk": None}),
        ("proof-key-refused", {"jwk": "https://example.org/key"}),
        ("proof-key-refused", {"jwk": [P256.jwk]}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "d": "AAAA"}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "x5u": "https://example.org/"}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "use": "enc"}}),
        ("proof-key-refused", {"jwk": {"kty": "oct", "k": "AAAA"}}),
        ("proof-key-refused", {"jwk": {"kty": "oct"}}),
        ("proof-key-refused", {"jwk": {}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "kty": []}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "crv": "P-521"}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "crv": ["P-256"]}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "crv": "secp256k1"}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "crv": "P-384"}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "x": P256.jwk["x"] + "="}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "x": b64(b"\x00" + from_base64url(P256.jwk["x"]))}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "y": P256.jwk["x"]}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "x": b64(bytes(32)), "y": b64(bytes(32))}}),
        ("proof-key-refused", {"jwk": {**P256.jwk, "x": 7}}),
        ("proof-key-refused", {"jwk": {"kty": "OKP", "crv": "Ed448", "x": "AAAA"}}),
        ("proof-key-refused", {"jwk": {"kty": "OKP", "crv": "X25519", "x": b64(bytes([9]) + bytes(31))}}),
        ("proof-key-refused", {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(31))}}),
        ("proof-key-refused", {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}),
        ("proof-key-refused", {"jwk": {**PROVERS["RS256"].jwk, "e": "AQ"}}),
        ("proof-key-refused", {"jwk": {**PROVERS["RS256"].jwk, "e": b64(b"\xff" * 9)}}),
        ("proof-key-refused", {"jwk": {**PROVERS["RS256"].jwk, "n": b64(b"\x00" + b"\xff" * 256)}}),
        ("proof-key-refused", {"jwk": {**PROVERS["RS256"].jwk, "n": b64(b"\xff" * 513)}}),
        ("proof-key-mismatch", {"jwk": PROVERS["ES384"].jwk}),
        ("proof-key-mismatch", {"jwk": Prover().jwk}),
        ("proof-header-forbidden", {"jku": "https://example.org/keys"}),
        ("proof-header-forbidden", {"x5u": "https://example.org/cert"}),
        ("proof-header-forbidden", {"x5c": []}),
        ("proof-header-forbidden", {"crit": ["exp"]}),
        ("proof-header-forbidden", {"b64": False}),
        ("proof-header-forbidden", {"zip": "DEF"}),
    ],
)
def test_a_header_that_is_not_a_proofs(reason: str, changes: dict[str, Any]) -> None:
    header = json.dumps({name: value for name, value in P256.header(**changes).items() if value is not None})
    assert refused(P256.sign_text(header, json.dumps(honest()))) == reason


@pytest.mark.parametrize("name", ["jti", "htm", "htu", "iat", "ath"])
def test_each_required_claim_removed_in_turn(name: str) -> None:
    assert refused(P256.sign(P256.header(), honest(**{name: None}))) == "proof-claims-invalid"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("proof-claims-invalid", {"jti": ""}),
        ("proof-claims-invalid", {"jti": "x" * 257}),
        ("proof-malformed", {"jti": "\ud800"}),
        ("proof-claims-invalid", {"jti": 7}),
        ("proof-claims-invalid", {"iat": "1800000000"}),
        ("proof-claims-invalid", {"iat": True}),
        ("proof-claims-invalid", {"iat": 0}),
        ("proof-claims-invalid", {"iat": 2**63}),
        ("proof-claims-invalid", {"nonce": 5}),
        ("proof-claims-invalid", {"htu": [BASE + PATH]}),
        ("proof-malformed", {"iat": 1.8e9}),
        ("proof-malformed", {"iat": float("inf")}),
        ("proof-method-mismatch", {"htm": "GET"}),
        ("proof-method-mismatch", {"htm": "post"}),
        ("proof-url-mismatch", {"htu": PATH}),
        ("proof-url-mismatch", {"htu": BASE}),
        ("proof-url-mismatch", {"htu": BASE + PATH + "/"}),
        ("proof-url-mismatch", {"htu": BASE + "/sealed/win"}),
        ("proof-url-mismatch", {"htu": BASE + "/sealed/%77ine%00"}),
        ("proof-url-mismatch", {"htu": "http" + BASE[5:] + PATH}),
        ("proof-url-mismatch", {"htu": BASE + ":8443" + PATH}),
        ("proof-url-mismatch", {"htu": "https://inference.example.org.evil.example" + PATH}),
        ("proof-url-mismatch", {"htu": "https://inference.example.org@evil.example" + PATH}),
        ("proof-token-mismatch", {"ath": b64(bytes(32))}),
        ("proof-token-mismatch", {"ath": ""}),
        ("proof-expired", {"iat": NOW_S - PROOF_AGE_S}),
        ("proof-not-yet-valid", {"iat": NOW_S + PROOF_AHEAD_S + 1}),
        ("proof-nonce-stale", {"nonce": None}),
        ("proof-nonce-stale", {"nonce": ""}),
        ("proof-nonce-stale", {"nonce": "ä"}),
        ("proof-nonce-stale", {"nonce": NONCES.current() + "="}),
        ("proof-nonce-stale", {"nonce": Nonces(b"\x01" * 32, clock=lambda: NOW_S * 1_000_000).current()}),
    ],
)
def test_a_claim_that_is_not_about_this_request(reason: str, changes: dict[str, Any]) -> None:
    claims = {name: value for name, value in honest(**changes).items() if value is not None}
    assert refused(P256.sign_text(json.dumps(P256.header()), json.dumps(claims))) == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"htu": "HTTPS://INFERENCE.example.org:443" + PATH},
        {"htu": BASE + "/sealed/%77ine"},
        {"htu": BASE + PATH + "?tenant=x#top"},
        {"iat": NOW_S - PROOF_AGE_S + 1},
        {"iat": NOW_S + PROOF_AHEAD_S},
    ],
)
def test_what_still_counts(changes: dict[str, Any]) -> None:
    check(P256.sign(P256.header(kid="whatever"), honest(**changes)))


def test_a_type_may_be_written_out() -> None:
    check(P256.sign(P256.header(typ="application/DPoP+JWT"), honest()))


def test_a_deployment_of_several_urls() -> None:
    proof = P256.sign(P256.header(), honest(htu="https://proxy.example.net/inference" + PATH))
    check(proof, targets=accepted_targets([BASE, "https://proxy.example.net/inference/"], PATH))
    assert refused(proof) == "proof-url-mismatch"


def test_a_path_that_no_url_can_have_matches_nothing() -> None:
    assert accepted_targets([BASE], "/\xe4") == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "a.b",
        "....",
        "{}.{}.",
        "ä.ä.ä",
        b64(b"{}") + "." + b64(b"[]") + ".AAAA",
        b64(b'{"typ":"dpop+jwt","typ":"dpop+jwt"}') + "." + b64(b"{}") + ".AAAA",
        b64(b"[" * 3000) + ".e30.AA",
    ],
)
def test_what_is_not_even_a_signed_object(text: str) -> None:
    assert refused(text) in ("proof-malformed", "proof-too-large")


def test_a_repeated_claim_is_not_read_either_way() -> None:
    claims = json.dumps(honest())
    proof = P256.sign_text(json.dumps(P256.header()), claims[:-1] + ', "htm": "POST"}')
    assert refused(proof) == "proof-malformed"


def test_size_comes_first() -> None:
    assert refused("x" * 4097) == "proof-too-large"
    large = P256.sign(P256.header(), honest(padding="x" * 4096))
    assert refused(large) == "proof-too-large"


def test_padding_or_stray_bits_make_another_text_of_it() -> None:
    proof = P256.sign(P256.header(), honest())
    assert refused(proof + "=") == "proof-malformed"
    stray = chr(ord(proof[-1]) + 1)  # 64 bytes leave four bits of the last character unused
    assert proof[-1] in "AQgw"
    assert refused(proof[:-1] + stray) == "proof-malformed"


@pytest.mark.parametrize("y", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f"])
@pytest.mark.parametrize("sign", [0, 0x80])
def test_points_under_which_everything_is_signed(y: str, sign: int) -> None:
    raw = bytearray.fromhex(y)
    raw[31] |= sign
    weak = {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(raw))}
    header = json.dumps({"typ": "dpop+jwt", "alg": "EdDSA", "jwk": weak})
    assert refused(P256.sign_text(header, json.dumps(honest()))) == "proof-key-refused"


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def _x_of(y: int) -> int:
    """RFC 8032 section 5.1.3."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    assert root * root % P == square
    return root


def _double(x: int, y: int) -> tuple[int, int]:
    product = D * x * x * y * y % P
    return 2 * x * y * pow(1 + product, -1, P) % P, (y * y + x * x) * pow(1 - product, -1, P) % P


def test_the_points_that_are_refused_are_those_whose_order_divides_eight() -> None:
    assert len(_WEAK_Y) == 5  # eight points; all but those with x = 0 come in pairs of one y
    for y in _WEAK_Y:
        point = (_x_of(y), y)
        for _ in range(3):
            point = _double(*point)
        assert point == (0, 1)
    base = (_x_of(4 * pow(5, -1, P) % P), 4 * pow(5, -1, P) % P)
    assert _double(*_double(*_double(*base))) != (0, 1)


def test_a_key_of_the_wrong_curve_for_its_algorithm() -> None:
    prover = PROVERS["ES384"]
    proof = prover.sign_text(json.dumps(prover.header(alg="ES256")), json.dumps(honest(prover)))
    assert refused(proof, prover=prover) == "proof-algorithm-refused"


def test_a_weak_rsa_key() -> None:
    prover = Prover("RS256")
    prover.key = rsa.generate_private_key(65537, 1024)
    numbers = prover.key.public_key().public_numbers()
    prover.jwk["n"] = to_base64url(numbers.n.to_bytes(128))
    header, claims = json.dumps(prover.header()), json.dumps(honest(prover))
    assert refused(f"{b64(header.encode())}.{b64(claims.encode())}.AAAA", prover=prover) == "proof-key-refused"


def test_another_signature_over_the_same_proof_is_the_same_proof_still() -> None:
    """ECDSA: (r, n - s) holds where (r, s) does. What is remembered is the identifier, so it does not count twice."""
    proof = P256.sign(P256.header(), honest())
    signed, _, signature = proof.rpartition(".")
    raw = from_base64url(signature)
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = f"{signed}.{b64(r.to_bytes(32) + (order - s).to_bytes(32))}"
    assert other != proof
    assert check(other) == check(proof)
    assert decode_dss_signature(encode_dss_signature(r, s)) == (r, s)


def test_an_ecdsa_signature_in_der_does_not_hold() -> None:
    proof = P256.sign(P256.header(), honest())
    signed, _, signature = proof.rpartition(".")
    raw = from_base64url(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    assert refused(f"{signed}.{b64(der)}") == "proof-signature-invalid"
    assert refused(f"{signed}.{b64(bytes(64))}") == "proof-signature-invalid"
    assert refused(f"{signed}.") == "proof-signature-invalid"


HONEST = P256.sign(P256.header(), honest())


@settings(max_examples=300, derandomize=True)
@given(place=st.integers(0, len(HONEST) - 1), character=st.sampled_from("AZaz09-_.=~ "), cut=st.booleans())
def test_no_changed_proof_counts(place: int, character: str, cut: bool) -> None:
    changed = HONEST[:place] + ("" if cut else character) + HONEST[place + 1 :]
    if changed != HONEST:
        assert refused(changed).startswith("proof-")


def test_nonces_count_in_their_window_and_in_the_next() -> None:
    now = [NOW_S * 1_000_000]
    nonces = Nonces(b"k" * 32, clock=lambda: now[0])
    first = nonces.current()
    assert nonces.counts(first)
    now[0] += NONCE_WINDOW_S * 1_000_000
    assert nonces.current() != first
    assert nonces.counts(first)
    now[0] += NONCE_WINDOW_S * 1_000_000
    assert not nonces.counts(first)
    assert nonces.counts(nonces.current())
    assert Nonces(b"k" * 32, clock=lambda: now[0]).current() == nonces.current()
    for _ in range(20):
        now[0] += NONCE_WINDOW_S * 1_000_000
        assert nonces.counts(nonces.current())
    assert len(nonces._made) <= 4


def test_a_proof_cannot_be_made_long_before_it_is_used() -> None:
    """The nonce of an hour ago, with a time of now: what a client whose key was borrowed could have prepared."""
    old = Nonces(bytes(32), clock=lambda: (NOW_S - 3600) * 1_000_000).current()
    assert refused(P256.sign(P256.header(), honest(nonce=old))) == "proof-nonce-stale"
