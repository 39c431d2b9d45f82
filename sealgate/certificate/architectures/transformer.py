"""Transformer encoders, trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator

from sealgate.certificate.architectures.spec import ACTIVATIONS
from sealgate.certificate.architectures.steps import StepsSpec
from sealgate.limits import MAX_ATTENTION_SCORES, MAX_HEADS, MAX_HIDDEN_LAYERS, MAX_LAYER_WIDTH


def attention_tensors(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Weights of multi-head attention: four square linear layers."""
    tensors: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value", "out"):
        tensors[f"{name}.{part}.weight"] = (width, width)
        tensors[f"{name}.{part}.bias"] = (width,)
    return tensors


def norm_tensors(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Weights of layer normalisation."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear_tensor(name: str, width_in: int, width_out: int) -> dict[str, tuple[int, ...]]:
    """Weights of one linear layer."""
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def attention_numbers(*, width: int, heads: int, feed_forward: int, length: int) -> int:
    """About how many numbers one block holds at once for one row: scores before and behind the softmax, or widened."""
    return length * (6 * width + max(2 * heads * length, 2 * feed_forward))


def attention_refusals(*, width: int, heads: int, layers: int, feed_forward: int, length: int) -> Iterator[str]:
    """What is wrong with the sizes of a stack of attention layers."""
    for holds, what in (
        (0 < layers <= MAX_HIDDEN_LAYERS, "its number of layers is out of range"),
        (0 < width <= MAX_LAYER_WIDTH and 0 < feed_forward <= MAX_LAYER_WIDTH, "a layer's width is out of range"),
        (0 < heads <= MAX_HEADS and width % max(heads, 1) == 0, "its width cannot be shared among its heads"),
        (
            heads * length * length <= MAX_ATTENTION_SCORES,
            "so many steps would attend to each other in too much memory",
        ),
    ):
        if not holds:
            yield what


class TransformerSpec(StepsSpec, frozen=True, kw_only=True, tag="transformer"):
    """`layers` blocks of attention with `heads` heads and of two linear layers, `feed_forward` wide between them."""

    width: int
    heads: int
    layers: int
    feed_forward: int
    activation: str = "gelu"

    def row_numbers(self) -> int:
        return attention_numbers(width=self.width, heads=self.heads, feed_forward=self.feed_forward, length=self.length)

    def row_work(self) -> int:
        return super().row_work() + 2 * self.layers * self.length**2 * self.width

    def tensors(self) -> dict[str, tuple[int, ...]]:
        tensors: dict[str, tuple[int, ...]] = {}
        if self.tokens:
            tensors["embedding.weight"] = (self.tokens, self.width)
        else:
            tensors.update(linear_tensor("projection", self.channels, self.width))
        for index in range(self.layers):
            block = f"blocks.{index}"
            tensors.update(norm_tensors(f"{block}.attention_norm", self.width))
            tensors.update(attention_tensors(f"{block}.attention", self.width))
            tensors.update(norm_tensors(f"{block}.feed_forward_norm", self.width))
            tensors.update(linear_tensor(f"{block}.widen", self.width, self.feed_forward))
            tensors.update(linear_tensor(f"{block}.narrow", self.feed_forward, self.width))
        tensors.update(norm_tensors("norm", self.width))
        return {**tensors, **linear_tensor("head", self.width, self.logit_count)}

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        yield from attention_refusals(
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            feed_forward=self.feed_forward,
            length=self.length,
        )
        if self.activation not in ACTIVATIONS:
            yield f"its activation is none of {', '.join(ACTIVATIONS)}"
