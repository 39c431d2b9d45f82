"""Linear regression, logistic regression and the multi-layer perceptron: linear layers `layers.0`, `layers.1`, ..."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.architectures import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec
from secure_runtime.models.families.layers import ACTIVATIONS, linear


class LinearModel(nn.Module):
    """One linear layer: w . x + b for a value, or logits: one for two classes, otherwise one per class."""

    def __init__(self, spec: LinearRegressionSpec | LogisticRegressionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList([linear(spec.inputs, spec.logit_count)])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # [n, inputs] -> [n, logits]
        logits: torch.Tensor = self.layers[0](rows)
        return logits


class MLP(nn.Module):
    """Linear layers with one activation between them."""

    def __init__(self, spec: MlpSpec) -> None:
        super().__init__()
        widths = (spec.inputs, *spec.hidden, spec.logit_count)
        self.layers = nn.ModuleList(linear(*pair) for pair in itertools.pairwise(widths))
        self.activation = ACTIVATIONS[spec.activation]()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # [n, inputs] -> [n, logits]
        for layer in self.layers[:-1]:
            rows = self.activation(layer(rows))  # [n, width]
        logits: torch.Tensor = self.layers[-1](rows)
        return logits
