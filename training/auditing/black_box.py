"""Attacks on the finished model alone, for a report and never for a verdict: what an outsider who asks could tell.

`one_run` is the audit in one training run of Steinke, Nasr and Jagielski (2023): made-up examples with random targets
are each in the data with probability one half; afterwards the attacker says of those whose loss fell most that they
were in, of those whose loss fell least that they were out, and keeps silent about the rest. How many are right gives a
lower bound on epsilon. `offline_ratio` is the offline likelihood-ratio attack of Carlini et al. (2022): shadow models
trained without an example say how its loss is distributed then, and the target model's loss is compared with that.

Both see far less than an attacker who watches every step: they tell private training from none, and miss what the gate
finds. Trusts: nothing. Never: sees private rows; the models that it trains are thrown away.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.architectures import Spec
from training.auditing.probes import BOUND_ALPHA, binomial_mass, binomial_tail, lower, upper
from training.auditing.specimens import made_up_inputs, made_up_targets
from training.limits import AUDIT_BLACK_BOX_CANARIES, AUDIT_GUESSED, AUDIT_SHADOWS
from training.losses import Loss
from training.randomness import Keystream

Train = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], object]
"""Trains the module in place with fresh randomness."""

_MOST_EPSILON = 50.0


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """What one run gave: right guesses of all guesses, and the epsilon that they exclude with confidence 99.9 %."""

    canaries: int
    guesses: int
    right: int
    epsilon_lower: float


@dataclass(frozen=True, kw_only=True)
class Membership:
    """At one rate of false accusations: how many members are found, with bounds of confidence 99.9 % each."""

    false_rate: float
    true_rate: float
    false_rate_upper: float
    true_rate_lower: float


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Made-up examples, all of them canaries, of which each run gets half."""

    inputs: tuple[torch.Tensor, ...]
    targets: torch.Tensor
    loss: Loss

    @classmethod
    def of(cls, spec: Spec, loss: Loss, module: nn.Module, entropy: Entropy) -> Crowd:
        """As many as the limits say, in the module's arithmetic, targets at random."""
        stream, dtype = Keystream(entropy), next(module.parameters()).dtype
        count = AUDIT_BLACK_BOX_CANARIES
        return cls(
            inputs=made_up_inputs(spec, count, stream, dtype=dtype),
            targets=made_up_targets(spec, count, stream, dtype=dtype),
            loss=loss,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def after(self, train: Train, module: nn.Module, included: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Train a copy of the module on those included; how much the loss of each fell: [n]."""
        made = copy.deepcopy(module)
        rows = torch.from_numpy(np.flatnonzero(included))
        before = self._losses(made)
        train(made, tuple(one[rows] for one in self.inputs), self.targets[rows])
        return before - self._losses(made)

    def _losses(self, module: nn.Module) -> NDArray[np.float64]:
        with torch.no_grad():
            return self.loss.each(module(*self.inputs), self.targets).numpy().astype(np.float64)


def one_run(train: Train, crowd: Crowd, module: nn.Module, *, delta: float, entropy: Entropy = random_bytes) -> OneRun:
    """Attack one run; every canary's coin is its own."""
    included = Keystream(entropy).uniform(len(crowd)) < 0.5
    order = np.argsort(crowd.after(train, module, included))
    each = AUDIT_GUESSED // 2
    right = int(included[order[-each:]].sum()) + int((~included[order[:each]]).sum())
    return OneRun(
        canaries=len(crowd),
        guesses=2 * each,
        right=right,
        epsilon_lower=epsilon_excluded(len(crowd), 2 * each, right, delta=delta, alpha=BOUND_ALPHA),
    )


def chance_of_guesses(canaries: int, guesses: int, right: int, *, epsilon: float, delta: float) -> float:
    """The most likely that so many guesses are right if training is (epsilon, delta)-private: theorem 5.2 of the paper.

    Right guesses are dominated by a binomial with e^epsilon / (1 + e^epsilon), but for what delta may add.
    """
    rate = 1.0 / (1.0 + math.exp(-epsilon))
    added, total = 0.0, 0.0
    for below in range(1, right + 1):
        total += binomial_mass(right - below, guesses, rate=rate)
        added = max(added, total / below)
    return min(1.0, binomial_tail(right, guesses, rate=rate) + 2 * canaries * delta * added)


def epsilon_excluded(canaries: int, guesses: int, right: int, *, delta: float, alpha: float) -> float:
    """The greatest epsilon under which so many right guesses have a chance below alpha, to a thousandth; 0 if none."""
    if chance_of_guesses(canaries, guesses, right, epsilon=0.0, delta=delta) >= alpha:
        return 0.0
    low, high = 0.0, _MOST_EPSILON
    while high - low > 1e-3:
        middle = (low + high) / 2
        excluded = chance_of_guesses(canaries, guesses, right, epsilon=middle, delta=delta) < alpha
        low, high = (middle, high) if excluded else (low, middle)
    return low


def offline_ratio(
    train: Train,
    crowd: Crowd,
    module: nn.Module,
    *,
    false_rates: tuple[float, ...] = (0.01, 0.1),
    entropy: Entropy = random_bytes,
) -> tuple[Membership, ...]:
    """Shadow models, then the target; the line is a quantile of the target's own others, so this is no proof."""
    stream, count = Keystream(entropy), len(crowd)
    sums, squares, seen = np.zeros(count), np.zeros(count), np.zeros(count)
    for _ in range(AUDIT_SHADOWS):
        included = stream.uniform(count) < 0.5
        fell = crowd.after(train, module, included)
        sums += np.where(included, 0.0, fell)
        squares += np.where(included, 0.0, fell**2)
        seen += ~included
    usable = seen >= 3
    mean = sums / np.maximum(seen, 1)
    variance = np.maximum(squares / np.maximum(seen, 1) - mean**2, 0.0) * seen / np.maximum(seen - 1, 1)
    spread = np.maximum(np.sqrt(variance), 1e-9)
    included = stream.uniform(count) < 0.5
    score = (crowd.after(train, module, included) - mean) / spread
    members, others = score[usable & included], score[usable & ~included]
    found = []
    for rate in false_rates:
        line = float(np.quantile(others, 1.0 - rate))
        true, false = int((members > line).sum()), int((others > line).sum())
        found.append(
            Membership(
                false_rate=false / len(others),
                true_rate=true / len(members),
                false_rate_upper=upper(false, len(others), alpha=BOUND_ALPHA),
                true_rate_lower=lower(true, len(members), alpha=BOUND_ALPHA),
            )
        )
    return tuple(found)
