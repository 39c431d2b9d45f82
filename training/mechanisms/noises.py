"""Noise of mechanisms that release once: drawn from the same keystream as that of DP-SGD, and said in the same words.

Trusts: the `Entropy` it is given. Never: keeps a key.
"""

from __future__ import annotations

import torch

from sealgate.certificate.claims import FRESH, NOISE_SOURCE
from sealgate.certificate.mechanisms import Noise
from training.randomness import NOISE_ARITHMETIC, NOISE_TRANSFORM, Keystream


def noise_part(sigma_micro: int, *, fresh: bool) -> Noise:
    """The certificate's words about continuous Gaussian noise."""
    return Noise(
        sigma_micro=sigma_micro,
        source=NOISE_SOURCE,
        seed=FRESH if fresh else "fixed",
        transform=NOISE_TRANSFORM,
        arithmetic=NOISE_ARITHMETIC,
    )


def gaussian_values(stream: Keystream, count: int) -> torch.Tensor:
    """`count` independent standard normal values: float64 [count]."""
    return torch.from_numpy(stream.gaussian(count))
