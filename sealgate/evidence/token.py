"""The envelope of evidence: a CWT (RFC 8392) in a COSE_Sign1 (RFC 9052), with a list of endorsements over its payload.

    61(18([ {1: -8, 4: kid, 16: "application/eat+cwt"}, {-65537: [[kind, kid, proof], ...]}, payload, signature ]))

The COSE signature says from whose deployment the token comes. Each endorsement says who vouches for the claims, and
covers `bind = SHA-256(tag || payload)`, so that no endorsement can be moved to another payload. The list is not signed:
taking one away only lowers the grade. The kind `software` is an Ed25519 signature by an operator key; other kinds are
kept as they came, for verifiers that know them.

Trusts nothing: `parse_token` yields an allegation. Never: decides whom to believe (`sealgate.evidence.verify` does).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealgate.errors import DecodeError, EvidenceError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from sealgate.protocol import cbor

MEDIA_TYPE = "application/eat+cwt"
SOFTWARE = "software"

_CWT_TAG, _SIGN1_TAG = 61, 18
_ALG, _KID, _TYP, _EDDSA = 1, 4, 16, -8
_ENDORSEMENTS = -65537
_BIND_TAG = b"sealgate evidence v1\x00"
_SOFTWARE_CONTEXT = b"sealgate software endorsement v1\x00"


@dataclass(frozen=True)
class Endorsement:
    """`proof` vouches for `bind` in the way that `kind` names; `kid` hints at the key."""

    kind: str
    kid: bytes
    proof: bytes


@dataclass(frozen=True)
class Token:
    """A parsed envelope. It proves nothing yet; `digest` names these exact bytes."""

    kid: bytes
    protected: bytes
    payload: bytes
    signature: bytes
    endorsements: tuple[Endorsement, ...]
    digest: str

    @property
    def bind(self) -> bytes:
        """What every endorsement covers."""
        return bind_payload(self.payload)


def bind_payload(payload: bytes) -> bytes:
    """SHA-256(tag || payload)."""
    return hashlib.sha256(_BIND_TAG + payload).digest()


def key_id(key: bytes) -> bytes:
    """The hint by which a key is named in a token: the first eight bytes of its SHA-256."""
    return hashlib.sha256(key).digest()[:8]


def endorse_software(bind: bytes, operator: Ed25519PrivateKey) -> Endorsement:
    """The operator's word, and no more than that."""
    return Endorsement(
        SOFTWARE, key_id(operator.public_key().public_bytes_raw()), operator.sign(_SOFTWARE_CONTEXT + bind)
    )


def sign_token(claims: Claims, operator: Ed25519PrivateKey, endorsements: tuple[Endorsement, ...]) -> bytes:
    """Claims signed by the operator. The endorsements were made over `bind_payload(encode_claims(claims))`."""
    payload = encode_claims(claims)
    kid = key_id(operator.public_key().public_bytes_raw())
    protected = cbor.encode({_ALG: _EDDSA, _KID: kid, _TYP: MEDIA_TYPE})
    signature = operator.sign(_to_be_signed(protected, payload))
    listed: list[cbor.Value] = [[item.kind, item.kid, item.proof] for item in endorsements]
    return cbor.encode(
        cbor.Tag(_CWT_TAG, cbor.Tag(_SIGN1_TAG, [protected, {_ENDORSEMENTS: listed}, payload, signature]))
    )


def parse_token(data: bytes) -> Token:
    """Take the envelope apart; raises DecodeError for anything but the one shape above."""
    outer = cbor.decode(data, limit=MAX_EVIDENCE)
    if not isinstance(outer, cbor.Tag) or outer.number != _CWT_TAG:
        raise DecodeError("evidence is not a CWT")
    inner = outer.value
    if not isinstance(inner, cbor.Tag) or inner.number != _SIGN1_TAG or not isinstance(inner.value, list):
        raise DecodeError("evidence is not a COSE_Sign1")
    match inner.value:
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]:
            digest = hashlib.sha256(data).hexdigest()
            return Token(_signer(protected), protected, payload, signature, _endorsements(unprotected), digest)
    raise DecodeError("evidence is not a COSE_Sign1")


def verify_signature(token: Token, key: bytes) -> None:
    """The COSE signature holds under this raw Ed25519 key; raises EvidenceError."""
    _verify(key, token.signature, _to_be_signed(token.protected, token.payload), "evidence-signature")


def verify_software(token: Token, endorsement: Endorsement, key: bytes) -> None:
    """The software endorsement names this raw Ed25519 key and covers this token under it; raises EvidenceError."""
    if endorsement.kid != key_id(key):
        raise EvidenceError("an endorsement names another key", code="endorsement-signature")
    _verify(key, endorsement.proof, _SOFTWARE_CONTEXT + token.bind, "endorsement-signature")


def _verify(key: bytes, signature: bytes, message: bytes, code: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise EvidenceError("a signature of the evidence does not hold", code=code) from error


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return cbor.encode(["Signature1", protected, b"", payload])


def _signer(protected: bytes) -> bytes:
    """The key hint of well-formed protected headers."""
    headers = cbor.decode(protected)
    if not isinstance(headers, Mapping) or set(headers) != {_ALG, _KID, _TYP}:
        raise DecodeError("evidence has other protected headers than its profile allows")
    kid = headers[_KID]
    if headers[_ALG] != _EDDSA or headers[_TYP] != MEDIA_TYPE or not isinstance(kid, bytes):
        raise DecodeError("evidence is of another type or algorithm")
    return kid


def _endorsements(unprotected: Mapping[int | str, cbor.Value]) -> tuple[Endorsement, ...]:
    listed = unprotected.get(_ENDORSEMENTS)
    if set(unprotected) != {_ENDORSEMENTS} or not isinstance(listed, list) or len(listed) > MAX_ENDORSEMENTS:
        raise DecodeError("evidence lacks its list of endorsements")
    found = []
    for item in listed:
        match item:
            case [str() as kind, bytes() as kid, bytes() as proof]:
                found.append(Endorsement(kind, kid, proof))
            case _:
                raise DecodeError("an endorsement is malformed")
    return tuple(found)
