"""Where a model computes, and how rows get there and back. The same calls on a processor and on a GPU.

On CUDA rows are copied from page-locked memory without waiting, each batch on a stream of its own (a lane), and answers
come back into page-locked memory: while one batch computes, the next one is on its way. Waiting is for an event behind
the answer. On a processor all of it is nothing. Arithmetic is IEEE single or double on both: TensorFloat-32, which
keeps ten bits of a factor, is off, or answers would depend on the device.

Trusts: torch's device abstraction; its allocators keep memory of a copy until the copy is done (CUDA semantics, "Use
pinned memory buffers"). Never: shares a buffer between two calls, which would keep a caller's rows in memory beyond
the answer; `graphs.py` has such buffers, and wipes them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import torch

from secure_runtime.limits import LANES


def prepare_device(device: torch.device) -> None:
    """Once per process, before models are loaded: full precision on CUDA, and a context before the seal."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.cuda.set_device(device)
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has no annotation there


class Lane:
    """The way of one batch at a time to the device and back: one stream, used by one thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # nor there
            self._stream.wait_stream(torch.cuda.current_stream(device))  # weights that are still on their way

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Whatever is computed inside is queued on this lane."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def sent(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows on the device, perhaps still on their way: what is queued behind them on this lane waits."""
        return sent(rows, self.device)

    def fetching(self, value: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to bring a tensor back; what is returned waits until it has arrived in the host's memory."""
        if self._stream is None:
            here = value.cpu()
            return lambda: here
        found = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        found.copy_(value, non_blocking=True)
        behind = torch.cuda.Event()  # type: ignore[no-untyped-call]
        behind.record(self._stream)

        def arrived() -> torch.Tensor:
            behind.synchronize()
            return found

        return arrived

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """What `function` computes as one graph of this lane: the tensor that every replay writes, and the replay,
        which is called inside `entered`. `function` reads tensors that stay where they are. On a processor it runs.

        Raises RuntimeError for what CUDA cannot capture, such as a size that depends on the data.
        """
        if self._stream is None:
            output = function().clone()

            def again() -> None:
                output.copy_(function())

            return output, again
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):  # libraries set themselves up at first; that cannot be captured
                function()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            output = function()
        return output, graph.replay


class Lanes:
    """The lanes of one predictor, taken in turn."""

    def __init__(self, device: torch.device, count: int = LANES) -> None:
        self.all = tuple(Lane(device) for _ in range(count))
        self._turn = itertools.cycle(self.all)

    def next(self) -> Lane:
        """The one whose batch is the longest ago."""
        return next(self._turn)


def sent(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows of the host on the device; from page-locked memory, so that the copy is not waited for."""
    if device.type != "cuda" or rows.is_cuda:
        return rows.to(device=device)
    return rows.pin_memory().to(device=device, non_blocking=True)


_WARM_UPS = 3  # as torch's notes on CUDA graphs do
