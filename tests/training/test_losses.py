"""Losses by name: what each makes of targets that come in another arithmetic than the model's."""

from __future__ import annotations

import pytest
import torch

from training.losses import Loss


@pytest.mark.parametrize(("kind", "classes"), [("mse", 0), ("huber", 0), ("cross-entropy", 2), ("cross-entropy", 3)])
def test_targets_of_another_arithmetic_are_taken(kind, classes):
    width = classes if classes > 2 else 1
    logits = torch.tensor([[0.25] * width, [2.0] * width])
    targets = torch.tensor([1.0, 0.0])
    found = Loss(kind=kind, classes=classes).each(logits.double(), targets)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, Loss(kind=kind, classes=classes).each(logits.double(), targets.double()))
