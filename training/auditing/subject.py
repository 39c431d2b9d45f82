"""What is audited: the function that trains, and the public constants with which it will.

`Trainer` is the signature of `training.private_sgd.train_privately`. The gate calls that function as a whole, not its
parts: a loop that draws rows, clips or adds noise in another way than its parts suggest is then the one that is seen.
The privacy of DP-SGD does not rest on what happens after the noise, so the gate sets momentum, schedules and averages
aside (`bare`), where they would only blur what a step releases; `whole` keeps them.

Trusts: nothing. Never: sees private rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.recompute import GaussianSteps
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately


class Trainer(Protocol):
    """Trains `module` in place and returns the number of steps executed."""

    def __call__(
        self,
        module: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        targets: torch.Tensor,
        *,
        constants: PrivateSgd,
        loss: Loss,
        groups: torch.Tensor | None,
        entropy: Entropy,
        on_step: Callable[[int], None],
    ) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trainer with the constants of the run to come; `delta` as the certificate will state it.

    With `persons` the unit of privacy is a person with all rows, not a row.
    """

    constants: PrivateSgd
    loss: Loss
    delta: str
    trainer: Trainer = train_privately
    persons: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of the run."""
        return self.constants.dtype

    def bare(self, *, steps: int) -> PrivateSgd:
        """The run's constants with an update that hides nothing: weights move by the noisy sum over the divisor."""
        return self.constants.bare(steps=steps)

    def quiet(self, *, steps: int) -> PrivateSgd:
        """Bare constants with a millionth of the noise, for replays: noise cancels, rounding to its grid does not."""
        return replace(self.bare(steps=steps), sigma=self.constants.sigma * 2.0**-20)

    def claim(self, *, steps: int) -> GaussianSteps:
        """What the certificate would claim for so many steps."""
        return GaussianSteps(
            sigma_micro=round(self.constants.sigma * MICRO),
            rate=self.constants.rate,
            steps=steps,
            delta=self.delta,
        )

    @property
    def unit(self) -> float:
        """How far the weights move for a gradient sum of exactly the clip norm, in a bare step."""
        return self.constants.clip_norm / self.constants.divisor
