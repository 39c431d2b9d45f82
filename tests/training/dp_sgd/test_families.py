"""Clipped sums of the declared models over steps, tokens and graphs: book-keeping against a plain loop."""

from __future__ import annotations

import pytest
import torch

from tests.secure_runtime.models.families.test_steps_and_graphs import SPECS, examples, filled
from training.dp_sgd.gradient_sum import GradientSum
from training.losses import Loss

TRAINED = [name for name, spec in SPECS.items() if spec.trained_part() is spec]


@pytest.mark.parametrize("name", TRAINED)
def test_book_keeping_is_the_loop(name: str) -> None:
    spec = SPECS[name]
    module, inputs = filled(spec), examples(spec, 9)
    targets = torch.arange(9, dtype=torch.float64) % max(2, spec.classes)
    loss, clip_norm = Loss.usual(spec.classes), 0.5
    wanted = [torch.zeros_like(parameter) for parameter in module.parameters()]
    norms = []
    for row in range(9):
        logits = module(*(one[row : row + 1] for one in inputs))
        gradients = torch.autograd.grad(loss.each(logits, targets[row : row + 1]).sum(), list(module.parameters()))
        norms.append(torch.cat([one.ravel() for one in gradients]).norm())
        for total, one in zip(wanted, gradients, strict=True):
            total += one * (clip_norm / norms[-1]).clamp_max(1.0)
    assert max(norms) > clip_norm
    found = GradientSum(module, loss=loss, clip_norm=clip_norm, gradients="book-keeping")
    try:
        for ours, theirs in zip(found.over(inputs, targets), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    finally:
        found.close()
