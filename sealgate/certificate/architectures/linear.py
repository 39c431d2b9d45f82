"""Linear and logistic regression, and the multi-layer perceptron: stacks of linear layers over a row of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Self

from sealgate.certificate.architectures.spec import ACTIVATIONS, DeclaredInputs, Spec, from_options
from sealgate.errors import DecodeError
from sealgate.limits import MAX_COLUMNS, MAX_HIDDEN_LAYERS, MAX_LAYER_WIDTH

_ROWS = "rows of numbers, one column per feature"


def linear_tensors(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Weights and biases of linear layers `layers.0`, `layers.1`, ... between these widths."""
    tensors: dict[str, tuple[int, ...]] = {}
    for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        tensors[f"layers.{index}.weight"] = (width_out, width_in)
        tensors[f"layers.{index}.bias"] = (width_out,)
    return tensors


class _RowSpec(Spec, frozen=True):
    """A model over one row of `inputs` numbers."""

    inputs: int

    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.inputs,),)

    def size_refusals(self) -> Iterator[str]:
        if not 0 < self.inputs <= MAX_COLUMNS:
            yield "the number of inputs is out of range"


class LinearRegressionSpec(_RowSpec, frozen=True, tag="linear-regression"):
    """value = w . x + b"""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return linear_tensors((self.inputs, 1))

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        if self.classes:
            yield "a regression has no classes"

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        if classes:
            raise DecodeError("it predicts a value, not classes")
        return from_options(cls, options, inputs=inputs.only(rank=1, what=_ROWS)[0])  # type: ignore[no-any-return]


class LogisticRegressionSpec(_RowSpec, frozen=True, tag="logistic-regression"):
    """Class scores from one linear layer: a sigmoid for two classes, a softmax for more."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return linear_tensors((self.inputs, self.logit_count))

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        if not self.classes:
            yield "the number of classes is out of range"

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        if not classes:
            raise DecodeError("it predicts classes, not a value")
        width = inputs.only(rank=1, what=_ROWS)[0]
        return from_options(cls, options, inputs=width, classes=classes)  # type: ignore[no-any-return]


def linear_part(inputs: int, classes: int) -> LinearRegressionSpec | LogisticRegressionSpec:
    """One linear layer, as a model of its own: for values without classes, otherwise for classes."""
    if classes:
        return LogisticRegressionSpec(inputs=inputs, classes=classes)
    return LinearRegressionSpec(inputs=inputs)


class MlpSpec(_RowSpec, frozen=True, tag="mlp"):
    """Linear layers with one activation between them. `classes` is 0 for regression."""

    hidden: tuple[int, ...]
    activation: str = "relu"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return linear_tensors((self.inputs, *self.hidden, self.logit_count))

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        for holds, what in (
            (len(self.hidden) <= MAX_HIDDEN_LAYERS, "it has too many layers"),
            (all(0 < width <= MAX_LAYER_WIDTH for width in self.hidden), "a layer's width is out of range"),
            (self.hidden, "an MLP needs a hidden layer"),
            (self.activation in ACTIVATIONS, f"its activation is none of {', '.join(ACTIVATIONS)}"),
        ):
            if not holds:
                yield what

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        width = inputs.only(rank=1, what=_ROWS)[0]
        return from_options(cls, options, inputs=width, classes=classes)  # type: ignore[no-any-return]
