"""DP-SGD on several processes: each holds a shard of the rows, and noise is added once.

Every process draws its own units by Poisson sampling and sums their clipped gradients; the sums are added up at the
first process, which alone adds the noise and sends the noisy sum to all. So all take the same step, and none but the
first ever holds a sum without noise that is not its own. A unit must be wholly in one shard, or its rows would be
clipped apart. torch's DistributedDataParallel averages gradients before anybody can clip them, so only its process
groups are used here (gloo or nccl); the result is what one process would compute on all rows together.

Trusts: the other processes and the network between them. Never: averages, or divides by the number of processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import distributed, nn

from training.dp_sgd.noise import Noise

FIRST = 0


class SharedNoise(Noise):
    """The noise seam across processes: `add` turns each process' own sum into the noisy sum of all."""

    def __init__(self, noise: Noise) -> None:
        """`noise` is used by the first process only. The process group must have been made."""
        self._noise = noise

    def add(self, summed: list[torch.Tensor]) -> None:
        flat = torch.cat([one.ravel() for one in summed]).to(torch.float64)
        distributed.reduce(flat, FIRST)
        released = [part.view_as(one) for part, one in zip(_split(flat, summed), summed, strict=True)]
        if distributed.get_rank() == FIRST:
            self._noise.add(released)
        else:
            flat.zero_()  # what reduce leaves in other processes is an unnoised part of a sum
        distributed.broadcast(flat, FIRST)
        for one, part in zip(summed, released, strict=True):
            one.copy_(part)


def share_weights(module: nn.Module) -> None:
    """Every process begins with the first one's weights."""
    for parameter in module.parameters():
        distributed.broadcast(parameter.data, FIRST)


def leave() -> NoReturn:
    """Take leave of the other processes and end this one, at once and well.

    Threads of gloo may still hold tensors then: one that lets go of them while the interpreter is being taken apart
    aborts the process, whose work was done. So the interpreter is not taken apart.
    """
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    parts: tuple[torch.Tensor, ...] = torch.split(flat, [one.numel() for one in like])
    return parts
