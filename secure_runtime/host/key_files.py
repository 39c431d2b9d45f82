"""Reads the host's private key files, and makes the one that earlier deployments lack.

They must be private: a file that others can read is refused.

Trusts: the file system's permissions. Never: keeps the bytes longer than it takes to build the key; prints any of them.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sealgate.durable_files import write_new
from sealgate.errors import ConfigurationError
from sealgate.protocol.secrets import Secret
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import NoteSigner

_MAX_KEY_FILE = 16 * 1024


def _read_private(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(f"{path} can be read by others; mend it with: chmod 600 {path}")
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_KEY_FILE:
        raise ConfigurationError(f"{path} is too large to be a key")
    return data


def load_ed25519(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key in PKCS#8 PEM."""
    try:
        key = load_pem_private_key(_read_private(path), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key")
    return key


def load_note_signer(path: Path, origin: str) -> NoteSigner:
    """The log's signer under its origin's name."""
    return NoteSigner.from_seed(origin, Secret(load_ed25519(path).private_bytes_raw()))


def load_log_cosigner(path: Path, origin: str) -> Cosigner | None:
    """The log's ML-DSA-44 signer under its origin's name, from PKCS#8 PEM; None if there is no such file."""
    if not path.exists():
        return None
    try:
        key = load_pem_private_key(_read_private(path), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, MLDSA44PrivateKey):
        raise ConfigurationError(f"{path} is not an ML-DSA-44 key")
    return Cosigner(origin, key)


def make_log_mldsa_key(path: Path) -> None:
    """Write a new ML-DSA-44 key, private from its first moment. Raises ConfigurationError if there is one already."""
    pem = MLDSA44PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        write_new(path, pem, mode=0o600)
        if os.geteuid() == 0:  # the runtime that reads it may be somebody else: whoever owns the folder
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already; a key is never replaced by this command") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def load_subjects_key(path: Path) -> Secret:
    """32 bytes, base64: what pseudonyms are looked up and sealed with."""
    try:
        raw = base64.b64decode(_read_private(path).strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigurationError(f"{path} is not base64") from error
    if len(raw) != 32:
        raise ConfigurationError(f"{path} must hold 32 bytes")
    return Secret(raw)
