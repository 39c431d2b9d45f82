"""The convolutional network, trained from scratch: stages of convolution, normalisation, activation and pooling, then
linear layers. Group normalisation (Wu & He 2018), because a batch's statistics would mix examples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import msgspec

from sealgate.certificate.architectures.scatternet import IMAGES
from sealgate.certificate.architectures.spec import ACTIVATIONS, DeclaredInputs, Spec, from_options
from sealgate.limits import (
    MAX_CONVOLUTION_CHANNELS,
    MAX_CONVOLUTION_KERNEL,
    MAX_CONVOLUTION_NUMBERS,
    MAX_CONVOLUTION_STAGES,
    MAX_CONVOLUTION_WORK,
    MAX_HIDDEN_LAYERS,
    MAX_IMAGE_CHANNELS,
    MAX_LAYER_WIDTH,
)

POOLINGS = ("max", "average")


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A convolution to `channels` planes, zero-padded by half its kernel, every `stride`-th place; normalised in
    `norm_groups` groups (0: not at all); pooled over squares of side `pool` (1: not at all)."""

    channels: int
    kernel: int = 3
    stride: int = 1
    norm_groups: int = 0
    pool: int = 1

    def convolved(self, side: int) -> int:
        """A side behind the convolution; 0 or less if there is nothing left."""
        return (side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    def refusals(self) -> Iterator[str]:
        """Why this stage cannot be built, whatever comes before it."""
        if not 0 < self.channels <= MAX_CONVOLUTION_CHANNELS:
            yield "a stage's channels are out of range"
        if not (0 < self.stride <= self.kernel <= MAX_CONVOLUTION_KERNEL and 0 < self.pool <= MAX_CONVOLUTION_KERNEL):
            yield f"a stage's kernel, stride or pool is out of range: 0 < stride <= kernel <= {MAX_CONVOLUTION_KERNEL}"
        if self.norm_groups < 0 or (self.norm_groups and self.channels % self.norm_groups):
            yield "a stage's norm_groups must divide its channels, or be 0"


class CnnSpec(Spec, frozen=True, tag="cnn"):
    """Stages, then linear layers of `hidden` widths over all that is left, with one activation everywhere."""

    channels: int
    height: int
    width: int
    stages: tuple[Stage, ...]
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    pooling: str = "max"

    def planes(self) -> Iterator[tuple[int, int, int]]:
        """[channels, height, width] behind each stage's convolution; pooling divides the sides for the next one."""
        height, width = self.height, self.width
        for stage in self.stages:
            height, width = stage.convolved(height), stage.convolved(width)
            yield stage.channels, height, width
            height, width = height // stage.pool, width // stage.pool

    @property
    def flat(self) -> int:
        """Numbers behind the last stage."""
        (channels, height, width), pool = list(self.planes())[-1], self.stages[-1].pool
        return channels * (height // pool) * (width // pool)

    def row_numbers(self) -> int:
        return 3 * max(math.prod(planes) for planes in self.planes())

    def row_work(self) -> int:
        return self.weight_count() + self.convolution_work()

    def convolution_work(self) -> int:
        """Multiplications of all convolutions of one image."""
        befores = (self.channels, *(stage.channels for stage in self.stages))
        return sum(
            math.prod(planes) * before * stage.kernel**2
            for before, stage, planes in zip(befores, self.stages, self.planes(), strict=False)
        )

    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.channels, self.height, self.width),)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        tensors: dict[str, tuple[int, ...]] = {}
        before = self.channels
        for index, stage in enumerate(self.stages):
            tensors[f"stages.{index}.convolution.weight"] = (stage.channels, before, stage.kernel, stage.kernel)
            tensors[f"stages.{index}.convolution.bias"] = (stage.channels,)
            if stage.norm_groups:
                tensors[f"stages.{index}.norm.weight"] = (stage.channels,)
                tensors[f"stages.{index}.norm.bias"] = (stage.channels,)
            before = stage.channels
        for index, (width_in, width_out) in enumerate(itertools.pairwise((self.flat, *self.hidden, self.logit_count))):
            tensors[f"layers.{index}.weight"] = (width_out, width_in)
            tensors[f"layers.{index}.bias"] = (width_out,)
        return tensors

    def size_refusals(self) -> Iterator[str]:
        if not (0 < self.channels <= MAX_IMAGE_CHANNELS and min(self.height, self.width) > 0):
            yield f"it needs images of 1 to {MAX_IMAGE_CHANNELS} channels"
        elif not 0 < len(self.stages) <= MAX_CONVOLUTION_STAGES:
            yield f"it must have 1 to {MAX_CONVOLUTION_STAGES} stages"
        elif wrong := [reason for stage in self.stages for reason in stage.refusals()]:
            yield from wrong
        else:
            yield from self._work_refusals()
        if len(self.hidden) > MAX_HIDDEN_LAYERS or not all(0 < width <= MAX_LAYER_WIDTH for width in self.hidden):
            yield "its hidden layers are too many or too wide"
        if self.activation not in ACTIVATIONS:
            yield f"its activation is none of {', '.join(ACTIVATIONS)}"
        if self.pooling not in POOLINGS:
            yield f"its pooling is none of {', '.join(POOLINGS)}"

    def _work_refusals(self) -> Iterator[str]:
        """Numbers kept and multiplications done for one image."""
        largest = 0
        for stage, (channels, height, width) in zip(self.stages, self.planes(), strict=True):
            if min(height, width) < stage.pool:
                yield "a stage leaves nothing of the image"
                return
            if stage.norm_groups and channels // stage.norm_groups * height * width == 1:
                yield "a stage normalises single numbers"  # to nothing; and torch will not do it for a single image
                return
            largest = max(largest, channels * height * width)
        if self.convolution_work() > MAX_CONVOLUTION_WORK or largest > MAX_CONVOLUTION_NUMBERS:
            yield "its images or stages are too large"

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        channels, height, width = inputs.only(rank=3, what=IMAGES)
        return from_options(  # type: ignore[no-any-return]
            cls, options, channels=channels, height=height, width=width, classes=classes
        )
