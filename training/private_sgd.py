"""DP-SGD (Abadi et al. 2016): one noisy sum of clipped gradients per step, a public divisor. The privacy rests here.

One step, read aloud: draw units (examples, or persons with all their rows) by Poisson sampling; for each, the gradient
of its loss alone; scale it to at most C in L2 norm; add up; add Gaussian noise of standard deviation sigma * C to every
coordinate; divide by the public constant E[B]; let the optimizer take its step. A step without units adds noise all the
same. Everything after the noise (optimizer, schedule, averaging) is post-processing.

The seams of a step, each a part that the audit gate and tests can run or replace alone:

    sampler.draw        training.randomness.PoissonSampler
    units.of            training.dp_sgd.units.Units
    gradient_sum.over   training.dp_sgd.gradient_sum.GradientSum
    noise.add           training.dp_sgd.noise
    update.apply        training.dp_sgd.updates.Update

Arithmetic is float64 or float32, as the module's weights are; clip norms hold in both to the last digit that counts
(`training.dp_sgd.clipping`), parts are summed and noise is added in float64 in both. In float32 a row's gradient
depends on its neighbours in the batch in the seventh digit, in float64 in the sixteenth. Trusts: rows that are scaled.
Never: uses torch's random generator, the batch's size, or the number of private rows as a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import nn

from sealgate.ambient import Entropy, random_bytes
from training.dp_sgd.checkpoint import Checkpoints
from training.dp_sgd.choice import AUTO, Choice
from training.dp_sgd.distributed import SharedNoise, share_weights
from training.dp_sgd.gradient_sum import GradientSum
from training.dp_sgd.noise import CONTINUOUS, Noise, noise_of
from training.dp_sgd.sharding import ShardedSum, ShardNoise, whole
from training.dp_sgd.units import Augmentation, Units
from training.dp_sgd.updates import MEAN, SGD, Update, UpdateRule
from training.errors import TrainingError
from training.losses import Loss
from training.randomness import Keystream, PoissonSampler

ARITHMETICS = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class PrivateSgd:
    """The public constants of a run. None of them may be derived from the private rows."""

    rate: Fraction
    steps: int
    divisor: float  # E[B]: the rate times the public population of units
    clip_norm: float
    sigma: float
    learning_rate: float
    momentum: float = 0.0
    average_steps: int = 0  # the weights are averaged over the last so many steps; 0 keeps the last ones
    optimizer: str = SGD
    first_decay: float = 0.9
    second_decay: float = 0.999
    stability: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    average: str = MEAN
    average_decay: float = 0.0
    noise: str = CONTINUOUS
    unit_rows: int = 1  # user level: the greatest number of rows of a person that count
    augmentation: Augmentation | None = None
    arithmetic: str = "float64"  # of gradients; noise is always float64
    gradients: str = AUTO  # how per-example gradients are computed: `training.dp_sgd.choice.MODES`; all are exact

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and gradients while training."""
        return ARITHMETICS[self.arithmetic]

    @property
    def rule(self) -> UpdateRule:
        """What happens after the noise."""
        return UpdateRule(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            first_decay=self.first_decay,
            second_decay=self.second_decay,
            stability=self.stability,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            average=self.average,
            average_steps=self.average_steps,
            average_decay=self.average_decay,
        )

    def bare(self, *, steps: int) -> PrivateSgd:
        """The same mechanism with an update that hides nothing: weights move by the noisy sum over the divisor."""
        return replace(
            self,
            steps=steps,
            learning_rate=1.0,
            momentum=0.0,
            optimizer=SGD,
            schedule="constant",
            warmup_steps=0,
            average=MEAN,
            average_steps=0,
        )


def train_privately(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    *,
    constants: PrivateSgd,
    loss: Loss,
    groups: torch.Tensor | None = None,
    entropy: Entropy = random_bytes,
    on_step: Callable[[int], None] = lambda _step: None,
    on_choice: Callable[[Choice], None] = lambda _choice: None,
    on_weights: Callable[[int, torch.Tensor], None] | None = None,
    checkpoints: Checkpoints | None = None,
    distributed: bool = False,
    sharded: bool = False,
) -> int:
    """Train the module in place; returns the number of steps executed. Raises TrainingError if it diverges.

    inputs: scaled, each [n, ...], in the order of the module's arguments, numbers or int64 tokens; targets: [n];
    groups: int64 [n], equal for the rows of one person, for privacy of persons. Module and numbers are put into the
    declared arithmetic; the module comes back in the one it had. With `checkpoints` a run goes on where an earlier one
    was cut off, never beyond `constants.steps` in all. `on_weights` is told the place of each trained parameter and its
    value, before each `on_step`.

    `distributed`: every process of torch's process group calls this with its own shard of the units and the same
    constants (`training.dp_sgd.distributed`); the first one writes checkpoints, and all must be able to read them.
    `sharded`: besides, each holds its share of the weights only (`training.dp_sgd.sharding`); the module is empty until
    this returns.
    """
    given_type = next(module.parameters()).dtype
    module.to(constants.dtype)
    inputs = tuple(one.to(constants.dtype) if one.is_floating_point() else one for one in inputs)
    sampler = PoissonSampler(constants.rate, Keystream(entropy))
    noise = _noise(module, constants, Keystream(entropy), distributed=distributed, sharded=sharded)
    units = Units(
        inputs,
        targets.to(constants.dtype),
        groups=groups,
        rows=constants.unit_rows,
        augmentation=constants.augmentation,
        stream=Keystream(entropy) if constants.augmentation else None,
    )
    if distributed or sharded:
        share_weights(module)
    gradient_sum = (ShardedSum if sharded else GradientSum)(
        module, loss=loss, clip_norm=constants.clip_norm, gradients=constants.gradients, rows=units.rows
    )
    try:
        on_choice(gradient_sum.prepare(inputs))
        held = gradient_sum.module  # the module itself, or this process' share of it
        parameters = [one for one in held.parameters() if one.requires_grad]
        update = Update(parameters, rule=constants.rule, steps=constants.steps)
        done = checkpoints.restore(held, update) if checkpoints else 0
        for step in range(done + 1, constants.steps + 1):
            drawn = torch.from_numpy(sampler.draw(units.count))
            of_units, wanted, weights = units.of(drawn)
            summed = gradient_sum.over(of_units, wanted, weights=weights)
            noise.add(summed)
            update.apply(summed, step=step, divisor=constants.divisor)
            if checkpoints:
                checkpoints.after(step, held, update, last=step == constants.steps)
            if on_weights:
                for place, one in enumerate(parameters):
                    on_weights(place, whole(one))
            on_step(step)
        update.finish()
        if isinstance(gradient_sum, ShardedSum):
            gradient_sum.give_back()
    finally:
        gradient_sum.close()
    module.to(given_type)
    if not all(bool(torch.isfinite(one).all()) for one in module.parameters() if one.requires_grad):
        raise TrainingError("training diverged: lower the learning rate", code="diverged")
    return constants.steps


def _noise(module: nn.Module, constants: PrivateSgd, stream: Keystream, *, distributed: bool, sharded: bool) -> Noise:
    """The noise seam: of one process, of the first one for all, or of each one for its own share."""
    noise = noise_of(
        constants.noise,
        stream,
        sigma=constants.sigma,
        clip_norm=constants.clip_norm,
        coordinates=sum(one.numel() for one in module.parameters() if one.requires_grad),
    )
    if sharded:
        return ShardNoise(noise)
    return SharedNoise(noise) if distributed else noise
