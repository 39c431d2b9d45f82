"""Publishers: the keys whose signature on a model bundle counts, from `publishers.toml`.

    [[publisher]]
    name = "hospital"
    key = "base64 of the 32-byte Ed25519 public key"
    model_signing_key = "base64 of an elliptic-curve public key (DER): optional, for model.sig"

Trusts: whoever may write the file. Never: holds private keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME, MAX_PUBLISHERS, MAX_PUBLISHERS_FILE
from sealgate.toml_words import in_words


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    key: str
    model_signing_key: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    publisher: tuple[_Entry, ...] = ()


MODEL_SIGNING_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class Publisher:
    """One accepted publisher. `keyid` is the lowercase hex SHA-256 of the raw public key."""

    name: str
    key: Ed25519PublicKey
    keyid: str
    model_signing_key: EllipticCurvePublicKey | None = None


@dataclass(frozen=True)
class Publishers:
    """The accepted publishers by key id. Empty means that no bundle is accepted."""

    by_keyid: dict[str, Publisher]

    def find(self, keyid: str) -> Publisher | None:
        """The publisher with this key id, or None."""
        return self.by_keyid.get(keyid)


def key_id(key: Ed25519PublicKey) -> str:
    """Lowercase hex SHA-256 of the raw public key: how envelopes name their signer."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def publishers_of(
    keys: dict[str, Ed25519PublicKey], *, model_signing: dict[str, EllipticCurvePublicKey] | None = None
) -> Publishers:
    """Publishers from names and keys already at hand; of some, the key of their `model.sig` too."""
    others = model_signing or {}
    entries = [Publisher(name, key, key_id(key), others.get(name)) for name, key in keys.items()]
    return Publishers({entry.keyid: entry for entry in entries})


def load_publishers(path: Path) -> Publishers:
    """Read `publishers.toml`; raises ConfigurationError that says what to mend."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PUBLISHERS_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_PUBLISHERS_FILE:
        raise ConfigurationError(f"{path} is larger than {MAX_PUBLISHERS_FILE} bytes")
    try:
        parsed = msgspec.convert(tomllib.loads(data.decode()), _File)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, _File)}") from error
    if len(parsed.publisher) > MAX_PUBLISHERS:
        raise ConfigurationError(f"{path} names more than {MAX_PUBLISHERS} publishers")
    found: dict[str, Ed25519PublicKey] = {}
    model_signing: dict[str, EllipticCurvePublicKey] = {}
    for entry in parsed.publisher:
        if not entry.name or len(entry.name) > MAX_NAME or entry.name in found:
            raise ConfigurationError(f"{path}: each publisher needs a name of its own, at most {MAX_NAME} characters")
        try:
            raw = base64.b64decode(entry.key, validate=True)
            found[entry.name] = Ed25519PublicKey.from_public_bytes(raw)
        except (binascii.Error, ValueError) as error:
            raise ConfigurationError(
                f"{path}: the key of '{entry.name}' is not base64 of a 32-byte Ed25519 public key"
            ) from error
        if entry.model_signing_key:
            model_signing[entry.name] = _model_signing_key(entry, path)
    return publishers_of(found, model_signing=model_signing)


def _model_signing_key(entry: _Entry, path: Path) -> EllipticCurvePublicKey:
    try:
        key = load_der_public_key(base64.b64decode(entry.model_signing_key, validate=True))
    except (binascii.Error, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{path}: the model_signing_key of '{entry.name}' is not base64 of a public key (DER)"
        ) from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in MODEL_SIGNING_CURVES:
        raise ConfigurationError(f"{path}: the model_signing_key of '{entry.name}' is not of P-256, P-384 or P-521")
    return key
