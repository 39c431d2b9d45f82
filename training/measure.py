"""Measuring models, and the same model trained without privacy to compare with.

The comparison sees the training rows without protection; its accuracy on held-out rows is shown beside the private one
and nothing else of it leaves. Certificates list it among the releases that epsilon does not cover.
"""

from __future__ import annotations

import torch
from torch import nn

from sealgate.certificate.manifest import Manifest
from secure_runtime.models.architectures import build, parts_of
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.quality import Quality as Quality
from secure_runtime.models.quality import answers, quality_of
from secure_runtime.models.quality import explained as _explained  # noqa: F401 - tests compare it with others' R2
from training.examples import Examples
from training.initialisation import initialise
from training.limits import BASELINE_LEAST_ROWS, BASELINE_NUMBERS, BASELINE_ROWS, BASELINE_STEPS, EVALUATION_ROWS
from training.losses import Loss


def measure(manifest: Manifest, module: nn.Module, examples: Examples) -> Quality:
    """Quality of exactly what will be served: the float32 weights behind the manifest's pre- and post-processing."""
    served = build(manifest.architecture)
    served.load_state_dict({name: value.to(torch.float32) for name, value in module.state_dict().items()})
    predictor = Predictor(manifest, served)
    inputs = {
        one.spec.name: torch.from_numpy(values).to(one.wire_dtype)
        for one, values in zip(predictor.inputs, examples.inputs, strict=True)
    }
    found = answers(predictor, manifest, inputs, at_once=manifest.architecture.rows_at_once(EVALUATION_ROWS))
    return quality_of(manifest, found, examples.target)


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
