"""Lanes: a module of dummy parameters, one for each canary, whose every gradient is known beforehand.

A canary is a row that names its lane and the size of its gradient. Its gradient lies in its lane alone and is the same
at every step, whatever the weights are: the module's answer is always zero, only its derivative is not. So each step's
movement of a lane is what the trainer let through of its canary (nothing, or the clip norm) plus the noise of one
coordinate, through the trainer's own sampler, gradients, clipping, noise and update.

Shapes: marks [n, 2] (number of the lane or -1, size), weights [1, lanes]. Trusts: nothing. Never: draws from torch's
generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sealgate.ambient import Entropy
from training.auditing.subject import Subject
from training.losses import Loss
from training.private_sgd import PrivateSgd

NO_LANE = -1


class LaneModule(nn.Module):
    """marks [n, 2] -> logits [n, logit_count], all zero; d logit / d weight of a canary's lane is its size."""

    def __init__(self, lanes: int, *, logit_count: int) -> None:
        super().__init__()
        self.lanes = nn.Linear(lanes, 1, bias=False)
        self._others = logit_count - 1
        self.register_buffer("numbers", torch.arange(lanes, dtype=torch.float64), persistent=False)
        nn.init.zeros_(self.lanes.weight)

    def forward(self, marks: torch.Tensor) -> torch.Tensor:
        """The first logit carries the derivative, the others are constant."""
        one_hot = (marks[:, :1] == self.numbers) * marks[:, 1:]  # [n, lanes]
        value = self.lanes(one_hot)  # [n, 1]
        flat = value - value.detach()  # always zero
        return torch.cat([flat, flat.new_zeros(len(marks), self._others)], dim=1)


def logit_count(loss: Loss) -> int:
    """How many logits the loss wants."""
    return loss.classes if loss.classes > 2 else 1


def canary_target(loss: Loss) -> float:
    """A target for which descent raises the first logit."""
    return 0.0 if loss.classes > 2 else 1.0


def slope(loss: Loss) -> float:
    """The size of the loss's derivative by the first logit at zero logits and the canaries' target."""
    logits = torch.zeros((1, logit_count(loss)), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss.each(logits, torch.tensor([canary_target(loss)])).sum(), logits)
    return abs(float(gradient[0, 0]))


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Rows for a LaneModule. `sizes` are L2 norms of gradients in clip norms; 0 is a row without any."""

    lanes: NDArray[np.int64]  # [n]
    sizes: NDArray[np.float64]  # [n]

    def rows(self, subject: Subject) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor | None]:
        """The trainer's inputs, targets and groups. A canary that is a person has more rows than may count."""
        marks = np.stack([self.lanes, self.sizes * (subject.constants.clip_norm / slope(subject.loss))], axis=1)
        groups = None
        if subject.persons:
            times = subject.constants.unit_rows + 1
            marks = marks.repeat(times, axis=0)
            groups = torch.arange(len(self.lanes)).repeat_interleave(times)
        targets = torch.full((len(marks),), canary_target(subject.loss), dtype=subject.dtype)
        return (torch.from_numpy(marks).to(subject.dtype),), targets, groups


def watch(
    subject: Subject, canaries: Canaries, *, lanes: int, constants: PrivateSgd, entropy: Entropy
) -> NDArray[np.float64]:
    """Train on the canaries and record how far each lane moved at each step, in clip norms: [steps, lanes].

    `constants` must be bare. A correct trainer gives (0 or 1) + sigma times a standard normal value.
    """
    moved = np.zeros((constants.steps, lanes))
    place = np.zeros(lanes)
    module = LaneModule(lanes, logit_count=logit_count(subject.loss)).to(subject.dtype)

    def on_step(step: int) -> None:
        nonlocal place
        now = module.lanes.weight.detach().numpy()[0].astype(np.float64, copy=True)
        moved[step - 1] = (now - place) / subject.unit
        place = now

    inputs, targets, groups = canaries.rows(subject)
    subject.trainer(
        module,
        inputs,
        targets,
        constants=constants,
        loss=subject.loss,
        groups=groups,
        entropy=entropy,
        on_step=on_step,
    )
    return moved
