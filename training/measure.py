"""Measuring models, and the same model trained without privacy to compare with.

The comparison sees the training rows without protection; its accuracy on held-out rows is shown beside the private one
and nothing else of it leaves. Certificates list it among the releases that epsilon does not cover.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sealgate.certificate.decimals import MICRO
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.measured import ACCURACY, R2, around, wilson
from sealgate.certificate.schema import Measured
from secure_runtime.models.architectures import build, parts_of
from secure_runtime.models.predictor import Predictor
from training.examples import Examples
from training.initialisation import initialise
from training.limits import BASELINE_LEAST_ROWS, BASELINE_NUMBERS, BASELINE_ROWS, BASELINE_STEPS, EVALUATION_ROWS
from training.losses import Loss


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


def measure(manifest: Manifest, module: nn.Module, examples: Examples) -> Quality:
    """Quality of exactly what will be served: the float32 weights behind the manifest's pre- and post-processing."""
    served = build(manifest.architecture)
    served.load_state_dict({name: value.to(torch.float32) for name, value in module.state_dict().items()})
    predictor = Predictor(manifest, served)
    names = {output.role: output.name for output in manifest.outputs}
    wanted = names["label"] if manifest.classes else names["value"]
    parts = []
    at_once = manifest.architecture.rows_at_once(EVALUATION_ROWS)
    for start in range(0, len(examples), at_once):
        part = slice(start, start + at_once)
        batch = {
            one.spec.name: torch.from_numpy(values[part]).to(one.wire_dtype)
            for one, values in zip(predictor.inputs, examples.inputs, strict=True)
        }
        parts.append(predictor.predict(batch)[wanted].numpy())
    found = np.concatenate(parts)
    if manifest.classes:
        return Quality(ACCURACY, float((found == examples.target).mean()), len(examples))
    return _explained(found, examples.target)


def _explained(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> Quality:
    """R2 = 1 - A/B, A the mean squared error and B the variance; its error by the delta method for a ratio of means."""
    squares, spread = (found - wanted) ** 2, (wanted - wanted.mean()) ** 2
    if not spread.sum() > 0:
        return Quality(R2, 0.0, len(wanted))
    share = float(squares.mean() / spread.mean())
    error = float((squares - share * spread).std() / spread.mean()) / len(wanted) ** 0.5
    return Quality(R2, 1.0 - share, len(wanted), error)


def train_plainly(
    manifest: Manifest, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor, *, fixed: nn.Module | None = None
) -> nn.Module:
    """The same architecture on the same scaled rows without privacy: Adam, a fixed number of steps.

    `inputs` are those of the part that is trained; `fixed` is the part before it, if there is one.
    """
    module = build(manifest.architecture).double()
    initialise(module)
    before, trained = parts_of(module)
    if before is not None and fixed is not None:
        before.load_state_dict(fixed.state_dict())
    losses = Loss.usual(manifest.classes)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    means = [torch.zeros_like(parameter) for parameter in parameters]
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    widest = manifest.architecture.trained_part().row_numbers()
    rows = max(BASELINE_LEAST_ROWS, min(BASELINE_ROWS, BASELINE_NUMBERS // widest))
    for step in range(1, BASELINE_STEPS + 1):
        start = (step - 1) * rows % len(targets)
        part = slice(start, start + rows)
        loss = losses.each(trained(*(one[part] for one in inputs)), targets[part]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, mean, square, gradient in zip(parameters, means, squares, gradients, strict=True):
                mean.mul_(0.9).add_(gradient, alpha=0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                scale = (square / (1 - 0.999**step)).sqrt() + 1e-8
                parameter.sub_(0.05 * (mean / (1 - 0.9**step)) / scale)
    return module
