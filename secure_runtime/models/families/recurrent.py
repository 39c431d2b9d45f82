"""Recurrent networks: LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000) and GRU (Cho et
al. 2014), over steps of numbers or over tokens.

The cells are linear layers, called once per step: their per-example gradients are sums of those of linear layers, which
every gradient mode knows; torch's fused cells have none. The names and the order of gates are torch's, so a cell with
the same weights is torch's own (the LSTM's second bias would be redundant and is left out).

A step that is padding (token 0) leaves the state as it was: the last state is that of the last real step.
Never: keeps a state between two calls.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.architectures.recurrent import RecurrentSpec
from secure_runtime.models.families.layers import embedding, linear, masked_mean


class LstmLayer(nn.Module):
    """One layer: state (h, c), gates in the order input, forget, cell, output."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input_to_gates = linear(width_in, 4 * width)
        self.hidden_to_gates = nn.Linear(width, 4 * width, bias=False, device="meta").to_empty(device="cpu")
        nn.init.zeros_(self.hidden_to_gates.weight)

    def forward(self, steps: torch.Tensor, present: torch.Tensor) -> torch.Tensor:  # [n, T, in], bool [n, T]
        hidden = steps.new_zeros(len(steps), self.width)  # [n, width]
        cell = hidden
        states = []
        for gates, there in zip(self.input_to_gates(steps).unbind(1), present.unsqueeze(-1).unbind(1), strict=True):
            enter, forget, candidate, leave = (gates + self.hidden_to_gates(hidden)).chunk(4, dim=1)
            new_cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
            new_hidden = torch.sigmoid(leave) * torch.tanh(new_cell)
            cell, hidden = torch.where(there, new_cell, cell), torch.where(there, new_hidden, hidden)
            states.append(hidden)
        return torch.stack(states, dim=1)  # [n, T, width]


class GruLayer(nn.Module):
    """One layer: state h, gates in the order reset, update, new. The reset gate acts behind the matrix, as in torch."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input_to_gates = linear(width_in, 3 * width)
        self.hidden_to_gates = linear(width, 3 * width)

    def forward(self, steps: torch.Tensor, present: torch.Tensor) -> torch.Tensor:  # [n, T, in], bool [n, T]
        hidden = steps.new_zeros(len(steps), self.width)  # [n, width]
        states = []
        for gates, there in zip(self.input_to_gates(steps).unbind(1), present.unsqueeze(-1).unbind(1), strict=True):
            reset_in, update_in, new_in = gates.chunk(3, dim=1)
            reset_of, update_of, new_of = self.hidden_to_gates(hidden).chunk(3, dim=1)
            update = torch.sigmoid(update_in + update_of)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_of) * new_of)
            hidden = torch.where(there, (1.0 - update) * new + update * hidden, hidden)
            states.append(hidden)
        return torch.stack(states, dim=1)  # [n, T, width]


_CELLS: dict[str, type[LstmLayer] | type[GruLayer]] = {"lstm": LstmLayer, "gru": GruLayer}


class Recurrent(nn.Module):
    """Layers of one kind of cell, then a linear layer on the last state or on the mean of all."""

    def __init__(self, spec: RecurrentSpec) -> None:
        super().__init__()
        self.reading = spec.reading
        self.embedding = embedding(spec.tokens, spec.embedding) if spec.tokens else None
        widths = (spec.step_width, *spec.hidden)
        cell = _CELLS[spec.cell]
        self.cells = nn.ModuleList(cell(*pair) for pair in itertools.pairwise(widths))
        self.head = linear(widths[-1], spec.logit_count)

    def forward(self, given: torch.Tensor) -> torch.Tensor:  # [n, T, channels] or int64 [n, T] -> [n, logits]
        if self.embedding is None:
            steps, present = given, torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        else:
            steps, present = self.embedding(given), given != 0  # [n, T, embedding]
        for layer in self.cells:
            steps = layer(steps, present)  # [n, T, width]
        logits: torch.Tensor = self.head(steps[:, -1] if self.reading == "last" else masked_mean(steps, present))
        return logits
