"""From a text that says how models go together to a signed pipeline: `sealgate models pipeline`.

    name = "triage"
    version = "1.0"
    description = "..."

    [[member]]
    name = "picture"                    # what the others call it
    bundle = "../models/scan-cnn"       # its folder, from this file; it is copied
    people = "hospital-a"               # optional: whose data it was trained on
    reads.image = "image"               # its input, and where that comes from

    [[member]]
    name = "judge"
    bundle = "../models/judge-mlp"
    reads.rows = ["row", "picture"]     # numbers side by side: an input of the whole, then the picture's scores

    [fusion]                            # only where several members answer
    how = "mean"
    weights.picture = "0.5"

A source that no member has as its name is an input of the whole. It is what the member that reads it takes; beside
others, it is the columns that those leave. Purposes are those that every member may be used for, sensitivity is that of
the most sensitive, units add up.

Trusts: the owner of the publisher's key. Never: changes a member, or decides what a composition costs in another way
than who verifies it.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.ambient import Clock, now_us
from sealgate.certificate.architectures.pipeline import Fused, Fusion, Member, PipelineSpec, Reading
from sealgate.certificate.bundle import VerifiedBundle, sha256_hex, verify_bundle
from sealgate.certificate.composition import Cost, compose
from sealgate.certificate.decimals import micro_text
from sealgate.certificate.dsse import sign_envelope
from sealgate.certificate.files import (
    CARD,
    CERTIFICATE,
    KEY,
    MANIFEST,
    MODEL_SIGNATURE,
    SEALED_WEIGHTS,
    SIGNATURE,
    WEIGHTS,
    open_folder,
)
from sealgate.certificate.inputs import InputTensor, TableContent
from sealgate.certificate.manifest import SENSITIVITIES, Manifest, OutputTensor, manifest_bytes
from sealgate.certificate.pipeline import (
    MEMBERS,
    VerifiedPipeline,
    composed_members,
    member_signature,
    verify_pipeline,
    weights_digest,
)
from sealgate.certificate.placing import place_bundle
from sealgate.certificate.publishers import Publishers, key_id
from sealgate.certificate.publishing import digests_of
from sealgate.certificate.schema import Composition
from sealgate.certificate.sealed_weights import DataKeyOf
from sealgate.certificate.statement import BundleFiles, composition_statement, pipeline_statement
from sealgate.certificate.wiring import sizes_of, width_of
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_MEMBERS, MAX_PIPELINE_FILE
from sealgate.toml_words import in_words

_MICRO = 1_000_000
_NOT_PROTECTED = (
    "requests and answers: epsilon is about the people in the members' training data",
    "people who are in the data of members that were declared to be trained on different people, if that is not so",
)


class _Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    bundle: str
    reads: dict[str, str | tuple[str, ...]]
    take: str = ""
    people: str = ""


class _Fusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    how: str
    weights: dict[str, str]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    version: str
    description: str
    member: tuple[_Member, ...]
    fusion: _Fusion | None = None
    purposes: tuple[str, ...] = ()
    sensitivity: str = ""


def read_pipeline(path: Path) -> _File:
    """The text, checked for its form; raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PIPELINE_FILE + 1)
        if len(data) > MAX_PIPELINE_FILE:
            raise ConfigurationError(f"{path} is larger than {MAX_PIPELINE_FILE} bytes")
        found = msgspec.convert(tomllib.loads(data.decode()), _File)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, _File)}") from error
    if not 0 < len(found.member) <= MAX_MEMBERS:
        raise ConfigurationError(f"{path} needs at least one [[member]], and at most {MAX_MEMBERS}")
    if len({one.name for one in found.member}) != len(found.member):
        raise ConfigurationError(f"{path}: each [[member]] needs a name of its own")
    return found


def make_pipeline(
    path: Path,
    out: Path,
    *,
    key: Ed25519PrivateKey,
    publishers: Publishers,
    data_key: DataKeyOf,
    replace: bool = False,
    clock: Clock = now_us,
) -> VerifiedPipeline:
    """Verify the members, wire, compose, sign, verify and place; raises CertificateError or ConfigurationError."""
    asked = read_pipeline(path)
    if out.exists() and not replace:
        raise ConfigurationError(f"{out} exists; name another --out, or say --replace")
    publisher = publishers.find(key_id(key.public_key()))
    if publisher is None:
        raise ConfigurationError("the key is not one of an accepted publisher; add it to publishers.toml")
    members = {one.name: verify_bundle(path.parent / one.bundle, publishers, data_key=data_key) for one in asked.member}
    manifest, spec = _manifest(asked, members)
    people = {member.name: member.people for member in spec.members}
    cost = compose(members, people, publisher=publisher.name)
    written = manifest_bytes(manifest)
    composition = Composition(
        schema=1,
        model=manifest.name,
        version=manifest.version,
        issued=max(
            datetime.fromtimestamp(clock() // _MICRO, UTC).date().isoformat(),
            *(one.certificate.issued for one in members.values()),
        ),
        unit=cost.unit,
        adjacency="add-remove",
        epsilon_micro=cost.epsilon_micro,
        epsilon_replace_one_micro=cost.epsilon_replace_one_micro,
        delta=cost.delta,
        members=composed_members(members, people, publisher=publisher.name),
        weights_digest=weights_digest(written, {name: one.weights_digest for name, one in members.items()}),
        manifest_digest=sha256_hex(written),
        not_protected=_NOT_PROTECTED,
    )
    files = {
        MANIFEST: written,
        CARD: "\n".join(_card(manifest, spec, cost, members)).encode(),
        CERTIFICATE: sign_envelope(composition_statement(composition, {MANIFEST: sha256_hex(written)}), key),
    }
    digests = digests_of(files) | {member_signature(name): one.signature_digest for name, one in members.items()}
    files[SIGNATURE] = sign_envelope(
        pipeline_statement(BundleFiles(name=manifest.name, version=manifest.version), digests), key
    )
    for name, bundle in members.items():
        files |= {f"{MEMBERS}/{name}/{file}": data for file, data in _files_of(bundle.directory).items()}
    placed = place_bundle(
        out,
        {name: (data,) for name, data in files.items()},
        check=lambda draft: verify_pipeline(draft, publishers, data_key=data_key),
    )
    return dataclasses.replace(placed, directory=out)


def _files_of(directory: Path) -> dict[str, bytes]:
    """Every file of a bundle as it lies there; the pipeline is verified with the copies."""
    with open_folder(directory) as folder:
        listing = folder.check_listing()
        names = [*listing.plain, *((SEALED_WEIGHTS, KEY) if listing.encrypted else (WEIGHTS,))]
        names += [MODEL_SIGNATURE] if listing.model_signature else []
        return {name: folder.read(name) for name in names}


def _manifest(asked: _File, members: Mapping[str, VerifiedBundle]) -> tuple[Manifest, PipelineSpec]:
    manifests = {name: one.manifest for name, one in members.items()}
    wired = tuple(_member(one, members[one.name]) for one in asked.member)
    inputs = _inputs(wired, manifests)
    fusion = None
    if asked.fusion is not None:
        order = [name for name in manifests if name in asked.fusion.weights]
        if set(order) != set(asked.fusion.weights):
            raise ConfigurationError("[fusion] weights name a member that is not there")
        parts = tuple(Fused(member=name, weight=asked.fusion.weights[name]) for name in order)
        fusion = Fusion(how=asked.fusion.how, parts=parts)
    numbers, work = sizes_of(manifests)
    draft = PipelineSpec(
        members=wired,
        fusion=fusion,
        shapes=tuple(one.model_shape for one in inputs),
        tokens=max((one.content.vocabulary for one in inputs), default=0),
        numbers=numbers,
        work=work,
    )
    answering = draft.answering
    if not answering:
        raise ConfigurationError("no member answers: each is read by another")
    said = manifests[answering[0].name]
    spec = msgspec.structs.replace(draft, classes=said.classes)
    manifest = Manifest(
        schema=1,
        name=asked.name,
        version=asked.version,
        description=asked.description,
        architecture=spec,
        inputs=inputs,
        outputs=tuple(
            OutputTensor(name=one.role, datatype=one.datatype, shape=one.shape, role=one.role, labels=one.labels)
            for one in said.outputs
        ),
        value_range=said.value_range,
        sensitivity=asked.sensitivity or max((one.sensitivity for one in manifests.values()), key=SENSITIVITIES.index),
        purposes=asked.purposes or _purposes(list(manifests.values())),
        units_per_row=sum(one.units_per_row for one in manifests.values()),
    )
    return manifest, spec


def _member(asked: _Member, bundle: VerifiedBundle) -> Member:
    take = asked.take or ("scores" if bundle.manifest.classes else "value")
    reads = tuple(
        Reading(input=name, sources=(sources,) if isinstance(sources, str) else sources)
        for name, sources in sorted(asked.reads.items())
    )
    return Member(name=asked.name, bundle_digest=bundle.signature_digest, take=take, reads=reads, people=asked.people)


def _purposes(manifests: Sequence[Manifest]) -> tuple[str, ...]:
    found = tuple(one for one in manifests[0].purposes if all(one in other.purposes for other in manifests))
    if not found:
        raise ConfigurationError("there is no purpose that every member may be used for")
    return found


def _inputs(wired: Sequence[Member], manifests: Mapping[str, Manifest]) -> tuple[InputTensor, ...]:
    """Of the whole, in the order in which members read them. Whether they fit is for `check_wiring` to say."""
    found: dict[str, InputTensor] = {}
    widths = {member.name: width_of(member, manifests[member.name]) for member in wired}
    for member in wired:
        wanted = {tensor.name: tensor for tensor in manifests[member.name].inputs}
        for one in member.reads:
            tensor = wanted.get(one.input)
            if tensor is None:
                raise ConfigurationError(
                    f"member '{member.name}' has no input '{one.input}'; it has: {', '.join(wanted)}"
                )
            own = [source for source in one.sources if source not in widths]
            if len(own) > 1:
                raise ConfigurationError(f"member '{member.name}' reads more than one input of the whole side by side")
            if own and own[0] not in found:
                found[own[0]] = _part_of(tensor, one, widths, name=own[0], member=member.name)
    return tuple(found.values())


def _part_of(
    tensor: InputTensor, reading: Reading, widths: Mapping[str, int], *, name: str, member: str
) -> InputTensor:
    """The whole tensor, or the columns of it that the other sources leave."""
    if len(reading.sources) == 1:
        return msgspec.structs.replace(tensor, name=name)
    if not isinstance(tensor.content, TableContent):
        raise ConfigurationError(f"member '{member}': only rows of numbers can be put together, not '{tensor.name}'")
    at = reading.sources.index(name)
    before, behind = (sum(widths[one] for one in part) for part in (reading.sources[:at], reading.sources[at + 1 :]))
    columns = tensor.content.columns[before : len(tensor.content.columns) - behind]
    if not columns:
        raise ConfigurationError(f"member '{member}': the others leave no column of '{tensor.name}' for '{name}'")
    return msgspec.structs.replace(
        tensor, name=name, shape=(-1, len(columns)), content=TableContent(columns=tuple(columns))
    )


def _card(manifest: Manifest, spec: PipelineSpec, cost: Cost, members: Mapping[str, VerifiedBundle]) -> Sequence[str]:
    lines = [f"# {manifest.name} {manifest.version}", "", manifest.description, ""]
    lines.append(
        f"- Privacy of one {cost.unit}: epsilon {micro_text(cost.epsilon_micro)} at delta {cost.delta} (added or "
        f"removed), {micro_text(cost.epsilon_replace_one_micro)} (replaced): what its members cost together"
    )
    lines += describe_members(spec, members)
    return [*lines, "", "Check it with `sealgate models verify`.", ""]


def describe_members(spec: PipelineSpec, members: Mapping[str, VerifiedBundle]) -> list[str]:
    """One line for each member, and one for the fusion."""
    lines = []
    for member in spec.members:
        facts = members[member.name].facts
        reads = "; ".join(f"{one.input} from {' and '.join(one.sources)}" for one in member.reads)
        people = f", trained on the people of '{member.people}'" if member.people else ""
        lines.append(
            f"- {member.name}: {facts.name} {facts.version}, epsilon {micro_text(facts.epsilon_micro)}{people}; reads "
            f"{reads}; gives its {member.take}"
        )
    if spec.fusion is not None:
        parts = ", ".join(f"{part.weight} of {part.member}" for part in spec.fusion.parts)
        lines.append(f"- Answer: {spec.fusion.how} of {parts}")
    return lines
