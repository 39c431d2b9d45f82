"""What stands between an input and the model: checks, clamping and scaling by the manifest's public constants.

Trusts: the checked manifest. Never: opens a file, imports, draws random numbers, or keeps rows after answering.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sealgate.certificate.inputs import (
    Column,
    GraphEdgesContent,
    GraphNodesContent,
    ImageContent,
    InputTensor,
    SequenceContent,
    TableContent,
)
from secure_runtime.errors import BadInput
from secure_runtime.models.devices import sent
from secure_runtime.models.wire import HELD_AS, all_finite


class PreparedInput:
    """One input of a model. Texts arrive here as tokens already: the worker decoded them with `tokenizers`."""

    def __init__(self, spec: InputTensor, *, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.shape = spec.model_shape
        self.wire_dtype = HELD_AS[spec.datatype]
        self._dtype = dtype
        self._device = device
        match spec.content:
            case ImageContent() as image:
                scales: Sequence[ImageContent | Column] = [image]
            case TableContent() | SequenceContent() | GraphNodesContent():
                scales = spec.columns
            case _:
                scales = ()
        self._scales = tuple(
            torch.tensor([float(getattr(one, name)) for one in scales], dtype=dtype, device=device)
            for name in ("low", "high", "center", "scale")
        )
        low, high = self._scales[:2]
        self._holds_bytes = bool((low <= 0).all() and (high >= 255).all())

    def require(self, batch: torch.Tensor) -> None:
        """Raise BadInput unless this is a batch that the model can be run on."""
        name, wanted = self.spec.name, ", ".join(["rows", *map(str, self.shape)])
        if tuple(batch.shape[1:]) != self.shape or batch.ndim != len(self.shape) + 1:
            raise BadInput(f"input '{name}' must have the shape [{wanted}]", code="input-shape")
        if batch.shape[0] == 0:
            raise BadInput(f"input '{name}' has no rows", code="input-shape")
        if batch.dtype != self.wire_dtype:
            raise BadInput(f"input '{name}' must be {self.spec.datatype}", code="input-datatype")
        if batch.is_floating_point() and not all_finite(batch):
            raise BadInput(f"input '{name}' has values that are not finite numbers", code="input-not-finite")
        size = self.spec.content.vocabulary
        if size and not bool(((batch >= 0) & (batch < size)).all()):
            raise BadInput(f"input '{name}' has tokens outside 0 to {size - 1}", code="input-range")
        if isinstance(self.spec.content, GraphEdgesContent) and not (
            bool(((batch == 0) | (batch == 1)).all()) and bool((batch == batch.transpose(1, 2)).all())
        ):
            raise BadInput(f"input '{name}' must be symmetric, of zeros and ones", code="input-range")

    def scaled(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch as the model sees it: [n, ...] of the model's arithmetic; tokens stay int64."""
        if self.spec.content.vocabulary:
            return sent(batch, self._device).to(torch.int64)
        rows = sent(batch, self._device).to(self._dtype)
        if isinstance(self.spec.content, GraphEdgesContent):
            return rows
        low, high, center, scale = self._scales
        if batch.dtype != torch.uint8 or not self._holds_bytes:  # bytes as other numbers are a copy, and within bounds
            rows = rows.clamp(low, high)
        return rows.sub_(center).div_(scale)

    def within(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch in its own units, each number in its range, float64; tokens int64. `scaled` of both is the same."""
        if self.spec.content.vocabulary:
            return sent(batch, self._device).to(torch.int64)
        rows = sent(batch, self._device).to(torch.float64)
        return rows.clamp(*self._scales[:2]) if len(self._scales[0]) else rows

    @property
    def center(self) -> torch.Tensor:
        """A row of nothing in particular, as `within` gives it: each number at its manifest's center, [...]; what the
        center is of, where the column's range does not hold it, is clamped as rows are."""
        if not self._scales[0].numel():
            raise ValueError("tokens and edges have no center")
        low, high, center, _ = self._scales
        return center.clamp(low, high).to(torch.float64).expand(self.shape)

    def zeros(self, rows: int) -> torch.Tensor:
        """A batch of zeros as it would arrive."""
        return torch.zeros(rows, *self.shape, dtype=self.wire_dtype)
