"""Cosignatures (C2SP tlog-cosignature): a witness says when it saw a checkpoint that is consistent with all before it.

Two types: Ed25519 over the checkpoint's text (0x04), and ML-DSA-44 (FIPS 204), which a quantum computer does not forge,
over a structure that also names the witness (0x06). Trusts: the keys it is given. Never: takes a log's own signature
for a cosignature (the types differ), or lets a cosignature stand for the log's signature.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency.notes import (
    Checkpoint,
    key_id_of,
    parse_checkpoint_text,
    parse_signature_line,
    require_key_name,
    split_note,
)
from sealgate.transparency.shards import belongs_to

_TIMESTAMP = struct.Struct(">Q")
_MAX_TIMESTAMP = 2**63 - 1
_LABEL = b"subtree/v1\n\x00"
_MAX_OPAQUE = 255  # bytes of a name inside the signed structure


class CosignatureType(Enum):
    """Signature types of the note format; the value is the type's byte."""

    ED25519 = b"\x04"
    ML_DSA_44 = b"\x06"

    @property
    def key_size(self) -> int:
        return 32 if self is CosignatureType.ED25519 else 1312

    @property
    def signature_size(self) -> int:
        return 64 if self is CosignatureType.ED25519 else 2420


@dataclass(frozen=True)
class CosignerKey:
    """A witness's name, and the public key whose cosignatures under that name count."""

    name: str
    kind: CosignatureType
    public_key: bytes

    @classmethod
    def parse(cls, vkey: str) -> CosignerKey:
        """From the text form `name+keyid+base64(type || key)`; raises ConfigurationError."""
        parts = vkey.strip().split("+", 2)
        try:
            name, key_id, encoded = parts
            blob = base64.b64decode(encoded, validate=True)
            kind = CosignatureType(blob[:1])
        except (ValueError, binascii.Error) as error:
            raise ConfigurationError(
                "a witness key must look like NAME+KEYID+BASE64, with the type of a cosignature (not of a log)"
            ) from error
        require_key_name(name)
        key = cls(name, kind, blob[1:])
        if len(key.public_key) != kind.key_size or key.key_id.hex() != key_id:
            raise ConfigurationError(f"the witness key for '{name}' is damaged")
        return key

    @property
    def key_id(self) -> bytes:
        return key_id_of(self.name, self.kind.value, self.public_key)

    def under(self, origin: str) -> CosignerKey | None:
        """A log's own key under the name of a shard of it; None if the origin is none of its."""
        return replace(self, name=origin) if belongs_to(origin, self.name) else None

    @property
    def vkey(self) -> str:
        """The text form that trust policies carry."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(self.kind.value + self.public_key).decode()}"


@dataclass(frozen=True)
class VerifiedCosignature:
    """A witness's word, its signature verified: at `timestamp_s` (POSIX) this was the largest tree that it had seen of
    the log, and it extended every one before. It does not prove that other witnesses saw the same."""

    key: CosignerKey
    timestamp_s: int


class Cosigner:
    """A witness's signing key under its name. Held by the witness and nobody else."""

    def __init__(self, name: str, key: Ed25519PrivateKey | MLDSA44PrivateKey) -> None:
        require_key_name(name)
        if len(name.encode()) > _MAX_OPAQUE:
            raise ConfigurationError(f"a witness's name has at most {_MAX_OPAQUE} bytes")
        kind = CosignatureType.ED25519 if isinstance(key, Ed25519PrivateKey) else CosignatureType.ML_DSA_44
        self._key = key
        self.public = CosignerKey(name, kind, key.public_key().public_bytes_raw())

    def under(self, origin: str) -> Cosigner:
        """A log's own key under the name of a shard of it. Raises LogError for another log's name."""
        if not belongs_to(origin, self.public.name):
            raise LogError("a log's key signs for the shards of that log only", code="origin")
        return Cosigner(origin, self._key)

    def cosign(self, checkpoint: Checkpoint, *, timestamp_s: int) -> bytes:
        """The signature line that says so. Only for a checkpoint whose log signature and consistency were verified."""
        if not 0 < timestamp_s <= _MAX_TIMESTAMP:
            raise LogError("a cosignature needs a time after 1970", code="cosignature-time")
        signature = self._key.sign(_message(self.public, checkpoint, timestamp_s))
        blob = self.public.key_id + _TIMESTAMP.pack(timestamp_s) + signature
        return f"\u2014 {self.public.name} {base64.b64encode(blob).decode()}\n".encode()


def verify_cosignatures(note: bytes, keys: Sequence[CosignerKey]) -> tuple[VerifiedCosignature, ...]:
    """The cosignatures of known witnesses on a note, newest of each key; raises LogError if one of them does not hold.

    Signature lines of unknown keys are passed over. The log's own signature is not checked: `open_checkpoint` does.
    """
    text, lines = split_note(note)
    checkpoint = parse_checkpoint_text(text)
    known = {(key.name, key.key_id): key for key in keys}
    found: dict[CosignerKey, int] = {}
    for line in lines:
        name, key_id, signature = parse_signature_line(line)
        key = known.get((name, key_id))
        if key is not None:
            found[key] = max(_verified_time(key, checkpoint, signature), found.get(key, 0))
    return tuple(VerifiedCosignature(key, timestamp_s) for key, timestamp_s in found.items())


def _verified_time(key: CosignerKey, checkpoint: Checkpoint, blob: bytes) -> int:
    bad = LogError(f"the cosignature of '{key.name}' does not hold", code="cosignature")
    if len(blob) != _TIMESTAMP.size + key.kind.signature_size:
        raise bad
    timestamp_s: int = _TIMESTAMP.unpack_from(blob)[0]
    if not 0 < timestamp_s <= _MAX_TIMESTAMP:  # zero makes no statement that this was the largest tree
        raise bad
    try:
        public: Ed25519PublicKey | MLDSA44PublicKey
        if key.kind is CosignatureType.ED25519:
            public = Ed25519PublicKey.from_public_bytes(key.public_key)
        else:
            public = MLDSA44PublicKey.from_public_bytes(key.public_key)
        public.verify(blob[_TIMESTAMP.size :], _message(key, checkpoint, timestamp_s))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise bad from error
    return timestamp_s


def _message(key: CosignerKey, checkpoint: Checkpoint, timestamp_s: int) -> bytes:
    """What is signed ("Ed25519 signed message", "ML-DSA-44 signed message")."""
    if key.kind is CosignatureType.ED25519:
        return b"cosignature/v1\ntime %d\n" % timestamp_s + checkpoint.text()
    name, origin = key.name.encode(), checkpoint.origin.encode()
    if not 0 < len(origin) <= _MAX_OPAQUE or not 0 < len(name) <= _MAX_OPAQUE:
        raise LogError("a name is longer than an ML-DSA-44 cosignature can carry", code="cosignature")
    return b"".join(
        [
            _LABEL,
            bytes([len(name)]) + name,
            _TIMESTAMP.pack(timestamp_s),
            bytes([len(origin)]) + origin,
            struct.pack(">QQ", 0, checkpoint.size),
            checkpoint.root,
        ]
    )
