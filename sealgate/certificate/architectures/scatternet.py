"""ScatterNet (Oyallon & Mallat 2015; with differential privacy Tramer & Boneh 2021): fixed wavelet features of an
image, normalised, and one trained linear layer. No early layers to learn, so little noise for its accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

from sealgate.certificate.architectures.linear import linear_part
from sealgate.certificate.architectures.spec import DeclaredInputs, Spec, from_options
from sealgate.limits import (
    MAX_IMAGE_CHANNELS,
    MAX_SCATTERING_ANGLES,
    MAX_SCATTERING_FEATURES,
    MAX_SCATTERING_NUMBERS,
    MAX_SCATTERING_SCALES,
)

IMAGES = "images, [channels, height, width]"


class ScatterNetSpec(Spec, frozen=True, tag="scatternet"):
    """Scattering at `scales` scales and `angles` angles, group normalisation without weights, a linear layer.

    `norm_groups` 0 leaves the features as they are; `norm_epsilon_micro` is added to the variances, in millionths.
    `mirrored` averages the features of an image and of its mirror image, where left and right mean nothing.
    `rooted` takes square roots before normalising: faint structure then counts for more. `shared_percent` of what all
    planes have in common at a place (their mean) is taken off each: it tells little, and fills much of a clip norm.
    `centred` takes off a fixed vector, a private mean of the features that was paid for (`features.center`).
    """

    channels: int
    height: int
    width: int
    scales: int = 2
    angles: int = 8
    norm_groups: int = 27
    norm_epsilon_micro: int = 10
    mirrored: bool = False
    rooted: bool = False
    shared_percent: int = 0
    centred: bool = False

    @property
    def paths(self) -> int:
        """Scattering paths of orders 0, 1 and 2 of one channel."""
        return 1 + self.scales * self.angles + self.scales * (self.scales - 1) // 2 * self.angles**2

    @property
    def feature_count(self) -> int:
        """Features of one image."""
        return self.channels * self.paths * (self.height >> self.scales) * (self.width >> self.scales)

    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.channels, self.height, self.width),)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        tensors: dict[str, tuple[int, ...]] = {"features.center": (self.feature_count,)} if self.centred else {}
        return {**tensors, "head.weight": (self.logit_count, self.feature_count), "head.bias": (self.logit_count,)}

    def row_numbers(self) -> int:
        return self.feature_count

    def row_work(self) -> int:
        return self.weight_count() + self.channels * (1 + self.mirrored) * self._scattering_work()

    def _scattering_work(self) -> int:
        """Multiplications of the transform of one plane: for each path a filter, its way back, the modulus and the
        average; and the transforms that the filters are applied to. A transform of n numbers takes 2 n log2 n."""
        height, width = ((side >> self.scales) + 2 << self.scales for side in (self.height, self.width))
        sizes = [(height >> scale) * (width >> scale) for scale in range(self.scales)]
        transforms = [int(2 * size * math.log2(size)) for size in sizes]
        averages = [
            (height >> scale) * (self.width >> self.scales) * ((width >> scale) + (self.height >> self.scales))
            for scale in range(self.scales)
        ]

        def path(level: int, scale: int) -> int:
            return 2 * sizes[level] + transforms[scale] + 2 * sizes[scale] + averages[scale]

        first = sum(path(0, scale) for scale in range(self.scales)) + sum(transforms[:-1])
        second = sum(path(scale, coarser) for coarser in range(self.scales) for scale in range(coarser))
        return transforms[0] + averages[0] + self.angles * first + self.angles**2 * second

    def trained_part(self) -> Spec:
        return linear_part(self.feature_count, self.classes)

    def size_refusals(self) -> Iterator[str]:
        if not (0 < self.scales <= MAX_SCATTERING_SCALES and 0 < self.angles <= MAX_SCATTERING_ANGLES):
            yield "the number of scales or angles is out of range"
            return
        if not 0 < self.channels <= MAX_IMAGE_CHANNELS or min(self.height, self.width) <= 1 << self.scales:
            yield f"it needs images of at most {MAX_IMAGE_CHANNELS} channels, with sides above two to the scales"
            return
        grid = (self.height + (2 << self.scales)) * (self.width + (2 << self.scales))  # padding included
        if (
            self.feature_count > MAX_SCATTERING_FEATURES
            or grid * max(self.angles, self.channels) * self.scales**2 > MAX_SCATTERING_NUMBERS
        ):
            yield "its images are too large"
        if self.norm_groups < 0 or (self.norm_groups and self.channels * self.paths % self.norm_groups):
            yield f"norm_groups must divide its {self.channels * self.paths} scattering planes, or be 0"
        elif self.norm_groups and self.feature_count == self.norm_groups:
            yield "norm_groups would normalise single numbers"
        if not 0 < self.norm_epsilon_micro <= 1_000_000:
            yield "norm_epsilon_micro must lie between 1 and 1000000"
        if not 0 <= self.shared_percent <= 100:
            yield "shared_percent must lie between 0 and 100"

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        channels, height, width = inputs.only(rank=3, what=IMAGES)
        return from_options(  # type: ignore[no-any-return]
            cls, options, channels=channels, height=height, width=width, classes=classes
        )
