"""How well a model answers rows whose truth is known. The same for training, for compression and for pipelines.

Trusts: nothing. Never: keeps rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sealgate.certificate.decimals import MICRO
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.measured import ACCURACY, R2, around, wilson
from sealgate.certificate.schema import Measured
from secure_runtime.models.predictor import Predictor


@dataclass(frozen=True)
class Quality:
    """How well a model does on rows that it never saw."""

    measure: str  # "accuracy" or "R2"
    value: float
    rows: int
    standard_error: float = 0.0  # of R2: how far other rows of the same kind would move it

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson's for accuracy, normal for R2."""
        if self.measure == ACCURACY:
            return wilson(self.right, self.rows)
        return around(self.value, error=self.standard_error)

    @property
    def right(self) -> int:
        """Rows answered rightly; 0 where that is not what is counted."""
        return round(self.value * self.rows) if self.measure == ACCURACY else 0

    def measured(self, *, epsilon_micro: int) -> Measured:
        """The certificate's part, for a model that cost this epsilon."""
        low, high = self.interval
        return Measured(
            epsilon_micro=epsilon_micro,
            measure=self.measure,
            rows=self.rows,
            right=self.right,
            value_micro=round(self.value * MICRO),
            low_micro=round(low * MICRO),
            high_micro=round(high * MICRO),
        )

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.measure} {self.value:.3f} ({low:.3f} to {high:.3f}) on {self.rows} held-out rows"


def answers(
    predictor: Predictor, manifest: Manifest, inputs: Mapping[str, torch.Tensor], *, at_once: int
) -> dict[str, torch.Tensor]:
    """All outputs for all rows, so many rows in one call; [n, ...] each."""
    count = len(next(iter(inputs.values())))
    parts = [
        predictor.predict({name: values[start : start + at_once] for name, values in inputs.items()})
        for start in range(0, count, at_once)
    ]
    return {output.name: torch.cat([part[output.name] for part in parts]) for output in manifest.outputs}


def quality_of(manifest: Manifest, found: Mapping[str, torch.Tensor], target: NDArray[np.float64]) -> Quality:
    """Accuracy of the labels, or R2 of the values, of answers to rows with this truth: [n], classes or values."""
    names = {output.role: output.name for output in manifest.outputs}
    if manifest.classes:
        right = found[names["label"]].numpy() == target
        return Quality(ACCURACY, float(right.mean()), len(target))
    return explained(found[names["value"]].numpy(), target)


def explained(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> Quality:
    """R2 = 1 - A/B, A the mean squared error and B the variance; its error by the delta method for a ratio of means."""
    squares, spread = (found - wanted) ** 2, (wanted - wanted.mean()) ** 2
    if not spread.sum() > 0:
        return Quality(R2, 0.0, len(wanted))
    share = float(squares.mean() / spread.mean())
    error = float((squares - share * spread).std() / spread.mean()) / len(wanted) ** 0.5
    return Quality(R2, 1.0 - share, len(wanted), error)
