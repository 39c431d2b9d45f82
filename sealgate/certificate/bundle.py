"""A model bundle on disk, and the one way to trust it.

    model.safetensors        weights, FP32
    manifest.json            what the model is, what goes in and out
    certificate.dsse.json    the privacy certificate over weights and manifest, signed
    card.md                  the same for people
    bundle.sig               a signed list of the four files above

Compressed weights (compression.py) have the certificate of what they were made from; then `original.dsse.json` and
`original.json` lie beside it and are signed with the rest (derivation.py).

In an encrypted bundle `model.safetensors.sealed` and `model.key` stand for the first; everything signed names the
plain weights. `model.sig` may stand beside them, for tools that know OpenSSF model signing; it is checked where
publishers.toml has a key for it, together with the third step.

`verify_bundle` goes from cheap to costly, and each file is read once: what was verified is what is used afterwards.

    1  the directory holds exactly these plain files, none of them a pickle, none too large
    2  bundle.sig is signed by an accepted publisher
    3  manifest, card and certificate are the signed ones
    4  the certificate is signed by the same publisher and names these weights and this manifest
    5  the manifest is well-formed and agrees with the certificate, and both with the original, if there is one
    6  the certificate's claims can carry an epsilon (claims.py)
    7  the weights, decrypted if need be, are the signed ones, and are exactly the tensors that the manifest declares
    8  epsilon, recomputed, is not above the stated one

`verify_statements` leaves out the seventh, for those who must not hold the key of the weights.

Trusts: the publishers. Never: unpickles, follows links, or writes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sealgate.certificate.accounting.account import Account
from sealgate.certificate.agreement import check_agreement
from sealgate.certificate.architectures.frozen_encoder import FROZEN_PREFIX, FrozenEncoderSpec
from sealgate.certificate.audits import audit_words
from sealgate.certificate.claims import check_claims
from sealgate.certificate.decimals import micro_text
from sealgate.certificate.derivation import check_derivation, derivation_words
from sealgate.certificate.dsse import SignedPayload, open_envelope
from sealgate.certificate.files import (
    CARD,
    CERTIFICATE,
    KEY,
    MANIFEST,
    MODEL_SIGNATURE,
    ORIGINAL_CERTIFICATE,
    ORIGINAL_MANIFEST,
    SEALED_WEIGHTS,
    SIGNATURE,
    WEIGHTS,
    BundleFolder,
    Listing,
    open_folder,
)
from sealgate.certificate.key_envelope import KeyEnvelope, parse_envelope
from sealgate.certificate.manifest import Manifest, parse_manifest
from sealgate.certificate.mechanisms import name_of
from sealgate.certificate.model_signature import verify_model_signature
from sealgate.certificate.publishers import Publishers
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Certificate
from sealgate.certificate.sealed_weights import DataKeyOf, no_data_key, sealed_size, unseal_weights
from sealgate.certificate.statement import BundleFiles, parse_bundle_statement, parse_certificate_statement
from sealgate.certificate.weights import COMPRESSED, PLAIN, frozen_digest, parse_weights_header
from sealgate.limits import MAX_CERTIFICATE
from sealgate.protocol.frames import ModelFacts

_DIGEST_CODES = {
    WEIGHTS: "weights-digest",
    MANIFEST: "manifest-digest",
    CERTIFICATE: "certificate-digest",
    CARD: "file-digest",
    ORIGINAL_CERTIFICATE: "file-digest",
    ORIGINAL_MANIFEST: "file-digest",
}

_COUNTS = {5: "five", 6: "six", 7: "seven", 8: "eight"}

Told = Callable[[str, str], None]
"""Is told each step that held: its name and, in plain words, what was found."""


@dataclass(frozen=True)
class VerifiedStatements:
    """What a bundle says, after all steps but the seventh; made only here.

    Holding one proves: an accepted publisher signed exactly these statements, and the epsilon they state is not below
    what their mechanism gives. It proves nothing about the file of weights beside them, nor that the publisher really
    trained that way.
    """

    directory: Path
    manifest: Manifest
    certificate: Certificate
    publisher: str
    publisher_key: str  # hex SHA-256, as in publishers.toml
    signature_digest: str  # of bundle.sig: it names every file
    weights_digest: str
    certificate_digest: str
    facts: ModelFacts
    locked_under: str  # the name of the key that its weights are encrypted under; "": they are not
    model_signed: bool  # model.sig is there and holds under the publisher's key for it


@dataclass(frozen=True)
class VerifiedBundle(VerifiedStatements):
    """A bundle that passed all eight steps; made only by `verify_bundle`. The weights are the signed ones, too."""

    weights: bytes = field(repr=False)  # the verified bytes: load these, not the file


def sha256_hex(data: bytes) -> str:
    """Lowercase hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def _silent(_step: str, _detail: str) -> None:
    """Tells nobody."""


def verify_bundle(
    directory: Path, publishers: Publishers, *, told: Told = _silent, data_key: DataKeyOf = no_data_key
) -> VerifiedBundle:
    """Run the eight steps; returns the verified bundle or raises CertificateError with a code from `refusals.py`.

    `data_key` finds the key of encrypted weights, and is asked only for weights that the statements are about.
    """
    with open_folder(directory) as folder:
        listing = folder.check_listing()  # 1
        checked = _check_statements(folder, listing, publishers, told)
        weights = _read_weights(folder, checked.envelope, data_key)
    _check_weights(weights, checked.digests[WEIGHTS], checked.manifest)  # 7
    locked = f", encrypted under key {checked.envelope.key}" if checked.envelope else ""
    told("weights", f"SHA-256 {checked.digests[WEIGHTS][:16]}..., exactly the tensors of the architecture{locked}")
    said = _finish(directory, checked, told)
    return VerifiedBundle(**vars(said), weights=weights)


def verify_statements(directory: Path, publishers: Publishers, *, told: Told = _silent) -> VerifiedStatements:
    """Every step but the seventh; needs no key and reads no weights. Raises CertificateError."""
    with open_folder(directory) as folder:
        checked = _check_statements(folder, folder.check_listing(), publishers, told)
    return _finish(directory, checked, told)


def signed_facts(directory: Path, publishers: Publishers) -> ModelFacts:
    """What the signed statements say, for whoever asks only what would be allowed: steps 1 to 6, so no weights are read
    and epsilon is not recomputed. Nothing is served by this. Raises CertificateError."""
    with open_folder(directory) as folder:
        checked = _check_statements(folder, folder.check_listing(), publishers, _silent)
    return _facts(checked.manifest, checked.certificate, checked.certificate_digest)


@dataclass(frozen=True)
class _Checked:
    """After step 6."""

    manifest: Manifest
    certificate: Certificate
    publisher: str
    publisher_key: str
    signature_digest: str
    digests: dict[str, str]
    certificate_digest: str
    account: Account
    envelope: KeyEnvelope | None
    model_signed: bool


def _check_statements(folder: BundleFolder, listing: Listing, publishers: Publishers, told: Told) -> _Checked:
    files = {name: folder.read(name) for name in listing.plain}
    count = len(files) + (2 if listing.encrypted else 1)
    told("files", f"exactly the {_COUNTS[count]} files of a bundle, no pickle, no link")
    signed, bundle, digests = _check_signature(files, listing, publishers)  # 2
    told("bundle signature", f"publisher '{signed.publisher.name}', key {signed.publisher.keyid[:16]}")
    _check_small_files(files, digests)  # 3
    told("files signed", "manifest, certificate and card are the signed ones")
    model_signed = False
    if listing.model_signature and (key := signed.publisher.model_signing_key) is not None:
        every = {**digests, SIGNATURE: sha256_hex(files[SIGNATURE])}
        verify_model_signature(folder.read(MODEL_SIGNATURE), every, key)
        model_signed = True
        told(
            "model signature", "model.sig (OpenSSF model signing) holds over the same files, under the publisher's key"
        )
    certificate = _check_certificate(files[CERTIFICATE], signed, publishers, digests)  # 4
    told("certificate signature", "same publisher, names these weights and this manifest")
    manifest = parse_manifest(files[MANIFEST])  # 5
    _check_agreement(manifest, certificate, bundle)
    told("manifest", f"{manifest.name} {manifest.version}: {manifest.family}")
    derived = check_derivation(manifest, certificate, files, publisher=signed.publisher, publishers=publishers)
    if derived is not None:
        told("made from", f"{derivation_words(derived)}; its certificate, by the same publisher, claims the same")
    account = check_claims(certificate)  # 6
    told("claims", "sampling as accounted, public constants, fresh randomness, steps within the declared")
    envelope = parse_envelope(folder.read(KEY)) if listing.encrypted else None
    if envelope is not None and envelope.weights.sha256 != digests[WEIGHTS]:
        raise refusal("key-envelope", "model.key is about other weights than the signed ones")
    return _Checked(
        manifest=manifest,
        certificate=certificate,
        publisher=signed.publisher.name,
        publisher_key=signed.publisher.keyid,
        signature_digest=sha256_hex(files[SIGNATURE]),
        digests=digests,
        certificate_digest=sha256_hex(files[CERTIFICATE]),
        account=account,
        envelope=envelope,
        model_signed=model_signed,
    )


def _read_weights(folder: BundleFolder, envelope: KeyEnvelope | None, data_key: DataKeyOf) -> bytes:
    if envelope is None:
        return folder.read(WEIGHTS)
    key = data_key(envelope)
    try:
        with folder.open(SEALED_WEIGHTS) as file:
            size = os.fstat(file.fileno()).st_size
            if size != sealed_size(envelope.weights):
                raise refusal(
                    "weights-sealed",
                    f"the encrypted weights are {size} bytes long instead of {sealed_size(envelope.weights)}",
                )
            return unseal_weights(file, envelope.weights, key)
    finally:
        key.wipe()


def _finish(directory: Path, checked: _Checked, told: Told) -> VerifiedStatements:
    certificate = checked.certificate
    _check_epsilon(certificate, checked.account, told)  # 8
    told("audit", audit_words(certificate.audit))
    return VerifiedStatements(
        directory=directory,
        manifest=checked.manifest,
        certificate=certificate,
        publisher=checked.publisher,
        publisher_key=checked.publisher_key,
        signature_digest=checked.signature_digest,
        weights_digest=checked.digests[WEIGHTS],
        certificate_digest=checked.certificate_digest,
        facts=_facts(checked.manifest, certificate, checked.certificate_digest),
        locked_under=checked.envelope.key if checked.envelope else "",
        model_signed=checked.model_signed,
    )


def _check_signature(
    files: dict[str, bytes], listing: Listing, publishers: Publishers
) -> tuple[SignedPayload, BundleFiles, dict[str, str]]:
    signed = open_envelope(files[SIGNATURE], publishers, limit=MAX_CERTIFICATE, signature_code="bundle-signature")
    bundle, digests = parse_bundle_statement(signed.payload)
    if set(digests) != set(listing.signed):
        raise refusal("statement-subject", "the bundle's signature does not list exactly the files of the bundle")
    return signed, bundle, digests


def _check_small_files(files: dict[str, bytes], digests: dict[str, str]) -> None:
    for name, digest in digests.items():
        if name != WEIGHTS and sha256_hex(files[name]) != digest:
            raise refusal(_DIGEST_CODES[name], f"{name!r} is not the file that was signed")


def _check_certificate(
    data: bytes, bundle: SignedPayload, publishers: Publishers, digests: dict[str, str]
) -> Certificate:
    signed = open_envelope(data, publishers, limit=MAX_CERTIFICATE, signature_code="certificate-signature")
    if signed.publisher != bundle.publisher:
        raise refusal("publisher-mismatch", "certificate and bundle are signed by different publishers")
    certificate, subjects = parse_certificate_statement(signed.payload)
    if set(subjects) != {WEIGHTS, MANIFEST}:
        raise refusal("statement-subject", "the certificate does not name exactly the weights and the manifest")
    for name, stated in ((WEIGHTS, certificate.weights_digest), (MANIFEST, certificate.manifest_digest)):
        if not subjects[name] == stated == digests[name]:
            raise refusal(_DIGEST_CODES[name], f"the certificate is about another {name!r}")
    return certificate


def _check_agreement(manifest: Manifest, certificate: Certificate, bundle: BundleFiles) -> None:
    if (manifest.name, manifest.version) != (bundle.name, bundle.version):
        raise refusal("manifest-inconsistent", "manifest, certificate and signature name different models")
    check_agreement(manifest, certificate)


def _check_weights(weights: bytes, digest: str, manifest: Manifest) -> None:
    if sha256_hex(weights) != digest:
        raise refusal("weights-digest", "the weights are not the ones that were signed")
    compression = manifest.compressed
    dtypes = COMPRESSED if compression else PLAIN
    found = {name: (place.dtype, place.shape) for name, place in parse_weights_header(weights, dtypes=dtypes).items()}
    if found != manifest.tensors():
        raise refusal("weights-shape", "the tensors are not those of the declared architecture")
    architecture = manifest.architecture
    if isinstance(architecture, FrozenEncoderSpec) and (
        frozen_digest(weights, prefix=FROZEN_PREFIX, dtypes=dtypes)
        != (compression.frozen_digest if compression else architecture.frozen_digest)
    ):
        raise refusal("weights-digest", "the frozen weights are not the public ones that the manifest names")


def _check_epsilon(certificate: Certificate, account: Account, told: Told) -> None:
    found = account.epsilon()
    told("mechanism", f"{name_of(certificate.mechanism)}: {account.words()}")
    unit = "row" if certificate.unit == "example" else certificate.unit
    for label, stated, recomputed in (
        (f"epsilon, one {unit} added or removed", certificate.epsilon_micro, found.add_remove_micro),
        (f"epsilon, one {unit} replaced", certificate.epsilon_replace_one_micro, found.replace_one_micro),
    ):
        if stated < recomputed:
            raise refusal(
                "epsilon-mismatch",
                f"{label}: the certificate states {micro_text(stated)}, its mechanism gives {micro_text(recomputed)}",
            )
        told(label, f"stated {micro_text(stated)}, recomputed {micro_text(recomputed)}")


def _facts(manifest: Manifest, certificate: Certificate, certificate_digest: str) -> ModelFacts:
    return ModelFacts(
        name=manifest.name,
        version=manifest.version,
        model_digest=certificate.weights_digest,
        certificate_digest=certificate_digest,
        epsilon_micro=certificate.epsilon_micro,
        delta=certificate.delta,
        privacy_unit=certificate.unit,
        sensitivity=manifest.sensitivity,
        purposes=manifest.purposes,
        audited=certificate.audit is not None,
    )
