"""A file of issuers or keys that is not what it should be stops the start, with one line that says why."""

from __future__ import annotations

import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.authentication.issuers import load_issuers
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
    ],
)
def test_an_issuer_file_that_is_wrong_is_refused(tmp_path, text, says):
    with pytest.raises(ConfigurationError, match=says):
        load_issuers(write(tmp_path, [GOOD], text))


def test_no_file_is_an_error_and_no_issuer_is_not(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_issuers(tmp_path)
    assert load_issuers(write(tmp_path, [GOOD], "")) == {}
