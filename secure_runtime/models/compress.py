"""From a verified bundle to one with weights in fewer bits: measured beside the original, signed by the same publisher.

The new weights are a function of the old ones alone (`sealgate.certificate.compressing`), so epsilon stays what it was.
How well the new model does on rows whose truth is known is one more release, as it was for the original: the
certificate says that epsilon does not cover it. Rows that the model was trained on must not be used for it.

Trusts: the owner of the publisher's key. Never: writes weights in plain where the original's are encrypted, or puts a
bundle in place that a worker would refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.ambient import Clock, now_us
from sealgate.certificate.architectures import FrozenEncoderSpec
from sealgate.certificate.architectures.frozen_encoder import FROZEN_PREFIX
from sealgate.certificate.bundle import VerifiedBundle, sha256_hex, verify_bundle
from sealgate.certificate.compressing import compress_weights
from sealgate.certificate.compression import Compression
from sealgate.certificate.derivation import derivation_words
from sealgate.certificate.encryption import encrypted_files
from sealgate.certificate.files import (
    CERTIFICATE,
    MANIFEST,
    ORIGINAL_CERTIFICATE,
    ORIGINAL_MANIFEST,
    WEIGHTS,
    open_folder,
)
from sealgate.certificate.manifest import Manifest, manifest_bytes
from sealgate.certificate.placing import place_bundle
from sealgate.certificate.publishers import Publishers, key_id
from sealgate.certificate.publishing import signed_files
from sealgate.certificate.schema import Certificate, Derivation, Measured, Release
from sealgate.certificate.weights import COMPRESSED, frozen_digest
from sealgate.certificate.wrapping_keys import KeyRing, WrappingKey
from sealgate.errors import ConfigurationError
from secure_runtime.models.comparison import Comparison, compare
from secure_runtime.models.known_rows import read_known_rows
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.weights import module_from_weights

_MICRO = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be made. An empty name, version or arithmetic: the original's (the version with the kind behind it).

    `wrapping` is the key that encrypted weights are wrapped under again.
    """

    kind: str
    out: Path
    name: str = ""
    version: str = ""
    arithmetic: str = ""
    test: Path | None = None
    max_loss: Decimal | None = None  # of accuracy or R2
    replace: bool = False
    wrapping: WrappingKey | None = None


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What was made, and how it compares."""

    bundle: VerifiedBundle
    comparison: Comparison
    bytes_before: int
    bytes_after: int


def compress_bundle(
    original: VerifiedBundle,
    asked: Asked,
    *,
    key: Ed25519PrivateKey,
    publishers: Publishers,
    clock: Clock = now_us,
) -> Compressed:
    """Make, measure, judge, sign, verify and place; raises CertificateError, ConfigurationError or OSError."""
    _require_possible(original, asked, key, publishers)
    weights = compress_weights(original.weights, asked.kind)
    manifest = _manifest(original.manifest, asked, weights)
    before, after = (
        Predictor(one, module_from_weights(one.architecture, data, compression=one.compressed))
        for one, data in ((original.manifest, original.weights), (manifest, weights))
    )
    known = None if asked.test is None else read_known_rows(asked.test, original.manifest)
    comparison = compare(manifest, before, after, known)
    _require_little_loss(comparison, asked.max_loss)
    measured, was = _measured(comparison, original.certificate.epsilon_micro)
    certificate = _certificate(original, manifest, weights, measured=measured, was=was, how=asked.kind, now=clock())
    files = signed_files(
        key,
        weights=weights,
        manifest=manifest_bytes(manifest),
        certificate=certificate,
        card="\n".join(_card(original, manifest, certificate, comparison)),
        beside=_original_files(original),
    )
    pieces: dict[str, Iterable[bytes]] = {name: (data,) for name, data in files.items()}
    if asked.wrapping is not None:
        del pieces[WEIGHTS]
        pieces |= encrypted_files(weights, sha256=sha256_hex(weights), key=asked.wrapping)
    ring = KeyRing(() if asked.wrapping is None else (asked.wrapping,))
    bundle = place_bundle(asked.out, pieces, check=lambda path: verify_bundle(path, publishers, data_key=ring.unwrap))
    placed = dataclasses.replace(bundle, directory=asked.out)
    return Compressed(placed, comparison, len(original.weights), len(weights))


def _require_possible(original: VerifiedBundle, asked: Asked, key: Ed25519PrivateKey, publishers: Publishers) -> None:
    publisher = publishers.find(key_id(key.public_key()))
    if publisher is None or publisher.name != original.publisher:
        raise ConfigurationError(
            f"the bundle was published by '{original.publisher}': compress it with that publisher's key, or its "
            "certificate would not be carried over"
        )
    if original.certificate.derived is not None:
        raise ConfigurationError(f"{original.directory} is compressed already; compress what it was made from")
    if original.locked_under and asked.wrapping is None:
        raise ConfigurationError("the original's weights are encrypted: name one key to wrap the new ones under")
    if asked.out.exists() and not asked.replace:
        raise ConfigurationError(f"{asked.out} exists; name another --out, or say --replace")
    if asked.out.resolve() == original.directory.resolve():
        raise ConfigurationError("the compressed bundle needs another place than its original")
    if asked.max_loss is not None and asked.test is None:
        raise ConfigurationError("--max-loss needs rows whose truth is known: name them with --test FILE.csv")


def _manifest(manifest: Manifest, asked: Asked, weights: bytes) -> Manifest:
    frozen = isinstance(manifest.architecture, FrozenEncoderSpec)
    digest = frozen_digest(weights, prefix=FROZEN_PREFIX, dtypes=COMPRESSED) if frozen else ""
    return msgspec.structs.replace(
        manifest,
        name=asked.name or manifest.name,
        version=asked.version or f"{manifest.version}+{asked.kind}",
        arithmetic=asked.arithmetic or manifest.arithmetic,
        compression=Compression(kind=asked.kind, frozen_digest=digest),
    )


def _require_little_loss(comparison: Comparison, most: Decimal | None) -> None:
    before, after = comparison.before.quality, comparison.after.quality
    if most is None or before is None or after is None:
        return
    lost = before.value - after.value
    if not lost <= float(most):  # so that a figure that is no number does not pass
        raise ConfigurationError(
            f"nothing was written: {before.measure} fell from {before.value:.4f} to {after.value:.4f} on "
            f"{after.rows} rows, which is more than --max-loss {most}"
        )


def _measured(comparison: Comparison, epsilon_micro: int) -> tuple[tuple[Measured, ...], Measured | None]:
    before, after = comparison.before.quality, comparison.after.quality
    if before is None or after is None:
        return (), None
    return (after.measured(epsilon_micro=epsilon_micro),), before.measured(epsilon_micro=epsilon_micro)


def _certificate(
    original: VerifiedBundle,
    manifest: Manifest,
    weights: bytes,
    *,
    measured: tuple[Measured, ...],
    was: Measured | None,
    how: str,
    now: int,
) -> Certificate:
    claimed = original.certificate
    released = (
        ()
        if was is None
        else (
            Release(
                what=f"{was.measure} of the model and of its original on {was.rows} rows, when it was compressed",
                where="certificate, card, terminal",
                covered=False,
            ),
        )
    )
    return msgspec.structs.replace(
        claimed,
        model=manifest.name,
        version=manifest.version,
        issued=max(claimed.issued, datetime.fromtimestamp(now // _MICRO, UTC).date().isoformat()),
        weights_digest=sha256_hex(weights),
        manifest_digest=sha256_hex(manifest_bytes(manifest)),
        measured=measured,
        releases=(*claimed.releases, *released),
        derivation=Derivation(
            how=how,
            weights_digest=original.weights_digest,
            manifest_digest=claimed.manifest_digest,
            certificate_digest=original.certificate_digest,
            bytes_before=len(original.weights),
            bytes_after=len(weights),
            original=was,
        ),
    )


def _original_files(original: VerifiedBundle) -> dict[str, bytes]:
    """Read again; the new bundle is verified with them, so that what changed meanwhile is found."""
    with open_folder(original.directory) as folder:
        return {ORIGINAL_CERTIFICATE: folder.read(CERTIFICATE), ORIGINAL_MANIFEST: folder.read(MANIFEST)}


def _card(
    original: VerifiedBundle, manifest: Manifest, certificate: Certificate, comparison: Comparison
) -> Iterable[str]:
    derived = certificate.derived
    assert derived is not None
    yield from (f"# {manifest.name} {manifest.version}", "", manifest.description, "")
    yield f"- Made from {original.manifest.name} {original.manifest.version}: {derivation_words(derived)}"
    yield "- Its privacy certificate is the original's, repeated: what is computed from weights alone costs nothing"
    for side, what in ((comparison.before, "Original"), (comparison.after, "Compressed")):
        if side.quality is not None:
            yield f"- {what}: {side.quality}"
    rows = "made-up rows from the public ranges of its inputs" if comparison.made_up else "rows"
    yield f"- Same labels on {comparison.alike:.1%} of {comparison.rows} {rows}; scores or values differ by at most "
    yield f"  {comparison.furthest:.3g}"
    yield from ("", "Check it against its original with `sealgate models verify --original`.", "")
