"""A pipeline on disk, and the one way to trust it: several verified bundles that are one model by name.

    manifest.json            what the whole is: members by digest, who reads whom, inputs and outputs
    certificate.dsse.json    what the whole costs: the composition of its members' certificates, signed
    card.md                  the same for people
    bundle.sig               a signed list of these three and of every member's bundle.sig
    members/NAME/            each member, a bundle like any other

    1  the folder holds exactly these
    2  bundle.sig is signed by an accepted publisher and lists what lies there
    3  the certificate is by the same publisher, over this manifest and these members' weights
    4  each member is verified like any bundle, and is the one that was signed
    5  the members fit each other (wiring.py)
    6  epsilon, composed anew, is not above the stated one (composition.py)

Trusts: the publishers. Never: takes a member for what the pipeline says of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sealgate.certificate.architectures.pipeline import PipelineSpec
from sealgate.certificate.bundle import Told, VerifiedBundle, sha256_hex, verify_bundle
from sealgate.certificate.claims import is_date
from sealgate.certificate.composition import compose
from sealgate.certificate.decimals import micro_text, parse_decimal
from sealgate.certificate.dsse import SignedPayload, open_envelope
from sealgate.certificate.files import CARD, CERTIFICATE, MANIFEST, SIGNATURE, BundleFolder, open_folder
from sealgate.certificate.manifest import Manifest, parse_manifest
from sealgate.certificate.publishers import Publishers
from sealgate.certificate.refusals import refusal
from sealgate.certificate.repository import MEMBERS as MEMBERS
from sealgate.certificate.repository import is_pipeline as is_pipeline
from sealgate.certificate.schema import Composed, Composition
from sealgate.certificate.sealed_weights import DataKeyOf, no_data_key
from sealgate.certificate.statement import BundleFiles, parse_composition_statement, parse_pipeline_statement
from sealgate.certificate.wiring import check_wiring
from sealgate.errors import DecodeError
from sealgate.limits import MAX_CERTIFICATE, MAX_MEMBERS, MAX_PIPELINE_WEIGHTS
from sealgate.protocol.canonical import canonical_json
from sealgate.protocol.frames import ModelFacts

_FILES = (MANIFEST, CERTIFICATE, CARD, SIGNATURE)


@dataclass(frozen=True)
class VerifiedPipeline:
    """A pipeline that passed all six steps; made only by `verify_pipeline`. `members` are verified bundles by name."""

    directory: Path
    manifest: Manifest
    spec: PipelineSpec
    composition: Composition
    publisher: str
    certificate_digest: str
    facts: ModelFacts
    members: Mapping[str, VerifiedBundle] = field(repr=False)


def member_signature(name: str) -> str:
    """What `bundle.sig` of the pipeline calls a member."""
    return f"{MEMBERS}/{name}/{SIGNATURE}"


def weights_digest(manifest: bytes, members: Mapping[str, str]) -> str:
    """Of a whole pipeline: canonical JSON of its manifest's digest and each member's digest of weights."""
    return sha256_hex(canonical_json({"manifest": sha256_hex(manifest), "members": dict(members)}))


def _silent(_step: str, _detail: str) -> None:
    """Tells nobody."""


def verify_pipeline(
    directory: Path, publishers: Publishers, *, told: Told = _silent, data_key: DataKeyOf = no_data_key
) -> VerifiedPipeline:
    """Run the six steps; returns the verified pipeline or raises CertificateError."""
    with open_folder(directory) as folder:
        names = _check_listing(folder)  # 1
        files = {name: folder.read(name) for name in _FILES}
    told("files", f"exactly the files of a pipeline, and {len(names)} members")
    signed, digests = _check_signature(files, names, publishers)  # 2
    told("pipeline signature", f"publisher '{signed.publisher.name}', key {signed.publisher.keyid[:16]}")
    composition = _composition(files[CERTIFICATE], signed, publishers)  # 3
    manifest = parse_manifest(files[MANIFEST])
    spec = _check_manifest(manifest, composition, signed, files, digests, names)
    told("manifest", f"{manifest.name} {manifest.version}: members {', '.join(names)}")
    members: dict[str, VerifiedBundle] = {}
    for member in spec.members:  # 4
        members[member.name] = _member(directory / MEMBERS / member.name, member.bundle_digest, publishers, data_key)
        if sum(len(one.weights) for one in members.values()) > MAX_PIPELINE_WEIGHTS:  # before the next one is read
            raise refusal("file-too-large", "the weights of the members together are larger than a pipeline may hold")
        facts = members[member.name].facts
        told(f"member {member.name}", f"{facts.name} {facts.version}, epsilon {micro_text(facts.epsilon_micro)}")
    check_wiring(manifest, spec, {name: bundle.manifest for name, bundle in members.items()})  # 5
    told("wiring", "every member reads what it takes; nothing is left over")
    _check_composition(composition, spec, members, signed, files[MANIFEST])  # 6
    told("composition", f"epsilon {micro_text(composition.epsilon_micro)} at delta {composition.delta}, composed anew")
    digest = sha256_hex(files[CERTIFICATE])
    return VerifiedPipeline(
        directory=directory,
        manifest=manifest,
        spec=spec,
        composition=composition,
        publisher=signed.publisher.name,
        certificate_digest=digest,
        facts=_facts(manifest, composition, digest, members),
        members=members,
    )


def _check_listing(folder: BundleFolder) -> tuple[str, ...]:
    """The members' names, sorted. Their own folders are read when they are verified."""
    found, names = [], []
    try:
        with os.scandir(folder.path) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) > len(_FILES) + 1 or (entry.name not in _FILES and entry.name != MEMBERS):
                    raise refusal("unexpected-file", f"{folder.path} holds {entry.name!r}: no part of a pipeline")
                if entry.name == MEMBERS and not entry.is_dir(follow_symlinks=False):
                    raise refusal("not-a-plain-file", f"{MEMBERS!r} in {folder.path} is not a folder")
        with os.scandir(folder.path / MEMBERS) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > MAX_MEMBERS:
                    raise refusal("unexpected-file", f"{folder.path} holds more than {MAX_MEMBERS} members")
    except OSError as error:
        raise refusal("bundle-unreadable", f"{folder.path} cannot be read: {error.strerror}") from error
    for name in _FILES:
        if name not in found:
            raise refusal("missing-file", f"{folder.path} lacks {name!r}")
    return tuple(sorted(names))


def _check_signature(
    files: Mapping[str, bytes], names: tuple[str, ...], publishers: Publishers
) -> tuple[SignedPayload, dict[str, str]]:
    signed = open_envelope(files[SIGNATURE], publishers, limit=MAX_CERTIFICATE, signature_code="bundle-signature")
    bundle, digests = parse_pipeline_statement(signed.payload)
    if set(digests) != {MANIFEST, CERTIFICATE, CARD, *map(member_signature, names)}:
        raise refusal("statement-subject", "the pipeline's signature does not list exactly its files and members")
    for name in (MANIFEST, CERTIFICATE, CARD):
        if sha256_hex(files[name]) != digests[name]:
            raise refusal("file-digest", f"{name!r} is not the file that was signed")
    manifest = parse_manifest(files[MANIFEST])
    if bundle != BundleFiles(name=manifest.name, version=manifest.version):
        raise refusal("manifest-inconsistent", "manifest and signature name different models")
    return signed, digests


def _composition(data: bytes, pipeline: SignedPayload, publishers: Publishers) -> Composition:
    signed = open_envelope(data, publishers, limit=MAX_CERTIFICATE, signature_code="certificate-signature")
    if signed.publisher != pipeline.publisher:
        raise refusal("publisher-mismatch", "certificate and pipeline are signed by different publishers")
    composition, subjects = parse_composition_statement(signed.payload)
    if subjects != {MANIFEST: composition.manifest_digest}:
        raise refusal("statement-subject", "the certificate does not name exactly the manifest")
    return composition


def _check_manifest(
    manifest: Manifest,
    composition: Composition,
    signed: SignedPayload,
    files: Mapping[str, bytes],
    digests: Mapping[str, str],
    names: tuple[str, ...],
) -> PipelineSpec:
    spec = manifest.architecture
    if not isinstance(spec, PipelineSpec):
        raise refusal("manifest-inconsistent", "the manifest of a pipeline describes an ordinary model")
    if (composition.model, composition.version) != (manifest.name, manifest.version):
        raise refusal("manifest-inconsistent", "manifest and certificate name different models")
    if composition.manifest_digest != digests[MANIFEST]:
        raise refusal("manifest-digest", "the certificate is about another manifest")
    if tuple(sorted(member.name for member in spec.members)) != names:
        raise refusal("manifest-inconsistent", "the manifest names other members than lie there")
    if any(digests[member_signature(member.name)] != member.bundle_digest for member in spec.members):
        raise refusal("file-digest", "manifest and signature name different members")
    return spec


def _member(directory: Path, digest: str, publishers: Publishers, data_key: DataKeyOf) -> VerifiedBundle:
    """Verified, and the one that was named by the digest of its `bundle.sig`."""
    bundle = verify_bundle(directory, publishers, data_key=data_key)
    if bundle.signature_digest != digest:
        raise refusal("file-digest", "a member is not the one that was signed")
    return bundle


def _check_composition(
    composition: Composition,
    spec: PipelineSpec,
    members: Mapping[str, VerifiedBundle],
    signed: SignedPayload,
    manifest: bytes,
) -> None:
    people = {member.name: member.people for member in spec.members}
    cost = compose(members, people, publisher=signed.publisher.name)
    if composition.members != composed_members(members, people, publisher=signed.publisher.name):
        raise refusal("composition", "the certificate describes other members than lie there")
    if composition.weights_digest != weights_digest(manifest, {n: one.weights_digest for n, one in members.items()}):
        raise refusal("weights-digest", "the certificate is about other weights")
    if (
        composition.schema != 1
        or not composition.not_protected
        or composition.adjacency != "add-remove"
        or not is_date(composition.issued)
    ):
        raise refusal("certificate-malformed", "the certificate lacks a part or has one of another form")
    if composition.issued < max(one.certificate.issued for one in members.values()):
        raise refusal("composition", "the certificate is older than one of its members")
    try:
        delta = parse_decimal(composition.delta)
        above = delta < parse_decimal(cost.delta)
    except DecodeError as error:
        raise refusal("delta", "delta is not a plain decimal number") from error
    if delta * max(one.certificate.dataset.public_population for one in members.values()) >= 1:
        raise refusal("delta", "the stated delta is not below one over the public population")
    if (
        above
        or composition.unit != cost.unit
        or composition.epsilon_micro < cost.epsilon_micro
        or composition.epsilon_replace_one_micro < cost.epsilon_replace_one_micro
    ):
        raise refusal(
            "epsilon-mismatch",
            f"the pipeline states epsilon {micro_text(composition.epsilon_micro)} at delta {composition.delta}, its "
            f"members together give {micro_text(cost.epsilon_micro)} at {cost.delta}",
        )


def composed_members(
    members: Mapping[str, VerifiedBundle], people: Mapping[str, str], *, publisher: str
) -> tuple[Composed, ...]:
    """What a certificate says of its members."""
    return tuple(
        Composed(
            name=name,
            model=bundle.facts.name,
            version=bundle.facts.version,
            publisher_key=bundle.publisher_key,
            certificate_digest=bundle.certificate_digest,
            weights_digest=bundle.weights_digest,
            people=people[name] if bundle.publisher == publisher else "",
            epsilon_micro=bundle.certificate.epsilon_micro,
            epsilon_replace_one_micro=bundle.certificate.epsilon_replace_one_micro,
            delta=bundle.certificate.delta,
        )
        for name, bundle in members.items()
    )


def _facts(
    manifest: Manifest, composition: Composition, digest: str, members: Mapping[str, VerifiedBundle]
) -> ModelFacts:
    return ModelFacts(
        name=manifest.name,
        version=manifest.version,
        model_digest=composition.weights_digest,
        certificate_digest=digest,
        epsilon_micro=composition.epsilon_micro,
        delta=composition.delta,
        privacy_unit=composition.unit,
        sensitivity=manifest.sensitivity,
        purposes=manifest.purposes,
        audited=all(one.facts.audited for one in members.values()),
    )
