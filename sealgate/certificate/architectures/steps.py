"""What the families over steps share: an example is a row of steps, each some numbers or one token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

from sealgate.certificate.architectures.spec import DeclaredInputs, Spec, from_options
from sealgate.errors import DecodeError
from sealgate.limits import MAX_COLUMNS, MAX_TOKENS, MAX_VOCABULARY

TABLES = ("embedding.weight", "features.words.weight", "features.positions.weight")


class StepsSpec(Spec, frozen=True, kw_only=True):
    """A model over `length` steps: of `channels` numbers each, or of tokens below `tokens`. One of the two is zero."""

    length: int
    channels: int = 0
    tokens: int = 0

    @property
    def vocabulary(self) -> int:
        return self.tokens

    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.length,),) if self.tokens else ((self.length, self.channels),)

    def row_work(self) -> int:
        """Each weight once in each step, but for the tables that tokens are looked up in."""
        weights = sum(math.prod(shape) for name, shape in self.tensors().items() if name not in TABLES)
        return self.length * weights

    def size_refusals(self) -> Iterator[str]:
        if not 0 < self.length <= MAX_TOKENS:
            yield "the number of steps is out of range"
        if bool(self.channels) == bool(self.tokens):
            yield "its steps are neither numbers alone nor tokens alone"
        if not 0 <= self.channels <= MAX_COLUMNS or not (self.tokens == 0 or 2 <= self.tokens <= MAX_VOCABULARY):
            yield "the width of a step is out of range"

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        known: dict[str, Any] = {"classes": classes, "tokens": inputs.vocabulary}
        rank = 1 if inputs.vocabulary else 2
        if len(inputs.shapes) != 1 or len(inputs.shapes[0]) != rank:
            raise DecodeError("it takes sequences, texts or tokens")
        known["length"] = inputs.shapes[0][0]
        known["channels"] = 0 if inputs.vocabulary else inputs.shapes[0][1]
        return from_options(cls, {**options}, **known)  # type: ignore[no-any-return]


class TokensSpec(StepsSpec, frozen=True, kw_only=True):
    """A model over tokens only."""

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        if not self.tokens:
            yield "it takes tokens"

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        if not inputs.vocabulary:
            raise DecodeError("it takes texts or tokens")
        return super().declared(options, inputs=inputs, classes=classes)
