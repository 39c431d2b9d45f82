"""Bags of embeddings over texts and tokens."""

from __future__ import annotations

from collections.abc import Iterator

from sealgate.certificate.architectures.linear import linear_tensors
from sealgate.certificate.architectures.spec import ACTIVATIONS
from sealgate.certificate.architectures.steps import TokensSpec
from sealgate.limits import MAX_HIDDEN_LAYERS, MAX_LAYER_WIDTH


class EmbeddingBagSpec(TokensSpec, frozen=True, kw_only=True, tag="embedding-bag"):
    """The mean of the tokens' vectors, `width` wide, then linear layers with one activation between them."""

    width: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"

    def row_numbers(self) -> int:
        return 2 * self.length * self.width

    def row_work(self) -> int:
        return self.length * self.width + self.weight_count() - self.tokens * self.width

    def tensors(self) -> dict[str, tuple[int, ...]]:
        layers = linear_tensors((self.width, *self.hidden, self.logit_count))
        return {"embedding.weight": (self.tokens, self.width), **layers}

    def size_refusals(self) -> Iterator[str]:
        yield from super().size_refusals()
        for holds, what in (
            (len(self.hidden) <= MAX_HIDDEN_LAYERS, "it has too many layers"),
            (all(0 < width <= MAX_LAYER_WIDTH for width in (self.width, *self.hidden)), "a width is out of range"),
            (self.activation in ACTIVATIONS, f"its activation is none of {', '.join(ACTIVATIONS)}"),
        ):
            if not holds:
                yield what
