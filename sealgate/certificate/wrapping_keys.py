"""Keys that wrap the data keys of encrypted bundles, and where they come from.

    file:PATH     32 random bytes in base64, in a file that its owner alone may read (mode 0600)
    environment   the same text in SEALGATE_MODELS_KEY
    vault:FILE    a key of HashiCorp Vault's or OpenBao's transit engine (vault_key)
    awskms:FILE   a key of AWS KMS (aws_kms_key)
    gcpkms:FILE   a key of Google Cloud KMS (google_kms_key)
    azurekv:FILE  a key of Azure Key Vault (azure_key)

A wrapping key never touches weights: it opens `model.key`, a few hundred bytes. So it can be changed without encrypting
anything anew, and a key that lives in another machine (key_services) needs only what `WrappingKey` asks. Here,
wrapping is AES-256-GCM under a random nonce (a key wraps few bundles, far from 2^32), with the key's name, the
weights' digest and their size as associated data.

Trusts: the permissions of the file, or whoever made the environment. Never: prints a key, or takes one from argv.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.key_envelope import KeyEnvelope, SealedWeights, envelope_bytes, wrapping_context
from sealgate.certificate.refusals import refusal
from sealgate.certificate.sealed_weights import DATA_KEY
from sealgate.durable_files import write_new
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_WRAPPING_KEY_FILE, MAX_WRAPPING_KEYS
from sealgate.protocol.secrets import Secret

KEY_VARIABLE = "SEALGATE_MODELS_KEY"
SERVICES = ("vault", "awskms", "gcpkms", "azurekv")
KNOWN_SOURCES = "file:PATH, environment, vault:FILE, awskms:FILE, gcpkms:FILE or azurekv:FILE"
LOCAL = "local:"  # begins the names of keys whose bytes are here
_NONCE = 12


class WrappingKey(Protocol):
    """One key-encryption key, wherever it is."""

    @property
    def name(self) -> str:
        """What `model.key` calls it. MUST be another one for another key; MUST NOT tell anything about the key."""

    def wrap(self, data_key: Secret, context: bytes) -> bytes:
        """The data key, so that only `unwrap` of the same key with the same context gives it back."""

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """MUST raise CertificateError (`weights-locked`) unless this key wrapped exactly this for this context."""


@dataclass(frozen=True)
class LocalKey:
    """A wrapping key whose bytes are here."""

    name: str
    _secret: Secret

    @classmethod
    def of(cls, secret: Secret) -> LocalKey:
        """Named by a keyed digest of a fixed text, which tells nothing about the key."""
        digest = hmac.digest(secret.reveal(), b"sealgate: the name of a wrapping key", "sha256")
        return cls(f"{LOCAL}{digest[:8].hex()}", secret)

    def wrap(self, data_key: Secret, context: bytes, *, entropy: Entropy = random_bytes) -> bytes:
        """Nonce, ciphertext and tag."""
        nonce = entropy(_NONCE)
        return nonce + AESGCM(self._secret.reveal()).encrypt(nonce, data_key.reveal(), context)

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """The data key; raises CertificateError."""
        try:
            plain = AESGCM(self._secret.reveal()).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], context)
        except (InvalidTag, ValueError) as error:
            raise refusal("weights-locked", f"model.key was changed: key {self.name} does not open it") from error
        if len(plain) != DATA_KEY:
            raise refusal("weights-locked", "model.key holds no data key")
        return Secret(bytearray(plain))


@dataclass(frozen=True)
class KeyRing:
    """The wrapping keys at hand: during a change of keys there are two."""

    keys: tuple[WrappingKey, ...]

    def unwrap(self, envelope: KeyEnvelope) -> Secret:
        """The data key of a bundle; raises CertificateError that names the key it would take."""
        for key in self.keys:
            if key.name == envelope.key:
                return key.unwrap(envelope.wrapped_bytes, wrapping_context(envelope.weights, key=key.name))
        given = ", ".join(key.name for key in self.keys) or "none"
        raise refusal("weights-locked", f"the weights are encrypted under key {envelope.key}; given: {given}")


def wrapped_for(key: WrappingKey, weights: SealedWeights, data_key: Secret) -> bytes:
    """The bytes of `model.key` for the owner of `key`."""
    return envelope_bytes(weights, key=key.name, wrapped=key.wrap(data_key, wrapping_context(weights, key=key.name)))


def open_key(source: str, *, folder: Path = Path()) -> WrappingKey:
    """The key of one source as listed above, paths from `folder` on; raises ConfigurationError."""
    if source == "environment":
        text = os.environ.get(KEY_VARIABLE)
        if text is None:
            raise ConfigurationError(f"the key source 'environment' needs the variable {KEY_VARIABLE}")
        return LocalKey.of(_parse(text.encode(), KEY_VARIABLE))
    kind, _, place = source.partition(":")
    if place and kind in SERVICES:
        return _service_key(kind, folder / place)
    if kind != "file" or not place:
        raise ConfigurationError(f"'{source}' is no source of a key: say {KNOWN_SOURCES}")
    return LocalKey.of(read_secret(folder / place))


def _service_key(kind: str, path: Path) -> WrappingKey:
    match kind:
        case "vault":
            from sealgate.certificate.vault_key import VaultKey

            return VaultKey.open(path)
        case "awskms":
            from sealgate.certificate.aws_kms_key import AwsKmsKey

            return AwsKmsKey.open(path)
        case "gcpkms":
            from sealgate.certificate.google_kms_key import GoogleKmsKey

            return GoogleKmsKey.open(path)
        case _:
            from sealgate.certificate.azure_key import AzureKey

            return AzureKey.open(path)


def open_key_ring(sources: Iterable[str], *, folder: Path = Path()) -> KeyRing:
    """All keys of the sources; raises ConfigurationError."""
    listed = tuple(sources)
    if len(listed) > MAX_WRAPPING_KEYS:
        raise ConfigurationError(f"more than {MAX_WRAPPING_KEYS} keys for models are named")
    return KeyRing(tuple(open_key(source, folder=folder) for source in listed))


def read_secret(path: Path) -> Secret:
    """The 32 bytes of a private key file; raises ConfigurationError."""
    return _parse(read_private(path), str(path))


def write_new_key(path: Path, *, entropy: Entropy = random_bytes) -> LocalKey:
    """Draw a key and write it, as `write_new_secret` does."""
    return LocalKey.of(write_new_secret(path, entropy=entropy))


def write_new_secret(path: Path, *, entropy: Entropy = random_bytes) -> Secret:
    """Draw 32 bytes and write them, mode 0600 from the first moment. Raises ConfigurationError if the file exists."""
    secret = Secret(entropy(DATA_KEY))
    try:
        write_new(path, base64.b64encode(secret.reveal()) + b"\n", mode=0o600)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists; a key is never written over") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    return secret


def read_private(path: Path, *, limit: int = MAX_WRAPPING_KEY_FILE) -> bytes:
    """A small file that its owner alone may read; raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if os.name == "posix" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(f"{path} can be read by others; mend it with: chmod 600 {path}")
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"the key {path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigurationError(f"{path} is too large to be a key")
    return data


def _parse(text: bytes, where: str) -> Secret:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigurationError(f"{where} is not base64 of a key; `sealgate models new-key FILE` makes one") from error
    if len(raw) != DATA_KEY:
        raise ConfigurationError(f"{where} must hold {DATA_KEY} bytes in base64; `sealgate models new-key` makes one")
    return Secret(raw)
