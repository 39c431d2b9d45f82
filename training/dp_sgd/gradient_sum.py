"""Clipped sums over the units that a step drew, in parts of bounded memory.

Parts are summed in float64; the sum has the type of the gradients. A unit's rows are never split between parts.
Trusts: the chosen mode. Never: divides by anything.
"""

from __future__ import annotations

import torch
from torch import nn

from training.dp_sgd.choice import AUTO, MODES, Choice, choose, made_up
from training.dp_sgd.modes import Inputs, Mode
from training.limits import MAX_PART_NUMBERS
from training.losses import Loss


class GradientSum:
    """The first seam of a step: `over` gives what the noise is added to. Owns its mode until `close`."""

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Loss,
        clip_norm: float,
        gradients: str = AUTO,
        rows: int = 1,
        part_numbers: int = MAX_PART_NUMBERS,
    ) -> None:
        """`rows` is the greatest number of rows of a unit; `gradients` a mode's name or "auto"."""
        self.module = module
        self._loss = loss
        self._clip_norm = clip_norm
        self._wanted = gradients
        self._rows = rows
        self._part_numbers = part_numbers
        self._mode: Mode | None = None
        self._part = 1
        self._choice: Choice | None = None

    def over(self, inputs: Inputs, targets: torch.Tensor, *, weights: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The sum over these units, one tensor per parameter in the gradients' type; zero for no units.

        inputs: each [u rows, ...]; targets: [u rows]; weights: [u rows], what each row counts in its unit (default: 1).
        """
        self.prepare(inputs)
        mode = self._mode
        assert mode is not None
        total: list[torch.Tensor] = []
        for start in range(0, len(targets), self._part * self._rows):
            part = slice(start, start + self._part * self._rows)
            share = None if weights is None else weights[part]
            more = mode.clipped_sum(tuple(one[part] for one in inputs), targets[part], rows=self._rows, weights=share)
            if len(targets) <= self._part * self._rows:
                return more
            total = total or [torch.zeros_like(one, dtype=torch.float64) for one in more]
            for sum_so_far, one in zip(total, more, strict=True):
                sum_so_far += one
        dtype = mode.dtype
        return [one.to(dtype) for one in total] or [torch.zeros_like(one, dtype=dtype) for one in mode.parameters]

    def prepare(self, inputs: Inputs) -> Choice:
        """Choose the mode, if that was not done; the inputs' shapes and types are all that is looked at."""
        if self._choice is None or self._mode is None:
            self._choice = choose(self.module, inputs, loss=self._loss, wanted=self._wanted, rows=self._rows)
            self._mode = MODES[self._choice.mode](self.module, loss=self._loss, clip_norm=self._clip_norm)
            given, targets = made_up(self.module, inputs, loss=self._loss, count=2, dtype=self._mode.dtype)
            numbers = self._mode.numbers(given, targets)
            self._part = max(1, self._part_numbers // max(1, numbers * self._rows))
        return self._choice

    def close(self) -> None:
        """Leave the module as it was."""
        if self._mode is not None:
            self._mode.close()
            self._mode = None
