"""Public pretrained text encoders that stay as they are, with a small trained head.

The encoder's weights travel in the bundle like any others. `frozen_digest` is what their publisher's weights amount to:
who has those can compute it again and see that nothing private was trained into the part that carries no noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sealgate.certificate.architectures.linear import MlpSpec, linear_part
from sealgate.certificate.architectures.spec import ACTIVATIONS, Spec
from sealgate.certificate.architectures.steps import TokensSpec
from sealgate.certificate.architectures.transformer import (
    attention_numbers,
    attention_refusals,
    attention_tensors,
    linear_tensor,
    norm_tensors,
)
from sealgate.limits import MAX_HIDDEN_LAYERS, MAX_LAYER_WIDTH, MAX_NAME, MAX_TOKENS

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
FROZEN_PREFIX = "features."


class FrozenEncoderSpec(TokensSpec, frozen=True, kw_only=True, tag="frozen-encoder"):
    """A BERT-style encoder (`layers` blocks over at most `positions` tokens), then linear layers on its mean vector.

    `pretraining` names the public model, `frozen_digest` its weights (see `sealgate.certificate.weights`).
    """

    pretraining: str
    frozen_digest: str
    width: int
    heads: int
    layers: int
    feed_forward: int
    positions: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"

    def row_numbers(self) -> int:
        return attention_numbers(width=self.width, heads=self.heads, feed_forward=self.feed_forward, length=self.length)

    def row_work(self) -> int:
        return super().row_work() + 2 * self.layers * self.length**2 * self.width

    def tensors(self) -> dict[str, tuple[int, ...]]:
        tensors: dict[str, tuple[int, ...]] = {
            "features.words.weight": (self.tokens, self.width),
            "features.positions.weight": (self.positions, self.width),
            "features.segment.weight": (1, self.width),
            **norm_tensors("features.norm", self.width),
        }
        for index in range(self.layers):
            layer = f"features.layers.{index}"
            tensors.update(attention_tensors(f"{layer}.attention", self.width))
            tensors.update(norm_tensors(f"{layer}.attention_norm", self.width))
            tensors.update(linear_tensor(f"{layer}.widen", self.width, self.feed_forward))
            tensors.update(linear_tensor(f"{layer}.narrow", self.feed_forward, self.width))
            tensors.update(norm_tensors(f"{layer}.feed_forward_norm", self.width))
        width_in = self.width
        for place, width in enumerate((*self.hidden, self.logit_count)):
            tensors.update(linear_tensor(f"head.{2 * place}", width_in, width))  # activations stand between them
            width_in = width
        return tensors

    def trained_part(self) -> Spec:
        if self.hidden:
            return MlpSpec(inputs=self.width, hidden=self.hidden, activation=self.activation, classes=self.classes)
        return linear_part(self.width, self.classes)

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        yield from attention_refusals(
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            feed_forward=self.feed_forward,
            length=self.length,
        )
        for holds, what in (
            (self.length <= self.positions <= MAX_TOKENS, "texts are longer than the encoder has positions"),
            (len(self.hidden) <= MAX_HIDDEN_LAYERS, "it has too many layers"),
            (all(0 < width <= MAX_LAYER_WIDTH for width in self.hidden), "a layer's width is out of range"),
            (self.activation in ACTIVATIONS, f"its activation is none of {', '.join(ACTIVATIONS)}"),
            (0 < len(self.pretraining) <= MAX_NAME, "its public pretraining has no proper name"),
            (_SHA256.match(self.frozen_digest), "the digest of its public weights is malformed"),
        ):
            if not holds:
                yield what
