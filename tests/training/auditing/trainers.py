"""Trainers for the gate to judge: a second, plain implementation of DP-SGD, and ones that are broken on purpose.

`plainly` shares no code with the product's engine but the keystream: gradients come from torch.func, the loop is
written out. Its `Faults` break one thing each. The product's own engine is broken by handing it other constants than
the ones that were declared. Every fault here was published as a real bug of a real library or paper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from training.private_sgd import train_privately
from training.randomness import Keystream


@dataclass(frozen=True)
class Faults:
    """What `plainly` does wrong."""

    shuffled: bool = False  # each row once in an epoch, in batches of fixed size
    fixed_size: bool = False  # a batch of fixed size drawn without replacement at each step
    noise_over_batch: bool = False  # noise of deviation sigma * C on the mean's scale put on the sum
    mean_of_batch: bool = False  # divided by the number of rows that happened to be drawn
    clipped_by_layer: bool = False  # each parameter tensor to the clip norm, not all together
    batch_clipped: bool = False  # the batch's summed gradient is clipped, not each row's
    seeded: bool = False  # noise from torch's generator
    same_noise: bool = False  # one noise vector for all steps
    no_noise_without_rows: bool = False  # a step that drew nobody releases nothing


def plainly(faults, module, inputs, targets, *, constants, loss, groups, entropy, on_step):
    """DP-SGD in the plainest way."""
    parameters = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    sampling, noise = Keystream(entropy), Keystream(entropy)
    rows, rate = len(targets), float(constants.rate)
    size = max(1, round(rows * rate))
    order: list[int] = []
    fixed: dict[str, torch.Tensor] = {}

    def one(weights, example, target):
        logits = functional_call(module, (weights, buffers), tuple(x[None] for x in example))
        return loss.each(logits, target[None]).sum()

    each = vmap(grad(one), in_dims=(None, 0, 0))
    for step in range(1, constants.steps + 1):
        if faults.shuffled:
            if len(order) < size:
                order = np.argsort(sampling.uniform(rows)).tolist()
            drawn, order = order[:size], order[size:]
        elif faults.fixed_size:
            drawn = np.argsort(sampling.uniform(rows))[:size].tolist()
        else:
            drawn = np.flatnonzero(sampling.uniform(rows) < rate).tolist()
        summed = {name: torch.zeros_like(value) for name, value in parameters.items()}
        if drawn:
            gradients = each(
                {name: value.detach() for name, value in parameters.items()},
                tuple(x[drawn] for x in inputs),
                targets[drawn],
            )
            summed = clipped(faults, gradients, constants.clip_norm)
        deviation = constants.sigma * constants.clip_norm
        if faults.noise_over_batch:
            deviation /= max(1, len(drawn))
        divisor = max(1, len(drawn)) if faults.mean_of_batch else constants.divisor
        for name, value in parameters.items():
            if faults.seeded:
                fresh = torch.randn(value.shape, dtype=value.dtype)
            else:
                fresh = torch.from_numpy(noise.gaussian(value.numel())).reshape(value.shape).to(value.dtype)
            if faults.same_noise:
                fresh = fixed.setdefault(name, fresh)
            if faults.no_noise_without_rows and not drawn:
                fresh = torch.zeros_like(value)
            with torch.no_grad():
                value.sub_(constants.learning_rate * (summed[name] + deviation * fresh) / divisor)
        on_step(step)
    return constants.steps


def clipped(faults, gradients, bound):
    """The sum of the clipped gradients: one [n, ...] tensor for each parameter -> one tensor for each."""
    if faults.batch_clipped:
        total = {name: value.sum(0) for name, value in gradients.items()}
        norm = torch.sqrt(sum((value**2).sum() for value in total.values()))
        factor = min(1.0, bound * len(next(iter(gradients.values()))) / float(norm)) if norm > 0 else 1.0
        return {name: value * factor for name, value in total.items()}
    squares = {name: (value.flatten(1) ** 2).sum(1) for name, value in gradients.items()}
    whole = torch.stack(list(squares.values())).sum(0)
    result = {}
    for name, value in gradients.items():
        norms = (squares[name] if faults.clipped_by_layer else whole).sqrt()
        finite = torch.isfinite(norms)
        factors = torch.where(finite, (bound / norms.clamp_min(1e-300)).clamp_max(1.0), 0.0)
        result[name] = torch.tensordot(factors, torch.nan_to_num(value), dims=([0], [0]))
    return result


def other_constants(change: Callable) -> Callable:
    """The product's engine, run with other constants than it is said to be. change(constants, rows) -> constants."""

    def train(module, inputs, targets, *, constants, loss, groups, entropy, on_step):
        wrong = change(constants, len(targets))
        return train_privately(module, inputs, targets, constants=wrong, loss=loss, entropy=entropy, on_step=on_step)

    return train


def _scaled_clip(factor: float) -> Callable:
    return other_constants(lambda c, _rows: replace(c, clip_norm=c.clip_norm * factor, sigma=c.sigma / factor))


def _rate(factor: Fraction) -> Callable:
    return other_constants(lambda c, _rows: replace(c, rate=min(Fraction(1), c.rate * factor)))


def fixed_entropy(module, inputs, targets, *, constants, loss, groups, entropy, on_step):
    """The product's engine under randomness that was written down."""
    count = iter(range(10**9))
    return train_privately(
        module, inputs, targets, constants=constants, loss=loss, groups=groups, on_step=on_step,
        entropy=lambda size: bytes([next(count) % 251]) * size,
    )  # fmt: skip


def _whole_batches(constants, rows):
    """What a data loader makes of it: a batch of int(N q) rows, and so a rate and a divisor that tell N."""
    size = max(1, int(rows * constants.rate))
    return replace(constants, divisor=float(size))


def _loader_rate(constants, rows):
    """One over the number of batches of a loader whose batches have the public size."""
    batches = max(1, -(-rows // max(1, round(constants.divisor))))
    return replace(constants, rate=Fraction(1, batches))


CORRECT = {"engine": train_privately, "plain loop": functools.partial(plainly, Faults())}

BROKEN = {
    "noise / 10": other_constants(lambda c, _rows: replace(c, sigma=c.sigma / 10)),
    "noise x 0.8": other_constants(lambda c, _rows: replace(c, sigma=c.sigma * 0.8)),
    "noise / batch": functools.partial(plainly, Faults(noise_over_batch=True)),
    "no clipping": _scaled_clip(1e9),
    "clip x 1.2": _scaled_clip(1.2),
    "clipped by layer": functools.partial(plainly, Faults(clipped_by_layer=True)),
    "batch clipped": functools.partial(plainly, Faults(batch_clipped=True)),
    "rate x 1.5": _rate(Fraction(3, 2)),
    "rate x 1.25": _rate(Fraction(5, 4)),
    "shuffled": functools.partial(plainly, Faults(shuffled=True)),
    "fixed size": functools.partial(plainly, Faults(fixed_size=True)),
    "divisor int(N q)": other_constants(_whole_batches),
    "rate 1 / len(loader)": other_constants(_loader_rate),
    "mean of batch": functools.partial(plainly, Faults(mean_of_batch=True)),
    "seeded noise": functools.partial(plainly, Faults(seeded=True)),
    "written-down entropy": fixed_entropy,
    "same noise": functools.partial(plainly, Faults(same_noise=True)),
    "no rows, no noise": functools.partial(plainly, Faults(no_noise_without_rows=True)),
}
