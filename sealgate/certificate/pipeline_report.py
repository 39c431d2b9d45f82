"""What `sealgate models` says of pipelines. Nothing is shown of one that was not verified first.

Trusts: publishers.toml. Never: prints a name from an unverified pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sealgate.certificate.decimals import micro_text
from sealgate.certificate.pipeline import VerifiedPipeline, verify_pipeline
from sealgate.certificate.pipeline_making import describe_members, make_pipeline
from sealgate.certificate.publishers import Publishers
from sealgate.certificate.publishing import load_signing_key
from sealgate.certificate.recomputation import recomputation_lines
from sealgate.certificate.wrapping_keys import open_key_ring
from sealgate.terminal import printable


def pipeline_line(directory: Path, publishers: Publishers, keys: Sequence[str]) -> str:
    """For `sealgate models list`; raises CertificateError."""
    found = verify_pipeline(directory, publishers, data_key=open_key_ring(keys).unwrap)
    facts = found.facts
    return (
        f"{facts.name:28} {facts.version:10} {found.manifest.family:20} epsilon {micro_text(facts.epsilon_micro)} at "
        f"delta {facts.delta}  {facts.sensitivity:16}  by {found.publisher}  of {', '.join(found.members)}"
    )


def verify_pipeline_aloud(directory: Path, publishers: Publishers, keys: Sequence[str]) -> int:
    """Each step as it holds, and how each member's epsilon follows; the refusal, if any, is raised."""

    def told(step: str, detail: str) -> None:
        print(printable(f"  ok  {step}: {detail}"), flush=True)

    print(f"verifying {directory}")
    found = verify_pipeline(directory, publishers, told=told, data_key=open_key_ring(keys).unwrap)
    for name, bundle in found.members.items():
        print(printable(f"how the epsilon of '{name}' follows from its certificate, recomputed on this machine:"))
        for what, detail in recomputation_lines(bundle.certificate):
            print(printable(f"      {what}: {detail}"), flush=True)
    facts = found.facts
    print(printable(f"verified: {facts.name} {facts.version}, certificate SHA-256 {found.certificate_digest}"))
    print("not shown by this: that publishers trained the way they say, or that people declared to be different are")
    return 0


def describe_pipeline(found: VerifiedPipeline) -> list[str]:
    """The lines of `sealgate models show`."""
    manifest, composition = found.manifest, found.composition
    return [
        f"{manifest.name} {manifest.version}  (pipeline, published by {found.publisher})",
        f"  {manifest.description}",
        f"  sensitivity {manifest.sensitivity}; purposes {', '.join(manifest.purposes)}",
        f"  {manifest.units_per_row} units a row: those of its members together",
        *[f"  input  {tensor.name}: {tensor.datatype} {list(tensor.shape)}" for tensor in manifest.inputs],
        *[
            f"  output {tensor.name}: {tensor.datatype} {list(tensor.shape)}, {tensor.role}"
            for tensor in manifest.outputs
        ],
        *[f"  {line}" for line in describe_members(found.spec, found.members)],
        f"privacy of one {composition.unit} of its members' training data, composed",
        f"  epsilon {micro_text(composition.epsilon_micro)} at delta {composition.delta}; if one is replaced: "
        f"{micro_text(composition.epsilon_replace_one_micro)}",
        f"  issued {composition.issued}; SHA-256 of all weights and the manifest {composition.weights_digest}",
        *[f"  does not protect: {text}" for text in composition.not_protected],
    ]


def show_pipeline(directory: Path, publishers: Publishers, keys: Sequence[str]) -> int:
    """The verified pipeline in words."""
    for line in describe_pipeline(verify_pipeline(directory, publishers, data_key=open_key_ring(keys).unwrap)):
        print(printable(line))
    return 0


def make(
    file: Path, out: Path, publishers: Publishers, keys: Sequence[str], *, publisher_key: Path, replace: bool
) -> int:
    """`sealgate models pipeline`."""
    made = make_pipeline(
        file,
        out,
        key=load_signing_key(publisher_key),
        publishers=publishers,
        data_key=open_key_ring(keys).unwrap,
        replace=replace,
    )
    for line in describe_pipeline(made):
        print(printable(line))
    print(printable(f"{out}: {made.facts.name} {made.facts.version}, signed and verified"))
    return 0
