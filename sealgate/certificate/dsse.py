"""DSSE envelopes (Dead Simple Signing Envelope v1) with Ed25519, in one strict form.

Signed is the pre-authentication encoding `DSSEv1 SP len(type) SP type SP len(payload) SP payload`, so a signature over
one payload type never counts for another. The envelope itself must be canonical JSON: two different files never carry
the same signed statement.

Trusts: the publishers it is given. Never: returns a payload whose signature was not checked.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.certificate.publishers import Publisher, Publishers, key_id
from sealgate.certificate.refusals import refusal
from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json, parse_canonical_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payloadType: str  # noqa: N815 - the name that the standard gives
    signatures: tuple[_Signature, ...]


@dataclass(frozen=True)
class SignedPayload:
    """A payload under the signature of a known publisher. Proves who signed these bytes, not that they are true."""

    payload: bytes
    publisher: Publisher


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that DSSE signs."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """The canonical envelope of an in-toto payload, signed by one key."""
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    return canonical_json(
        _Envelope(
            payload=base64.b64encode(payload).decode(),
            payloadType=PAYLOAD_TYPE,
            signatures=(_Signature(keyid=key_id(key.public_key()), sig=base64.b64encode(signature).decode()),),
        )
    )


def open_envelope(data: bytes, publishers: Publishers, *, limit: int, signature_code: str) -> SignedPayload:
    """The payload, if a known publisher signed it; raises CertificateError.

    `signature_code` is the refusal for a signature that does not hold. Exactly one signature is accepted: with more,
    "who signed this" would have more than one answer.
    """
    try:
        envelope = msgspec.convert(parse_canonical_json(data, limit=limit), _Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
        if base64.b64encode(payload).decode() != envelope.payload:
            raise DecodeError("base64 is not canonical")
        (entry,) = envelope.signatures
        raw = base64.b64decode(entry.sig, validate=True)
    except (DecodeError, msgspec.ValidationError, binascii.Error, ValueError) as error:
        raise refusal("envelope-malformed", "a signed file is not a DSSE envelope in canonical form") from error
    if envelope.payloadType != PAYLOAD_TYPE:
        raise refusal("envelope-malformed", "a signed file does not carry an in-toto statement")
    publisher = publishers.find(entry.keyid)
    if publisher is None:
        raise refusal("publisher-unknown", "signed by a key that is not among the accepted publishers")
    try:
        publisher.key.verify(raw, pre_authentication_encoding(envelope.payloadType, payload))
    except InvalidSignature as error:
        raise refusal(signature_code, f"the signature of publisher '{publisher.name}' does not hold") from error
    return SignedPayload(payload, publisher)
