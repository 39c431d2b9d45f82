"""DP-SGD: clipped per-example gradients, one noisy sum per step, a public divisor. The privacy of a model rests here.

One step, read aloud: draw rows by Poisson sampling; for each, the gradient of its loss alone (Opacus); scale it to at
most C in L2 norm; add up; add Gaussian noise of standard deviation sigma * C to every coordinate; divide by the public
constant E[B]; take an ordinary momentum step. A step without rows adds noise all the same. Everything after the noise
(momentum, averaging) is post-processing.

All arithmetic is float64: the clipping bound then holds to 1e-15, and a row's gradient depends on its neighbours in the
batch by no more than that. Trusts: rows that are scaled and finite. Never: uses torch's random generator, the batch's
size, or the number of private rows as a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from sealgate.ambient import Entropy, random_bytes
from training.errors import TrainingError
from training.limits import MAX_GRADIENT_NUMBERS
from training.losses import Loss
from training.randomness import Keystream, PoissonSampler


@dataclass(frozen=True, kw_only=True)
class PrivateSgd:
    """The public constants of a run. None of them may be derived from the private rows."""

    rate: Fraction
    steps: int
    divisor: float  # E[B]: the rate times the public population
    clip_norm: float
    sigma: float
    learning_rate: float
    momentum: float = 0.0
    average_steps: int = 0  # the weights are averaged over the last so many steps; 0 keeps the last ones


def clipped_sum(gradients: list[torch.Tensor], clip_norm: float) -> list[torch.Tensor]:
    """Sum over rows of per-row gradients, each scaled to L2 norm at most `clip_norm` over all parameters together.

    gradients: one [n, ...] tensor per parameter -> one [...] tensor per parameter. A row whose gradient is not finite
    counts as zero: it must not be able to do more than any other.
    """
    norms = torch.stack([(one.flatten(1) ** 2).sum(dim=1) for one in gradients]).sum(dim=0).sqrt()  # [n]
    finite = torch.isfinite(norms)  # [n]
    factors = torch.where(finite, (clip_norm / norms.clamp_min(1e-300)).clamp_max(1.0), 0.0)  # [n]
    if not bool(finite.all()):  # zero times infinity would be no number
        gradients = [torch.nan_to_num(one, nan=0.0, posinf=0.0, neginf=0.0) for one in gradients]
    return [torch.tensordot(factors, one, dims=([0], [0])) for one in gradients]


class GradientSum:
    """Clipped sums of per-example gradients of a module, in parts of bounded memory. Owns the Opacus hooks."""

    def __init__(self, module: nn.Module, *, loss: Loss, clip_norm: float) -> None:
        self._wrapped = GradSampleModule(module, loss_reduction="sum")
        self._parameters = list(module.parameters())
        self._loss = loss
        self._clip_norm = clip_norm
        self._part = max(1, MAX_GRADIENT_NUMBERS // sum(one.numel() for one in self._parameters))

    def over(self, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> list[torch.Tensor]:
        """The clipped sum over these examples: each [n, ...], [n] -> one tensor per parameter. Zero for none."""
        total = [torch.zeros_like(parameter) for parameter in self._parameters]
        for start in range(0, len(targets), self._part):
            part = slice(start, start + self._part)
            each = self._per_example(tuple(one[part] for one in inputs), targets[part])
            for sum_so_far, more in zip(total, clipped_sum(each, self._clip_norm), strict=True):
                sum_so_far += more
        return total

    def _per_example(self, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> list[torch.Tensor]:
        self._wrapped.zero_grad(set_to_none=True)
        # The inputs want a gradient too, although nobody reads it: torch calls backward hooks properly only then.
        logits = self._wrapped(*(one.detach().requires_grad_(one.is_floating_point()) for one in inputs))
        torch.autograd.backward(self._loss.each(logits, targets).sum())
        gradients: list[torch.Tensor] = []
        for parameter in self._parameters:
            gradients.append(parameter.grad_sample)  # type: ignore[attr-defined]
            parameter.grad_sample = None  # type: ignore[attr-defined]
        return gradients

    def close(self) -> None:
        """Take the hooks off again, so that the module is what it was."""
        self._wrapped.zero_grad(set_to_none=True)
        self._wrapped.remove_hooks()


def initialise(module: nn.Module, entropy: Entropy = random_bytes) -> None:
    """Fill a multi-layer module: weights uniform by fan-in, biases zero. A single layer stays zero (convex losses)."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if len(layers) < 2:
        return
    stream = Keystream(entropy)
    with torch.no_grad():
        for layer in layers:
            bound = (3.0 / layer.in_features) ** 0.5
            values = (2.0 * stream.uniform(layer.weight.numel()) - 1.0) * bound
            layer.weight.copy_(torch.from_numpy(values).reshape(layer.weight.shape))


def train_privately(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    *,
    constants: PrivateSgd,
    loss: Loss,
    entropy: Entropy = random_bytes,
    on_step: Callable[[int], None] = lambda _step: None,
) -> int:
    """Train the module in place; returns the number of steps executed. Raises TrainingError if it diverges.

    inputs: scaled, each [n, ...], in the order of the module's arguments; targets: float64 [n]. The module must be
    float64.
    """
    sampler = PoissonSampler(constants.rate, Keystream(entropy))
    noise = Keystream(entropy)
    gradient_sum = GradientSum(module, loss=loss, clip_norm=constants.clip_norm)
    parameters = list(module.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    average = [torch.zeros_like(parameter) for parameter in parameters]
    try:
        for step in range(1, constants.steps + 1):
            drawn = torch.from_numpy(sampler.draw(len(targets)))
            summed = gradient_sum.over(tuple(one[drawn] for one in inputs), targets[drawn])
            add_noise(summed, noise, deviation=constants.sigma * constants.clip_norm)
            with torch.no_grad():
                for parameter, speed, gradient in zip(parameters, velocity, summed, strict=True):
                    speed.mul_(constants.momentum).add_(gradient / constants.divisor)
                    parameter.sub_(constants.learning_rate * speed)
                if step > constants.steps - constants.average_steps:
                    for mean, parameter in zip(average, parameters, strict=True):
                        mean += parameter / constants.average_steps
            on_step(step)
    finally:
        gradient_sum.close()
    if constants.average_steps:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise TrainingError("training diverged: lower the learning rate", code="diverged")
    return constants.steps


def add_noise(summed: list[torch.Tensor], stream: Keystream, *, deviation: float) -> None:
    """Add independent Gaussian noise to every coordinate, in place."""
    values = stream.gaussian(sum(one.numel() for one in summed)) * deviation
    start = 0
    for one in summed:
        part: np.ndarray[tuple[int], np.dtype[np.float64]] = values[start : start + one.numel()]
        one += torch.from_numpy(part).reshape(one.shape)
        start += one.numel()
