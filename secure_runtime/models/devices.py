"""Where a model computes, and how rows get there and back. The same calls on a processor and on a GPU.

On CUDA rows are copied from page-locked memory without waiting, on a stream of the predictor's own, and answers come
back into page-locked memory; one wait at the end of a call. On a processor all of it is nothing. Arithmetic is
IEEE single or double on both: TensorFloat-32, which keeps ten bits of a factor, is off, or answers would depend on the
device.

CUDA graphs are not used: they fix shapes, and rows arrive in any number. Trusts: torch's device abstraction. Never:
shares a buffer between two calls, which would keep a caller's rows in memory beyond the answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def prepare_device(device: torch.device) -> None:
    """Once per process, before models are loaded: full precision on CUDA, and a context before the seal."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.cuda.set_device(device)
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has no annotation there


class Lane:
    """A predictor's way to its device and back: one stream, used by one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # nor there

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

    def fetched(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """These tensors in the host's memory, arrived."""
        if self._stream is None:
            return tuple(one.cpu() for one in values)
        found = tuple(torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in values)
        for here, there in zip(found, values, strict=True):
            here.copy_(there, non_blocking=True)
        self._stream.synchronize()
        return found


def sent(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows of the host on the device; from page-locked memory, so that the copy is not waited for."""
    if device.type != "cuda" or rows.is_cuda:
        return rows.to(device=device)
    return rows.pin_memory().to(device=device, non_blocking=True)
