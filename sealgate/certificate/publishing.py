"""The signed files of a bundle, from its parts: for whoever makes models, and for whoever makes models of models.

Trusts: the owner of the key. Never: writes a file; `placing.py` does, after it was verified as a worker will verify it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealgate.certificate.dsse import sign_envelope
from sealgate.certificate.files import CARD, CERTIFICATE, MANIFEST, SIGNATURE, WEIGHTS
from sealgate.certificate.schema import Certificate
from sealgate.certificate.statement import BundleFiles, bundle_statement, certificate_statement
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_SIGNING_KEY_FILE


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The publisher's key (PKCS#8 PEM, Ed25519); raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIGNING_KEY_FILE)
        key = load_pem_private_key(data, password=None)
    except OSError as error:
        raise ConfigurationError(
            f"the publisher key {path} cannot be read: {error.strerror}; `sealgate init STATE` makes one, for "
            "--key STATE/publisher.key"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not an unencrypted PKCS#8 PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key; `sealgate init` makes one")
    return key


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """Lowercase hex SHA-256 by name."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def signed_files(
    key: Ed25519PrivateKey,
    *,
    weights: bytes,
    manifest: bytes,
    certificate: Certificate,
    card: str,
    beside: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """Every file of a plain bundle by name; the certificate is signed as it is given. `beside` are files that the
    bundle has besides the usual ones, and that are signed with them."""
    files = {WEIGHTS: weights, MANIFEST: manifest, CARD: card.encode(), **(beside or {})}
    about = {name: digest for name, digest in digests_of(files).items() if name in (WEIGHTS, MANIFEST)}
    files[CERTIFICATE] = sign_envelope(certificate_statement(certificate, about), key)
    names = BundleFiles(name=certificate.model, version=certificate.version)
    return {**files, SIGNATURE: sign_envelope(bundle_statement(names, digests_of(files)), key)}
