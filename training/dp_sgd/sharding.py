"""DP-SGD on several processes, each of which holds its share of the weights (torch's FSDP2; Rajbhandari et al. 2020).

As in `distributed`, each process has its own rows and draws its own units. Besides, weights, gradient sums and the
optimizer's state are cut along their first dimension, and each process owns one piece. FSDP2 gathers a layer when
forward or backward needs it and drops it again. A unit's norm needs that unit's own activations and nothing else of
other processes, so book-keeping clips as ever. A layer's clipped sum is then added up over the processes in float64,
each of which gets the sum of its own piece only, adds the noise of that piece from a keystream of its own, and moves
its own weights. So every coordinate is given noise once, and nobody holds a whole sum without noise.

All processes must gather the same layers equally often, but have unequally many units: who has none left in a part of
the step runs made-up rows, of which nothing is added. Weights are whole before the first step, where book-keeping is
checked, after the last, and where a checkpoint is written; otherwise only those of a layer in use, or soon to be.

Trusts: the other processes and the network between them. Never: averages, or divides by the number of processes.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

from training.dp_sgd.book_keeping import BookKeeping
from training.dp_sgd.choice import AUTO, Choice, made_up
from training.dp_sgd.clipping import clip_factors
from training.dp_sgd.contributions import Contribution
from training.dp_sgd.gradient_sum import GradientSum
from training.dp_sgd.modes import Inputs
from training.dp_sgd.noise import Noise
from training.errors import TrainingError
from training.limits import MAX_PART_NUMBERS
from training.losses import Loss

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardedSum(GradientSum):
    """The first seam of a step. `module` is the sharded one; that of the caller is empty until `give_back`."""

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Loss,
        clip_norm: float,
        gradients: str = AUTO,
        rows: int = 1,
        part_numbers: int = MAX_PART_NUMBERS,
    ) -> None:
        """As `GradientSum`. The process group must have been made, and all processes have the same weights."""
        if gradients not in (AUTO, BookKeeping.name):
            raise TrainingError(
                f"gradients '{gradients}' need whole weights; sharded ones are for '{BookKeeping.name}'",
                code="gradients-unsupported",
            )
        name = BookKeeping.name
        super().__init__(module, loss=loss, clip_norm=clip_norm, gradients=name, rows=rows, part_numbers=part_numbers)
        self._whole = module

    def prepare(self, inputs: Inputs) -> Choice:
        """Check book-keeping on the whole module, then keep this process' share of it."""
        if self._choice is None:
            choice = super().prepare(inputs)
            assert self._mode is not None
            self._mode.close()
            self._blank = made_up(self._whole, inputs, loss=self._loss, count=self._rows, dtype=self._mode.dtype)
            self.module = _moved(self._whole)
            self._book = BookKeeping(self.module, loss=self._loss, clip_norm=self._clip_norm)
            _shard(self.module)
            self._book.parameters = [one for one in self.module.parameters() if one.requires_grad]
            self._mode = self._book
            return choice
        return self._choice

    def over(self, inputs: Inputs, targets: torch.Tensor, *, weights: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The sum over the units of all processes, float64, sharded as the parameters are."""
        self.prepare(inputs)
        size = self._part * self._rows
        total = [torch.zeros_like(_local(one), dtype=torch.float64) for one in self._book.parameters]
        for index in range(self._most(-(-len(targets) // size))):
            part = slice(index * size, (index + 1) * size)
            share = None if weights is None else weights[part]
            found, factors = self._clipped(tuple(one[part] for one in inputs), targets[part], share)
            for so_far, parameter in zip(total, self._book.parameters, strict=True):
                mine = None if factors is None or parameter not in found else found[parameter].weighted(factors)
                so_far += _reduced(mine, parameter)
        return [_sharded(one, like) for one, like in zip(total, self._book.parameters, strict=True)]

    def _clipped(
        self, inputs: Inputs, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[dict[torch.Tensor, Contribution], torch.Tensor | None]:
        """Contributions of this process' units and their clip factors; none if it has no unit (left)."""
        while True:
            given, wanted, share = (inputs, targets, weights) if len(targets) else (*self._blank, None)
            found = self._book.contributions(given, wanted, rows=self._rows, weights=share)
            squares = self._book.squares(found, len(wanted) // self._rows)
            finite = torch.isfinite(squares)
            again = bool(len(targets)) and not bool(finite.all())
            if not self._most(again):
                dtype = self._book.dtype
                factors = clip_factors(squares, clip_norm=self._clip_norm, dtype=dtype) if len(targets) else None
                return found, factors
            if again:  # as everywhere, a unit whose gradient is not finite counts as zero
                keep = finite.repeat_interleave(self._rows)
                inputs, targets = tuple(one[keep] for one in inputs), targets[keep]
                weights = None if weights is None else weights[keep]

    def _most(self, number: int) -> int:
        """The greatest such number of any process."""
        asked = torch.tensor([number], device=self._blank[1].device)
        distributed.all_reduce(asked, distributed.ReduceOp.MAX)
        return int(asked)

    def give_back(self) -> None:
        """The caller's module gets its weights again, whole in every process. All of them must come here."""
        for one, sharded in zip(self._whole.parameters(), self.module.parameters(), strict=True):
            one.data = whole(sharded)


class ShardNoise(Noise):
    """The noise seam: every process adds noise to its own piece, from its own keystream."""

    def __init__(self, noise: Noise) -> None:
        """`noise` was made for the coordinates of all processes."""
        self._noise = noise

    def add(self, summed: list[torch.Tensor]) -> None:
        self._noise.add([_local(one) for one in summed])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the pieces of all processes, which must all ask for it; one that is not sharded is that itself."""
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        found: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach()


def fill(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copy from a whole tensor what belongs here."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        values = distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def _moved(module: nn.Module) -> nn.Module:
    """A copy that has the weights of the other, which is left without."""
    weights = [one.data for one in module.parameters()]
    for one in module.parameters():
        one.data = torch.empty(0, dtype=one.dtype, device=one.device)
    made = copy.deepcopy(module)
    for parameter, values in zip(made.parameters(), weights, strict=True):
        parameter.data = values
    return made


def _shard(module: nn.Module) -> None:
    """Every layer a group that is gathered together; layers that share a weight belong to the whole module's group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(module.parameters()).device.type, (distributed.get_world_size(),))
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    users = Counter(id(one) for layer in layers for one in layer.parameters(recurse=False))
    for layer in layers:
        if layer is not module and all(users[id(one)] == 1 for one in layer.parameters(recurse=False)):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _reduced(summed: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    """This process' piece of a sum over all processes, float64; none is zero. Pieces are cut as FSDP2 cuts weights."""
    count = distributed.get_world_size()
    own = _local(parameter)
    rows = -(-parameter.shape[0] // count)
    padded = own.new_zeros((rows * count, *parameter.shape[1:]), dtype=torch.float64)
    if summed is not None:
        padded[: parameter.shape[0]] = summed
    piece = own.new_empty((rows, *parameter.shape[1:]), dtype=torch.float64)
    distributed.reduce_scatter_tensor(piece, padded)
    return piece[: own.shape[0]]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process' piece, of which the other is made."""
    sharded: DTensor = tensor.detach()  # type: ignore[assignment]
    found: torch.Tensor = sharded.to_local()
    return found


def _sharded(piece: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    made: torch.Tensor = DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return made
