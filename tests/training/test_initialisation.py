"""First weights: of every kind of layer the declared spread, fresh each time; frozen and convex ones left alone."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from sealgate.certificate.architectures import RecurrentSpec
from secure_runtime.models.architectures import build
from tests.secure_runtime.models.families.test_steps_and_graphs import FROZEN, SPECS
from training.initialisation import initialise


def test_weights_have_a_variance_of_one_over_their_fan_in() -> None:
    module = nn.Sequential(nn.Embedding(400, 30), nn.Linear(30, 400), nn.LayerNorm(400), nn.Conv2d(8, 200, 5)).double()
    initialise(module)
    for layer, fan_in in ((module[0], 1), (module[1], 30), (module[3], 8 * 25)):
        weight = layer.weight.detach()
        assert weight.var().item() == pytest.approx(1 / fan_in, rel=0.1)
        assert weight.abs().max().item() <= (3 / fan_in) ** 0.5
        assert abs(weight.mean().item()) < 0.1 / fan_in**0.5
    assert bool((module[2].weight == 1).all())


def test_an_lstm_begins_by_remembering() -> None:
    module = build(RecurrentSpec(length=5, channels=3, cell="lstm", hidden=(4, 6), classes=3)).double()
    initialise(module)
    for index, width in enumerate((4, 6)):
        bias = module.get_parameter(f"cells.{index}.input_to_gates.bias")
        assert bias.tolist() == [0.0] * width + [1.0] * width + [0.0] * (2 * width)


def test_no_seed_brings_the_same_weights_again() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        module = build(SPECS["transformer"]).double()  # type: ignore[arg-type]
        initialise(module)
        found.append(module.get_parameter("head.weight").clone())
    assert not bool((found[0] == found[1]).any())


def test_what_is_frozen_stays_and_one_layer_behind_it_stays_at_zero() -> None:
    module = build(FROZEN).double()
    initialise(module)
    assert all(bool((value == 0).all()) for name, value in module.state_dict().items() if "norm" not in name)
    hidden = build(msgspec.structs.replace(FROZEN, hidden=(4,))).double()
    initialise(hidden)
    assert bool((hidden.get_parameter("features.words.weight") == 0).all())
    assert not bool((hidden.get_parameter("head.0.weight") == 0).any())
