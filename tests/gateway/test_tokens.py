"""Tokens by an adversary: everything that is not exactly what an issuer made for us is nobody."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.authentication.claims import Confirmation
from gateway.authentication.issuers import Issuer
from gateway.authentication.key_sets import KeySets
from gateway.authentication.revocations import Revocations
from gateway.authentication.tokens import TokenVerifier
from gateway.errors import Unauthenticated
from gateway.limits import MAX_TOKEN
from sealgate.ambient import monotonic_ns

NOW = 1_800_000_000
AUDIENCE = "https://gateway.example"
ISSUER = "https://issuer.example"

ES256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
PRIVATE = {"es": (ES256, "ES256"), "ed": (ED25519, "EdDSA"), "rs": (RSA, "RS256")}

ALGORITHM = {
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
    "RS256": jwt.algorithms.RSAAlgorithm,
}


def public_jwk(kid):
    key, algorithm = PRIVATE[kid]
    return json.loads(ALGORITHM[algorithm].to_jwk(key.public_key())) | {"kid": kid}


KEYS = {kid: jwt.PyJWK(public_jwk(kid), algorithm) for kid, (_, algorithm) in PRIVATE.items()}


class Clock:
    seconds = NOW

    def __call__(self):
        return self.seconds * 1_000_000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def verifier(clock):
    return make_verifier(clock)


def make_verifier(clock, *, keys=KEYS, remembered_max=100, revoked=Path("nowhere/revoked.toml"), **issuer):
    issuers = {ISSUER: Issuer(name=ISSUER, keys=keys, **issuer)}
    return TokenVerifier(
        issuers,
        key_sets=KeySets(issuers, clock=clock),
        revocations=Revocations(revoked, clock=clock),
        audience=AUDIENCE,
        clock=clock,
        remembered_max=remembered_max,
    )


def verify(verifier, text):
    """Keys that are in a file are never waited for: the first step is the last."""
    with pytest.raises(StopIteration) as done:
        verifier.verify(text).send(None)
    return done.value.value


def claims(**changes):
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "client_id": "app",
        "jti": "one",
        "iat": NOW - 10,
        "exp": NOW + 600,
        "tenant": "clinic",
        "roles": ["client"],
        "purposes": ["treatment"],
    }
    return good | changes


def part(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(kid, header, payload):
    """A compact JWS over exactly these bytes, whatever they say."""
    key, algorithm = PRIVATE[kid]
    signed = f"{part(header)}.{part(payload)}"
    signature = ALGORITHM[algorithm](ALGORITHM[algorithm].SHA256) if algorithm != "EdDSA" else ALGORITHM[algorithm]()
    return f"{signed}.{part(signature.sign(signed.encode(), key))}"


def token(signer="es", /, payload=None, **header):
    fields = {"typ": "at+jwt", "alg": PRIVATE[signer][1], "kid": signer} | header
    return sign(signer, {name: value for name, value in fields.items() if value is not None}, payload or claims())


def reason(verifier, text):
    with pytest.raises(Unauthenticated) as caught:
        verify(verifier, text)
    assert str(caught.value) == "the caller could not be authenticated"
    return caught.value.code


# What is accepted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kid", list(PRIVATE))
def test_each_algorithm_verifies(verifier, kid):
    got = verify(verifier, token(kid))
    assert (got.subject, got.tenant, got.roles, got.purposes) == ("alice", "clinic", ("client",), ("treatment",))


def test_audience_lists_the_long_type_and_unknown_claims_are_fine(verifier):
    payload = claims(aud=["https://other.example", AUDIENCE], scope="a b", nbf=NOW)
    assert verify(verifier, token(payload=payload, typ="Application/AT+JWT")).subject == "alice"


def test_an_independent_signer_is_understood(verifier):
    made = jwt.encode(claims(), ES256, algorithm="ES256", headers={"typ": "at+jwt", "kid": "es"})
    assert verify(verifier, made).issuer == ISSUER


@pytest.mark.parametrize(
    ("cnf", "expected"),
    [
        ({"x5t#S256": "a" * 43}, Confirmation(x5t_s256="a" * 43)),
        ({"jkt": "b" * 43}, Confirmation(jkt="b" * 43)),
        ({"x5t#S256": "a" * 43, "jkt": "b" * 43}, Confirmation(x5t_s256="a" * 43, jkt="b" * 43)),
    ],
)
def test_what_a_token_is_bound_to_is_handed_on(verifier, cnf, expected):
    assert verify(verifier, token(payload=claims(cnf=cnf))).confirmation == expected
    assert verify(verifier, token()).confirmation is None


# Algorithms and keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "nOnE", "", None, "HS256", "ES256K", "es256", "RS256 ", 7, ["ES256"]]
)
def test_other_algorithms_are_refused(verifier, alg):
    assert reason(verifier, token(alg=alg)) == "algorithm-refused"
    head, body, _ = token(alg=alg).split(".")
    assert reason(verifier, f"{head}.{body}.") == "token-malformed"


def test_a_public_key_used_as_hmac_secret_is_refused(verifier):
    for key in (RSA, ES256):
        for encoding, form in (
            (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        ):
            secret = key.public_key().public_bytes(encoding, form)
            signed = part({"typ": "at+jwt", "alg": "HS256", "kid": "rs"}) + "." + part(claims())
            mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
            assert reason(verifier, f"{signed}.{part(mac)}") == "algorithm-refused"


@pytest.mark.parametrize("alg", ["ES256", "ES384", "EdDSA", "RS256", "PS256"])
@pytest.mark.parametrize("kid", list(PRIVATE))
def test_a_key_verifies_only_its_own_algorithm(verifier, kid, alg):
    if PRIVATE[kid][1] == alg:
        return
    assert reason(verifier, token(kid, alg=alg)) == "algorithm-mismatch"


def test_another_curve_under_the_name_of_ours(verifier):
    signed = part({"typ": "at+jwt", "alg": "ES256", "kid": "es"}) + "." + part(claims())
    der = P384.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
    raw = jwt.utils.der_to_raw_signature(der, ec.SECP384R1())
    assert reason(verifier, f"{signed}.{part(raw)}") == "signature-invalid"


def test_a_key_object_that_does_not_fit_its_algorithm_is_still_only_a_401(clock):
    """PyJWT answers this with TypeError or InvalidKeyError; a caller must see the same 401."""
    for wrong in (RSA.public_key(), P384.public_key(), "text"):
        confused = jwt.PyJWK(public_jwk("es"), "ES256")
        confused.key = wrong
        verifier = make_verifier(clock, keys={"es": confused})
        assert reason(verifier, token()) == "signature-invalid"


@pytest.mark.parametrize(
    "brought",
    [
        {"jwk": public_jwk("es")},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MIIB"]},
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"b64": True},
        {"zip": "DEF"},
        {"cty": "JWT"},
    ],
)
def test_a_header_that_brings_its_own_rules_is_refused(verifier, brought):
    assert reason(verifier, token(**brought)) == "header-forbidden"


@pytest.mark.parametrize("kid", ["", "no", None, 3, ["es"], {"a": 1}, "../../etc/passwd", "es' OR 1=1", "\x00"])
def test_other_key_names_are_refused(verifier, kid):
    assert reason(verifier, token(kid=kid)) == "key-unknown"


@pytest.mark.parametrize("typ", ["JWT", "jwt", None, "", "id+jwt", "dpop+jwt", 1, "at+jwt ", "application/at+jwt; x"])
def test_other_token_types_are_refused(verifier, typ):
    assert reason(verifier, token(typ=typ)) == "type-mismatch"


# Claims --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exp", "iss", "aud", "sub", "iat", "tenant", "jti", "client_id"])
def test_each_required_claim(verifier, name):
    payload = claims()
    del payload[name]
    assert reason(verifier, token(payload=payload)) == ("issuer-unknown" if name == "iss" else "claims-invalid")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("exp", value) for value in ("1800000600", [NOW + 600], None, True, -1, 0, 2**63, {"a": 1})),
        *(("iat", value) for value in ("1799999990", None, True, -5)),
        *(("nbf", value) for value in ("1", None)),
        *(("sub", value) for value in ("", 5, None, "a b", "a\n", "x" * 129, "ä", ["alice"])),
        *(("tenant", value) for value in ("", 5, None, "x" * 200)),
        *(("aud", value) for value in (5, None, {"a": AUDIENCE}, [AUDIENCE, 5], [AUDIENCE] * 100)),
        *(("roles", value) for value in ("client", [1], ["r"] * 100, None)),
        *(("purposes", value) for value in ("treatment", [None], [" "])),
        *(
            ("cnf", value)
            for value in (
                {"jkt": "x" * 42},
                {"jkt": None},
                {"x5t#S256": 1},
                {"x5t#S256": "é" * 43},
                {"x5t#S256": "x" * 43, "jkt": "y"},
                {"x5t#S256": "x" * 43, "jwk": {}},
                {"kid": "x"},
                {},
                "x",
                None,
            )
        ),
    ],
)
def test_claims_of_other_types_are_refused(verifier, name, value):
    assert reason(verifier, token(payload=claims(**{name: value}))) == "claims-invalid"


@pytest.mark.parametrize(
    "number", ["1800000600.0", "1800000600.5", "1e308", "1.8e9", "NaN", "Infinity", "-Infinity", "1" * 5000]
)
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
def test_times_that_are_not_plain_integers_are_refused(verifier, name, number):
    payload = json.dumps(claims(**{name: "@"})).replace('"@"', number).encode()
    assert reason(verifier, token(payload=payload)) in {"token-malformed", "claims-invalid"}


@pytest.mark.parametrize(
    "aud", ["", "https://gateway.example/", "HTTPS://GATEWAY.EXAMPLE", "https://gateway.example.evil", []]
)
def test_other_audiences_are_refused(verifier, aud):
    assert reason(verifier, token(payload=claims(aud=aud))) == "audience-mismatch"


@pytest.mark.parametrize("iss", ["", "https://issuer.example/", "https://evil.example", None, [ISSUER], {"a": 1}, 1])
def test_other_issuers_are_refused(verifier, iss):
    assert reason(verifier, token(payload=claims(iss=iss))) == "issuer-unknown"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp": NOW}, "token-expired"),
        ({"exp": NOW - 1}, "token-expired"),
        ({"iat": NOW + 60, "exp": NOW + 600}, "token-not-yet-valid"),
        ({"nbf": NOW + 60}, "token-not-yet-valid"),
        ({"exp": NOW + 3591, "iat": NOW - 10}, "lifetime-too-long"),
        ({"exp": 2**40 - 1}, "lifetime-too-long"),
        ({"iat": NOW + 20, "exp": NOW + 10}, "lifetime-too-long"),
    ],
)
def test_times_that_are_not_now_are_refused(verifier, changes, expected):
    assert reason(verifier, token(payload=claims(**changes))) == expected


def test_an_issuer_speaks_only_for_its_tenants(clock):
    verifier = make_verifier(clock, tenants=frozenset({"clinic"}))
    assert verify(verifier, token()).tenant == "clinic"
    assert reason(verifier, token(payload=claims(tenant="other"))) == "tenant-not-of-issuer"


def test_an_issuer_may_have_an_audience_of_its_own(clock):
    verifier = make_verifier(clock, audience="sealgate")
    assert verify(verifier, token(payload=claims(aud=["account", "sealgate"]))).subject == "alice"
    assert reason(verifier, token()) == "audience-mismatch"


def test_leeway_is_for_clocks_that_differ(clock):
    strict, lenient = make_verifier(clock), make_verifier(clock, leeway_s=120)
    late = token(payload=claims(iat=NOW - 600, exp=NOW - 119))
    early = token(payload=claims(iat=NOW + 120, exp=NOW + 300))
    assert reason(strict, late) == "token-expired"
    assert reason(strict, early) == "token-not-yet-valid"
    assert verify(lenient, late).expires_us == (NOW + 1) * 1_000_000
    assert verify(lenient, early).exp == NOW + 300
    clock.seconds += 1
    assert reason(lenient, late) == "token-expired"
    assert reason(lenient, token(payload=claims(nbf=NOW + 122))) == "token-not-yet-valid"


def test_tokens_called_jwt_count_only_where_the_issuer_says_so(clock):
    verifier = make_verifier(clock, types=frozenset({"at+jwt", "jwt"}))
    assert verify(verifier, token(typ="JWT")).subject == "alice"
    assert verify(verifier, token()).subject == "alice"
    assert reason(verifier, token(typ="JWT", payload=claims(nonce="n"))) == "type-mismatch"
    assert verify(verifier, token(payload=claims(nonce="n"))).subject == "alice"
    assert reason(verifier, token(typ=None)) == "type-mismatch"
    assert reason(make_verifier(clock, types=frozenset({"jwt"})), token()) == "type-mismatch"


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256


def test_the_other_form_of_a_signature_is_the_same_token_and_revoked_with_it(clock, tmp_path):
    """(r, n - s) verifies too, and issuers send either: a second text for the same claims, and nothing more."""
    revoked = tmp_path / "revoked.toml"
    verifier = make_verifier(clock, revoked=revoked)
    head, body, signature = token().split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    twin = f"{head}.{body}.{part(raw[:32] + (ORDER - int.from_bytes(raw[32:], 'big')).to_bytes(32, 'big'))}"
    assert verify(verifier, twin) == verify(verifier, f"{head}.{body}.{signature}")
    revoked.write_text('[[revoked]]\njti = "one"\n')
    assert reason(verifier, twin) == reason(verifier, f"{head}.{body}.{signature}") == "token-revoked"


def test_a_part_has_one_text(verifier):
    """The last character of an ES256 signature has bits that mean nothing; only zeros are taken."""
    good = token()
    verify(verifier, good)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(good[-1])
    assert last % 16 == 0
    for other in range(last + 1, last + 16):
        assert reason(verifier, good[:-1] + alphabet[other]) == "token-malformed"


# Encoding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"alg":"none","typ":"at+jwt","alg":"ES256","kid":"es"}',
        '{"typ":"at+jwt","alg":"ES256","kid":"es","kid":"es"}',
    ],
)
def test_repeated_names_in_the_header_are_refused(verifier, text):
    assert reason(verifier, sign("es", text.encode(), claims())) == "token-malformed"


def test_repeated_names_in_the_claims_are_refused_at_every_depth(verifier):
    plain = json.dumps(claims())
    for text in (
        plain[:-1] + ',"sub":"bob"}',
        plain[:-1] + ',"x":{"a":1,"a":2}}',
        plain[:-1] + ',"x":[{"a":1,"a":2}]}',
    ):
        assert reason(verifier, token(payload=text.encode())) == "token-malformed"


@pytest.mark.parametrize(
    "payload", [b"[]", b"1", b"null", b'"x"', b"{", b"", b"\xff\xfe", b"{}x", b"[" * 3000, b'{"a":' * 1000]
)
def test_claims_that_are_not_one_object_are_refused(verifier, payload):
    made = token(payload=payload) if payload else token().split(".")[0] + ".." + "AA"
    assert reason(verifier, made) in {"token-malformed", "issuer-unknown"}


def test_size_and_shape(verifier):
    good = token()
    for text in (
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        f"{good}=",
        f" {good}",
        f"{good}\n",
        good.replace(".", ".=", 1),
        "ä.b.c",
    ):
        assert reason(verifier, text) == "token-malformed"
    assert reason(verifier, token(payload=claims(x="y" * MAX_TOKEN))) == "token-too-large"
    assert reason(verifier, "a" * 10_000_000) == "token-too-large"


GOOD = token()


@settings(max_examples=400, deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), other=st.sampled_from("ABCDwxyz0189-_."))
def test_a_changed_character_never_passes(place, other):
    changed = GOOD[:place] + other + GOOD[place + 1 :]
    if changed != GOOD:
        reason(make_verifier(Clock()), changed)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=300).map(lambda raw: f"{part(raw)}.{part(raw)}.{part(raw)}"))
def test_garbage_is_refused_and_nothing_else_happens(text):
    reason(make_verifier(Clock()), text)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["typ", "alg", "kid", "crit", "iss", "exp", "aud", "sub", "iat", "tenant", "roles", "cnf"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=3),
        max_size=4,
    )
)
def test_signed_nonsense_is_refused_or_plainly_understood(changes):
    """Even a misbehaving issuer causes no other exception."""
    verifier = make_verifier(Clock())
    try:
        verify(verifier, token(payload=claims(**changes)))
        verify(verifier, sign("es", {"typ": "at+jwt", "alg": "ES256", "kid": "es"} | changes, claims()))
    except Unauthenticated:
        pass


# Memory --------------------------------------------------------------------------------------------------------------


def test_a_remembered_token_still_expires(verifier, clock):
    good = token()
    assert verify(verifier, good) is verify(verifier, good)
    clock.seconds = NOW + 599
    verify(verifier, good)
    clock.seconds = NOW + 600
    assert reason(verifier, good) == "token-expired"
    assert verifier._remembered == {}


def test_memory_is_by_the_whole_token_and_bounded(clock):
    verifier = make_verifier(clock, remembered_max=3)
    good = [token(payload=claims(sub=f"s{number}")) for number in range(5)]
    for one in good:
        verify(verifier, one)
    assert list(verifier._remembered) == [hashlib.sha256(one.encode()).digest() for one in good[2:]]
    verify(verifier, good[2])  # used again: now the youngest
    verify(verifier, good[0])
    assert hashlib.sha256(good[2].encode()).digest() in verifier._remembered
    head, body, signature = good[2].split(".")
    assert reason(verifier, f"{head}.{body}.{signature[:-4]}AAAA") == "signature-invalid"


def test_what_was_refused_is_not_remembered(verifier):
    for number in range(50):
        reason(verifier, token(payload=claims(aud=f"x{number}")))
    assert verifier._remembered == {}


def test_remembering_is_asked_first_and_says_what_it_knows(verifier, clock):
    good = token()
    assert verifier.verify_remembered(good) is None
    assert verify(verifier, good) is verifier.verify_remembered(good)
    for other in ("", "x", "é" * 10, "\ud800", good + "x", "x" * (MAX_TOKEN + 1)):
        assert verifier.verify_remembered(other) is None
    clock.seconds = NOW - 100
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify_remembered(good)
    assert caught.value.code == "token-not-yet-valid"
    clock.seconds = NOW + 600
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify_remembered(good)
    assert caught.value.code == "token-expired"
    assert verifier.verify_remembered(good) is None


def test_a_token_whose_key_is_withdrawn_is_forgotten(clock):
    keys = dict(KEYS)
    verifier = make_verifier(clock, keys=keys)
    good = token()
    verify(verifier, good)
    withdrawn = keys.pop("es")
    assert verifier.verify_remembered(good) is None
    assert verifier._remembered == {}
    assert reason(verifier, good) == "key-unknown"
    keys["es"] = withdrawn
    verify(verifier, good)
    keys["es"] = jwt.PyJWK(public_jwk("es"), "ES256")  # the same name for what may be another key
    assert verifier.verify_remembered(good) is None
    assert verify(verifier, good).subject == "alice"


@pytest.mark.slow
def test_a_remembered_token_costs_less_than_five_microseconds(tmp_path):
    """With the look at revoked.toml, which is there. The best of many rounds: others use the machine too."""
    revoked = tmp_path / "revoked.toml"
    revoked.write_text("".join(f'[[revoked]]\njti = "other-{number}"\n' for number in range(1000)))
    verifier = make_verifier(Clock(), revoked=revoked, remembered_max=1000)
    good = [token(payload=claims(jti=f"j{number}")) for number in range(200)]
    for one in good:
        verify(verifier, one)
    rounds = []
    for _ in range(200):
        start = monotonic_ns()
        for one in good:
            verifier.verify_remembered(one)
        rounds.append((monotonic_ns() - start) / len(good) / 1000)
    print(f"a remembered token: {min(rounds):.2f} us, median {sorted(rounds)[100]:.2f} us")
    assert min(rounds) < 5
