"""The architectures: the whole of each model, the same for training and for serving, built from the manifest.

Each is a stack of linear layers named `layers.0`, `layers.1`, ...; they differ in what stands between and behind them.
Their weights start at zero; whoever trains fills them. Sizes were bounded when the manifest was parsed.

Never: draws random numbers, reads files, or keeps anything between two calls of `forward`.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.manifest import (
    Architecture,
    LinearRegressionSpec,
    LogisticRegressionSpec,
    MlpSpec,
    class_count,
    logit_count,
)

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def _linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear layer of zeros. Its own initialisation is skipped: that would draw from torch's global generator."""
    layer = nn.Linear(width_in, width_out, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LinearRegression(nn.Module):
    """One number per row: w . x + b."""

    def __init__(self, spec: LinearRegressionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_linear(spec.inputs, 1)])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # [n, inputs] -> [n, 1]
        value: torch.Tensor = self.layers[0](rows)
        return value


class LogisticRegression(nn.Module):
    """Logits of one linear layer: one for two classes, otherwise one per class."""

    def __init__(self, spec: LogisticRegressionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_linear(spec.inputs, logit_count(spec))])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # [n, inputs] -> [n, logits]
        logits: torch.Tensor = self.layers[0](rows)
        return logits


class MLP(nn.Module):
    """Linear layers with one activation between them."""

    def __init__(self, spec: MlpSpec) -> None:
        super().__init__()
        widths = (spec.inputs, *spec.hidden, logit_count(spec))
        self.layers = nn.ModuleList(_linear(*pair) for pair in itertools.pairwise(widths))
        self.activation = _ACTIVATIONS[spec.activation]()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # [n, inputs] -> [n, logits]
        for layer in self.layers[:-1]:
            rows = self.activation(layer(rows))  # [n, width]
        logits: torch.Tensor = self.layers[-1](rows)
        return logits


def build(architecture: Architecture) -> nn.Module:
    """The module for an architecture of a checked manifest, with all weights zero."""
    match architecture:
        case LinearRegressionSpec():
            return LinearRegression(architecture)
        case LogisticRegressionSpec():
            return LogisticRegression(architecture)
        case MlpSpec():
            return MLP(architecture)


def probabilities(architecture: Architecture, logits: torch.Tensor) -> torch.Tensor:
    """Class probabilities [n, classes] from logits [n, logits]. Two classes: the second one's from a sigmoid."""
    if class_count(architecture) == 2:
        return torch.cat((torch.sigmoid(-logits), torch.sigmoid(logits)), dim=1)
    return torch.softmax(logits, dim=1)
