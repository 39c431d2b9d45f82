"""A Transformer encoder from scratch (Vaswani et al. 2017), normalising before each part (Xiong et al. 2020).

Positions are the fixed sines and cosines of Vaswani et al., section 3.5: learned ones would be more numbers to put
noise on. Attention is written out with linear layers, whose per-example gradients every gradient mode knows. Token 0 is
padding: nothing attends to it, and it does not count in the mean that the head reads.

Never: drops anything out, or keeps anything between two calls.
"""

from __future__ import annotations

import torch
from torch import nn

from sealgate.certificate.architectures.transformer import TransformerSpec
from secure_runtime.models.families.layers import ACTIVATIONS, embedding, layer_norm, linear, masked_mean, split_heads

_FAR_BELOW = -1e9  # of scores of what may not be attended to: finite, so that a row of padding alone stays a number


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Positions: [length, width], sines in even and cosines in odd places, wavelengths from 2 pi to 20,000 pi."""
    places = torch.arange(length, dtype=torch.float64).unsqueeze(1)  # [length, 1]
    rates = torch.pow(10_000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)  # [ceil(width / 2)]
    table = torch.empty(length, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(places * rates)
    table[:, 1::2] = torch.cos(places * rates[: width // 2])
    return table


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k' / sqrt(d)) v, heads side by side."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))

    def forward(self, steps: torch.Tensor, present: torch.Tensor) -> torch.Tensor:  # [n, T, width], bool [n, T]
        query, key, value = (split_heads(layer(steps), self.heads) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # [n, heads, T, T]
        scores = scores.masked_fill(~present[:, None, None, :], _FAR_BELOW)
        read = (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)  # [n, T, width]
        out: torch.Tensor = self.out(read)
        return out


class Block(nn.Module):
    """Attention and two linear layers, each normalised before and added to what came in."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.attention_norm = layer_norm(spec.width)
        self.attention = Attention(spec.width, spec.heads)
        self.feed_forward_norm = layer_norm(spec.width)
        self.widen = linear(spec.width, spec.feed_forward)
        self.activation = ACTIVATIONS[spec.activation]()
        self.narrow = linear(spec.feed_forward, spec.width)

    def forward(self, steps: torch.Tensor, present: torch.Tensor) -> torch.Tensor:  # [n, T, width], bool [n, T]
        steps = steps + self.attention(self.attention_norm(steps), present)
        more: torch.Tensor = self.narrow(self.activation(self.widen(self.feed_forward_norm(steps))))
        return steps + more


class Transformer(nn.Module):
    """Steps or tokens, positions, blocks, a last normalisation, the mean over what is there, a linear layer."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.embedding = embedding(spec.tokens, spec.width) if spec.tokens else None
        self.projection = None if spec.tokens else linear(spec.channels, spec.width)
        self.register_buffer("positions", sinusoids(spec.length, spec.width), persistent=False)  # [T, width]
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = layer_norm(spec.width)
        self.head = linear(spec.width, spec.logit_count)

    def forward(self, given: torch.Tensor) -> torch.Tensor:  # [n, T, channels] or int64 [n, T] -> [n, logits]
        if self.embedding is not None:
            steps, present = self.embedding(given), given != 0
        else:
            assert self.projection is not None
            steps, present = self.projection(given), torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        steps = steps + self.positions.to(steps.dtype)  # [n, T, width]
        for block in self.blocks:
            steps = block(steps, present)
        logits: torch.Tensor = self.head(masked_mean(self.norm(steps), present))
        return logits
