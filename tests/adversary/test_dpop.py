"""Every known way to pass for the holder of a key that a token names (RFC 9449), over real HTTPS.

Each attack differs from a good proof in one thing. A thief has the token, has seen proofs pass, and may have made keys
of his own; what he lacks is the key. All refusals are one answer, but for the one that RFC 9449 section 9 wants told:
who holds token AND key and only lacks a fresh nonce.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.limits import MAX_PROOF, NONCE_WINDOW_S, PROOF_AGE_S
from sealgate.ambient import now_us
from sealgate.protocol import frames
from tests.adversary.conftest import MATRIX, Target
from tests.adversary.forge import LOW_ORDER, b64, jwk, jws, key, mac, part, thumbprint, unb64
from tests.adversary.wire import Seen, Wire
from tests.gateway.conftest import Running

Fields = list[tuple[str, str | bytes]]
_made = count(1)  # proofs, of whatever prover: no two may have the same name


class Prover:
    """A client that holds a key and a token bound to it, and can make every proof but an honest one too."""

    def __init__(self, target: Target, key_name: str = "p256 client", alg: str = "ES256") -> None:
        self.target = target
        self.key_name, self.alg = key_name, alg
        self.public = jwk(key(key_name).public_key())
        self.token = target.forge.token(cnf={"jkt": thumbprint(self.public)})
        self.nonce = target.fresh_nonce()
        self.url = f"https://{target.deployment.settings.deployment.audience}/sealed/wine"

    def header(self, **changes: Any) -> dict[str, Any]:
        good = {"typ": "dpop+jwt", "alg": self.alg, "jwk": self.public} | changes
        return {name: value for name, value in good.items() if value is not ...}

    def claims(self, **changes: Any) -> dict[str, Any]:
        good = {
            "jti": f"{self.key_name}-{next(_made)}",
            "htm": "POST",
            "htu": self.url,
            "iat": now_us() // 1_000_000,
            "ath": ath(self.token),
            "nonce": self.nonce,
        }
        return {name: value for name, value in (good | changes).items() if value is not ...}

    def proof(self, **changes: Any) -> str:
        """A good proof; `changes` are of its claims."""
        return jws(key(self.key_name), self.header(), self.claims(**changes), signed_as=self.alg)

    def headed(self, **changes: Any) -> str:
        """A good proof; `changes` are of its header."""
        return jws(key(self.key_name), self.header(**changes), self.claims(), signed_as=self.alg)

    def fields(self, proof: str | bytes, *, scheme: str = "DPoP", token: str = "") -> Fields:
        return [("Authorization", f"{scheme} {token or self.token}"), ("DPoP", proof)]

    def send(self, proof: str | bytes, *, wire: Wire | None = None, **more: str) -> Seen:
        return self.target.ask(self.fields(proof), wire=wire, **more)


def ath(token: str) -> str:
    return b64(hashlib.sha256(token.encode()).digest())


def now_s() -> int:
    return now_us() // 1_000_000


@pytest.fixture
def prover(target: Target) -> Prover:
    return Prover(target)


KINDS = [("p256 client", "ES256"), ("p384 client", "ES384"), ("ed client", "EdDSA"), ("rsa client", "PS256")]


@pytest.mark.parametrize(("key_name", "alg"), [*KINDS, ("rsa client", "RS256")])
def test_what_the_attacks_are_made_from_is_let_in(target: Target, key_name: str, alg: str) -> None:
    prover = Prover(target, key_name, alg)
    caller = target.served(prover.send(prover.proof())).caller
    assert (caller.tenant, caller.subject, caller.authn) == ("clinic", "alice", "jwt")
    for written in (prover.url.upper().replace("/SEALED/WINE", "/sealed/wine"), f"{prover.url}?a=1#b"):
        target.served(prover.send(prover.proof(htu=written)))  # another writing of the same (section 4.3)


# What a thief of the token can try -----------------------------------------------------------------------------------


def mine(prover: Prover, **header: Any) -> str:
    """A proof by the thief's own key."""
    members = prover.header(jwk=jwk(key("p256 attacker").public_key())) | header
    return jws(key("p256 attacker"), members, prover.claims(), signed_as="ES256")


def universal(prover: Prover, point: str) -> str:
    """A signature that may hold for any message under a public key of small order."""
    members = prover.header(alg="EdDSA", jwk={"kty": "OKP", "crv": "Ed25519", "x": b64(bytes.fromhex(point))})
    text = f"{part(members)}.{part(prover.claims())}"
    return f"{text}.{b64(bytes.fromhex(LOW_ORDER[0]) + bytes(32))}"


def private_members(name: str) -> dict[str, Any]:
    numbers = key(name).private_numbers()
    return {"d": b64(numbers.private_value.to_bytes(32, "big"))}


def symmetric(prover: Prover) -> str:
    secret = b"0123456789abcdef0123456789abcdef"
    return mac(secret, prover.header(alg="HS256", jwk={"kty": "oct", "k": b64(secret)}), prover.claims())


def confused(prover: Prover) -> str:
    secret = key(prover.key_name).public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    return mac(secret, prover.header(alg="HS256"), prover.claims())


def repeated(prover: Prover, text: str) -> str:
    return jws(key(prover.key_name), prover.header(), json.dumps(prover.claims())[:-1] + text, signed_as=prover.alg)


def resigned(prover: Prover, change: Callable[[bytes], bytes]) -> str:
    head, body, signature = prover.proof().split(".")
    return f"{head}.{body}.{b64(change(unb64(signature)))}"


def other_point(prover: Prover) -> dict[str, Any]:
    return prover.public | {"y": b64(bytes([unb64(prover.public["y"])[0] ^ 1]) + unb64(prover.public["y"])[1:])}


ATTACKS: dict[str, tuple[Callable[[Prover], str | bytes], tuple[str, ...]]] = {
    # The key
    "a proof by the thief's own key": (mine, ("proof-key-mismatch",)),
    "the thief's signature under the client's key": (
        lambda p: mine(p, jwk=p.public),
        ("proof-signature-invalid",),
    ),
    "the thief's key with the client's kid": (lambda p: mine(p, kid=thumbprint(p.public)), ("proof-key-mismatch",)),
    "two keys, the client's second": (
        lambda p: jws(
            key("p256 attacker"),
            json.dumps(p.header(jwk=jwk(key("p256 attacker").public_key())))[:-1]
            + f', "jwk": {json.dumps(p.public)}}}',
            p.claims(),
            signed_as="ES256",
        ),
        ("proof-malformed",),
    ),
    "no key": (lambda p: p.headed(jwk=...), ("proof-key-refused",)),
    "a key that is null": (lambda p: p.headed(jwk=None), ("proof-key-refused",)),
    "a key that is a text": (lambda p: p.headed(jwk=json.dumps(p.public)), ("proof-key-refused",)),
    "a key that is a list": (lambda p: p.headed(jwk=[p.public]), ("proof-key-refused",)),
    "a key set": (lambda p: p.headed(jwk={"keys": [p.public]}), ("proof-key-refused",)),
    "a private key": (lambda p: p.headed(jwk=p.public | private_members(p.key_name)), ("proof-key-refused",)),
    "a symmetric key": (symmetric, ("proof-key-refused", "proof-algorithm-refused")),
    "a key by URL (jku)": (lambda p: p.headed(jku="https://evil.example/k"), ("proof-header-forbidden",)),
    "a key by certificate URL (x5u)": (lambda p: p.headed(x5u="https://evil.example/c"), ("proof-header-forbidden",)),
    "a key by certificate (x5c)": (lambda p: p.headed(x5c=["MIIB"]), ("proof-header-forbidden",)),
    "an extension that must be understood": (lambda p: p.headed(crit=["exp"], exp=1), ("proof-header-forbidden",)),
    "a point that is not on the curve": (
        lambda p: p.headed(jwk=other_point(p)),
        ("proof-key-refused",),
    ),
    "a point of zeros": (
        lambda p: p.headed(jwk=p.public | {"x": b64(bytes(32)), "y": b64(bytes(32))}),
        ("proof-key-refused",),
    ),
    "another writing of the same point": (
        lambda p: p.headed(jwk=p.public | {"x": b64(b"\0" + unb64(p.public["x"]))}),
        ("proof-key-refused",),
    ),
    "the client's point on another curve": (
        lambda p: p.headed(jwk=p.public | {"crv": "P-384"}),
        ("proof-key-refused",),
    ),
    "a curve that nobody here speaks": (
        lambda p: p.headed(jwk=p.public | {"crv": "secp256k1"}),
        ("proof-key-refused",),
    ),
    "an RSA key of 1024 bits": (
        lambda p: jws(key("rsa1024"), p.header(alg="RS256", jwk=jwk(key("rsa1024").public_key())), p.claims()),
        ("proof-key-refused",),
    ),
    "an RSA key whose exponent is 1": (
        lambda p: p.headed(alg="RS256", jwk=jwk(key("rsa client").public_key()) | {"e": b64(b"\x01")}),
        ("proof-key-refused",),
    ),
    "an RSA key of 2,000 bytes": (
        lambda p: p.headed(alg="RS256", jwk={"kty": "RSA", "n": b64(b"\xff" * 2000), "e": "AQAB"}),
        ("proof-key-refused",),
    ),
    **{
        f"a key of small order ({point[:4]}…) and a universal signature": (
            lambda p, q=point: universal(p, q),
            ("proof-key-refused", "proof-key-mismatch"),
        )
        for point in LOW_ORDER
    },
    # The algorithm
    **{
        f"alg {alg!r}": (lambda p, a=alg: p.headed(alg=a), ("proof-algorithm-refused",))
        for alg in ("none", "None", "HS256", "ES384", "EdDSA", "RS256", "ES256K", "", None, 1, ...)
    },
    "alg none without a signature": (
        lambda p: f"{part(p.header(alg='none'))}.{part(p.claims())}.",
        ("proof-malformed", "proof-algorithm-refused"),
    ),
    "HS256 keyed with the client's public key": (confused, ("proof-algorithm-refused",)),
    # The type
    **{
        f"typ {typ!r}": (lambda p, t=typ: p.headed(typ=t), ("proof-type-mismatch",))
        for typ in ("JWT", "at+jwt", "dpop", "dpop+jwt ", "", None, 1, ...)
    },
    "the access token itself": (lambda p: p.token, ("proof-type-mismatch", "proof-key-refused")),
    # The signature
    "a signature of zeros": (lambda p: resigned(p, lambda raw: bytes(len(raw))), ("proof-signature-invalid",)),
    "a signature cut short": (lambda p: resigned(p, lambda raw: raw[:-1]), ("proof-signature-invalid",)),
    "no signature": (lambda p: p.proof().rpartition(".")[0] + ".", ("proof-malformed", "proof-signature-invalid")),
    "one bit of the signature": (
        lambda p: resigned(p, lambda raw: bytes([raw[0] ^ 1]) + raw[1:]),
        ("proof-signature-invalid",),
    ),
    "claims of another proof": (
        lambda p: (lambda a, b: f"{a[0]}.{b[1]}.{a[2]}")(p.proof().split("."), p.proof().split(".")),
        ("proof-signature-invalid",),
    ),
    # What it is for
    **{
        f"htm {htm!r}": (lambda p, m=htm: p.proof(htm=m), ("proof-method-mismatch", "proof-claims-invalid"))
        for htm in ("GET", "post", "Post", "POST ", "PUT", "", None, 1, ["POST"], ...)
    },
    **{
        f"htu: {name}": (
            lambda p, c=change: p.proof(htu=c(p.url)),
            ("proof-url-mismatch", "proof-claims-invalid"),
        )
        for name, change in {
            "another model": lambda url: url.replace("wine", "beer"),
            "a longer path": lambda url: url + "/x",
            "a shorter path": lambda url: url[:-1],
            "a slash more": lambda url: url + "/",
            "no path": lambda url: url.removesuffix("/sealed/wine"),
            "the path alone": lambda _: "/sealed/wine",
            "dot segments": lambda url: url.replace("/sealed", "/x/../sealed"),
            "double slash": lambda url: url.replace("/sealed", "//sealed"),
            "an escaped slash": lambda url: url.replace("/wine", "%2Fwine"),
            "path in capitals": lambda url: url.replace("sealed", "SEALED"),
            "plain http": lambda url: url.replace("https", "http"),
            "another host": lambda url: url.replace("localhost", "evil.example"),
            "our host as a user": lambda url: url.replace("https://", "https://localhost@evil.example/"),
            "a user before our host": lambda url: url.replace("https://", "https://user@"),
            "our host as a label": lambda url: url.replace("localhost", "localhost.evil.example"),
            "a trailing dot": lambda url: url.replace("localhost", "localhost."),
            "another port": lambda url: url.replace("8443", "8444"),
            "no port": lambda url: url.replace(":8443", ""),
            "a backslash": lambda url: url.replace("/sealed", "\\sealed"),
            "a space": lambda url: url + " ",
            "a tab inside": lambda url: url.replace("wine", "wi\tne"),
            "Unicode letters that look alike": lambda url: url.replace("localhost", "lоcalhost"),
            "nothing": lambda _: "",
            "null": lambda _: None,
            "a list": lambda url: [url],
            "left out": lambda _: ...,
        }.items()
    },
    # What it goes with
    "no ath": (lambda p: p.proof(ath=...), ("proof-claims-invalid",)),
    "ath of another token": (lambda p: p.proof(ath=ath(p.token + "x")), ("proof-token-mismatch",)),
    "ath with padding": (lambda p: p.proof(ath=ath(p.token) + "="), ("proof-token-mismatch",)),
    "ath in hexadecimal": (
        lambda p: p.proof(ath=hashlib.sha256(p.token.encode()).hexdigest()),
        ("proof-token-mismatch",),
    ),
    "ath is the token": (lambda p: p.proof(ath=p.token), ("proof-token-mismatch", "proof-claims-invalid")),
    # When
    "made too long ago": (lambda p: p.proof(iat=now_s() - PROOF_AGE_S - 1), ("proof-expired",)),
    "made tomorrow": (lambda p: p.proof(iat=now_s() + 86_400), ("proof-not-yet-valid",)),
    **{
        f"iat {iat!r}": (lambda p, i=iat: p.proof(iat=i), ("proof-claims-invalid", "proof-malformed", "proof-expired"))
        for iat in ("1", None, True, 0, -1, 1.5, 2**63, [1], ...)
    },
    # Its name
    **{
        f"jti {jti!r:.20}": (lambda p, j=jti: p.proof(jti=j), ("proof-claims-invalid",))
        for jti in ("", None, 1, ["x"], "x" * 257, "a\x00b", "ä", ...)
    },
    # Its form
    "a repeated claim": (lambda p: repeated(p, ', "htu": "https://evil.example/"}'), ("proof-malformed",)),
    "a proof larger than any": (lambda p: p.proof(x="y" * MAX_PROOF), ("proof-too-large",)),
    "an empty field": (lambda _: "", ("proof-malformed",)),
    "two proofs in one field": (lambda p: f"{p.proof()},{p.proof()}", ("proof-malformed",)),
    "a proof with base64 padding": (lambda p: p.proof() + "=", ("proof-malformed",)),
    "bytes that are no text": (lambda _: b"\xff\xfe\xfd", ("proof-malformed",)),
    "claims that are a list": (
        lambda p: jws(key(p.key_name), p.header(), "[]", signed_as=p.alg),
        ("proof-malformed",),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_stolen_token_is_worth_nothing_without_its_key(target: Target, prover: Prover, name: str) -> None:
    make, reasons = ATTACKS[name]
    target.refused(f"DPoP: {name}", prover.send(make(prover)), *reasons)


def test_a_bound_token_does_not_go_as_another_kind(target: Target, prover: Prover) -> None:
    for attack, fields, reason in (
        ("as Bearer", [("Authorization", f"Bearer {prover.token}")], "scheme-mismatch"),
        ("as Bearer with a good proof", prover.fields(prover.proof(), scheme="Bearer"), "scheme-mismatch"),
        ("without a proof", [("Authorization", f"DPoP {prover.token}")], "proof-missing"),
        ("with two proofs", [*prover.fields(prover.proof()), ("DPoP", prover.proof())], "proof-repeated"),
        ("with a proof and something else", [*prover.fields(prover.proof()), ("dpop", "x.y.z")], "proof-repeated"),
        ("the proof alone", [("DPoP", prover.proof())], "proof-unexpected"),
    ):
        target.refused(f"DPoP: sent {attack}", target.ask(fields), reason)
    plain = target.forge.token()
    for attack, fields, reason in (
        ("an unbound token as DPoP", prover.fields(prover.proof(ath=ath(plain)), token=plain), "scheme-mismatch"),
        (
            "an unbound token as Bearer beside a proof",
            prover.fields(prover.proof(ath=ath(plain)), scheme="Bearer", token=plain),
            "proof-unexpected",
        ),
    ):
        target.refused(f"DPoP: {attack}", target.ask(fields), reason)


def test_a_token_bound_to_two_things_needs_both(target: Target, prover: Prover) -> None:
    prover.token = target.forge.token(cnf={"jkt": thumbprint(prover.public), "x5t#S256": "A" * 43})
    target.refused("DPoP: a token bound to a certificate too", prover.send(prover.proof()), "token-bound-elsewhere")


def test_a_token_bound_to_a_weak_key_is_nobodys(target: Target, prover: Prover) -> None:
    """An issuer that binds tokens to whatever key a client shows: anybody could sign for this one."""
    for point in LOW_ORDER:
        weak = {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes.fromhex(point))}
        prover.token = target.forge.token(cnf={"jkt": thumbprint(weak)})
        seen = prover.send(universal(prover, point))
        target.refused(f"DPoP: a token bound to a key of small order ({point[:4]}…)", seen, "proof-key-refused")


# Nonces --------------------------------------------------------------------------------------------------------------


def asked_for_a_nonce(target: Target, seen: Seen, attack: str) -> None:
    """Section 9: told, in the same body, only to who holds token and key."""
    assert (seen.status, seen.body) == (401, target.nobody.body)
    challenge = seen.field("www-authenticate") or ""
    assert 'error="use_dpop_nonce"' in challenge
    assert seen.field("dpop-nonce")
    reason = target.reason()
    assert reason == "proof-nonce-stale"
    MATRIX[f"DPoP: {attack}"] = ("401, use_dpop_nonce", reason)


@pytest.mark.parametrize(
    ("attack", "nonce"),
    [
        ("no nonce", ...),
        ("an invented nonce", "eyJ7S_zG.eyJH0-Z.HX4w-7v"),
        ("an empty nonce", ""),
        ("a nonce of zeros", "A" * 32),
        ("a nonce of other letters", "ä" * 32),
    ],
)
def test_a_proof_needs_a_nonce_of_ours(target: Target, prover: Prover, attack: str, nonce: Any) -> None:
    asked_for_a_nonce(target, prover.send(prover.proof(nonce=nonce)), attack)


def test_a_proof_made_ahead_of_time_does_not_keep(target: Target, prover: Prover) -> None:
    """Who had the key for a moment made proofs for tomorrow. The clock cannot be foreseen: the nonce of then is not
    known yet, and this one does not count then."""
    prover.token = target.forge.token(cnf={"jkt": thumbprint(prover.public)}, exp=now_s() + 3500)
    later = prover.proof(iat=now_s() + 2 * NONCE_WINDOW_S)
    target.running.clock.later_s += 2 * NONCE_WINDOW_S
    try:
        asked_for_a_nonce(target, prover.send(later), "a proof made ahead of time")
    finally:
        target.running.clock.later_s -= 2 * NONCE_WINDOW_S


def test_who_lacks_token_or_key_is_never_asked_for_a_nonce(target: Target, prover: Prover) -> None:
    """Otherwise the challenge would say which stolen tokens are good."""
    bad = target.forge.token(cnf={"jkt": thumbprint(prover.public)}, aud="https://elsewhere.example")
    target.refused(
        "DPoP: no nonce, and a token for somebody else",
        target.ask(prover.fields(prover.proof(nonce=..., ath=ath(bad)), token=bad)),
        "audience-mismatch",
    )
    header = prover.header(jwk=jwk(key("p256 attacker").public_key()))
    stolen = jws(key("p256 attacker"), header, prover.claims(nonce=...), signed_as="ES256")
    target.refused("DPoP: no nonce, and the thief's own key", prover.send(stolen), "proof-key-mismatch")
    for change in ({"htm": "GET"}, {"htu": "https://localhost:8443/x"}, {"ath": "x"}, {"iat": 1}):
        seen = prover.send(prover.proof(nonce=..., **change))
        target.refused(
            f"DPoP: no nonce, and {min(change)} is wrong", seen,
            "proof-method-mismatch", "proof-url-mismatch", "proof-token-mismatch", "proof-expired",
        )  # fmt: skip


# Replays -------------------------------------------------------------------------------------------------------------


def test_a_proof_counts_once(target: Target, prover: Prover) -> None:
    proof = prover.proof(jti="once")
    target.served(prover.send(proof))
    target.refused("DPoP: a proof again", prover.send(proof), "proof-replayed")
    again = prover.proof(jti="once")
    assert again != proof
    target.refused("DPoP: another proof of the same name", prover.send(again), "proof-replayed")
    with Wire(target.running.port, target.running.tls()) as other:
        target.refused("DPoP: a proof again, by another connection", prover.send(proof, wire=other), "proof-replayed")


def test_of_many_at_once_one_is_let_in(target: Target, prover: Prover) -> None:
    proof = prover.proof()
    wires = [Wire(target.running.port, target.running.tls()) for _ in range(8)]
    for wire in wires:
        wire.ask(method="GET", target="/health/live")  # connected before the race
    with ThreadPoolExecutor(len(wires)) as pool:
        seen = list(pool.map(lambda wire: prover.send(proof, wire=wire), wires))
    for wire in wires:
        wire.close()
    assert sorted(one.status for one in seen) == [200] + [401] * 7
    failures = target.running.host.heard(frames.AuthFailed, 7)
    assert {frame.reason for frame in failures} == {"proof-replayed"}
    MATRIX["DPoP: eight copies of a proof at once, one let in"] = ("401", "proof-replayed")


@pytest.fixture
def second(target: Target) -> Iterator[Running]:
    """Another gateway process of the same deployment, as far as files can tell."""
    running = Running(target.deployment, target.running.host)
    yield running
    running.close()


def test_a_proof_does_not_count_again_at_another_gateway_of_the_deployment(
    target: Target, prover: Prover, second: Running
) -> None:
    with Wire(second.port, second.tls()) as other:
        proof = prover.proof()
        target.served(prover.send(proof))
        target.refused("DPoP: a proof again, at another process", prover.send(proof, wire=other), "proof-replayed")
        fresh = prover.proof()  # with the first one's nonce
        target.served(prover.send(fresh, wire=other))
        target.refused("DPoP: a proof of another process here", prover.send(fresh), "proof-replayed")


def test_what_was_refused_for_another_reason_uses_up_nothing(target: Target, prover: Prover) -> None:
    """A thief who sends a copy along a wrong path must not spoil the client's own request."""
    proof = prover.proof()
    seen = prover.send(proof, target="/sealed/beer")
    target.refused("DPoP: a copy along another path", seen, "proof-url-mismatch")
    target.served(prover.send(proof))


def test_host_fields_do_not_move_the_gateway(target: Target, prover: Prover) -> None:
    """A proof that the client made for another site does not pass here because a Host field says that we are it."""
    proof = prover.proof(htu="https://evil.example/sealed/wine")
    for name, fields in {
        "Forwarded": [("Forwarded", "host=evil.example;proto=https")],
        "X-Forwarded-Host": [("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https")],
        "X-Original-URL": [("X-Original-URL", "https://evil.example/sealed/wine")],
    }.items():
        seen = target.ask([*prover.fields(proof), *fields])
        target.refused(f"DPoP: a proof for another site, and {name}", seen, "proof-url-mismatch")
    fields = (*target.plain_fields, *prover.fields(proof))
    lines = ["POST /sealed/wine HTTP/1.1", "Host: evil.example", f"Content-Length: {len(target.body)}"]
    lines += [f"{name}: {value}" for name, value in fields]
    seen = target.wire.send("\r\n".join(lines).encode() + b"\r\n\r\n" + target.body)
    target.refused("DPoP: a proof for another site, and its Host", seen, "proof-url-mismatch")
    lines[:2] = ["POST https://evil.example/sealed/wine HTTP/1.1", "Host: evil.example"]
    seen = target.wire.send("\r\n".join(lines).encode() + b"\r\n\r\n" + target.body)
    target.refused("DPoP: a proof for another site in absolute form", seen, "proof-url-mismatch")
