"""Signed notes and checkpoints (C2SP signed-note and tlog-checkpoint), Ed25519.

A checkpoint says: the log with this origin had this many leaves and this root. Its text is trusted only after a known
key's signature over it verified, so `open_checkpoint` is the only way from bytes to a `VerifiedCheckpoint`. A key that
is known under a log's name is known under the names of its shards too (`sealgate.transparency.shards`).
Trusts: the verifier keys it is given. Never: signs anything but checkpoints; never accepts a checkpoint whose origin is
not the name of a key that signed it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealgate.errors import ConfigurationError, LogError
from sealgate.limits import MAX_NOTE
from sealgate.protocol.secrets import Secret
from sealgate.transparency.cose_root import LINE_TYPE, root_message
from sealgate.transparency.merkle import HASH_SIZE, MAX_TREE_SIZE
from sealgate.transparency.shards import belongs_to

_ED25519 = b"\x01"  # signature type of the note specification
_DASH = "\u2014 "
_MAX_SIGNATURES = 32
_MAX_KEY_NAME = 256


def key_id_of(name: str, signature_type: bytes, public_key: bytes) -> bytes:
    """The first four bytes of SHA-256 over name, type and key (signed-note, "Verifier keys")."""
    return hashlib.sha256(name.encode() + b"\n" + signature_type + public_key).digest()[:4]


def _key_id(name: str, public_key: bytes) -> bytes:
    return key_id_of(name, _ED25519, public_key)


def require_key_name(name: str) -> None:
    """Raise ConfigurationError for a name that no signed note can carry."""
    bad = not name or len(name) > _MAX_KEY_NAME or "+" in name or any(c.isspace() or not c.isprintable() for c in name)
    if bad:
        raise ConfigurationError(
            "a log's name must be printable text without spaces and plus signs, for example host/log"
        )


@dataclass(frozen=True)
class NoteVerifier:
    """A name and an Ed25519 public key whose signatures under that name count."""

    name: str
    public_key: bytes

    @classmethod
    def parse(cls, vkey: str) -> NoteVerifier:
        """From the text form `name+keyid+base64(type || key)`; raises ConfigurationError."""
        parts = vkey.strip().split("+", 2)
        try:
            name, key_id, encoded = parts
            blob = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ConfigurationError("a log key must look like NAME+KEYID+BASE64") from error
        require_key_name(name)
        if blob[:1] != _ED25519 or len(blob) != 33 or _key_id(name, blob[1:]).hex() != key_id:
            raise ConfigurationError(f"the log key for '{name}' is damaged or not Ed25519")
        return cls(name, blob[1:])

    @property
    def key_id(self) -> bytes:
        return _key_id(self.name, self.public_key)

    def under(self, origin: str) -> NoteVerifier | None:
        """The same key under the name of a shard of its log; None if the origin is none of its."""
        if origin == self.name:
            return self
        return NoteVerifier(origin, self.public_key) if belongs_to(origin, self.name) else None

    @property
    def cose_line_id(self) -> bytes:
        """The key id of this key's other signature, the one over the root alone (`cose_root`)."""
        return key_id_of(self.name, LINE_TYPE, self.public_key)

    @property
    def vkey(self) -> str:
        """The text form that trust files carry."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public_key).decode()}"


class NoteSigner:
    """A log's signing key under its name. Held by the log's one writer and nobody else."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        require_key_name(name)
        self._key = key
        self.verifier = NoteVerifier(name, key.public_key().public_bytes_raw())
        self._prefix = self.verifier.key_id
        self._cose_prefix = self.verifier.cose_line_id

    @classmethod
    def from_seed(cls, name: str, seed: Secret | bytes) -> NoteSigner:
        """From the 32-byte Ed25519 seed."""
        raw = seed.reveal() if isinstance(seed, Secret) else seed
        if len(raw) != 32:
            raise ConfigurationError("a log key's seed must be 32 bytes")
        return cls(name, Ed25519PrivateKey.from_private_bytes(raw))

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> NoteSigner:
        """From an unencrypted PKCS#8 PEM file's content."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigurationError("the log key is not an unencrypted PKCS#8 PEM file") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError("the log key must be Ed25519")
        return cls(name, key)

    @property
    def name(self) -> str:
        return self.verifier.name

    @property
    def vkey(self) -> str:
        return self.verifier.vkey

    def under(self, origin: str) -> NoteSigner:
        """The same key under the name of a shard of its log. Raises LogError for another log's name."""
        if origin == self.name:
            return self
        if not belongs_to(origin, self.name):
            raise LogError("a log's key signs for the shards of that log only", code="origin")
        return NoteSigner(origin, self._key)

    def derive_key(self, purpose: bytes) -> bytes:
        """32 secret bytes for another use, from which the signing key does not follow (HKDF, RFC 5869)."""
        return HKDF(hashes.SHA256(), length=32, salt=None, info=purpose).derive(self._key.private_bytes_raw())

    def sign_line(self, text: bytes) -> bytes:
        """The signature line over note text."""
        return self._line(self._prefix, text)

    def sign_root_line(self, root: bytes) -> bytes:
        """The signature line over the root alone, for COSE Receipts. Only for the root of a checkpoint."""
        return self._line(self._cose_prefix, root_message(self.name, self._prefix, root))

    def _line(self, prefix: bytes, message: bytes) -> bytes:
        blob = base64.b64encode(prefix + self._key.sign(message))
        return _DASH.encode() + self.name.encode() + b" " + blob + b"\n"


@dataclass(frozen=True)
class Checkpoint:
    """What a log claims: its origin, how many leaves it has, and their root. A claim until a signature is checked."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The note text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint whose note a trusted key signed. `note` is the exact bytes, `signers` the names that verified.

    Holding one proves that the log's key signed this size and root. It does not prove that the log showed the same tree
    to everybody: comparing checkpoints, or witnesses, do.
    """

    checkpoint: Checkpoint
    note: bytes
    signers: tuple[str, ...]


def sign_checkpoint(checkpoint: Checkpoint, signer: NoteSigner) -> bytes:
    """The signed note. The signer's name must be the origin."""
    if signer.name != checkpoint.origin:
        raise LogError("a log signs only checkpoints of its own origin", code="origin")
    text = checkpoint.text()
    return text + b"\n" + signer.sign_line(text)


def open_checkpoint(note: bytes, verifiers: Sequence[NoteVerifier]) -> VerifiedCheckpoint:
    """Verify a signed note and parse its checkpoint; raises LogError.

    Signatures of unknown keys are ignored, one bad signature of a known key refuses the note, and at least one known
    key must have signed under the name that equals the origin.
    """
    text, lines = split_note(note)
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    signers: list[str] = []
    for line in lines:
        name, key_id, signature = parse_signature_line(line)
        verifier = known.get((name, key_id))
        if verifier is None:
            of_shard = (verifier for verifier in verifiers_of(name, verifiers) if verifier.key_id == key_id)
            verifier = next(of_shard, None)
        if verifier is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(verifier.public_key).verify(signature, text)
        except (InvalidSignature, ValueError) as error:
            raise LogError("the checkpoint's signature does not hold", code="checkpoint-signature") from error
        signers.append(name)
    checkpoint = parse_checkpoint_text(text)
    if checkpoint.origin not in signers:
        raise LogError("no trusted key of this log signed the checkpoint", code="checkpoint-unsigned")
    return VerifiedCheckpoint(checkpoint, note, tuple(signers))


def verifiers_of(origin: str, verifiers: Sequence[NoteVerifier]) -> list[NoteVerifier]:
    """Those of the keys that may sign for an origin, under its name."""
    named = (verifier.under(origin) for verifier in verifiers)
    return [verifier for verifier in named if verifier is not None]


def split_note(note: bytes) -> tuple[bytes, list[str]]:
    """The text that is signed and its signature lines; raises LogError. Nothing is verified yet."""
    malformed = LogError("the checkpoint is not a signed note", code="checkpoint-malformed")
    if len(note) > MAX_NOTE:
        raise malformed
    try:
        decoded = note.decode()
    except UnicodeDecodeError as error:
        raise malformed from error
    if any(ord(character) < 0x20 and character != "\n" for character in decoded):
        raise malformed
    text, blank, tail = decoded.rpartition("\n\n")
    if not blank or not text or not tail.endswith("\n"):
        raise malformed
    lines = tail[:-1].split("\n")
    if not 0 < len(lines) <= _MAX_SIGNATURES:
        raise malformed
    return (text + "\n").encode(), lines


def parse_signature_line(line: str) -> tuple[str, bytes, bytes]:
    """Key name, key id (4 bytes) and signature of a line; raises LogError."""
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LogError("a signature line of the checkpoint is malformed", code="checkpoint-malformed") from error
    canonical = base64.b64encode(blob).decode() == encoded
    if not line.startswith(_DASH) or not name or not space or len(blob) < 5 or not canonical:
        raise LogError("a signature line of the checkpoint is malformed", code="checkpoint-malformed")
    return name, blob[:4], blob[4:]


def parse_checkpoint_text(text: bytes) -> Checkpoint:
    """The checkpoint that a note's text says; raises LogError. A claim until a signature is checked."""
    lines = text.decode().split("\n")[:-1]
    try:
        origin, size_text, root_text = lines  # extension lines are refused: nobody could audit them
        size = parse_decimal(size_text)
        root = base64.b64decode(root_text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise LogError("the checkpoint's text is malformed", code="checkpoint-malformed") from error
    checkpoint = Checkpoint(origin, size, root)
    if not origin or len(root) != HASH_SIZE or checkpoint.text() != text:
        raise LogError("the checkpoint's text is malformed", code="checkpoint-malformed")
    return checkpoint


def parse_decimal(text: str) -> int:
    """A tree size or index: ASCII decimal without sign, spaces or leading zeros; raises ValueError."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or (text[0] == "0" and text != "0"):
        raise ValueError("not a plain decimal")
    number = int(text)
    if number > MAX_TREE_SIZE:
        raise ValueError("larger than any tree")
    return number
