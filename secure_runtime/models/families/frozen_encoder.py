"""A public pretrained text encoder of the BERT kind (Devlin et al. 2019), frozen, and a small trained head behind it.

The encoder's weights are public and stay what they were: only the head is trained on private rows, so only the head
needs noise. A text's vector is the mean of its tokens' last states, scaled to length one (Reimers & Gurevych 2019).
Token 0 is padding. The encoder's parameters are named as in the published weights.

Never: trains the encoder, or keeps anything between two calls.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.architectures.frozen_encoder import FrozenEncoderSpec
from secure_runtime.models.families.layers import ACTIVATIONS, embedding, layer_norm, linear, masked_mean
from secure_runtime.models.families.transformer import Attention

_EPSILON = 1e-12  # of BERT's normalisations
_TOGETHER = 8  # texts in one pass: more are no faster on a processor, and waste more padding


class Layer(nn.Module):
    """Attention and two linear layers, each added to what came in and normalised behind."""

    def __init__(self, spec: FrozenEncoderSpec) -> None:
        super().__init__()
        self.attention = Attention(spec.width, spec.heads)
        self.attention_norm = layer_norm(spec.width, epsilon=_EPSILON)
        self.widen = linear(spec.width, spec.feed_forward)
        self.narrow = linear(spec.feed_forward, spec.width)
        self.feed_forward_norm = layer_norm(spec.width, epsilon=_EPSILON)

    def forward(self, steps: torch.Tensor, present: torch.Tensor) -> torch.Tensor:  # [n, L, width], bool [n, L]
        steps = self.attention_norm(steps + self.attention(steps, present))
        widened = nn.functional.gelu(self.widen(steps))  # [n, L, feed_forward]
        out: torch.Tensor = self.feed_forward_norm(steps + self.narrow(widened))
        return out


class Encoder(nn.Module):
    """Tokens to one vector of length one per text: nothing here is trained, so training computes it once per text."""

    def __init__(self, spec: FrozenEncoderSpec) -> None:
        super().__init__()
        self.words = embedding(spec.tokens, spec.width)
        self.positions = embedding(spec.positions, spec.width)
        self.segment = embedding(1, spec.width)  # of two segments BERT knows, a single text is the first
        self.norm = layer_norm(spec.width, epsilon=_EPSILON)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # int64 [n, L] -> [n, width]
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        lengths = ((tokens != 0) * places).amax(dim=1)  # [n], without the padding behind
        vectors = self.segment.weight.new_zeros(len(tokens), self.segment.weight.shape[1])
        # Texts of like length together, and no further than the longest of them: what stands behind is padding.
        for rows in torch.split(torch.argsort(lengths, stable=True), _TOGETHER):
            vectors[rows] = self.together(tokens[rows, : max(1, int(lengths[rows].amax()))])
        return vectors

    def together(self, tokens: torch.Tensor) -> torch.Tensor:  # int64 [n, L] -> [n, width]
        """All texts in one pass, in their order, however long."""
        present = tokens != 0
        steps = self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        steps = self.norm(steps + self.segment.weight[0])
        for layer in self.layers:
            steps = layer(steps, present)
        return nn.functional.normalize(masked_mean(steps, present), dim=1)


class FrozenEncoder(nn.Module):
    """The frozen encoder, then linear layers with one activation between them."""

    def __init__(self, spec: FrozenEncoderSpec) -> None:
        super().__init__()
        self.features = Encoder(spec).requires_grad_(False)
        self.head = nn.Sequential()
        widths = (spec.width, *spec.hidden, spec.logit_count)
        for pair in itertools.pairwise(widths):
            if len(self.head):
                self.head.append(ACTIVATIONS[spec.activation]())
            self.head.append(linear(*pair))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # int64 [n, L] -> [n, logits]
        logits: torch.Tensor = self.head(self.features(tokens))
        return logits
