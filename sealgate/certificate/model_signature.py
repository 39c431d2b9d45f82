"""`model.sig`: the signature of OpenSSF model signing over a bundle, made and checked without its package.

A Sigstore bundle (v0.3, JSON) with a DSSE envelope over an in-toto statement that lists each file with its SHA-256;
the subject's digest is SHA-256 over those digests in their order. Signed by an elliptic-curve key (P-256, P-384 or
P-521): the kind of the format that needs no certificate authority and no network. It adds nothing to `bundle.sig`
but that tools which know only this format can check a bundle; of an encrypted one, once it is decrypted.

Trusts: the key it is given. Never: takes a name or digest from the file for more than a claim to compare.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from sealgate.certificate.dsse import PAYLOAD_TYPE, pre_authentication_encoding
from sealgate.certificate.files import MODEL_SIGNATURE
from sealgate.certificate.publishers import MODEL_SIGNING_CURVES
from sealgate.certificate.refusals import refusal
from sealgate.certificate.statement import STATEMENT_TYPE
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.limits import MAX_SIGNING_KEY_FILE
from sealgate.protocol.canonical import canonical_json

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PREDICATE = "https://model_signing/signature/v1.0"
_HASHES: dict[str, HashAlgorithm] = dict(zip(MODEL_SIGNING_CURVES, (SHA256(), SHA384(), SHA512()), strict=True))
_IGNORED = (".git", ".gitattributes", ".github", ".gitignore", MODEL_SIGNATURE)


class _Signature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


class _Bundle(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    dsse_envelope: _Envelope


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: _Digest


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct, frozen=True):
    resources: tuple[_Resource, ...]


class _Statement(msgspec.Struct, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: str
    subject: tuple[_Subject, ...]
    predicate_type: str
    predicate: _Predicate


def load_model_signing_key(path: Path) -> EllipticCurvePrivateKey:
    """A private key in unencrypted PEM; raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            key = load_pem_private_key(file.read(MAX_SIGNING_KEY_FILE), password=None)
    except OSError as error:
        raise ConfigurationError(f"the key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise ConfigurationError(
            f"{path} is no elliptic-curve key; make one with: openssl ecparam -name prime256v1 -genkey -noout -out FILE"
        )
    return key


def public_text(key: EllipticCurvePublicKey) -> str:
    """What `publishers.toml` says of a key."""
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def _root(digests: list[str]) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def sign_model(name: str, digests: Mapping[str, str], key: EllipticCurvePrivateKey) -> bytes:
    """The file's bytes. `digests` are hex SHA-256 of every other file of the plain bundle."""
    names = sorted(digests)
    payload = canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": _root([digests[one] for one in names])}}],
            "predicateType": _PREDICATE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": list(_IGNORED),
                },
                "resources": [{"name": one, "algorithm": "sha256", "digest": digests[one]} for one in names],
            },
        }
    )
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload), ECDSA(_HASHES[public.curve.name]))
    return canonical_json(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def verify_model_signature(data: bytes, digests: Mapping[str, str], key: EllipticCurvePublicKey) -> dict[str, str]:
    """The digests that were signed, which are exactly `digests`; raises CertificateError (`model-signature`)."""
    payload = _verified_payload(data, key)
    try:
        statement = msgspec.json.decode(payload, type=_Statement)
        if (statement.type_, statement.predicate_type) != (STATEMENT_TYPE, _PREDICATE):
            raise DecodeError("another kind of statement")
        resources = statement.predicate.resources
        listed = {one.name: one.digest for one in resources if one.algorithm == "sha256"}
        (subject,) = statement.subject
        if len(listed) != len(resources) or subject.digest.sha256 != _root([one.digest for one in resources]):
            raise DecodeError("its list contradicts itself")
    except (msgspec.DecodeError, DecodeError, RecursionError, UnicodeError, ValueError) as error:
        raise refusal("model-signature", "model.sig signs no statement of OpenSSF model signing") from error
    if listed != dict(digests):
        raise refusal("model-signature", "model.sig was made for other files")
    return listed


def _verified_payload(data: bytes, key: EllipticCurvePublicKey) -> bytes:
    try:
        bundle = msgspec.json.decode(data, type=_Bundle)
        envelope = bundle.dsse_envelope
        (entry,) = envelope.signatures
        payload = base64.b64decode(envelope.payload, validate=True)
        signature = base64.b64decode(entry.sig, validate=True)
        if (bundle.media_type, envelope.payload_type) != (_MEDIA_TYPE, PAYLOAD_TYPE):
            raise DecodeError("another kind of bundle")
    except (msgspec.DecodeError, DecodeError, RecursionError, UnicodeError, binascii.Error, ValueError) as error:
        raise refusal("model-signature", "model.sig is not a Sigstore bundle with one signature") from error
    try:
        key.verify(signature, pre_authentication_encoding(PAYLOAD_TYPE, payload), ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature as error:
        raise refusal("model-signature", "model.sig is not signed by the publisher's key for it") from error
    return payload
