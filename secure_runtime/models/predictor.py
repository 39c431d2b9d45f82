"""From raw rows to named outputs: clamping and scaling, the model, probabilities or values. For training and serving.

Everything runs in float64 and is rounded to float32 once, at the end. So an answer does not depend on which other rows
shared its batch, except where float64 sums of another order straddle a rounding boundary of float32 (about one output
in 10^8). For models of this size the cost is not measurable.

Trusts: the checked manifest. Never: opens a file, imports, draws random numbers, or keeps rows after answering.
"""

from __future__ import annotations

import torch
from torch import nn

from sealgate.certificate.manifest import Manifest, class_count
from secure_runtime.errors import BadInput
from secure_runtime.models.architectures import probabilities


class Predictor:
    """A model with what stands before and behind it. Not thread-safe by promise; holds no state between calls."""

    def __init__(self, manifest: Manifest, module: nn.Module, *, device: str = "cpu") -> None:
        self._manifest = manifest
        self._device = torch.device(device)
        self._module = module.to(device=self._device, dtype=torch.float64).eval().requires_grad_(False)
        columns = manifest.inputs[0].columns
        self._low = self._row([float(column.low) for column in columns])
        self._high = self._row([float(column.high) for column in columns])
        self._center = self._row([float(column.center) for column in columns])
        self._scale = self._row([float(column.scale) for column in columns])
        self._names = {output.role: output.name for output in manifest.outputs}
        span = manifest.value_range
        self._span = (float(span.low), float(span.high)) if span is not None else (-1.0, 1.0)

    def _row(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    def scaled(self, batch: torch.Tensor) -> torch.Tensor:
        """Rows as the model sees them: clamped, centred, scaled. [n, columns] -> float64 [n, columns]"""
        rows = batch.to(device=self._device, dtype=torch.float64)
        return (rows.clamp(self._low, self._high) - self._center) / self._scale

    @torch.inference_mode()
    def predict(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs by their names in the manifest; raises BadInput for rows that cannot be answered."""
        width = self._manifest.architecture.inputs
        if batch.ndim != 2 or batch.shape[1] != width:
            raise BadInput(f"the input must have the shape [rows, {width}]", code="input-shape")
        if batch.shape[0] == 0:
            raise BadInput("the input has no rows", code="input-shape")
        if batch.dtype != torch.float32:
            raise BadInput("the input must be FP32", code="input-datatype")
        if not bool(torch.isfinite(batch).all()):
            raise BadInput("the input has values that are not finite numbers", code="input-not-finite")
        logits = self._module(self.scaled(batch))  # [n, logits]
        if class_count(self._manifest.architecture) == 0:
            return {self._names["value"]: self._values(logits)}
        scores = probabilities(self._manifest.architecture, logits).to(torch.float32).cpu()  # [n, classes]
        return {self._names["scores"]: scores, self._names["label"]: scores.argmax(dim=1)}  # label: int64 [n]

    def _values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Back from [-1, 1] to the target's range, and never outside it. [n, 1] -> float32 [n]"""
        low, high = self._span
        values = outputs[:, 0] * ((high - low) / 2) + (high + low) / 2
        return values.clamp(low, high).to(torch.float32).cpu()
