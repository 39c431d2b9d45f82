"""A file of issuers or keys that is not what it should be stops the start, with one line that says why."""

from __future__ import annotations

import base64
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.authentication.issuers import RemoteKeys, load_issuers
from sealgate.errors import ConfigurationError

ES256 = ec.generate_private_key(ec.SECP256R1())


def jwk(key, **more):
    kinds = {
        ec.EllipticCurvePublicKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PublicKey: jwt.algorithms.OKPAlgorithm,
        rsa.RSAPublicKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
    }
    algorithm = next(kind for base, kind in kinds.items() if isinstance(key, base))
    return json.loads(algorithm.to_jwk(key)) | more


GOOD = jwk(ES256.public_key(), kid="a")


ONE = '[[issuer]]\nname = "i"\njwks = "jwks.json"\n'


def write(
    folder, keys, issuers='[[issuer]]\nname = "i"\njwks = "jwks.json"\nalgorithms = ["ES256", "EdDSA", "RS256"]\n'
):
    (folder / "issuers.toml").write_text(issuers)
    (folder / "jwks.json").write_text(keys if isinstance(keys, str) else json.dumps({"keys": keys}))
    return folder


def test_keys_of_every_allowed_kind_and_only_those(tmp_path):
    keys = [
        GOOD,
        jwk(ed25519.Ed25519PrivateKey.generate().public_key(), kid="b"),
        jwk(rsa.generate_private_key(65537, 2048).public_key(), kid="c", use="sig", alg="RS256"),
        jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), kid="p384"),
        jwk(rsa.generate_private_key(65537, 2048).public_key(), kid="enc", use="enc"),
        jwk(rsa.generate_private_key(65537, 2048).public_key(), kid="ps", alg="PS256"),
        {"kty": "OKP", "crv": "X25519", "x": GOOD["x"], "kid": "x"},
        {"kty": "future", "kid": "f"},
    ]
    issuer = load_issuers(write(tmp_path, keys))["i"]
    assert {kid: key.algorithm_name for kid, key in issuer.keys.items()} == {"a": "ES256", "b": "EdDSA", "c": "RS256"}


def test_an_issuer_holds_only_the_algorithms_it_may_use(tmp_path):
    keys = [GOOD, jwk(ed25519.Ed25519PrivateKey.generate().public_key(), kid="b")]
    text = '[[issuer]]\nname = "i"\njwks = "jwks.json"\nalgorithms = ["EdDSA"]\ntenants = ["t"]\nmax_lifetime_s = 60\n'
    issuer = load_issuers(write(tmp_path, keys, text))["i"]
    assert (set(issuer.keys), issuer.tenants, issuer.max_lifetime_s) == ({"b"}, {"t"}, 60)


def test_a_key_is_bound_to_one_algorithm(tmp_path):
    """An RSA key fits six: it says which, or the issuer has only one of them."""
    bare = jwk(rsa.generate_private_key(65537, 2048).public_key(), kid="r")
    text = '[[issuer]]\nname = "i"\njwks = "jwks.json"\nalgorithms = {}\n'
    both = text.format('["RS256", "PS256"]')
    assert load_issuers(write(tmp_path, [bare], text.format('["PS256"]')))["i"].keys["r"].algorithm_name == "PS256"
    assert load_issuers(write(tmp_path, [bare | {"alg": "PS256"}], both))["i"].keys["r"].algorithm_name == "PS256"
    with pytest.raises(ConfigurationError, match="needs an 'alg'"):
        load_issuers(write(tmp_path, [bare], both))
    with pytest.raises(ConfigurationError, match="no key"):
        load_issuers(write(tmp_path, [bare | {"alg": "RS512"}], both))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ES384", ec.generate_private_key(ec.SECP384R1())),
        ("ES512", ec.generate_private_key(ec.SECP521R1())),
        *((f"{kind}{bits}", rsa.generate_private_key(65537, 2048)) for kind, bits in (("RS", 384), ("PS", 512))),
    ],
)
def test_the_larger_algorithms(tmp_path, name, key):
    text = f'[[issuer]]\nname = "i"\njwks = "jwks.json"\nalgorithms = ["{name}"]\n'
    found = load_issuers(write(tmp_path, [jwk(key.public_key(), kid="k")], text))["i"].keys["k"]
    signed = jwt.encode({}, key, algorithm=name)
    assert jwt.decode(signed, found, algorithms=[name]) == {}
    assert found.algorithm_name == name


P = 2**255 - 19
# An independent derivation: the points of order 8 have y with d*y^4 + 2*y^2 - 1 = 0, those of order 1, 2, 4 have y in
# {1, -1, 0}; and the encodings of 0 and 1 that lie above the prime.
D = -121665 * pow(121666, P - 2, P) % P


def low_order_encodings():
    roots = {0, 1, P - 1, P, P + 1}
    half = pow(D, P - 2, P)  # y^2 = (-1 +- sqrt(1 + d)) / d
    square = pow(1 + D, (P + 3) // 8, P)
    square = square if square * square % P == (1 + D) % P else square * pow(2, (P - 1) // 4, P) % P
    for sign in (1, -1):
        y2 = (-1 + sign * square) * half % P
        y = pow(y2, (P + 3) // 8, P)
        y = y if y * y % P == y2 else y * pow(2, (P - 1) // 4, P) % P
        if y * y % P == y2:
            roots |= {y, P - y}
    return [(root | bit << 255).to_bytes(32, "little") for root in sorted(roots) for bit in (0, 1)]


@pytest.mark.parametrize("raw", low_order_encodings(), ids=lambda raw: raw.hex()[:8])
def test_a_point_of_low_order_is_no_key(tmp_path, raw):
    x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    with pytest.raises(ConfigurationError, match=r"low order|not a valid OKP"):
        load_issuers(write(tmp_path, [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "low"}]))


def test_the_points_of_low_order_are_all_there():
    assert len(low_order_encodings()) == 14


@pytest.mark.parametrize("more", [{"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": "verify"}, {"crv": ["P-256"]}])
def test_keys_that_are_not_for_verifying_are_passed_over(tmp_path, more):
    with pytest.raises(ConfigurationError, match="no key"):
        load_issuers(write(tmp_path, [GOOD | more]))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([jwk(ES256, kid="a")], "private"),
        ([{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}], "symmetric"),
        ([jwk(rsa.generate_private_key(65537, 1024).public_key(), kid="a")], "2048"),
        ([{name: value for name, value in GOOD.items() if name != "kid"}], "kid"),
        ([GOOD | {"kid": 5}], "kid"),
        ([GOOD, GOOD], "twice"),
        ([GOOD | {"x": "AAAA"}], "not a valid EC"),
        ([GOOD | {"y": None}], "not a valid EC"),
        ([jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), kid="a")], "no key"),
        ([], "no key"),
        ([5], "JWK set"),
        ('{"keys": {}}', "JWK set"),
        ("[]", "JWK set"),
        ("{", "JWK set"),
        ("[" * 5000, "JWK set"),
        ([GOOD | {"kid": str(number)} for number in range(65)], "more than 64"),
        (" " * 300_000, "larger than"),
    ],
)
def test_a_key_set_that_is_not_for_verifying_is_refused(tmp_path, keys, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_issuers(write(tmp_path, keys))
    assert "jwks.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[issuer]]\nname = "i"\njwks = "absent.json"\n', "absent.json cannot be read"),
        ('[[issuer]]\nname = "i"\njwks = "jwks.json"\nalgorithms = ["HS256"]\n', "HS256"),
        ('[[issuer]]\nname = "i"\njwks = "jwks.json"\nalgorithms = []\n', "algorithms"),
        ('[[issuer]]\nname = "i"\njwks = "jwks.json"\nmax_lifetime_s = 999999\n', "max_lifetime_s"),
        ('[[issuer]]\nname = "i"\njwks = "jwks.json"\naudiences = "x"\n', "audiences"),
        ('[[issuer]]\nname = "i"\njwks = "jwks.json"\n[[issuer]]\nname = "i"\njwks = "jwks.json"\n', "twice"),
        ("[[issuer", "issuers.toml"),
        ('[[issuer]]\nname = "i"\n', "exactly one of"),
        ('[[issuer]]\nname = "https://i"\njwks = "jwks.json"\ndiscovery = true\n', "exactly one of"),
        ('[[issuer]]\nname = "i"\ndiscovery = true\n', "https only"),
        ('[[issuer]]\nname = "http://i"\ndiscovery = true\n', "https only"),
        ('[[issuer]]\nname = "https://i?x=1"\ndiscovery = true\n', "query or fragment"),
        ('[[issuer]]\nname = "https://i#"\ndiscovery = true\n', "query or fragment"),
        *(
            (f'[[issuer]]\nname = "i"\njwks_uri = "{url}"\n', "https only")
            for url in (
                "http://i/k",
                "file:///k",
                "https:///k",
                "https://a@i/k",
                "https://i:x/k",
                "https://i/k k",
                "//i/k",
            )
        ),
        ('[[issuer]]\nname = "https://i"\ndiscovery = true\nca = "absent.pem"\n', "absent.pem cannot be read"),
        ('[[issuer]]\nname = "https://i"\ndiscovery = true\nproxy = "socks5://x"\n', "proxy"),
        (f"{ONE}stale_s = 604801\n", "stale_s"),
        (f"{ONE}unknown_key_cooldown_s = 0\n", "unknown_key_cooldown_s"),
        (f"{ONE}leeway_s = 301\n", "leeway_s"),
        (f"{ONE}leeway_s = -1\n", "leeway_s"),
        (f'{ONE}accept_types = ["id+jwt"]\n', "accept_types has 'id\\+jwt'"),
        (f"{ONE}accept_types = []\n", "accept_types"),
        (f'{ONE}role_map = {{ a = "root" }}\n', "role_map gives 'root'"),
        (f'{ONE}purpose_map = {{ a = "two words" }}\n', "not a name"),
        (f'{ONE}tenant = "two words"\n', "not a name"),
        (f'{ONE}tenant = "a"\ntenant_map = {{ x = "b" }}\n', "exclude each other"),
        (f'{ONE}tenant = "a"\ntenants = ["b"]\n', "not in tenants"),
        (f'{ONE}tenant_map = {{ x = "b" }}\ntenants = ["a"]\n', "not in tenants"),
        (f'{ONE}roles_claim = ""\n', "not a claim"),
        (f'{ONE}roles_claim = "a..b"\n', "not a claim"),
        (f"{ONE}roles_claim = []\n", "not a claim"),
        (f'{ONE}roles_claim = "a.b.c.d.e.f.g.h.i"\n', "not a claim"),
    ],
)
def test_an_issuer_file_that_is_wrong_is_refused(tmp_path, text, says):
    with pytest.raises(ConfigurationError, match=says):
        load_issuers(write(tmp_path, [GOOD], text))


def test_no_file_is_an_error_and_no_issuer_is_not(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_issuers(tmp_path)
    assert load_issuers(write(tmp_path, [GOOD], "")) == {}


def test_an_issuer_whose_keys_are_fetched(tmp_path):
    (tmp_path / "ca.pem").write_text("checked when it is used")
    text = """[[issuer]]
name = "https://login.example/realm"
discovery = true
ca = "ca.pem"
tenants = ["clinic"]
algorithms = ["RS256", "PS256"]
accept_types = ["at+jwt", "JWT"]
audience = "sealgate"
stale_s = 0
unknown_key_cooldown_s = 5
roles_claim = "realm_access.roles"
purposes_claim = "https://example.com/purposes"
subject_claim = ["a.b", "c"]
[[issuer]]
name = "opaque"
jwks_uri = "https://keys.example/jwks"
tenant = "clinic"
"""
    first, second = load_issuers(write(tmp_path, [GOOD], text)).values()
    assert first.keys == {}
    assert first.remote == RemoteKeys(jwks_uri="", ca=tmp_path / "ca.pem", proxy=None, stale_s=0, cooldown_s=5)
    assert (first.types, first.audience) == ({"at+jwt", "jwt"}, "sealgate")
    assert first.rules.roles_claim == ("realm_access", "roles")
    assert first.rules.purposes_claim == ("https://example.com/purposes",)
    assert first.rules.subject_claim == ("a.b", "c")
    assert second.remote.jwks_uri == "https://keys.example/jwks"
    assert second.rules.tenant == "clinic"


SECOND = '[[issuer]]\nname = "j"\njwks = "jwks.json"\n'


@pytest.mark.parametrize(
    ("first", "second"),
    [("", 'tenants = ["t"]\n'), ('tenants = ["t"]\n', ""), ("", "")],
    ids=["first", "second", "both"],
)
def test_beside_others_an_issuer_says_whom_it_may_speak_for(tmp_path, first, second):
    with pytest.raises(ConfigurationError, match="each says whom it may speak for"):
        load_issuers(write(tmp_path, [GOOD], ONE + first + SECOND + second))


def test_any_tenant_has_to_be_said_beside_others_and_may_be_alone(tmp_path):
    first, second = load_issuers(
        write(tmp_path, [GOOD], ONE + 'tenants = ["*"]\n' + SECOND + 'tenant = "t"\n')
    ).values()
    assert (first.tenants, second.rules.tenant) == (frozenset(), "t")
    assert load_issuers(write(tmp_path, [GOOD], ONE))["i"].tenants == frozenset()
    with pytest.raises(ConfigurationError, match="alone"):
        load_issuers(write(tmp_path, [GOOD], ONE + 'tenants = ["*", "t"]\n'))
