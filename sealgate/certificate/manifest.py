"""The manifest: what a model is, what goes in and what comes out. Canonical JSON without floats.

Inputs (`inputs.py`) and outputs are Open Inference Protocol tensors; the architecture (`architectures/`) is data. Every
size is bounded here, before torch is asked for memory. Trusts: nothing. Never: holds weights or statistics of private
data.
"""

from __future__ import annotations

import math
import re

import msgspec

from sealgate.certificate.architectures import Architecture
from sealgate.certificate.architectures.frozen_encoder import FrozenEncoderSpec
from sealgate.certificate.compression import Compression, Tensors, expected_tensors
from sealgate.certificate.decimals import parse_decimal
from sealgate.certificate.inputs import InputTensor
from sealgate.certificate.refusals import refusal
from sealgate.errors import DecodeError
from sealgate.limits import (
    MAX_EXAMPLE_NUMBERS,
    MAX_INPUTS,
    MAX_MANIFEST,
    MAX_NAME,
    MAX_WARM_UP_ROWS,
    MAX_WARM_UPS,
)
from sealgate.protocol.canonical import canonical_json, parse_canonical_json

ARITHMETICS = ("float64", "float32")
SENSITIVITIES = ("public", "personal", "special-category")
OUTPUT_DATATYPES = {
    "scores": ("FP32", "FP64", "FP16", "BF16"),
    "value": ("FP32", "FP64", "FP16", "BF16"),
    "label": ("INT64", "INT32", "INT16", "UINT16", "UINT32", "UINT64", "BYTES"),  # each holds every index
}
EXPLAIN_UNITS = 64  # an explanation asks the model about so many rows where it was asked about one, or more
_LARGEST_FP16 = 65_504
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}\Z")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}\Z")


class OutputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`role` is "scores" ([-1, classes], probabilities), "label" ([-1], an index into `labels`, or as BYTES the class
    name itself) or "value" ([-1]). `labels` are the class names, empty for a value. Scores and values are computed as
    FP32 and given in the declared datatype."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    role: str
    labels: tuple[str, ...] = ()


class ValueRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Regression: the public range of the target. The model works on [-1, 1]; answers are clamped to the range."""

    low: str
    high: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of `manifest.json`."""

    schema: int
    name: str
    version: str
    description: str
    architecture: Architecture
    inputs: tuple[InputTensor, ...]
    outputs: tuple[OutputTensor, ...]
    value_range: ValueRange | None
    sensitivity: str
    purposes: tuple[str, ...]
    units_per_row: int
    explain_units_per_row: int | msgspec.UnsetType = msgspec.UNSET  # left out: EXPLAIN_UNITS times units_per_row
    arithmetic: str = "float64"  # of the model: in float64 an answer does not depend on who shared its batch
    compression: Compression | msgspec.UnsetType = msgspec.UNSET  # of the weights; left out where there is none
    warm_up: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET  # rows of requests to expect: run once at each start

    @property
    def family(self) -> str:
        """The architecture's tag: "linear-regression", "mlp", "cnn", ..."""
        return self.architecture.family

    @property
    def explain_units(self) -> int:
        """What explaining one row costs."""
        return self.explain_units_per_row or EXPLAIN_UNITS * self.units_per_row

    @property
    def classes(self) -> int:
        """Number of classes; 0 for regression."""
        return self.architecture.classes

    @property
    def warm_up_sizes(self) -> tuple[int, ...]:
        """How many rows a worker runs the model on, beside its own sizes, before it serves it."""
        return self.warm_up or ()

    @property
    def compressed(self) -> Compression | None:
        """How the weights are compressed; None for weights as they were trained."""
        return self.compression or None

    def tensors(self) -> Tensors:
        """Names, datatypes and shapes of the weights: the whole file, no more and no less."""
        return expected_tensors(self.architecture.tensors(), self.compressed)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The canonical bytes of a consistent manifest; raises CertificateError for one that no verifier would accept."""
    check_manifest(manifest)
    return canonical_json(manifest)


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in these exact bytes, checked; raises CertificateError."""
    try:
        manifest = msgspec.convert(parse_canonical_json(data, limit=MAX_MANIFEST), Manifest)
    except (DecodeError, msgspec.ValidationError) as error:
        raise refusal("manifest-malformed", "manifest.json is not a manifest in canonical form") from error
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Raise CertificateError unless every bound holds and the parts fit together."""
    for holds, what in (
        (manifest.schema == 1, "its schema is not 1"),
        (NAME.match(manifest.name), "its name must be lowercase letters, digits, '.', '_' or '-'"),
        (VERSION.match(manifest.version), "its version is malformed"),
        (len(manifest.description) <= 4096, "its description is too long"),
        (manifest.sensitivity in SENSITIVITIES, "its sensitivity is unknown"),
        (0 < len(manifest.purposes) <= 64, "it names no purposes, or too many"),
        (all(0 < len(purpose) <= MAX_NAME for purpose in manifest.purposes), "a purpose is malformed"),
        (len(set(manifest.purposes)) == len(manifest.purposes), "a purpose stands twice"),
        (0 < manifest.units_per_row <= 1_000_000, "its units per row are out of range"),
        (0 < manifest.explain_units <= EXPLAIN_UNITS * 1_000_000, "its price of explanations is out of range"),
        (manifest.arithmetic in ARITHMETICS, "its arithmetic is unknown"),
        (len(manifest.warm_up_sizes) <= MAX_WARM_UPS, "it names too many sizes to warm up with"),
        (
            all(0 < rows <= MAX_WARM_UP_ROWS for rows in manifest.warm_up_sizes),
            "a size to warm up with is out of range",
        ),
    ):
        if not holds:
            raise refusal("manifest-inconsistent", f"the manifest is refused: {what}")
    for reason in manifest.architecture.refusals():
        raise refusal("manifest-inconsistent", f"the architecture is refused: {reason}")
    if manifest.compressed is not None:
        for reason in manifest.compressed.refusals(frozen=isinstance(manifest.architecture, FrozenEncoderSpec)):
            raise refusal("manifest-inconsistent", f"the manifest is refused: {reason}")
    _check_inputs(manifest)
    _check_outputs(manifest)


def _check_inputs(manifest: Manifest) -> None:
    inputs, architecture = manifest.inputs, manifest.architecture
    if not 0 < len(inputs) <= MAX_INPUTS or len({tensor.name for tensor in inputs}) != len(inputs):
        raise refusal("manifest-inconsistent", "the manifest is refused: it needs inputs, each with its own name")
    for tensor in inputs:
        for reason in tensor.refusals():
            raise refusal("manifest-inconsistent", f"the manifest is refused: an input cannot be taken: {reason}")
    if sum(math.prod(tensor.model_shape) for tensor in inputs) > MAX_EXAMPLE_NUMBERS:
        raise refusal("manifest-inconsistent", "the manifest is refused: one row of its inputs is too large")
    if tuple(tensor.model_shape for tensor in inputs) != architecture.input_shapes():
        raise refusal("manifest-inconsistent", "the manifest is refused: its inputs do not fit the architecture")
    if max(tensor.content.vocabulary for tensor in inputs) != architecture.vocabulary:
        raise refusal("manifest-inconsistent", "the manifest is refused: its vocabulary is not the architecture's")


def _check_outputs(manifest: Manifest) -> None:
    classes = manifest.classes
    wanted = {"scores": (-1, classes), "label": (-1,)} if classes else {"value": (-1,)}
    found = {output.role: output.shape for output in manifest.outputs}
    names = {output.name for output in manifest.outputs}
    if manifest.value_range is not None and any(output.datatype == "FP16" for output in manifest.outputs):
        _require_fp16(manifest.value_range)
    fit = all(output.datatype in OUTPUT_DATATYPES.get(output.role, ()) for output in manifest.outputs)
    if not fit or found != wanted or len(manifest.outputs) != len(wanted) or len(names) != len(wanted):
        raise refusal("manifest-inconsistent", "the manifest is refused: its outputs do not fit the architecture")
    if not all(0 < len(name) <= MAX_NAME for name in names):
        raise refusal("manifest-inconsistent", "the manifest is refused: an output has no proper name")
    for output in manifest.outputs:
        if len(output.labels) != classes or len(set(output.labels)) != classes:
            raise refusal("manifest-inconsistent", "the manifest is refused: class names do not fit the classes")
        if not all(0 < len(label) <= MAX_NAME for label in output.labels):
            raise refusal("manifest-inconsistent", "the manifest is refused: a class has no proper name")
    if (manifest.value_range is None) != bool(classes):
        raise refusal("manifest-inconsistent", "the manifest is refused: only regression has a value range")
    if manifest.value_range is not None:
        try:
            if not parse_decimal(manifest.value_range.low) < parse_decimal(manifest.value_range.high):
                raise DecodeError("empty range")
        except DecodeError as error:
            raise refusal("manifest-inconsistent", "the manifest is refused: its value range is malformed") from error


def _require_fp16(span: ValueRange) -> None:
    """A value outside FP16's range would become infinite. A malformed range is refused elsewhere."""
    try:
        largest = max(abs(parse_decimal(span.low)), abs(parse_decimal(span.high)))
    except DecodeError:
        return
    if largest > _LARGEST_FP16:
        raise refusal("manifest-inconsistent", "the manifest is refused: its value range is larger than FP16 holds")
