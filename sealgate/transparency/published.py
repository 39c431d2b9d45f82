"""Published checkpoints: the log's Ed25519 line, and its ML-DSA-44 line that a quantum computer does not forge.

Receipts carry the Ed25519 line alone: the other one has 3,300 characters, and in a receipt no bit can be changed. What
is published, once a second at most, carries both if the log has an ML-DSA-44 key: a cosignature of type 0x06 (C2SP
tlog-cosignature) under the log's own name, which says when it was published. A log without such a key has Ed25519
alone, and whoever verifies is told. A third line is there for COSE Receipts (`cose_root`).

Trusts: the keys it is given. Never: takes one kind of signature for the other, or passes over a missing ML-DSA-44 line
where a key of the log is trusted: it could have been taken away by whoever can forge the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency.cosignatures import CosignatureType, Cosigner, CosignerKey, verify_cosignatures
from sealgate.transparency.notes import (
    NoteSigner,
    NoteVerifier,
    VerifiedCheckpoint,
    open_checkpoint,
    parse_checkpoint_text,
    split_note,
)

ED25519_ONLY = "Ed25519 only"
BOTH = "Ed25519 and ML-DSA-44"


def parse_mldsa_log_key(vkey: str) -> CosignerKey:
    """A log's ML-DSA-44 key from its text form; raises ConfigurationError."""
    key = CosignerKey.parse(vkey)
    if key.kind is not CosignatureType.ML_DSA_44:
        raise ConfigurationError(f"the key for '{key.name}' is not ML-DSA-44")
    return key


def sign_root(note: bytes, signer: NoteSigner) -> bytes:
    """The log's own signed note with its line for COSE Receipts. Only for a checkpoint that is durable."""
    checkpoint = parse_checkpoint_text(split_note(note)[0])
    if signer.name != checkpoint.origin:
        raise LogError("a log signs what it publishes under its own name", code="origin")
    return note + signer.sign_root_line(checkpoint.root)


def sign_published(note: bytes, mldsa: Cosigner, *, timestamp_s: int) -> bytes:
    """The log's own signed note with its ML-DSA-44 line. Only for a checkpoint that is durable."""
    checkpoint = parse_checkpoint_text(split_note(note)[0])
    if mldsa.public.kind is not CosignatureType.ML_DSA_44 or mldsa.public.name != checkpoint.origin:
        raise LogError("a log signs what it publishes under its own name", code="origin")
    return note + mldsa.cosign(checkpoint, timestamp_s=timestamp_s)


def open_published(
    note: bytes, verifiers: Sequence[NoteVerifier], mldsa_keys: Sequence[CosignerKey] = ()
) -> VerifiedCheckpoint:
    """As `open_checkpoint`; and where an ML-DSA-44 key of this log is trusted, that it signed too. Raises LogError."""
    verified = open_checkpoint(note, verifiers)
    wanted = _keys_of(verified.checkpoint.origin, mldsa_keys)
    if wanted and not verify_cosignatures(note, wanted):
        raise LogError("the checkpoint lacks the log's ML-DSA-44 signature", code="checkpoint-mldsa")
    return verified


def strength(origin: str, mldsa_keys: Sequence[CosignerKey]) -> str:
    """Which signatures `open_published` checked, in words."""
    return BOTH if _keys_of(origin, mldsa_keys) else ED25519_ONLY


def _keys_of(origin: str, mldsa_keys: Sequence[CosignerKey]) -> list[CosignerKey]:
    named = (key.under(origin) for key in mldsa_keys)
    return [key for key in named if key is not None]
