"""What `sealgate models new-key | encrypt | decrypt | rewrap | sign` do. The work is in `encryption.py`, `signing.py`.

Trusts: what a person names. Never: prints a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sealgate.certificate.encryption import decrypt_bundle, encrypt_bundle, rewrap_bundle
from sealgate.certificate.model_signature import load_model_signing_key, public_text
from sealgate.certificate.publishers import Publishers
from sealgate.certificate.signing import sign_bundle
from sealgate.certificate.wrapping_keys import KNOWN_SOURCES, open_key, open_key_ring, write_new_key
from sealgate.errors import ConfigurationError
from sealgate.terminal import printable


def new_key(path: Path) -> int:
    """Draw a wrapping key."""
    key = write_new_key(path)
    print(f"key {key.name} is in {path}, mode 0600: keep a copy, without it encrypted models are lost")
    print(f'a runtime uses it after this line in deployment.toml, under [models]: keys = ["file:{path.resolve()}"]')
    return 0


def encrypt(directory: Path, publishers: Publishers, sources: Sequence[str]) -> int:
    """Encrypt one bundle in its place."""
    if len(sources) != 1:
        raise ConfigurationError(f"name the key to encrypt under with --key, once: {KNOWN_SOURCES}")
    bundle = encrypt_bundle(directory, publishers, open_key(sources[0]))
    print(printable(f"{directory} is encrypted under key {bundle.locked_under}, verified with it"))
    print("what stood there in plain was deleted; disks and backups may still hold it")
    return 0


def decrypt(directory: Path, publishers: Publishers, sources: Sequence[str]) -> int:
    """Write one bundle's weights in plain again."""
    decrypt_bundle(directory, publishers, open_key_ring(sources))
    print(printable(f"{directory} is in plain again, and verified"))
    return 0


def rewrap(directory: Path, publishers: Publishers, sources: Sequence[str], *, to: str) -> int:
    """Change the wrapping key of one bundle."""
    bundle = rewrap_bundle(directory, publishers, open_key_ring(sources), to=open_key(to))
    print(printable(f"{directory} is under key {bundle.locked_under} now; its weights were not encrypted anew"))
    print("whoever kept the old model.key and the old key can still open them")
    return 0


def sign(directory: Path, publishers: Publishers, key_file: Path) -> int:
    """Add `model.sig` to one bundle."""
    key = load_model_signing_key(key_file)
    said = sign_bundle(directory, publishers, key)
    print(
        printable(f"{directory / 'model.sig'} signs {said.facts.name} {said.facts.version} for OpenSSF model signing")
    )
    print(f'it is checked after this line in publishers.toml: model_signing_key = "{public_text(key.public_key())}"')
    return 0
