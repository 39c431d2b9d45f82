"""For people who look at bundles: verified whole where a key is at hand, or else as far as that goes without, and said.

Trusts: publishers. Never: lets weights that were not opened pass for verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sealgate.certificate.bundle import VerifiedBundle, VerifiedStatements, verify_bundle, verify_statements
from sealgate.certificate.files import open_folder
from sealgate.certificate.publishers import Publishers


def whole(directory: Path, publishers: Publishers, keys: Sequence[str]) -> VerifiedBundle:
    """All eight steps, with the keys of these sources; raises CertificateError or ConfigurationError."""
    from sealgate.certificate.wrapping_keys import open_key_ring

    return verify_bundle(directory, publishers, data_key=open_key_ring(keys).unwrap)


def as_far_as_possible(directory: Path, publishers: Publishers, keys: Sequence[str]) -> VerifiedStatements:
    """All eight steps; of an encrypted bundle, where no key was given, its statements alone."""
    with open_folder(directory) as folder:
        locked = folder.check_listing().encrypted
    return verify_statements(directory, publishers) if locked and not keys else whole(directory, publishers, keys)


def words_about_weights(said: VerifiedStatements) -> str:
    """For a line about the bundle; "" where the weights are plain and verified."""
    if not said.locked_under:
        return ""
    checked = "opened and verified" if isinstance(said, VerifiedBundle) else "NOT opened: say --key to verify them too"
    return f"weights encrypted under key {said.locked_under}, {checked}"
