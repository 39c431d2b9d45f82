"""Optimizers against torch's own, schedules and averages against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from training.dp_sgd.updates import Update, UpdateRule

THEIRS = {
    "sgd": lambda ones: torch.optim.SGD(ones, lr=0.1),
    "momentum": lambda ones: torch.optim.SGD(ones, lr=0.1, momentum=0.7),
    "adam": lambda ones: torch.optim.Adam(ones, lr=0.1),
    "adamw": lambda ones: torch.optim.AdamW(ones, lr=0.1, weight_decay=0.3),
    "rmsprop": lambda ones: torch.optim.RMSprop(ones, lr=0.1, alpha=0.999),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_each_optimizer_is_torchs(kind):
    ours = [torch.nn.Parameter(torch.tensor([1.0, -2.0]).double()), torch.nn.Parameter(torch.ones(2, 2).double())]
    theirs = [torch.nn.Parameter(one.detach().clone()) for one in ours]
    rule = UpdateRule(
        optimizer=kind, learning_rate=0.1, momentum=0.7 if kind == "momentum" else 0.0,
        weight_decay=0.3 if kind == "adamw" else 0.0,
    )  # fmt: skip
    update, optimizer = Update(ours, rule=rule, steps=6), THEIRS[kind](theirs)
    for step in range(1, 7):
        gradients = [torch.cos(one.detach() * step) for one in ours]
        update.apply([one * 48.5 for one in gradients], step=step, divisor=48.5)
        for one, gradient in zip(theirs, gradients, strict=True):
            one.grad = gradient.clone()
        optimizer.step()
    update.finish()
    for our, their in zip(ours, theirs, strict=True):
        assert torch.allclose(our, their, rtol=1e-12)


def test_rates_warm_up_and_fall_along_a_cosine():
    rule = UpdateRule(learning_rate=2.0, schedule="cosine", warmup_steps=3)
    rates = [rule.rate_at(step, 11) for step in range(1, 12)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.5])
    assert rates[3] == pytest.approx(2.0)
    assert rates[7] == pytest.approx(1.0)  # half of the cosine's way
    assert rates[10] == pytest.approx(1.0 + math.cos(math.pi * 7 / 8))
    assert rates[3:] == sorted(rates[3:], reverse=True)
    constant = UpdateRule(learning_rate=2.0)
    assert [constant.rate_at(step, 3) for step in (1, 2, 3)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("average", "expected"), [("mean", (2 + 3 + 4) / 3), ("ema", None), ("none", 4.0)])
def test_averages(average, expected):
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    more = {"mean": {"average_steps": 3}, "ema": {"average": "ema", "average_decay": 0.5}, "none": {}}[average]
    update = Update([weight], rule=UpdateRule(learning_rate=1.0, **more), steps=4)
    for step in range(1, 5):
        update.apply([torch.tensor([-1.0])], step=step)  # the weight is 1, 2, 3, 4
    update.finish()
    if expected is None:  # weights 1/2, 1/4, ... of the newest first, made to sum to one
        expected = sum(value * 0.5 ** (5 - value) for value in (1, 2, 3, 4)) / (1 - 0.5**4)
    assert weight.item() == pytest.approx(expected)


def test_unknown_rules_are_refused():
    for wrong in ({"optimizer": "lion"}, {"schedule": "step"}, {"average": "median"}):
        with pytest.raises(ValueError):
            UpdateRule(learning_rate=1.0, **wrong)
