"""Randomness of training: a keystream of AES-256 in counter mode under a fresh key of the operating system.

torch's and numpy's generators are predictable and can be seeded by anybody in the process, so noise drawn from them
could be subtracted again. Nothing here can be seeded or replayed: the key is drawn when the stream is made and is kept
nowhere else. Gaussian values are the half sum of four Box-Muller values in float64, against attacks on the low bits
of single ones; they remain continuous floating-point noise, and certificates say so.

Trusts: the `Entropy` it is given. Never: exposes or stores its key.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from sealgate.ambient import Entropy, random_bytes

NOISE_TRANSFORM = "box-muller-4"
NOISE_ARITHMETIC = "float64-continuous"
_TWO_64 = 1 << 64
_BLOCK = 32_768  # values at a time: what fits into a processor's cache


class Keystream:
    """An endless stream of unpredictable bytes; one per use, never shared between threads."""

    def __init__(self, entropy: Entropy = random_bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(entropy(32)), modes.CTR(entropy(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` independent uniform 64-bit integers."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` values uniform in [0, 1) with 53 bits each."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal values."""
        values = np.empty(count)
        for start in range(0, count, _BLOCK):
            values[start : start + _BLOCK] = self._gaussian(min(_BLOCK, count - start))
        return values

    def _gaussian(self, count: int) -> NDArray[np.float64]:
        pairs = 2 * count  # each pair of words gives two values, and four values give one
        words = self.words(2 * pairs)
        # Words are read as signed numbers: the sign and 63 bits. Half a unit is added so that the logarithm's argument
        # is never zero; small words keep all their bits, so values reach beyond nine standard deviations. torch's
        # vectorised functions are several times numpy's speed.
        radius = torch.from_numpy(words[:pairs].view(np.int64).astype(np.float64))
        radius.add_(0.5).abs_().mul_(2.0**-63).log_().mul_(-2.0).sqrt_()
        angle = torch.from_numpy(words[pairs:].view(np.int64).astype(np.float64)).mul_(2.0**-63 * math.pi)
        halves = torch.cos(angle).add_(angle.sin_()).mul_(radius).view(2, count).sum(dim=0).mul_(0.5)
        return halves.numpy()


class PoissonSampler:
    """Each row enters each step independently with probability `rate`: what the accounting assumes, and nothing else.

    The rate is a public fraction; it is met to within 2^-64. The number of rows that come out is random and private.
    """

    def __init__(self, rate: Fraction, stream: Keystream) -> None:
        if not 0 < rate <= 1:
            raise ValueError("the rate must lie in (0, 1]")
        self._threshold = rate.numerator * _TWO_64 // rate.denominator
        self._stream = stream

    def draw(self, rows: int) -> NDArray[np.int64]:
        """The rows of one step, as increasing indices below `rows`."""
        if self._threshold == _TWO_64:
            return np.arange(rows, dtype=np.int64)
        return np.flatnonzero(self._stream.words(rows) < np.uint64(self._threshold)).astype(np.int64)
