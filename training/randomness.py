"""Randomness of training: a keystream of AES-256 in counter mode under a fresh key of the operating system.

The counter mode is that inside GCM (NIST SP 800-38D, GCTR), because OpenSSL has faster code for it than for the bare
mode: half the time where the processor has vector AES. The tag is never asked for. GCM's counter has 32 bits, so a new
key is drawn before it would begin again.

torch's and numpy's generators are predictable and can be seeded by anybody in the process, so noise drawn from them
could be subtracted again. Nothing here can be seeded or replayed: the key is drawn when the stream is made and is kept
nowhere else.

Two kinds of normal values. `gaussian`, for mechanisms that release once: the half sum of four Box-Muller values in
float64, against attacks on the low bits of single ones; they remain continuous floating-point noise, and certificates
say so. `normal_block`, for DP-SGD: single Box-Muller values (Box and Muller 1958), each within `ERROR` of what exact
arithmetic on an ideal uniform pair would give, and only to be released rounded (`training.dp_sgd.noise`), which hides
their low bits. It takes 8 bytes for a value instead of 32.

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
BLOCK = 65_536  # values at a time: what fits into a processor's cache, with all that they are made from
_ZEROS = memoryview(bytes(1 << 16))  # what is encrypted; few, so that they stay in the cache, too
KEY_BYTES = (1 << 36) - (1 << 26)  # of one key, below the 2^36 - 32 of GCM; more than one call takes is left
ERROR = 2.0**-49  # of a value, times its pair's length, if log, sine and cosine are right to the last place
_SMALL = 1 << 45  # smaller words have too few bits for a logarithm, and are given 64 more


class Keystream:
    """An endless stream of unpredictable bytes; one per use, never shared between threads."""

    def __init__(self, entropy: Entropy = random_bytes) -> None:
        self._entropy = entropy
        self._room = memoryview(bytearray(8 * BLOCK + 15))  # words, written over again and again; never handed out
        self._values = torch.empty(BLOCK, dtype=torch.float64)
        self._cosines = torch.empty(BLOCK // 2, dtype=torch.float64)
        self._draw_key()

    def _draw_key(self) -> None:
        self._encryptor = Cipher(algorithms.AES(self._entropy(32)), modes.GCM(self._entropy(12))).encryptor()
        self._left = KEY_BYTES

    def _spend(self, size: int) -> None:
        """Before so many bytes are taken."""
        if size > self._left:
            self._draw_key()
        self._left -= size

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` independent uniform 64-bit integers."""
        self._spend(8 * count)
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` values uniform in [0, 1) with 53 bits each."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal values."""
        values = np.empty(count)
        for start in range(0, count, BLOCK):
            values[start : start + BLOCK] = self._gaussian(min(BLOCK, count - start))
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

    def normal_block(self, count: int, *, bits: int = 0) -> torch.Tensor:
        """`count` independent standard normal values for noise that is rounded, at most `BLOCK`: float64 [count].

        They come times 2^bits, which changes no digit, and are written over by the next call.
        """
        pairs = (count + 1) // 2
        self._fill_room(16 * pairs)
        words = torch.frombuffer(self._room, dtype=torch.int64, count=2 * pairs)
        # Words are read as signed numbers: a size k, for the interval (k - 1/2, k + 1/2), and a sign.
        values, cosines = self._values[: 2 * pairs].copy_(words), self._cosines[:pairs]
        radius, angle = values[:pairs].abs_(), values[pairs:]
        if pairs and radius.amin() < _SMALL:
            small = radius < _SMALL
            place = torch.from_numpy(self.uniform(int(small.sum())) - 0.5)
            radius[small] = (radius[small] + place).abs_().clamp_min_(2.0**-54)
        radius.mul_(2.0**-63).log_().mul_(-2.0 * 4.0**bits).sqrt_()
        torch.cos(angle.mul_(2.0**-63 * math.pi), out=cosines)
        angle.sin_().mul_(radius)
        radius.mul_(cosines)
        return values[:count]

    def _fill_room(self, size: int) -> None:
        self._spend(size)
        for start in range(0, size, len(_ZEROS)):
            some = min(len(_ZEROS), size - start)
            self._encryptor.update_into(_ZEROS[:some], self._room[start : start + some + 15])


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
