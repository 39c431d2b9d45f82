"""Encrypting and decrypting whole bundles, and changing the key that they are wrapped under.

The bundle is verified before and after. Changing the key rewrites `model.key` alone: the data key and the encrypted
weights stay, so whoever kept an old `model.key` and the old wrapping key can still open them. To end that, decrypt and
encrypt anew. What lay on the disk in plain is deleted, not wiped: disks and their backups may keep it.

Trusts: publishers and the keys it is given. Never: writes plain weights but where `decrypt_bundle` is asked to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from sealgate.certificate.bundle import VerifiedBundle, verify_bundle
from sealgate.certificate.files import KEY, MODEL_SIGNATURE, SEALED_WEIGHTS, WEIGHTS, open_folder
from sealgate.certificate.key_envelope import describe_weights, parse_envelope
from sealgate.certificate.placing import place_bundle, place_file
from sealgate.certificate.publishers import Publishers
from sealgate.certificate.sealed_weights import new_data_key, seal_weights
from sealgate.certificate.wrapping_keys import KeyRing, WrappingKey, wrapped_for
from sealgate.errors import ConfigurationError


def encrypted_files(weights: bytes, *, sha256: str, key: WrappingKey) -> dict[str, Iterable[bytes]]:
    """The two files that stand for the weights, under a fresh data key."""
    described, data_key = describe_weights(size=len(weights), sha256=sha256), new_data_key()
    return {
        SEALED_WEIGHTS: seal_weights(weights, described, data_key),
        KEY: (wrapped_for(key, described, data_key),),
    }


def encrypt_bundle(directory: Path, publishers: Publishers, key: WrappingKey) -> VerifiedBundle:
    """Replace a plain bundle by itself, encrypted; raises CertificateError, ConfigurationError or OSError."""
    with open_folder(directory) as folder:
        if folder.check_listing().encrypted:
            raise ConfigurationError(f"{directory} is encrypted already; change its key with: sealgate models rewrap")
    bundle = verify_bundle(directory, publishers)
    files = _small_files(directory) | encrypted_files(bundle.weights, sha256=bundle.weights_digest, key=key)
    ring = KeyRing((key,))
    return _placed(directory, files, publishers, ring)


def decrypt_bundle(directory: Path, publishers: Publishers, ring: KeyRing) -> VerifiedBundle:
    """Replace an encrypted bundle by itself, in plain; raises CertificateError, ConfigurationError or OSError."""
    bundle = verify_bundle(directory, publishers, data_key=ring.unwrap)
    if not bundle.locked_under:
        raise ConfigurationError(f"{directory} is not encrypted")
    files = _small_files(directory) | {WEIGHTS: (bundle.weights,)}
    return _placed(directory, files, publishers, ring)


def rewrap_bundle(directory: Path, publishers: Publishers, ring: KeyRing, *, to: WrappingKey) -> VerifiedBundle:
    """Wrap the data key under another key, in place; the encrypted weights are read and left as they are."""
    bundle = verify_bundle(directory, publishers, data_key=ring.unwrap)
    if not bundle.locked_under:
        raise ConfigurationError(f"{directory} is not encrypted; encrypt it with: sealgate models encrypt")
    with open_folder(directory) as folder:
        envelope = parse_envelope(folder.read(KEY))
    place_file(directory.resolve(), KEY, wrapped_for(to, envelope.weights, ring.unwrap(envelope)))
    return verify_bundle(directory, publishers, data_key=KeyRing((to,)).unwrap)


def _placed(
    directory: Path, files: dict[str, Iterable[bytes]], publishers: Publishers, ring: KeyRing
) -> VerifiedBundle:
    target = directory.resolve()
    bundle = place_bundle(target, files, check=lambda path: verify_bundle(path, publishers, data_key=ring.unwrap))
    return dataclasses.replace(bundle, directory=directory)


def _small_files(directory: Path) -> dict[str, Iterable[bytes]]:
    """What stays. Signatures decide whether it is still what was verified: the new bundle is verified as well."""
    with open_folder(directory) as folder:
        listing = folder.check_listing()
        kept = [*listing.plain, *((MODEL_SIGNATURE,) if listing.model_signature else ())]
        return {name: (folder.read(name),) for name in kept}
