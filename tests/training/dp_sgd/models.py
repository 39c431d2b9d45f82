"""Small models of every kind of layer, with made-up examples; and the oracle: one unit, one backward pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from secure_runtime.models.families.recurrent import GruLayer, LstmLayer
from secure_runtime.models.families.transformer import Attention


class Cells(nn.Module):
    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.head = layer(3, 5), layer(5, 4), nn.Linear(4, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        there = torch.ones(steps.shape[:2], dtype=torch.bool)
        return self.head(self.second(self.first(steps, there), there)[:, -1])


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.head = Attention(4, 2), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        there = torch.ones(steps.shape[:2], dtype=torch.bool)
        return self.head(self.norm(steps + self.attention(steps, there)).mean(dim=1))


class Tied(nn.Module):
    """A table that is read and then used as the last layer, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.twice, self.last = (
            nn.Embedding(7, 4, padding_idx=0),
            nn.Linear(4, 4),
            nn.Linear(4, 7, bias=False),
        )
        self.last.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        steps = self.table(tokens).mean(dim=1)
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(steps)))))[:, :3]


class TwoInputs(nn.Module):
    """A graph convolution: nodes and edges."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(edges @ self.layer(nodes)).sum(dim=1))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        self.body.requires_grad_(False)
        self.head.bias.requires_grad_(False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.body(rows))))


CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), [(6,)]),
    "steps": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Flatten(), nn.Linear(20, 3)), [(5, 3)]),
    "long-steps": (lambda: nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3)), [(2, 30)]),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding="same", dilation=2), nn.Tanh(), nn.Conv1d(4, 6, 3, stride=2, groups=2),
            nn.GroupNorm(3, 6), nn.Flatten(), nn.Linear(24, 3),
        ),
        [(2, 9)],
    ),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(4, 4, (2, 3), stride=(1, 2), padding=(0, 1), groups=4), nn.Flatten(), nn.Linear(16, 3),
        ),
        [(1, 6, 7)],
    ),
    "lstm": (lambda: Cells(LstmLayer), [(4, 3)]),
    "gru": (lambda: Cells(GruLayer), [(4, 3)]),
    "attention": (Attended, [(5, 4)]),
    "rms-norm": (lambda: nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 3)), [(6,)]),
    "tied": (Tied, ["tokens"]),
    "two-inputs": (TwoInputs, [(4, 3), (4, 4)]),
    "frozen": (Frozen, [(6,)]),
}  # fmt: skip


def model(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With weights of a fixed generator."""
    module = CASES[name][0]().to(dtype)
    generator = np.random.default_rng(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(generator.normal(size=tuple(parameter.shape)) * 0.5))
    return module


def examples(name: str, count: int, dtype: torch.dtype = torch.float64, seed: int = 4):
    """Inputs and targets of three classes."""
    generator = np.random.default_rng(seed)
    inputs = tuple(
        torch.from_numpy(generator.integers(0, 7, (count, 5)))
        if shape == "tokens"
        else torch.from_numpy(generator.normal(size=(count, *shape)) * 2).to(dtype)
        for shape in CASES[name][1]
    )
    return inputs, torch.from_numpy(generator.integers(0, 3, count)).to(dtype)


def unit_by_unit(module, inputs, targets, loss, clip, *, rows=1, weights=None):
    """The oracle: each unit's weighted loss alone, one backward pass, one clip, float64 sums."""
    parameters = [one for one in module.parameters() if one.requires_grad]
    total = [torch.zeros_like(one, dtype=torch.float64) for one in parameters]
    norms = []
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        losses = loss.each(module(*(one[part] for one in inputs)), targets[part])
        value = (losses if weights is None else losses * weights[part]).sum()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        norm = float(torch.sqrt(sum((one.double() ** 2).sum() for one in gradients)))
        norms.append(norm)
        for so_far, one in zip(total, gradients, strict=True):
            so_far += one.double() * min(1.0, clip / norm) if norm else 0.0
    return total, norms


def distance(found, expected) -> float:
    """L2 distance as a share of the expected L2 norm."""
    apart = sum(float(((a.double() - b) ** 2).sum()) for a, b in zip(found, expected, strict=True))
    return (apart / sum(float((b**2).sum()) for b in expected)) ** 0.5
