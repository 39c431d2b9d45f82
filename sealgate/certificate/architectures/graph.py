"""Graph networks over whole graphs, padded to a public number of nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from sealgate.certificate.architectures.spec import ACTIVATIONS, DeclaredInputs, Spec, from_options
from sealgate.certificate.architectures.transformer import linear_tensor
from sealgate.errors import DecodeError
from sealgate.limits import MAX_ATTENTION_SCORES, MAX_COLUMNS, MAX_HEADS, MAX_HIDDEN_LAYERS, MAX_LAYER_WIDTH

LAYERS = ("convolution", "attention")
READINGS = ("mean", "sum", "max")


class GraphSpec(Spec, frozen=True, kw_only=True, tag="graph"):
    """Layers of convolution or attention over at most `nodes` nodes of `features` numbers, then one reading of all.

    `heads` share a layer's width and belong to attention; convolution has one.
    """

    nodes: int
    features: int
    layer: str
    hidden: tuple[int, ...]
    heads: int = 1
    reading: str = "mean"
    activation: str = "relu"

    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.nodes, self.features), (self.nodes, self.nodes))

    def row_numbers(self) -> int:
        return self.nodes * ((2 * self.heads + 2) * self.nodes + 4 * max(self.features, *self.hidden))

    def row_work(self) -> int:
        """Each weight once for each node, and each edge for each number of a node."""
        return self.nodes * self.weight_count() + self.nodes**2 * sum(self.hidden)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        tensors: dict[str, tuple[int, ...]] = {}
        width_in = self.features
        for index, width in enumerate(self.hidden):
            layer = f"layers.{index}"
            tensors.update(linear_tensor(f"{layer}.linear", width_in, width))
            if self.layer == "attention":
                tensors.update(linear_tensor(f"{layer}.target", width_in, self.heads))
                tensors.update(linear_tensor(f"{layer}.source", width_in, self.heads))
            width_in = width
        return {**tensors, **linear_tensor("head", width_in, self.logit_count)}

    def size_refusals(self) -> Iterator[str]:
        heads = self.heads
        for holds, what in (
            (0 < self.nodes <= MAX_COLUMNS, "the number of nodes is out of range"),
            (0 < self.features <= MAX_COLUMNS, "the number of features is out of range"),
            (self.layer in LAYERS, f"its layer is none of {', '.join(LAYERS)}"),
            (self.reading in READINGS, f"its reading is none of {', '.join(READINGS)}"),
            (self.activation in ACTIVATIONS, f"its activation is none of {', '.join(ACTIVATIONS)}"),
            (0 < len(self.hidden) <= MAX_HIDDEN_LAYERS, "its number of layers is out of range"),
            (all(0 < width <= MAX_LAYER_WIDTH for width in self.hidden), "a layer's width is out of range"),
            (0 < heads <= MAX_HEADS, "the number of heads is out of range"),
            (heads == 1 or self.layer == "attention", "heads belong to attention"),
            (all(width % max(heads, 1) == 0 for width in self.hidden), "a width cannot be shared among its heads"),
            (heads * self.nodes**2 <= MAX_ATTENTION_SCORES, "so many nodes would need too much memory"),
        ):
            if not holds:
                yield what

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        shapes = inputs.shapes
        if len(shapes) != 2 or len(shapes[0]) != 2 or shapes[1] != (shapes[0][0], shapes[0][0]) or inputs.vocabulary:
            raise DecodeError("it takes graphs")
        nodes, features = shapes[0]
        return from_options(cls, options, nodes=nodes, features=features, classes=classes)  # type: ignore[no-any-return]
