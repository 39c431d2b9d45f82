"""What a model's output loses when parts of a row are taken away: attributions of models that have no gradient.

A row is a game of its parts (Strumbelj, Kononenko 2010): a part that takes part is as in the row, one that does not is
as in the baseline. Ablation is what the whole row loses without one part; Shapley's value is the mean of what a part
adds, over orders of all parts. Captum plays the game on zeros and ones, one for each part, whatever the inputs are.

    table      a part is a column
    image      a square, a seventh of the longer side, in all channels
    tokens     a token that is there; neighbours together where a text may have more than MAX_EXPLAIN_PARTS
    sequence   a number of a step; where there are more, a channel's neighbouring steps; or whole steps
    nodes      a number of a node; where there are more, a node, or neighbouring nodes
    edges      a tie, in both directions; neighbours together where there may be more

Parts that are in the row as in the baseline count for nothing by either method, exactly, and the model is not asked.
Orders are all of them where those are few, which is exact; else ORDERS of them, each beside its reverse, drawn from the
fixed SEED: the same row has the same attributions whenever it is asked.

Trusts: `Movable`. Never: draws from torch's own generator; runs the model on more rows than `evaluations` says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from sealgate.certificate.inputs import (
    GraphEdgesContent,
    GraphNodesContent,
    ImageContent,
    InputTensor,
    SequenceContent,
    TableContent,
)
from secure_runtime.limits import MAX_EXPLAIN_PARTS
from secure_runtime.worker.engine import captum_methods

ORDERS, SEED = 64, 1  # of parts; all orders of up to 4 parts are fewer
_SQUARES = 7  # of an image, along its longer side

Rows = Mapping[str, torch.Tensor]


class Parts:
    """What is taken away at once, of every row of a model. `count` is the most that a row has."""

    def __init__(self, specs: Sequence[InputTensor]) -> None:
        self.count = 0
        self._numbers: dict[str, torch.Tensor] = {}  # by input: the part that each number belongs to, int64 [...]
        for spec in specs:
            self._numbers[spec.name] = _numbered(spec) + self.count
            self.count += part_count([spec])

    def ablated(self, run: Callable[[Rows], torch.Tensor], row: Rows, start: Rows, *, at_once: int) -> torch.Tensor:
        """[count]: the output's loss without each part. `run` gives margins [n] of rows."""
        ablation, *_ = captum_methods.methods()
        return self._played(
            row,
            start,
            lambda kept: ablation(self._game(run, row, start, kept)).attribute(
                torch.ones(1, len(kept), dtype=torch.float64), 0, perturbations_per_eval=at_once
            ),
        )

    def shapley(self, run: Callable[[Rows], torch.Tensor], row: Rows, start: Rows, *, at_once: int) -> torch.Tensor:
        """[count]: the mean of what each part adds."""
        *_, sampling = captum_methods.methods()

        def play(kept: torch.Tensor) -> torch.Tensor:
            method = sampling(self._game(run, row, start, kept))
            method.permutation_generator = orders
            found: torch.Tensor = method.attribute(
                torch.ones(1, len(kept), dtype=torch.float64),
                0,
                n_samples=order_count(len(kept)),
                perturbations_per_eval=min(at_once, len(kept) + 1),
            )
            return found

        return self._played(row, start, play)

    def shared(self, values: torch.Tensor, row: Rows, start: Rows) -> dict[str, torch.Tensor]:
        """[count] -> by input [...]: each part's number, shared among those of its numbers that are not the baseline's:
        they add up to it."""
        differ = {name: row[name][0] != start[name][0] for name in self._numbers}
        among = torch.zeros(self.count, dtype=torch.float64)
        for name, numbers in self._numbers.items():
            among += torch.bincount(numbers[differ[name].cpu()], minlength=self.count)
        each = values / among.clamp_min(1)
        return {name: each[numbers] * differ[name].cpu() for name, numbers in self._numbers.items()}

    def carried(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """[count] -> by input [...]: every number has its whole part's, as of an occluded image."""
        return {name: values[numbers] for name, numbers in self._numbers.items()}

    def _played(self, row: Rows, start: Rows, play: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        kept = torch.unique(
            torch.cat([numbers[(row[name][0] != start[name][0]).cpu()] for name, numbers in self._numbers.items()])
        )
        found = torch.zeros(self.count, dtype=torch.float64)
        if len(kept):
            found[kept] = play(kept)[0].to(torch.float64)
        return found

    def _game(
        self, run: Callable[[Rows], torch.Tensor], row: Rows, start: Rows, kept: torch.Tensor
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Margins [n] of n sets of parts, zeros and ones [n, kept]."""

        def of(sets: torch.Tensor) -> torch.Tensor:
            there = torch.zeros(len(sets), self.count, dtype=torch.bool)
            there[:, kept] = sets > 0.5
            return run(
                {
                    name: torch.where(there[:, numbers].to(row[name].device), row[name], start[name])
                    for name, numbers in self._numbers.items()
                }
            ).cpu()

        return of


def order_count(parts: int) -> int:
    """How many orders of so many parts are looked at."""
    return min(math.factorial(min(parts, 20)), ORDERS)


def orders(parts: int, count: int) -> Iterator[Sequence[int]]:
    """All orders of the parts, if `count` is that many; else drawn, each beside its reverse."""
    if math.factorial(min(parts, 20)) <= count:
        yield from itertools.permutations(range(parts))
        return
    generator = torch.Generator()
    generator.manual_seed(SEED)
    for _ in range(count // 2):
        order = torch.randperm(parts, generator=generator).tolist()
        yield order
        yield order[::-1]


def part_count(specs: Sequence[InputTensor]) -> int:
    """How many parts a row of these inputs has at most."""
    return sum(
        len(range(0, _tie_count(spec), _tied_together(spec)))
        if isinstance(spec.content, GraphEdgesContent)
        else math.prod(-(-length // size) for length, size in zip(spec.model_shape, _block(spec), strict=True))
        for spec in specs
    )


def _numbered(spec: InputTensor) -> torch.Tensor:
    """The part of each number of one input, from 0 on: int64 of the input's model shape."""
    if isinstance(spec.content, GraphEdgesContent):
        return _ties(spec)
    return _grid(spec.model_shape, _block(spec))


def _block(spec: InputTensor) -> tuple[int, ...]:
    """How many neighbouring numbers are one part, along each axis."""
    shape, most = spec.model_shape, MAX_EXPLAIN_PARTS
    match spec.content:
        case TableContent():
            return (1,)
        case ImageContent():
            side = max(1, -(-max(shape[1:]) // _SQUARES))
            return shape[0], side, side
        case SequenceContent():
            steps, channels = shape
            return (-(-steps // (most // channels)), 1) if channels <= most else (-(-steps // most), channels)
        case GraphNodesContent():
            nodes, features = shape
            return (1, 1) if nodes * features <= most else (-(-nodes // most), features)
        case _:
            return (-(-shape[0] // most),)


def _grid(shape: Sequence[int], block: Sequence[int]) -> torch.Tensor:
    """Blocks of one size, cut off at the borders, numbered in order."""
    found = torch.zeros(tuple(shape), dtype=torch.int64)
    for axis, (length, size) in enumerate(zip(shape, block, strict=True)):
        place = (torch.arange(length) // size).reshape([-1 if at == axis else 1 for at in range(len(shape))])
        found = found * -(-length // size) + place
    return found


def _ties(spec: InputTensor) -> torch.Tensor:
    """[nodes, nodes], symmetric; the diagonal, which is in the baseline, is numbered with the first."""
    nodes = spec.model_shape[0]
    found = torch.zeros(nodes, nodes, dtype=torch.int64)
    above = torch.triu_indices(nodes, nodes, offset=1)
    found[above[0], above[1]] = torch.arange(above.shape[1]) // _tied_together(spec)
    return found + found.t()


def _tie_count(spec: InputTensor) -> int:
    nodes = spec.model_shape[0]
    return max(1, nodes * (nodes - 1) // 2)


def _tied_together(spec: InputTensor) -> int:
    return -(-_tie_count(spec) // MAX_EXPLAIN_PARTS)
