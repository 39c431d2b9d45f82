"""`model.sig`, against the package of OpenSSF model signing in both directions."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sealgate.certificate.bundle import sha256_hex, verify_bundle
from sealgate.certificate.encryption import decrypt_bundle, encrypt_bundle
from sealgate.certificate.files import CARD, MODEL_SIGNATURE, SIGNATURE
from sealgate.certificate.model_signature import (
    load_model_signing_key,
    public_text,
    sign_model,
    verify_model_signature,
)
from sealgate.certificate.publishers import load_publishers, publishers_of
from sealgate.certificate.signing import sign_bundle
from sealgate.certificate.wrapping_keys import KeyRing, write_new_key
from sealgate.errors import CertificateError, ConfigurationError

CURVES = [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1]


def written(key: ec.EllipticCurvePrivateKey, folder: Path) -> tuple[Path, Path]:
    private, public = folder / "signing.pem", folder / "signing.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def publishers(forge, key):
    return publishers_of({"hospital": forge.key.public_key()}, model_signing={"hospital": key.public_key()})


def code(call, *arguments) -> str:
    with pytest.raises(CertificateError) as caught:
        call(*arguments)
    return caught.value.code


@pytest.mark.parametrize("curve", CURVES)
def test_the_independent_package_verifies_what_we_sign(bundle, forge, tmp_path, curve):
    model_signing = pytest.importorskip("model_signing")
    key = ec.generate_private_key(curve())
    _, public = written(key, tmp_path)
    sign_bundle(bundle, forge.publishers, key)

    def verify():
        config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
        config.verify(bundle, bundle / MODEL_SIGNATURE)

    verify()
    (bundle / CARD).write_bytes(b"# another\n")
    with pytest.raises(ValueError):
        verify()


@pytest.mark.parametrize("curve", CURVES)
def test_we_verify_what_the_independent_package_signs(bundle, forge, tmp_path, curve):
    model_signing = pytest.importorskip("model_signing")
    key = ec.generate_private_key(curve())
    private, _ = written(key, tmp_path)
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=private)
    config.sign(bundle, bundle / MODEL_SIGNATURE)
    known = publishers_of({"hospital": forge.key.public_key()}, model_signing={"hospital": key.public_key()})
    assert verify_bundle(bundle, known).model_signed
    stranger = publishers_of(
        {"hospital": forge.key.public_key()},
        model_signing={"hospital": ec.generate_private_key(curve()).public_key()},
    )
    assert code(verify_bundle, bundle, stranger) == "model-signature"


def test_without_a_key_for_it_nothing_is_claimed(bundle, forge, key, publishers):
    assert not verify_bundle(bundle, publishers).model_signed
    sign_bundle(bundle, publishers, key)
    assert verify_bundle(bundle, publishers).model_signed
    assert not verify_bundle(bundle, forge.publishers).model_signed


def test_it_survives_encryption_and_can_be_made_under_it(bundle, publishers, key, tmp_path):
    wrapping = write_new_key(tmp_path / "k")
    ring = KeyRing((wrapping,))
    sign_bundle(bundle, publishers, key)
    before = (bundle / MODEL_SIGNATURE).read_bytes()
    encrypt_bundle(bundle, publishers, wrapping)
    assert verify_bundle(bundle, publishers, data_key=ring.unwrap).model_signed
    (bundle / MODEL_SIGNATURE).unlink()
    sign_bundle(bundle, publishers, key)
    decrypt_bundle(bundle, publishers, ring)
    assert verify_bundle(bundle, publishers).model_signed
    assert (
        json.loads(before)["dsseEnvelope"]["payload"]
        == json.loads((bundle / MODEL_SIGNATURE).read_bytes())["dsseEnvelope"]["payload"]
    )


def test_a_signature_of_another_bundle_is_refused(bundle, forge_type, forge, key, publishers, tmp_path):
    other = forge_type(key=forge.key)
    other.weights = other.weights[:-4] + b"\0\0\0\0"
    elsewhere = other.write(tmp_path / "elsewhere" / "toy")
    sign_bundle(elsewhere, publishers, key)
    shutil.copy(elsewhere / MODEL_SIGNATURE, bundle / MODEL_SIGNATURE)
    assert code(verify_bundle, bundle, publishers) == "model-signature"
    sign_bundle(bundle, publishers, key)  # and a wrong one can be replaced
    assert verify_bundle(bundle, publishers).model_signed


DIGESTS = {"a": "00" * 32, "b": "11" * 32}


def altered(data: bytes, key: ec.EllipticCurvePrivateKey, change) -> bytes:
    """The same file with its statement changed and signed anew, so that only the statement decides."""
    from cryptography.hazmat.primitives.hashes import SHA256

    outer = json.loads(data)
    statement = json.loads(base64.b64decode(outer["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    kind = b"application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    outer["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    outer["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(key.sign(signed, ec.ECDSA(SHA256()))).decode()
    return json.dumps(outer).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(_type="x"),
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        lambda s: s["subject"].append(s["subject"][0]),
        lambda s: s["subject"][0]["digest"].update(sha256="22" * 32),
        lambda s: s["predicate"]["resources"].pop(),
        lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
        lambda s: s["predicate"]["resources"][0].update(algorithm="md5"),
        lambda s: s["predicate"]["resources"][0].update(digest="zz"),
        lambda s: s["predicate"]["resources"][0].update(name="c"),
        lambda s: s.clear(),
    ],
)
def test_a_well_signed_statement_of_something_else(key, change):
    data = sign_model("toy", DIGESTS, key)
    assert verify_model_signature(altered(data, key, lambda s: None), DIGESTS, key.public_key()) == DIGESTS
    assert code(verify_model_signature, altered(data, key, change), DIGESTS, key.public_key()) == "model-signature"


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(mediaType="application/json"),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]),
        lambda b: b["dsseEnvelope"]["signatures"].clear(),
        lambda b: b["dsseEnvelope"].update(payload="%"),
        lambda b: b.clear(),
    ],
)
def test_another_envelope(key, change):
    outer = json.loads(sign_model("toy", DIGESTS, key))
    change(outer)
    assert code(verify_model_signature, json.dumps(outer).encode(), DIGESTS, key.public_key()) == "model-signature"
    assert code(verify_model_signature, b"[" * 5000, DIGESTS, key.public_key()) == "model-signature"


def test_publishers_may_have_a_key_for_it(tmp_path, forge, key):
    raw = base64.b64encode(forge.key.public_key().public_bytes_raw()).decode()
    path = tmp_path / "publishers.toml"

    def with_key(text: str) -> None:
        path.write_text(f'[[publisher]]\nname = "hospital"\nkey = "{raw}"\nmodel_signing_key = "{text}"\n')

    with_key(public_text(key.public_key()))
    (found,) = load_publishers(path).by_keyid.values()
    assert found.model_signing_key == key.public_key()
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    der = base64.b64encode(other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    for text in (der, "AAAA", "%"):
        with_key(text)
        with pytest.raises(ConfigurationError, match="model_signing_key of 'hospital'"):
            load_publishers(path)


def test_private_keys_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "k.pem"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_model_signing_key(path)
    path.write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="not an unencrypted PEM"):
        load_model_signing_key(path)
    other = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigurationError, match="openssl"):
        load_model_signing_key(path)


def test_it_signs_the_list_of_the_bundle_too(bundle, publishers, key):
    sign_bundle(bundle, publishers, key)
    payload = base64.b64decode(json.loads((bundle / MODEL_SIGNATURE).read_bytes())["dsseEnvelope"]["payload"])
    resources = {one["name"]: one["digest"] for one in json.loads(payload)["predicate"]["resources"]}
    assert resources[SIGNATURE] == sha256_hex((bundle / SIGNATURE).read_bytes())
    assert len(resources) == 5
