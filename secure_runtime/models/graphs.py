"""A model captured as CUDA graphs, one for each of a few numbers of rows: a batch is padded to the next of them.

A graph replays every kernel of a forward pass with one launch, which is most of the time of a small model on a GPU; the
price is that sizes are fixed and that its buffers stay. So buffers are wiped behind each replay, on the same lane, and
nothing of a caller's rows outlives the answer. On a processor the same code runs the model itself, padded: for tests.

Trusts: the model for computing each row by itself. Never: replaces a model whose padded answers differ from its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from secure_runtime.limits import GRAPH_ROWS, GRAPH_TOLERANCE
from secure_runtime.models.devices import Lane, sent

Inputs = Mapping[str, torch.Tensor]
Compute = Callable[[Inputs], torch.Tensor]


@dataclass(frozen=True)
class _Fixed:
    """One graph: `buffers` are what it reads, [rows, ...] each, and `output` what it writes."""

    rows: int
    buffers: dict[str, torch.Tensor]
    output: torch.Tensor
    replay: Callable[[], None]


class Graphs:
    """The captured sizes of one model. All of them are replayed on one lane, in order: they share nothing with another
    batch that is under way, and copies into a buffer wait for what was queued before."""

    def __init__(self, lane: Lane, fixed: Sequence[_Fixed]) -> None:
        self.lane = lane
        self._fixed = tuple(fixed)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Captured numbers of rows, smallest first."""
        return tuple(one.rows for one in self._fixed)

    def fitting(self, rows: int) -> bool:
        """Whether a batch of so many is answered by a graph."""
        return bool(self._fixed) and rows <= self._fixed[-1].rows

    def run(self, inputs: Inputs) -> torch.Tensor:
        """The model's output for these rows, [n, ...] on the device. Call it inside `lane.entered()`."""
        rows = len(next(iter(inputs.values())))
        fixed = next(one for one in self._fixed if one.rows >= rows)
        for name, values in inputs.items():
            fixed.buffers[name][:rows].copy_(sent(values, self.lane.device), non_blocking=True)
        fixed.replay()
        found = fixed.output[:rows].clone()
        for buffer in (*fixed.buffers.values(), fixed.output):
            buffer.zero_()
        return found


@torch.inference_mode()
def capture(
    compute: Compute, zeros: Callable[[int], Inputs], *, lane: Lane, sizes: Sequence[int] = GRAPH_ROWS
) -> Graphs:
    """Capture `compute` for each size. `zeros` makes a batch of so many rows, as it would arrive.

    Raises RuntimeError where the model cannot be captured, or where what a graph gives is not what the model gives.
    """
    fixed: list[_Fixed] = []
    for rows in sorted(sizes):
        with lane.entered():
            buffers = {name: sent(values, lane.device).clone() for name, values in zeros(rows).items()}
        output, replay = lane.record(lambda held=buffers: compute(held))  # type: ignore[misc]
        fixed.append(_Fixed(rows, buffers, output, replay))
    graphs = Graphs(lane, fixed)
    for rows in graphs.sizes:  # one row less than the size, so that padding is tried as well
        some = zeros(max(1, rows - 1))
        with lane.entered():
            alone = lane.fetching(compute({name: sent(values, lane.device) for name, values in some.items()}))
            padded = lane.fetching(graphs.run(some))
        if not torch.allclose(alone(), padded(), rtol=GRAPH_TOLERANCE, atol=GRAPH_TOLERANCE):
            raise RuntimeError("its padded answers are not its own")
    return graphs
