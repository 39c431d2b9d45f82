"""Asks a model the triggers of a key: one in a bundle, or one behind a gateway by nothing but its answers.

The owner's own bundle says which inputs there are and, by its signed commitment, that the key is not younger than it.
Trusts: the publishers of that bundle. Never: shows the key, a trigger or which answers agreed: those who know some can
unlearn them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sealgate.certificate.bundle import VerifiedStatements, verify_statements
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.opening import whole
from sealgate.certificate.report import find_publishers
from sealgate.certificate.wrapping_keys import read_secret, write_new_secret
from sealgate.client.session import Session
from sealgate.errors import ConfigurationError
from sealgate.terminal import printable
from training.fingerprint.evidence import Evidence, compare, least_matches
from training.fingerprint.triggers import Triggers, commitment_of, triggers_of


@dataclass(frozen=True)
class Claim:
    """An owner's bundle and the triggers of the key. `committed`: its certificate names the key."""

    bundle: VerifiedStatements
    triggers: Triggers = field(repr=False)
    committed: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, by number."""
        return _labels(self.bundle.manifest)


def _labels(manifest: Manifest) -> tuple[str, ...]:
    return next(output.labels for output in manifest.outputs if output.role == "label")


def new_key(path: Path) -> int:
    """Draw a key."""
    write_new_secret(path)
    print(f"the fingerprint's key is in {path}, mode 0600: keep it secret and keep a copy")
    return 0


def owner_of(directory: Path, publishers_file: Path | None, key_file: Path) -> Claim:
    """Read the owner's bundle and key; needs no weights. Raises CertificateError or ConfigurationError."""
    bundle = verify_statements(directory, find_publishers(directory, publishers_file))
    secret = read_secret(key_file)
    commitment = commitment_of(secret)
    committed = any(commitment in release.what for release in bundle.certificate.releases)
    return Claim(bundle, triggers_of(secret, bundle.manifest), committed)


def ask_bundle(owner: Claim, directory: Path, publishers_file: Path | None, *, keys: Sequence[str] = ()) -> Evidence:
    """Run a bundle's model on the triggers; raises CertificateError or ConfigurationError."""
    from secure_runtime.models.bundle import load_verified

    suspect = load_verified(whole(directory, find_publishers(directory, publishers_file), keys))
    if suspect.manifest.inputs != owner.bundle.manifest.inputs:
        raise ConfigurationError(f"{directory} takes other inputs than the owner's model: it cannot be asked")
    label = next(output.name for output in suspect.manifest.outputs if output.role == "label")
    answers = suspect.predict(owner.triggers.tensors())[label].numpy()
    return _by_name(owner, np.array(_labels(suspect.manifest))[answers])


def ask_session(owner: Claim, session: Session, model: str) -> Evidence:
    """Ask a model behind a gateway. Its operator sees one request of so many rows, and not which model is meant."""
    result = session.infer(model, dict(owner.triggers.inputs))
    if result.labels is None or len(result.labels) != len(owner.triggers):
        raise ConfigurationError(f"{model} does not answer with classes: it cannot be asked")
    return _by_name(owner, np.array(result.labels))


def _by_name(owner: Claim, said: NDArray[np.str_]) -> Evidence:
    """Answers count by the names of classes: a thief may have put them in another order."""
    numbers = {name: number for number, name in enumerate(owner.labels)}
    return compare(owner.triggers, np.array([numbers.get(str(name), -1) for name in said], dtype=np.int64))


def say(owner: Claim, evidence: Evidence) -> int:
    """For people; returns the exit code."""
    facts = owner.bundle.facts
    when = owner.bundle.certificate.issued
    print(printable(f"key of {facts.name} {facts.version}, whose certificate was issued {when}"))
    if owner.committed:
        print("  the certificate commits to this key: it was fixed when the bundle was signed")
    else:
        print("  the certificate does NOT commit to this key: it may have been chosen afterwards to fit")
    print(f"  {evidence}")
    needed = least_matches(evidence.count, evidence.classes)
    found = "shown" if evidence.shown else "NOT shown"
    print(f"fingerprint {found}: {needed} or more would be needed")
    return 0 if evidence.shown and owner.committed else 1
