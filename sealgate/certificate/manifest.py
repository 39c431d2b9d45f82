"""The manifest: what a model is, what goes in and what comes out. Canonical JSON without floats.

Inputs and outputs are Open Inference Protocol tensors. An architecture is data: the runtime builds it from its own
definitions (`secure_runtime.models`), a bundle never brings code. Every size is bounded here, before torch is asked for
memory. Trusts: nothing. Never: holds weights or statistics of private data.
"""

from __future__ import annotations

import itertools
import re
from typing import TypeAlias

import msgspec

from sealgate.certificate.decimals import parse_decimal
from sealgate.certificate.refusals import refusal
from sealgate.errors import DecodeError
from sealgate.limits import (
    MAX_CLASSES,
    MAX_COLUMNS,
    MAX_HIDDEN_LAYERS,
    MAX_LAYER_WIDTH,
    MAX_MANIFEST,
    MAX_NAME,
    MAX_WEIGHTS,
)
from sealgate.protocol.canonical import canonical_json, parse_canonical_json

ACTIVATIONS = ("relu", "tanh", "gelu", "silu")
SENSITIVITIES = ("public", "personal", "special-category")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}\Z")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}\Z")


class LinearRegressionSpec(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="family", tag="linear-regression", kw_only=True
):
    """value = w . x + b"""

    inputs: int


class LogisticRegressionSpec(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="family", tag="logistic-regression", kw_only=True
):
    """Class scores from one linear layer: a sigmoid for two classes, a softmax for more."""

    inputs: int
    classes: int


class MlpSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="family", tag="mlp", kw_only=True):
    """Linear layers with one activation between them. `classes` is 0 for regression."""

    inputs: int
    hidden: tuple[int, ...]
    activation: str
    classes: int


Architecture: TypeAlias = LinearRegressionSpec | LogisticRegressionSpec | MlpSpec


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One feature. Its value is clamped to [low, high], then (value - center) / scale enters the model.

    All four are public constants, written as decimal texts.
    """

    name: str
    low: str
    high: str
    center: str
    scale: str


class InputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`shape` is [-1, number of columns]: -1 stands for the rows of a request."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    columns: tuple[Column, ...]


class OutputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`role` is "scores" (FP32 [-1, classes], probabilities), "label" (INT64 [-1], an index into `labels`) or "value"
    (FP32 [-1]). `labels` are the class names, empty for a value."""

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

    @property
    def family(self) -> str:
        """The architecture's tag: "linear-regression", "logistic-regression" or "mlp"."""
        return str(self.architecture.__struct_config__.tag)


def class_count(architecture: Architecture) -> int:
    """Number of classes; 0 for regression."""
    return 0 if isinstance(architecture, LinearRegressionSpec) else architecture.classes


def logit_count(architecture: Architecture) -> int:
    """Width of the last layer: one number for a value or for two classes, one per class for more."""
    classes = class_count(architecture)
    return classes if classes > 2 else 1


def expected_tensors(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights (all FP32): what the file must hold, no more and no less."""
    hidden = architecture.hidden if isinstance(architecture, MlpSpec) else ()
    widths = (architecture.inputs, *hidden, logit_count(architecture))
    tensors: dict[str, tuple[int, ...]] = {}
    for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        tensors[f"layers.{index}.weight"] = (width_out, width_in)
        tensors[f"layers.{index}.bias"] = (width_out,)
    return tensors


def weight_count(architecture: Architecture) -> int:
    """Number of weights."""
    total = 0
    for shape in expected_tensors(architecture).values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


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
    ):
        if not holds:
            raise refusal("manifest-inconsistent", f"the manifest is refused: {what}")
    _check_architecture(manifest.architecture)
    _check_input(manifest)
    _check_outputs(manifest)


def _check_architecture(architecture: Architecture) -> None:
    classes = class_count(architecture)
    needs_classes = isinstance(architecture, LogisticRegressionSpec)
    hidden = architecture.hidden if isinstance(architecture, MlpSpec) else ()
    for holds, what in (
        (0 < architecture.inputs <= MAX_COLUMNS, "the number of inputs is out of range"),
        (2 <= classes <= MAX_CLASSES or (classes == 0 and not needs_classes), "the number of classes is out of range"),
        (len(hidden) <= MAX_HIDDEN_LAYERS, "it has too many layers"),
        (all(0 < width <= MAX_LAYER_WIDTH for width in hidden), "a layer's width is out of range"),
        (not isinstance(architecture, MlpSpec) or hidden, "an MLP needs a hidden layer"),
        (not isinstance(architecture, MlpSpec) or architecture.activation in ACTIVATIONS, "unknown activation"),
    ):
        if not holds:
            raise refusal("manifest-inconsistent", f"the architecture is refused: {what}")
    if weight_count(architecture) * 4 > MAX_WEIGHTS:
        raise refusal("manifest-inconsistent", "the architecture is refused: it has too many weights")


def _check_input(manifest: Manifest) -> None:
    if len(manifest.inputs) != 1:
        raise refusal("manifest-inconsistent", "the manifest is refused: it must have exactly one input")
    tensor, width = manifest.inputs[0], manifest.architecture.inputs
    names = [column.name for column in tensor.columns]
    if (
        tensor.datatype != "FP32"
        or tensor.shape != (-1, width)
        or len(names) != width
        or not 0 < len(tensor.name) <= MAX_NAME
    ):
        raise refusal("manifest-inconsistent", "the manifest is refused: its input does not fit the architecture")
    if len(set(names)) != len(names) or not all(0 < len(name) <= MAX_NAME for name in names):
        raise refusal("manifest-inconsistent", "the manifest is refused: column names must be unique and not empty")
    try:
        for column in tensor.columns:
            low, high, scale = parse_decimal(column.low), parse_decimal(column.high), parse_decimal(column.scale)
            parse_decimal(column.center)
            if not (low < high and scale > 0):
                raise DecodeError("empty range")
    except DecodeError as error:
        raise refusal("manifest-inconsistent", "the manifest is refused: a column's bounds are malformed") from error


def _check_outputs(manifest: Manifest) -> None:
    classes = class_count(manifest.architecture)
    if classes:
        wanted = {"scores": ("FP32", (-1, classes)), "label": ("INT64", (-1,))}
    else:
        wanted = {"value": ("FP32", (-1,))}
    found = {output.role: (output.datatype, output.shape) for output in manifest.outputs}
    names = {output.name for output in manifest.outputs}
    if found != wanted or len(manifest.outputs) != len(wanted) or len(names) != len(wanted):
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
