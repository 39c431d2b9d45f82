"""Exact samples of the discrete Gaussian (Canonne, Kamath and Steinke 2020, algorithms 1 to 3), many at a time.

Everything comes down to coins of probability exp(-x) for rational x. A coin is tossed with 64 bits against exp(-x) in
float64; when the bits lie within the error of that value (about once in 10^13 tosses) they are continued and compared
with exp(-x) in as many digits as it takes. So the result is exact although the arithmetic is fast.

Trusts: the keystream. Never: rounds a probability.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.randomness import Keystream

Integers: TypeAlias = NDArray[np.int64]
Exactly: TypeAlias = Callable[[int], tuple[int, int]]  # index -> numerator and denominator of x

_ERROR = 2.0**-43  # relative, of exp(-x) computed in float64 for x below 100, and then some
_MOST = 100.0  # above, exp(-x) is left to the exact path unless the bits are far from zero


def discrete_gaussian(stream: Keystream, *, deviation: int, count: int) -> Integers:
    """`count` integers with probabilities proportional to exp(-y^2 / (2 deviation^2)); deviation below 2^40."""
    if not 0 < deviation < 1 << 40:
        raise ValueError("the deviation of discrete noise must lie between 1 and 2^40 grid units")
    scale = deviation + 1
    parts: list[Integers] = []
    missing = count
    while missing > 0:
        laplace = _discrete_laplace(stream, scale=scale, count=missing + missing // 2 + 16)
        size = np.abs(laplace)
        # (|y| - deviation^2 / scale)^2 / (2 deviation^2), with deviation^2 / scale = deviation - 1 + 1 / scale
        away = (size - (deviation - 1)).astype(np.float64) - 1.0 / scale
        exponent = 0.5 * (away / deviation) ** 2

        def exactly(index: int, size: Integers = size) -> tuple[int, int]:
            top = int(size[index]) * scale - deviation**2
            return top * top, 2 * deviation**2 * scale**2

        kept = laplace[_coins(stream, exponent, exactly)][:missing]
        parts.append(kept)
        missing -= len(kept)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def discrete_laplace(stream: Keystream, *, scale: int, count: int) -> Integers:
    """`count` integers with probabilities proportional to exp(-|y| / scale); scale below 2^40."""
    if not 0 < scale < 1 << 40:
        raise ValueError("the scale of discrete noise must lie between 1 and 2^40 grid units")
    parts: list[Integers] = []
    missing = count
    while missing > 0:
        parts.append(_discrete_laplace(stream, scale=scale, count=missing + missing // 2 + 16)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _discrete_laplace(stream: Keystream, *, scale: int, count: int) -> Integers:
    """At most about `count` integers with probabilities proportional to exp(-|y| / scale)."""
    fine = _below(stream, scale, count)
    fine = fine[_coins(stream, fine / scale, lambda index: (int(fine[index]), scale))]
    size = fine + scale * _geometric(stream, len(fine))
    negative = (stream.words(len(size)) & np.uint64(1)).astype(bool)
    signed = np.where(negative, -size, size)
    kept: Integers = signed[~(negative & (size == 0))]  # zero would count twice
    return kept


def _geometric(stream: Keystream, count: int) -> Integers:
    """How many coins of probability exp(-1) fall heads before the first tails."""
    heads = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_coins(stream, np.ones(len(going)), lambda _index: (1, 1))]
        heads[going] += 1
    return heads


def _below(stream: Keystream, bound: int, count: int) -> Integers:
    """`count` integers uniform in [0, bound), by rejection."""
    usable = np.uint64((1 << 64) // bound * bound - 1)
    words = stream.words(count)
    while bool((beyond := words > usable).any()):
        words = words.copy()
        words[beyond] = stream.words(int(beyond.sum()))
    return (words % np.uint64(bound)).astype(np.int64)


def _coins(stream: Keystream, exponent: NDArray[np.float64], exactly: Exactly) -> NDArray[np.bool_]:
    """Heads with probability exp(-x) exactly; `exponent` is x in float64, `exactly` gives x as a fraction."""
    words = stream.words(len(exponent))
    bits = words.astype(np.float64) * 2.0**-64  # within 2^-53 of the first 64 bits
    chance = np.exp(-np.minimum(exponent, _MOST))
    error = chance * _ERROR + 2.0**-52
    heads = bits < chance
    for index in np.flatnonzero(np.abs(bits - chance) <= error):
        heads[index] = _toss_on(stream, int(words[index]), *exactly(int(index)))
    return heads


def _toss_on(stream: Keystream, word: int, numerator: int, denominator: int) -> bool:
    """Whether the number in [0, 1) whose first 64 bits are `word`, and the rest unknown, lies below exp(-x)."""
    bits = 64
    while True:
        word = word << 128 | int.from_bytes(stream.words(2).tobytes(), "little")
        bits += 128
        context = Context(prec=bits, Emin=-(10**9), Emax=10**9)  # far more decimal digits than bits are known
        chance = context.exp(context.divide(Decimal(-numerator), Decimal(denominator)))
        known = context.divide(Decimal(word), Decimal(1 << bits))
        unknown = context.divide(Decimal(2), Decimal(1 << bits))
        if context.add(known, unknown) <= chance:
            return True
        if context.subtract(known, unknown) >= chance:
            return False
