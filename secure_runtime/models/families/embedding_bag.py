"""A bag of embeddings (Joulin et al. 2017, "fastText"): the mean of the tokens' vectors, then linear layers.

The cheapest model over text: it does not see the order of words. Token 0 is padding and does not count.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.architectures.embedding_bag import EmbeddingBagSpec
from secure_runtime.models.families.layers import ACTIVATIONS, embedding, linear, masked_mean


class EmbeddingBag(nn.Module):
    """Mean of embeddings, then linear layers with one activation between them."""

    def __init__(self, spec: EmbeddingBagSpec) -> None:
        super().__init__()
        self.embedding = embedding(spec.tokens, spec.width)
        widths = (spec.width, *spec.hidden, spec.logit_count)
        self.layers = nn.ModuleList(linear(*pair) for pair in itertools.pairwise(widths))
        self.activation = ACTIVATIONS[spec.activation]()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # int64 [n, L] -> [n, logits]
        rows = masked_mean(self.embedding(tokens), tokens != 0)  # [n, width]
        for layer in self.layers[:-1]:
            rows = self.activation(layer(rows))
        logits: torch.Tensor = self.layers[-1](rows)
        return logits
