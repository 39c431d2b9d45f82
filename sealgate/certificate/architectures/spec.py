"""What every declared architecture must say of itself: its inputs, its weights, and why its sizes may be refused.

An architecture is data. The runtime builds it from its own definitions (`secure_runtime.models`); a bundle never brings
code. Sizes are judged here, before torch is asked for memory. Trusts: nothing. Never: builds anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import MAX_CLASSES, MAX_WEIGHTS, NUMBERS_AT_ONCE, WORK_AT_ONCE
from sealgate.toml_words import in_words

ACTIVATIONS = ("relu", "tanh", "gelu", "silu")


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="family", kw_only=True):
    """Base of the families. Fields are public constants: integers, texts and tuples of them, never floats."""

    classes: int = 0  # 0 for regression

    @property
    def family(self) -> str:
        """The tag: "mlp", "cnn", ..."""
        return str(self.__struct_config__.tag)

    @property
    def logit_count(self) -> int:
        """Width of the last layer: one number for a value or for two classes, one per class for more."""
        return self.classes if self.classes > 2 else 1

    @property
    def vocabulary(self) -> int:
        """For models over tokens: how many different ones there are. 0 for models over numbers."""
        return 0

    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one example for each argument of the module's `forward`, in order."""
        raise NotImplementedError

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights (all FP32): the module's whole state, no more and no less."""
        raise NotImplementedError

    def size_refusals(self) -> Iterator[str]:
        """What is wrong with the family's own sizes, in words that end "the architecture is refused: ..."."""
        raise NotImplementedError

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        """The architecture that a configuration's `[architecture]` options describe, for data of this form.

        Raises DecodeError for options that the family does not have, or data of a form that it cannot take.
        """
        raise NotImplementedError

    def row_numbers(self) -> int:
        """About how many numbers the model holds at once for one row, where it is widest."""
        return sum(math.prod(shape) for shape in self.input_shapes())

    def row_work(self) -> int:
        """About how many multiplications one row takes: each weight once, unless the family says else."""
        return self.weight_count()

    def rows_at_once(self, most: int) -> int:
        """How many rows to run in one call, at most `most`: so that memory and time are bounded whatever the model."""
        numbers, work = NUMBERS_AT_ONCE // max(1, self.row_numbers()), WORK_AT_ONCE // max(1, self.row_work())
        return max(1, min(most, numbers, work))

    def trained_part(self) -> Spec:
        """What training sees: an architecture over the outputs of the part that is fixed, or all of it if none is.

        A module with a fixed part has it as `features`, and the trained part behind it as `head`.
        """
        return self

    def refusals(self) -> Iterator[str]:
        """Every reason to refuse this architecture; none if it may be built."""
        if not (self.classes == 0 or 2 <= self.classes <= MAX_CLASSES):
            yield "the number of classes is out of range"
        wrong = list(self.size_refusals())
        yield from wrong
        if not wrong and self.weight_count() * 4 > MAX_WEIGHTS:
            yield "it has too many weights"
        elif not wrong and self.row_work() > WORK_AT_ONCE:
            yield "one row takes too much work"

    def weight_count(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.tensors().values())


class DeclaredInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration's data looks like to a model: per-example shapes, and the vocabulary if they are tokens."""

    shapes: tuple[tuple[int, ...], ...]
    vocabulary: int = 0

    def only(self, *, rank: int, what: str) -> tuple[int, ...]:
        """The shape of the single input, if it is numbers of this rank; raises DecodeError naming what is wanted."""
        if len(self.shapes) != 1 or len(self.shapes[0]) != rank or self.vocabulary:
            raise DecodeError(f"it takes {what}")
        return self.shapes[0]


def from_options(family: type[Spec], options: Mapping[str, Any], **known: Any) -> Any:
    """A spec from a configuration's options and the sizes that follow from the data; raises DecodeError.

    Options may not set what follows from the data.
    """
    twice = sorted(set(options) & {*known, "classes", "family"})
    if twice:
        raise DecodeError(f"'{twice[0]}' follows from the data and is not an option")
    try:
        return msgspec.convert({**options, **known, "family": family.__struct_config__.tag}, family)
    except msgspec.ValidationError as error:
        raise DecodeError(in_words(error, family, under=("architecture",))) from error
