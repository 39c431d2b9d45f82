"""What is added to a clipped sum: the second seam of a step.

`GaussianNoise` adds continuous values in float64. They are the ideal Gaussian only up to floating point, which
certificates say (Mironov 2012 shows what low bits can betray).

`DiscreteNoise` makes that caveat go away. The sum is rounded to whole multiples of a public grid g and exact integer
values of the discrete Gaussian (Canonne, Kamath and Steinke 2020) are added, so that every published coordinate is an
integer. Its accounting is that of the Gaussian mechanism with the declared sigma: rounding can move a sum by g sqrt(d)
and summation in float64 by `SUMMATION` of the clip norm, and the noise is made that much larger; and a discrete
Gaussian of variance s^2 is, but for a statistical distance below 2^-900, a discrete Gaussian of variance
`SMOOTHING`^2 around each value of a continuous one of variance s^2 - SMOOTHING^2, hence post-processing of the Gaussian
mechanism (Peikert 2010, theorem 3.1, with the smoothing parameter of the integers by Micciancio and Regev 2007).

Trusts: sums whose units were clipped. Never: draws from a generator that can be seeded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.dp_sgd.discrete import discrete_gaussian
from training.randomness import Keystream

CONTINUOUS = "gaussian"
DISCRETE = "discrete-gaussian"
NOISES = (CONTINUOUS, DISCRETE)

GRID_BITS = 16  # rounding moves the sum by 2^-16 clip norms at most
SMOOTHING = 6  # grid units, far above the smoothing parameter of the integers
SUMMATION = 2.0**-30  # of the clip norm: what float64 may lose in adding up to a million clipped gradients


class Noise(ABC):
    """Adds independent noise to every coordinate of a sum, in place."""

    @abstractmethod
    def values(self, count: int) -> NDArray[np.float64]:
        """`count` values of noise, in the units of the sum."""

    def add(self, summed: list[torch.Tensor]) -> None:
        """The sum becomes what may be released."""
        values = self.values(sum(one.numel() for one in summed))
        start = 0
        for one in summed:
            part = values[start : start + one.numel()]
            one += torch.from_numpy(part).reshape(one.shape).to(one.device, one.dtype)
            start += one.numel()


@dataclass
class GaussianNoise(Noise):
    """Continuous, of the given standard deviation."""

    stream: Keystream
    deviation: float

    def values(self, count: int) -> NDArray[np.float64]:
        return self.stream.gaussian(count) * self.deviation


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The public grid of a discrete run: `unit` in the units of the sum, `deviation` of the noise in grid units."""

    unit: float
    deviation: int

    @classmethod
    def of(cls, *, sigma: float, clip_norm: float, coordinates: int) -> Grid:
        """The grid on which the mechanism is at least as private as the Gaussian one with this sigma."""
        finer = max(0, math.ceil(math.log2(max(1, coordinates)) / 2))
        clip_units = 2.0 ** (GRID_BITS + finer)  # the clip norm in grid units
        sensitivity = clip_units * (1.0 + SUMMATION) + math.sqrt(coordinates) * (1.0 + 2.0**-10)
        deviation = math.ceil(math.hypot(sigma * sensitivity, SMOOTHING) * (1.0 + 2.0**-40))
        return cls(unit=clip_norm / clip_units, deviation=deviation)


class DiscreteNoise(Noise):
    """Discrete Gaussian on a public grid; `add` rounds the sum to the grid first."""

    def __init__(self, stream: Keystream, *, sigma: float, clip_norm: float, coordinates: int) -> None:
        self.grid = Grid.of(sigma=sigma, clip_norm=clip_norm, coordinates=coordinates)
        self._stream = stream

    def values(self, count: int) -> NDArray[np.float64]:
        return discrete_gaussian(self._stream, deviation=self.grid.deviation, count=count).astype(np.float64)

    def add(self, summed: list[torch.Tensor]) -> None:
        for one in summed:
            one.div_(self.grid.unit).round_()
        super().add(summed)  # whole numbers below 2^53: exact
        for one in summed:
            one.mul_(self.grid.unit)


def noise_of(kind: str, stream: Keystream, *, sigma: float, clip_norm: float, coordinates: int) -> Noise:
    """The noise of a run with these public constants."""
    if kind == DISCRETE:
        return DiscreteNoise(stream, sigma=sigma, clip_norm=clip_norm, coordinates=coordinates)
    return GaussianNoise(stream, sigma * clip_norm)
