"""Choosing hyper-parameters on the private rows, and paying for it: the best of a random number of runs.

Each run takes one of the choices, drawn uniformly, trains with DP-SGD, and gets a score: how many of the rows it
answers rightly (classes), or the sum of one minus the squared error cut at one (values), plus Gaussian noise. Only the
weights of the best score are kept; that there were others, and how many, is not told. Papernot and Steinke 2022.

The choices may differ in what costs nothing (learning rate, momentum, clip norm, averaging), never in rate, steps or
sigma. Trusts: public constants. Never: shows a score.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.accounting.selection import BestOfRuns
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.mechanisms import DpSgd
from sealgate.certificate.schema import Search
from training.accountant import halting_probability
from training.errors import TrainingError
from training.limits import EVALUATION_ROWS
from training.losses import Loss
from training.mechanisms.noises import noise_part
from training.mechanisms.plan import OnStep
from training.mechanisms.sgd import SgdPlan
from training.randomness import Keystream

SCORES = {True: "rows answered rightly", False: "one minus the squared error, cut at zero, summed over rows"}


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The runs to choose from: all of one account, each a plan of its own."""

    account: BestOfRuns
    choices: tuple[SgdPlan, ...]

    @property
    def unit(self) -> str:
        """See Plan."""
        return self.choices[0].unit

    @property
    def steps(self) -> int:
        """See Plan: of one run; the bar starts anew with each."""
        return self.choices[0].steps

    @property
    def audited(self) -> SgdPlan:
        """See Plan: the choice with the greatest clip norm stands for all."""
        return max(self.choices, key=lambda choice: choice.clip_norm_micro)

    def part(self, *, coordinates: int, steps_executed: int, fresh: bool) -> DpSgd:
        """See Plan: of one run, whichever it was."""
        return self.audited.part(coordinates=coordinates, steps_executed=steps_executed, fresh=fresh)

    def search(self, *, fresh: bool) -> Search:
        """See Plan."""
        return Search(
            choices=len(self.choices),
            trials_mean_micro=int(self.account.mean_trials * MICRO),
            shape=self.account.shape,
            score=SCORES[self.choices[0].loss.classes > 0],
            noise=noise_part(self.account.score_sigma_micro, fresh=fresh),
        )

    def train(
        self,
        module: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        targets: torch.Tensor,
        *,
        groups: torch.Tensor | None,
        entropy: Entropy,
        on_step: OnStep,
    ) -> int:
        """See Plan."""
        stream = Keystream(entropy)
        best, kept, executed = -math.inf, None, 0
        for _ in range(trials(stream, mean=float(self.account.mean_trials), shape=self.account.shape)):
            choice = self.choices[int(stream.uniform(1)[0] * len(self.choices))]
            run = copy.deepcopy(module)
            try:
                executed = choice.train(run, inputs, targets, groups=groups, entropy=entropy, on_step=on_step)
            except TrainingError:
                continue  # a run that diverged is one with the least score
            score = score_of(run, inputs, targets, loss=choice.loss)
            score += self.account.score_sigma_micro / MICRO * float(stream.gaussian(1)[0])
            if score > best:
                best, kept = score, run.state_dict()
        if kept is None:
            raise TrainingError("no run of the search came to usable weights", code="diverged")
        module.load_state_dict(kept)
        return executed


def trials(stream: Keystream, *, mean: float, shape: int) -> int:
    """A draw of K >= 1: geometric (shape 1) or logarithmic (shape 0), by inversion of its distribution."""
    halting = halting_probability(mean, shape)
    left, count = float(stream.uniform(1)[0]), 0
    probability = halting if shape == 1 else (1 - halting) / -math.log(halting)
    while left >= 0:
        count += 1
        left -= probability
        probability *= (1 - halting) if shape == 1 else (1 - halting) * count / (count + 1)
        if probability < 1e-18:
            break
    return count


def score_of(module: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor, *, loss: Loss) -> float:
    """A sum over rows of numbers in [0, 1], so that a row changes it by at most one."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(targets), EVALUATION_ROWS):
            part = slice(start, start + EVALUATION_ROWS)
            logits = module(*(one[part] for one in inputs))
            if loss.classes == 2:
                each = ((logits[:, 0] > 0) == (targets[part] > 0.5)).double()
            elif loss.classes:
                each = (logits.argmax(dim=1) == targets[part]).double()
            else:
                each = 1.0 - ((logits[:, 0] - targets[part]) ** 2).nan_to_num(nan=1.0).clamp(0.0, 1.0)
            total += float(each.sum())
    return total
