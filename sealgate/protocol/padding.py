"""Size classes, so that the length of a sealed message says little about its content.

Padmé (Nikitin et al., PoPETS 2019): a length keeps only its most significant bits, as many as the bit length of its
exponent. The overhead is below 12 %, and lengths up to L fall into O(log log L) bits of leakage. Padding itself is the
zero bytes that Binary HTTP allows at its end (RFC 9292 section 3.8), inside the seal.

Trusts nothing. Never: hides timing, or how many messages there are.
"""

from __future__ import annotations

SMALLEST_CLASS = 512
"""Messages are padded at least to this: below it a class of Padmé holds only a few lengths, and two labels of
different lengths could be told apart. A sealed request is over 1 KiB for its post-quantum key anyway."""


def padme(length: int) -> int:
    """The smallest Padmé length that is not below `length`."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    free_bits = exponent - exponent.bit_length()
    mask = (1 << free_bits) - 1
    return (length + mask) & ~mask


def size_class(length: int) -> int:
    """What messages are padded to by default: Padmé, and never less than SMALLEST_CLASS."""
    return padme(max(length, SMALLEST_CLASS))
