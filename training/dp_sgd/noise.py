"""What is added to a clipped sum: the second seam of a step.

`GaussianNoise` adds Gaussian values and rounds the noisy sum to a public grid of 2^-`ROUNDED_BITS` standard deviations.
With exact numbers that is the Gaussian mechanism processed further, so it costs no privacy; with floating-point ones
it hides the low bits, through which continuous noise betrays the sum (Mironov 2012). What arithmetic can still do is
bounded. Values from a pair of length r are within 2^-49 r of exact ones, and adding to a coordinate s (both in standard
deviations) loses at most 2^-53 (|s| + r), so the probability of each grid value is that of the exact mechanism within a
factor of 1 +- h, where h is 2^-37 + 2^-42 |s| in root mean square. Over d coordinates and T steps of B units these
factors multiply up like a random walk with a drift (Freedman 1975): the privacy loss differs by less than
2^-36 (8 sqrt(2 d T) + T sqrt(d) / sigma) + 2^-36 (sqrt(T) + T / (64 sigma)) B / sigma + 2^-28, but for a chance of
10^-13: by 2 * 10^-5 for a quarter of a million weights and 2,000 steps of 1,000 units, 6 * 10^-4 for ten million
weights and 10,000 steps of 10,000. Noise is larger by `ROOM` of itself to pay for that and for the 2^-16 of a clip norm
that float64 may lose in a sum (`SUMMATION`). tests/training/dp_sgd/test_noise_bound.py derives each constant.

`DiscreteNoise` needs no such bound. The sum is rounded to whole multiples of a public grid g and exact integer values
of the discrete Gaussian (Canonne, Kamath and Steinke 2020) are added, so that every published coordinate is an
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

import torch

from training.dp_sgd.discrete import discrete_gaussian
from training.randomness import BLOCK, Keystream

CONTINUOUS = "gaussian"
DISCRETE = "discrete-gaussian"
NOISES = (CONTINUOUS, DISCRETE)

ROUNDED_BITS = 10  # rounding makes the noise larger by 4 * 10^-8 of itself
ROOM = 2.0**-10  # of the noise, in front of everything that floating point does to it
GRID_BITS = 16  # rounding moves the sum by 2^-16 clip norms at most
SMOOTHING = 6  # grid units, far above the smoothing parameter of the integers
SUMMED_UNITS = 2**18  # of one step, for which the next line holds whatever the order of the sum
SUMMATION = SUMMED_UNITS**2 * 2.0**-52  # of the clip norm: what float64 may lose, in either of two neighbouring sums


class Noise(ABC):
    """Adds independent noise to every coordinate of a sum, in place."""

    @abstractmethod
    def add(self, summed: list[torch.Tensor]) -> None:
        """Sums [...], float64 or float32, become what may be released. Noise is added in float64 to both."""


class GaussianNoise(Noise):
    """Gaussian values of the given standard deviation, and the sum rounded to the grid of 2^-`ROUNDED_BITS` of it."""

    def __init__(self, stream: Keystream, deviation: float) -> None:
        if not 0 < deviation < math.inf:
            raise ValueError("noise needs a deviation above zero")
        self._stream = stream
        self._unit = deviation * (1.0 + ROOM) * 2.0**-ROUNDED_BITS

    def add(self, summed: list[torch.Tensor]) -> None:
        left = sum(one.numel() for one in summed)
        values = torch.empty(0, dtype=torch.float64)
        for one in summed:
            rest = one.view(-1)
            while len(rest):  # a block of noise at a time, while it is in the processor's cache
                if not len(values):
                    values = self._stream.normal_block(min(left, BLOCK), bits=ROUNDED_BITS)
                size = min(len(rest), len(values))
                self._add(rest[:size], values[:size].to(one.device))
                rest, values, left = rest[size:], values[size:], left - size

    def _add(self, part: torch.Tensor, values: torch.Tensor) -> None:
        """In grid units, and in float64 whatever the part is."""
        values.add_(part, alpha=1.0 / self._unit).round_()
        part.copy_(values.mul_(self._unit))


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

    def add(self, summed: list[torch.Tensor]) -> None:
        count = sum(one.numel() for one in summed)
        values = torch.from_numpy(discrete_gaussian(self._stream, deviation=self.grid.deviation, count=count)).double()
        start = 0
        for one in summed:
            noise = values[start : start + one.numel()].view(one.shape).to(one.device)
            start += one.numel()
            whole = one.to(torch.float64).div(self.grid.unit).round_().add_(noise)  # below 2^53: exact
            one.copy_(whole.mul_(self.grid.unit))


def noise_of(kind: str, stream: Keystream, *, sigma: float, clip_norm: float, coordinates: int) -> Noise:
    """The noise of a run with these public constants."""
    if kind == DISCRETE:
        return DiscreteNoise(stream, sigma=sigma, clip_norm=clip_norm, coordinates=coordinates)
    return GaussianNoise(stream, sigma * clip_norm)
