"""Adds `model.sig` (OpenSSF model signing) to a bundle that is there.

Trusts: publishers, and the owner of the key. Never: signs a bundle that it did not verify before; of an encrypted one
it signs the digest of the weights that the publisher signed.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from sealgate.certificate.bundle import VerifiedStatements, sha256_hex
from sealgate.certificate.files import MODEL_SIGNATURE, WEIGHTS, open_folder
from sealgate.certificate.model_signature import sign_model, verify_model_signature
from sealgate.certificate.opening import as_far_as_possible
from sealgate.certificate.placing import place_file
from sealgate.certificate.publishers import Publishers, publishers_of


def sign_bundle(directory: Path, publishers: Publishers, key: EllipticCurvePrivateKey) -> VerifiedStatements:
    """Write `model.sig`, in the place of an older one; raises CertificateError or OSError."""
    known = publishers_of({one.name: one.key for one in publishers.by_keyid.values()})  # an old model.sig may be wrong
    said = as_far_as_possible(directory, known, ())
    with open_folder(directory) as folder:
        digests = {name: sha256_hex(folder.read(name)) for name in folder.check_listing().plain}
    digests[WEIGHTS] = said.weights_digest
    data = sign_model(said.manifest.name, digests, key)
    verify_model_signature(data, digests, key.public_key())
    place_file(directory.resolve(), MODEL_SIGNATURE, data)
    return said
