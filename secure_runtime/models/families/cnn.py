"""The convolutional network: stages of convolution, group normalisation, activation and pooling, then linear layers."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.architectures.cnn import CnnSpec, Stage
from secure_runtime.models.families.layers import ACTIVATIONS, linear

_POOLINGS: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def convolution(before: int, stage: Stage) -> nn.Conv2d:
    """A convolution of zeros, padded by half its kernel. torch's own initialisation is skipped: it would draw."""
    layer = nn.Conv2d(
        before, stage.channels, stage.kernel, stride=stage.stride, padding=stage.kernel // 2, device="meta"
    ).to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ConvolutionStage(nn.Module):
    """[n, before, H, W] -> [n, channels, H', W']"""

    def __init__(self, before: int, stage: Stage, *, activation: str, pooling: str) -> None:
        super().__init__()
        self.convolution = convolution(before, stage)
        self.norm = nn.GroupNorm(stage.norm_groups, stage.channels) if stage.norm_groups else None
        self.activation = ACTIVATIONS[activation]()
        self.pool = _POOLINGS[pooling](stage.pool) if stage.pool > 1 else None

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        planes = self.convolution(planes)
        if self.norm is not None:
            planes = self.norm(planes)
        planes = self.activation(planes)
        return planes if self.pool is None else self.pool(planes)


class Cnn(nn.Module):
    """Stages, then linear layers over all that is left."""

    def __init__(self, spec: CnnSpec) -> None:
        super().__init__()
        befores = (spec.channels, *(stage.channels for stage in spec.stages))
        self.stages = nn.ModuleList(
            ConvolutionStage(before, stage, activation=spec.activation, pooling=spec.pooling)
            for before, stage in zip(befores, spec.stages, strict=False)
        )
        widths = (spec.flat, *spec.hidden, spec.logit_count)
        self.layers = nn.ModuleList(linear(*pair) for pair in itertools.pairwise(widths))
        self.activation = ACTIVATIONS[spec.activation]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [n, channels, height, width] -> [n, logits]
        for stage in self.stages:
            images = stage(images)  # [n, channels', H', W']
        rows = images.flatten(1)
        for layer in self.layers[:-1]:
            rows = self.activation(layer(rows))  # [n, width]
        logits: torch.Tensor = self.layers[-1](rows)
        return logits
