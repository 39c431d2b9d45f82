"""The convolutional network: stages of convolution, group normalisation, activation and pooling, then linear layers.

Where nobody asks for gradients, a processor computes the stages of more than a few rows in oneDNN's own layout: the
same numbers, two to four times as many rows a second. Left in rows and columns, a stage is turned into that layout and
back at each operation, and its pooling is not vectorised.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.architectures.cnn import CnnSpec, Stage
from secure_runtime.models.families.layers import ACTIVATIONS, linear

_POOLINGS: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}

_BLOCK_ROWS = 4  # for fewer, the way there and back takes longer than it saves


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

    def in_blocks(self, planes: torch.Tensor) -> torch.Tensor:
        """`forward` of a tensor in oneDNN's layout, for a stage without normalisation whose activation is ReLU. The
        largest of some numbers is the same before and after ReLU, and after pooling there are fewer."""
        planes = self.convolution(planes)
        if isinstance(self.pool, nn.MaxPool2d):
            return self.pool(planes).relu_()  # type: ignore[no-any-return]  # nn.Module's call has no annotation
        planes = planes.relu_()
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
        self._plain = spec.activation == "relu" and not any(stage.norm_groups for stage in spec.stages)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [n, channels, height, width] -> [n, logits]
        if self._plain and _has_blocks(images):
            planes = images.to_mkldnn()
            for stage in self.stages:
                planes = stage.in_blocks(planes)  # type: ignore[operator]  # a ModuleList's members are any module
            images = planes.to_dense()
        else:
            for stage in self.stages:
                images = stage(images)  # [n, channels', H', W']
        rows = images.flatten(1)
        for layer in self.layers[:-1]:
            rows = self.activation(layer(rows))  # [n, width]
        logits: torch.Tensor = self.layers[-1](rows)
        return logits


def _has_blocks(images: torch.Tensor) -> bool:
    """Whether oneDNN has its layout for these, and nothing is to be differentiated: it has no gradients of all this."""
    return (
        len(images) >= _BLOCK_ROWS
        and not torch.is_grad_enabled()
        and images.dtype == torch.float32
        and images.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch has no annotation there
    )
