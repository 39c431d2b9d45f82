"""A certificate carried over: from the weights it was made for to weights that were made of those, without data.

Post-processing never weakens differential privacy, so the figures of the original stand for what was made of its
weights. That is worth as much as the link, so nothing of the claim may differ:

    1  manifest, certificate and folder say alike that there is an original
    2  the same publisher signed the original's certificate, over the manifest and the weights that are named here
    3  the original was itself made by a mechanism, not from a third model
    4  the certificate repeats the original's, but for names, dates, digests and what was measured
    5  the manifest repeats the original's, but for names, arithmetic and the compression

What is left to the publisher's word, that the weights are the compressed original, anybody who has the original can
check: `require_compressed` makes them again. Trusts: the publishers. Never: recomputes epsilon; the bundle's own
certificate has all that it follows from, and `bundle.py` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from sealgate.certificate.agreement import check_agreement
from sealgate.certificate.compressing import compress_weights
from sealgate.certificate.dsse import open_envelope
from sealgate.certificate.files import MANIFEST, ORIGINAL_CERTIFICATE, ORIGINAL_MANIFEST, WEIGHTS
from sealgate.certificate.manifest import Manifest, parse_manifest
from sealgate.certificate.measured import check_measured, interval_text
from sealgate.certificate.publishers import Publisher, Publishers
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Certificate, Derivation
from sealgate.certificate.statement import parse_certificate_statement
from sealgate.limits import MAX_CERTIFICATE, MAX_WEIGHTS


def check_derivation(
    manifest: Manifest,
    certificate: Certificate,
    files: Mapping[str, bytes],
    *,
    publisher: Publisher,
    publishers: Publishers,
) -> Derivation | None:
    """The derivation of a bundle that has one, after the checks above; raises CertificateError.

    `files` are the bundle's small files, signed by `publisher`.
    """
    derived, compression = certificate.derived, manifest.compressed
    if derived is None and compression is None and ORIGINAL_CERTIFICATE not in files:
        return None
    if derived is None or compression is None or ORIGINAL_CERTIFICATE not in files or derived.how != compression.kind:
        raise refusal("derivation", "manifest, certificate and files differ about what the model was made from")
    original = _original_certificate(files[ORIGINAL_CERTIFICATE], derived, publisher=publisher, publishers=publishers)
    if hashlib.sha256(files[ORIGINAL_MANIFEST]).hexdigest() != derived.manifest_digest:
        raise refusal("derivation", "the original's manifest is not the one that its certificate names")
    original_manifest = parse_manifest(files[ORIGINAL_MANIFEST])
    if original.derived is not None or original_manifest.compressed is not None:
        raise refusal("derivation", "the original was made from a third model itself")
    check_agreement(original_manifest, original)
    if _as_original(certificate, original) != original or certificate.issued < original.issued:
        raise refusal("derivation", "the certificate claims something else than the original's")
    like = msgspec.structs.replace(
        manifest,
        name=original_manifest.name,
        version=original_manifest.version,
        arithmetic=original_manifest.arithmetic,
        compression=msgspec.UNSET,
    )
    if like != original_manifest:
        raise refusal("derivation", "the manifest describes another model than the original's")
    _check_figures(derived, certificate)
    return derived


def _original_certificate(
    data: bytes, derived: Derivation, *, publisher: Publisher, publishers: Publishers
) -> Certificate:
    if hashlib.sha256(data).hexdigest() != derived.certificate_digest:
        raise refusal("derivation", "the original's certificate is not the one that was named")
    signed = open_envelope(data, publishers, limit=MAX_CERTIFICATE, signature_code="certificate-signature")
    if signed.publisher != publisher:
        raise refusal("publisher-mismatch", "the model and its original are signed by different publishers")
    original, subjects = parse_certificate_statement(signed.payload)
    named = {WEIGHTS: derived.weights_digest, MANIFEST: derived.manifest_digest}
    stated = {WEIGHTS: original.weights_digest, MANIFEST: original.manifest_digest}
    if not subjects == named == stated:
        raise refusal("derivation", "the original's certificate is about other files than were named")
    return original


def _as_original(certificate: Certificate, original: Certificate) -> Certificate:
    """The certificate with all that may differ put back; equal to the original if nothing else does."""
    if certificate.releases[: len(original.releases)] != original.releases:
        raise refusal("derivation", "the certificate leaves out what the original's says was released")
    return msgspec.structs.replace(
        certificate,
        model=original.model,
        version=original.version,
        issued=original.issued,
        weights_digest=original.weights_digest,
        manifest_digest=original.manifest_digest,
        measured=original.measured,
        releases=original.releases,
        derivation=msgspec.UNSET,
    )


def _check_figures(derived: Derivation, certificate: Certificate) -> None:
    if not (0 < derived.bytes_after <= MAX_WEIGHTS and 0 < derived.bytes_before <= MAX_WEIGHTS):
        raise refusal("derivation", "the sizes of the weights are out of range")
    if derived.weights_digest == certificate.weights_digest:
        raise refusal("derivation", "the model is its own original")
    before, after = derived.original, certificate.measured[:1]
    if before is None:
        return
    check_measured((before,), epsilon_micro=certificate.epsilon_micro)
    if not after or (before.measure, before.rows) != (after[0].measure, after[0].rows):
        raise refusal("derivation", "the original was measured on other rows")


def require_compressed(
    certificate: Certificate,
    weights: bytes,
    *,
    original_certificate_digest: str,
    original_weights: bytes,
) -> str:
    """What was found, in words, if these weights are exactly the original's, compressed; raises CertificateError."""
    derived = certificate.derived
    if derived is None or derived.certificate_digest != original_certificate_digest:
        raise refusal("derivation", "the bundle does not say that it was made from this original")
    if compress_weights(original_weights, derived.how) != weights:
        raise refusal("derivation", "the weights are not what compressing the original gives")
    return f"compressing the original's weights to {derived.how} again gives the same {len(weights)} bytes"


def measured_words(derived: Derivation) -> list[str]:
    """How the original did on the same rows, as a line; nothing where that was not measured."""
    one = derived.original
    return [] if one is None else [f"the original on the same {one.rows} rows: {one.measure} {interval_text(one)}"]


def derivation_words(derived: Derivation) -> str:
    """One line for people."""
    return (
        f"{derived.how} of weights SHA-256 {derived.weights_digest[:16]}..., without data: "
        f"{derived.bytes_before} bytes became {derived.bytes_after} ({derived.bytes_after / derived.bytes_before:.0%})"
    )
