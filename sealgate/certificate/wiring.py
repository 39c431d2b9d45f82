"""Whether a pipeline's members fit each other: every input is one that its source can give, and nothing is left over.

Trusts: manifests of verified members. Never: looks at weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from sealgate.certificate.architectures import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec, ScatterNetSpec
from sealgate.certificate.architectures.pipeline import Member, PipelineSpec, Reading
from sealgate.certificate.inputs import Column, InputTensor, TableContent
from sealgate.certificate.manifest import SENSITIVITIES, Manifest
from sealgate.certificate.refusals import refusal

_LINEAR = (LinearRegressionSpec, LogisticRegressionSpec, MlpSpec)


def width_of(member: Member, manifest: Manifest) -> int:
    """How many numbers a row of what the member gives has; 0 if it cannot give that."""
    match member.take:
        case "scores":
            return manifest.classes
        case "value":
            return 0 if manifest.classes else 1
        case _:
            part = manifest.architecture.trained_part()
            return part.inputs if part != manifest.architecture and isinstance(part, _LINEAR) else 0


def sizes_of(manifests: Mapping[str, Manifest]) -> tuple[int, int]:
    """Numbers held at once for a row, and its work: of all members together."""
    specs = [manifest.architecture for manifest in manifests.values()]
    return sum(spec.row_numbers() for spec in specs), sum(spec.row_work() for spec in specs)


def _sizes_before(manifests: Mapping[str, Manifest]) -> tuple[int, int]:
    """As pipelines state them that were signed before a ScatterNet's work counted its transform: they still load."""
    specs = [manifest.architecture for manifest in manifests.values()]
    work = sum(spec.weight_count() if isinstance(spec, ScatterNetSpec) else spec.row_work() for spec in specs)
    return sizes_of(manifests)[0], work


def check_wiring(manifest: Manifest, spec: PipelineSpec, manifests: Mapping[str, Manifest]) -> None:
    """Raise CertificateError unless the members, by name in their order, make exactly this pipeline."""
    for reason in _refusals(manifest, spec, manifests):
        raise refusal("wiring", f"the pipeline is refused: {reason}")


def _refusals(manifest: Manifest, spec: PipelineSpec, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in manifest.inputs}
    if not inputs.keys().isdisjoint(manifests) or not inputs.keys() <= spec.read:
        yield "an input has the name of a member, or is read by nobody"
        return
    if any(isinstance(one.architecture, PipelineSpec) for one in manifests.values()):
        yield "a pipeline is no member of another"
        return
    widths = {member.name: width_of(member, manifests[member.name]) for member in spec.members}
    for member in spec.members:
        if not widths[member.name]:
            yield f"member '{member.name}' has no {member.take} to give"
            return
        wanted = {tensor.name: tensor for tensor in manifests[member.name].inputs}
        if {one.input for one in member.reads} != wanted.keys():
            yield f"member '{member.name}' takes exactly these inputs: {', '.join(sorted(wanted))}"
            return
        for one in member.reads:
            if not _reading_fits(one, wanted[one.input], inputs, widths):
                same = "members that read one input must declare it alike (type, shape, range, center, scale)"
                yield f"what member '{member.name}' reads as '{one.input}' is not what it takes; {same}"
    if (spec.numbers, spec.work) not in (sizes_of(manifests), _sizes_before(manifests)):
        yield "its sizes are not those of its members"
    yield from _answer_refusals(manifest, spec, manifests)
    yield from _care_refusals(manifest, manifests)


def _reading_fits(
    reading: Reading, wanted: InputTensor, inputs: Mapping[str, InputTensor], widths: Mapping[str, int]
) -> bool:
    """An input of the whole as it is; or a row of numbers that is put together from several sources."""
    if any(source not in inputs and source not in widths for source in reading.sources):
        return False
    if len(reading.sources) == 1 and reading.sources[0] in inputs:
        return msgspec.structs.replace(inputs[reading.sources[0]], name=wanted.name) == wanted
    if not isinstance(wanted.content, TableContent) or wanted.datatype != "FP32":
        return False
    columns: list[Column | None] = []
    for source in reading.sources:
        if source in widths:
            columns += [None] * widths[source]
            continue
        content = inputs[source].content
        if not isinstance(content, TableContent) or inputs[source].datatype != "FP32":
            return False
        columns += content.columns
    own = wanted.content.columns
    return len(columns) == len(own) and all(one in (None, two) for one, two in zip(columns, own, strict=True))


def _answer_refusals(manifest: Manifest, spec: PipelineSpec, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    def said(one: Manifest) -> object:
        return sorted((out.role, out.datatype, out.shape, out.labels) for out in one.outputs)

    for member in spec.answering:
        one = manifests[member.name]
        if said(one) != said(manifest) or one.value_range != manifest.value_range or one.classes != spec.classes:
            yield f"member '{member.name}' answers otherwise than the whole: other classes, or another range"


def _care_refusals(manifest: Manifest, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    ranks = [SENSITIVITIES.index(one.sensitivity) for one in manifests.values()]
    if SENSITIVITIES.index(manifest.sensitivity) < max(ranks):
        yield "it is said to be less sensitive than one of its members"
    if any(not set(manifest.purposes) <= set(one.purposes) for one in manifests.values()):
        yield "it may be used for what one of its members may not be used for"
    if manifest.units_per_row != sum(one.units_per_row for one in manifests.values()):
        yield "its units per row are not those of its members together"
    if manifest.compressed is not None:
        yield "members are compressed, not pipelines"
