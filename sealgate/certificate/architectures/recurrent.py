"""LSTM and GRU networks."""

from __future__ import annotations

from collections.abc import Iterator

from sealgate.certificate.architectures.steps import StepsSpec
from sealgate.limits import MAX_HIDDEN_LAYERS, MAX_LAYER_WIDTH

CELLS = {"lstm": 4, "gru": 3}  # each with its number of gates
READINGS = ("last", "mean")


class RecurrentSpec(StepsSpec, frozen=True, kw_only=True, tag="recurrent"):
    """Layers of one kind of cell, `hidden` wide each; the head reads the last state or the mean of all.

    `embedding` is the width of a token's vector, and zero for steps of numbers.
    """

    cell: str
    hidden: tuple[int, ...]
    embedding: int = 0
    reading: str = "last"

    @property
    def step_width(self) -> int:
        """What the first layer of cells reads at each step."""
        return self.embedding if self.tokens else self.channels

    def row_numbers(self) -> int:
        return self.length * max(self.step_width, (CELLS[self.cell] + 1) * max(self.hidden))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        tensors: dict[str, tuple[int, ...]] = {}
        if self.tokens:
            tensors["embedding.weight"] = (self.tokens, self.embedding)
        width_in, gates = self.step_width, CELLS[self.cell]
        for index, width in enumerate(self.hidden):
            layer = f"cells.{index}"
            tensors[f"{layer}.input_to_gates.weight"] = (gates * width, width_in)
            tensors[f"{layer}.input_to_gates.bias"] = (gates * width,)
            tensors[f"{layer}.hidden_to_gates.weight"] = (gates * width, width)
            if self.cell == "gru":  # its reset gate stands before this bias; the LSTM's would be its other bias again
                tensors[f"{layer}.hidden_to_gates.bias"] = (gates * width,)
            width_in = width
        return {**tensors, "head.weight": (self.logit_count, width_in), "head.bias": (self.logit_count,)}

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        for holds, what in (
            (self.cell in CELLS, f"its cell is none of {', '.join(CELLS)}"),
            (self.reading in READINGS, f"its reading is none of {', '.join(READINGS)}"),
            (0 < len(self.hidden) <= MAX_HIDDEN_LAYERS, "its number of layers is out of range"),
            (all(0 < width <= MAX_LAYER_WIDTH for width in self.hidden), "a layer's width is out of range"),
            (0 <= self.embedding <= MAX_LAYER_WIDTH, "the width of the embedding is out of range"),
            (bool(self.embedding) == bool(self.tokens), "an embedding belongs to tokens, and only there"),
        ):
            if not holds:
                yield what
