"""Classes as people write them, for `[model] module`."""

from __future__ import annotations

import torch
from torch import nn


class Mine(nn.Module):
    """A logistic regression on three features under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(3, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.score(features)


class Other(Mine):
    """The same tensors, another model."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.score(torch.tanh(features))


class Wider(Mine):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(1, 1)


class Normalised(Mine):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))


class Broken(nn.Module):
    def __init__(self) -> None:
        raise OSError("no such file")


def not_a_module() -> int:
    return 3
