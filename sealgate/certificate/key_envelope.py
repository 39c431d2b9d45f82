"""`model.key` of an encrypted bundle: which data key its weights are under, and that key wrapped for its owner.

Canonical JSON, and no secret. Everything in it that says how to open the weights is authenticated twice: as associated
data of the wrapped key, and of every chunk of the weights. The digest it names is that of the PLAINTEXT weights, the
one that certificate and signature name: so an encrypted bundle has the signatures of the plain one, and a data key
opens no other model.

Trusts: nothing. Never: holds an unwrapped key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

import msgspec

from sealgate.certificate.refusals import refusal
from sealgate.errors import DecodeError
from sealgate.limits import MAX_KEY_ENVELOPE, MAX_WEIGHTS, MAX_WRAPPED_KEY, SEALED_CHUNK
from sealgate.protocol.canonical import canonical_json, parse_canonical_json

CIPHER = "AES-256-GCM"
SCHEMA = 1
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\Z")


class SealedWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the weights are and how they are cut. Stays what it is when the key that wraps the data key changes."""

    schema: int
    cipher: str
    chunk: int  # plaintext bytes of every chunk but the last
    size: int  # plaintext bytes altogether
    sha256: str  # of the plaintext, lowercase hex

    @property
    def context(self) -> bytes:
        """Associated data of every chunk."""
        return canonical_json({"purpose": "sealgate bundle weights", **msgspec.structs.asdict(self)})

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.size // self.chunk)


class KeyEnvelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. `key` names the wrapping key; what `wrapped` means is that key's own business."""

    weights: SealedWeights
    key: str
    wrapped: str  # base64

    @property
    def wrapped_bytes(self) -> bytes:
        """The wrapped data key."""
        return base64.b64decode(self.wrapped, validate=True)


def wrapping_context(weights: SealedWeights, *, key: str) -> bytes:
    """Associated data of a wrapped data key: this key, for these weights, and nothing else."""
    return canonical_json({"purpose": "sealgate data key", "key": key, "weights": weights})


def describe_weights(*, size: int, sha256: str) -> SealedWeights:
    """For weights about to be encrypted."""
    return SealedWeights(schema=SCHEMA, cipher=CIPHER, chunk=SEALED_CHUNK, size=size, sha256=sha256)


def envelope_bytes(weights: SealedWeights, *, key: str, wrapped: bytes) -> bytes:
    """The file's bytes."""
    return canonical_json(KeyEnvelope(weights=weights, key=key, wrapped=base64.b64encode(wrapped).decode()))


def called_by_content(envelope: KeyEnvelope) -> str:
    """A short name of this very file, for who hands on the data keys of a pipeline's members: 128 bits of SHA-256."""
    return f":{hashlib.sha256(canonical_json(envelope)).hexdigest()[:32]}"


def parse_envelope(data: bytes) -> KeyEnvelope:
    """A file in its one form, with every size in its bounds; raises CertificateError."""
    try:
        found = msgspec.convert(parse_canonical_json(data, limit=MAX_KEY_ENVELOPE), KeyEnvelope)
        wrapped = found.wrapped_bytes
        if base64.b64encode(wrapped).decode() != found.wrapped:
            raise DecodeError("base64 is not canonical")
    except (DecodeError, msgspec.ValidationError, binascii.Error, ValueError) as error:
        raise refusal("key-envelope", "model.key is not canonical JSON of the known shape") from error
    weights = found.weights
    sound = (
        (weights.schema, weights.cipher, weights.chunk) == (SCHEMA, CIPHER, SEALED_CHUNK)
        and 0 < weights.size <= MAX_WEIGHTS
        and _DIGEST.match(weights.sha256)
        and _KEY_ID.match(found.key)
        and 0 < len(wrapped) <= MAX_WRAPPED_KEY
    )
    if not sound:
        raise refusal("key-envelope", "model.key names another cipher, or a size or digest that cannot be")
    return found
