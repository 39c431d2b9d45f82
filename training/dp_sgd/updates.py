"""What an optimizer makes of noisy sums: the third seam of a step, and all of it post-processing.

sgd (with momentum: Polyak 1964), adam (Kingma and Ba 2015), adamw (Loshchilov and Hutter 2019), rmsprop (Tieleman and
Hinton 2012); learning rates that warm up and fall along a cosine; weights averaged over the last steps (Polyak and
Juditsky 1992) or exponentially. Each sees the noisy sum divided by the public constant E[B] and nothing else.

Trusts: that noise was added. Never: sees a row, or a batch's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

SGD, MOMENTUM, ADAM, ADAMW, RMSPROP = "sgd", "momentum", "adam", "adamw", "rmsprop"
OPTIMIZERS = (SGD, MOMENTUM, ADAM, ADAMW, RMSPROP)
CONSTANT, COSINE = "constant", "cosine"
SCHEDULES = (CONSTANT, COSINE)
MEAN, EMA = "mean", "ema"
AVERAGES = (MEAN, EMA)


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """The public constants of everything after the noise."""

    optimizer: str = SGD
    learning_rate: float
    momentum: float = 0.0  # of sgd and momentum; adam's first decay is `first_decay`
    first_decay: float = 0.9
    second_decay: float = 0.999
    stability: float = 1e-8
    weight_decay: float = 0.0  # of adamw: decoupled
    schedule: str = CONSTANT
    warmup_steps: int = 0
    average: str = MEAN
    average_steps: int = 0  # mean: over the last so many steps; 0 keeps the last weights
    average_decay: float = 0.0  # ema: in (0, 1)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS or self.schedule not in SCHEDULES or self.average not in AVERAGES:
            raise ValueError(f"no update rule {self.optimizer}, {self.schedule}, {self.average}")

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step 1, 2, ... of so many: a linear warm-up, then constant or half a cosine to zero."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / (self.warmup_steps + 1)
        if self.schedule == CONSTANT:
            return self.learning_rate
        done = (step - 1 - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


class Update:
    """The state of an optimizer over these parameters. `state` is all of it, by name, for checkpoints."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, rule: UpdateRule, steps: int) -> None:
        self._parameters = parameters
        self._rule = rule
        self._steps = steps
        slots = {
            SGD: ("first",) if rule.momentum else (),
            MOMENTUM: ("first",),
            ADAM: ("first", "second"),
            ADAMW: ("first", "second"),
            RMSPROP: ("second",),
        }[rule.optimizer]
        if rule.average == EMA or rule.average_steps:
            slots = (*slots, "average")
        self._slots = {slot: [torch.zeros_like(one) for one in parameters] for slot in slots}

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor of the state; writing into them restores it."""
        return {f"{slot}.{index}": one for slot, ones in self._slots.items() for index, one in enumerate(ones)}

    @torch.no_grad()
    def apply(self, released: list[torch.Tensor], *, step: int, divisor: float = 1.0) -> None:
        """Move the parameters by the released gradient of step 1, 2, ...: the noisy sums over `divisor`, E[B]."""
        rule, rate = self._rule, self._rule.rate_at(step, self._steps)
        for index, (parameter, raw) in enumerate(zip(self._parameters, released, strict=True)):
            if rule.optimizer in (SGD, MOMENTUM) and "first" not in self._slots:
                parameter.sub_(raw.to(parameter.dtype), alpha=rate / divisor)  # no pass of its own for the division
                continue
            gradient = raw.to(parameter.dtype) / divisor
            if rule.optimizer in (SGD, MOMENTUM):
                parameter.sub_(self._slots["first"][index].mul_(rule.momentum).add_(gradient), alpha=rate)
                continue
            square = self._slots["second"][index]
            square.mul_(rule.second_decay).addcmul_(gradient, gradient, value=1.0 - rule.second_decay)
            if rule.optimizer == RMSPROP:
                parameter.sub_(rate * gradient / (square.sqrt() + rule.stability))
                continue
            mean = self._slots["first"][index].mul_(rule.first_decay).add_(gradient, alpha=1.0 - rule.first_decay)
            if rule.optimizer == ADAMW:
                parameter.mul_(1.0 - rate * rule.weight_decay)
            scale = (square / (1.0 - rule.second_decay**step)).sqrt() + rule.stability
            parameter.sub_(rate * (mean / (1.0 - rule.first_decay**step)) / scale)
        self._average(step)

    def _average(self, step: int) -> None:
        rule = self._rule
        averages = self._slots.get("average", [])
        for mean, parameter in zip(averages, self._parameters, strict=bool(averages)):
            if rule.average == EMA:
                mean.mul_(rule.average_decay).add_(parameter, alpha=1.0 - rule.average_decay)
            elif step > self._steps - rule.average_steps:
                mean += parameter / rule.average_steps

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averaged weights in place of the last ones, if the rule says so."""
        unbiased = 1.0 - self._rule.average_decay**self._steps if self._rule.average == EMA else 1.0
        for mean, parameter in zip(self._slots.get("average", []), self._parameters, strict=False):
            parameter.copy_(mean / unbiased)
