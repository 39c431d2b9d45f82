"""The loss of public rows while training: what progress may show.

The loss of the private rows is a release of its own that epsilon does not cover, so it is never computed for people.
The weights after every step are covered (Abadi et al. 2016 account for an adversary who sees each step), and so is
whatever follows from them and from rows that are no secret. `[data] public_rows` names such rows: published ones, or
made up to look like the private ones.

Trusts: that public rows are public. Never: sees a private row; never follows a search, whose runs but one stay unseen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import nn

from sealgate.errors import ConfigurationError
from training.configuration import Configuration
from training.examples import Examples
from training.forms import form_of
from training.limits import EVALUATION_ROWS, WATCHED_POINTS
from training.losses import Loss
from training.mechanisms.plan import Plan
from training.mechanisms.sgd import SgdPlan

OnStep = Callable[[int], None]
OnLoss = Callable[[float], None]


def require_watchable(configuration: Configuration, plan: Plan) -> None:
    """Raise ConfigurationError for public rows where no step's weights may be looked at."""
    if configuration.data.public_rows and not isinstance(plan, SgdPlan):
        raise ConfigurationError(
            "[data] public_rows: only a run of dp-sgd without a search has steps whose weights epsilon covers"
        )


def public_examples(configuration: Configuration, *, folder: Path) -> Examples:
    """The public rows, read and checked like the private ones; raises ConfigurationError."""
    data = msgspec.structs.replace(configuration.data, source=configuration.data.public_rows)
    public = msgspec.structs.replace(configuration, data=data)
    try:
        return form_of(public).read_examples(public, folder=folder)
    except ConfigurationError as error:
        raise ConfigurationError(f"[data] public_rows: {error}") from error


class PublicLoss:
    """Computes the mean loss of public rows under the weights as they are, on a copy that no training library hooks.

    inputs: of the part that is trained, scaled, each [n, ...]; targets: [n].
    """

    def __init__(
        self, learner: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor, *, loss: Loss
    ) -> None:
        self._learner = learner
        self._copy = copy.deepcopy(learner)
        self._inputs = tuple(one[:EVALUATION_ROWS] for one in inputs)
        self._targets = targets[:EVALUATION_ROWS]
        self._loss = loss

    @torch.no_grad()
    def now(self) -> float:
        """The loss at this moment."""
        for own, given in zip(self._copy.parameters(), self._learner.parameters(), strict=True):
            own.copy_(given)
        return float(self._loss.each(self._copy(*self._inputs), self._targets).mean())

    def around(self, on_step: OnStep, *, steps: int, told: OnLoss) -> OnStep:
        """What to call after each step: tells the loss at a few of them, then goes on."""
        every = max(1, steps // WATCHED_POINTS)

        def after(step: int) -> None:
            if step % every == 0 or step == steps:
                told(self.now())
            on_step(step)

        return after
