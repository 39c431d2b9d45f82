"""Exact samples of the discrete Laplace distribution, from unpredictable bytes and whole numbers alone.

P(x) is proportional to exp(-|x| * rate) for every whole number x, with a rational rate: the sampler of Canonne, Kamath
and Steinke (2020, "The Discrete Gaussian for Differential Privacy", algorithms 1 and 2). No floating-point number takes
part, so there are no low bits for an attack to look at. How long a draw takes does depend on it.

Trusts: its entropy. Never: is seeded, or used for more than one request: bytes that were fetched and not yet used would
be shared by the two halves of a fork.
"""

from __future__ import annotations

from math import gcd

from sealgate.ambient import Entropy

_FETCH = 1024


class DiscreteLaplace:
    """Draws with one rate, `numerator / denominator`, both above 0."""

    def __init__(self, *, numerator: int, denominator: int, entropy: Entropy) -> None:
        if numerator < 1 or denominator < 1:
            raise ValueError("the rate must be above 0")
        common = gcd(numerator, denominator)
        self._s, self._t = numerator // common, denominator // common
        self._entropy = entropy
        self._pool, self._at = b"", 0

    def draw(self) -> int:
        """One sample."""
        while True:
            start = self._below(self._t)
            if not self._exp_within_one(start, self._t):
                continue
            whole = 0
            while self._exp_within_one(1, 1):
                whole += 1
            size = (start + self._t * whole) // self._s
            negative = self._below(2)
            if not (negative and size == 0):  # zero has one sign
                return -size if negative else size

    def _exp_within_one(self, numerator: int, denominator: int) -> bool:
        """True with probability exp(-numerator / denominator), for a quotient from 0 to 1."""
        count = 1
        while self._below(denominator * count) < numerator:
            count += 1
        return count % 2 == 1

    def _below(self, bound: int) -> int:
        """A uniform whole number from 0 to bound - 1."""
        bits = (bound - 1).bit_length()
        size, mask = (bits + 7) // 8, (1 << bits) - 1
        while True:
            value = int.from_bytes(self._take(size), "little") & mask
            if value < bound:
                return value

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._pool):
            self._pool, self._at = self._entropy(max(_FETCH, size)), 0
        taken = self._pool[self._at : self._at + size]
        self._at += size
        return taken
