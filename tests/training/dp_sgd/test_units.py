"""Persons and augmentations: what enters a step, and what one person can do to it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.training.dp_sgd.models import distance, model
from training.dp_sgd.gradient_sum import GradientSum
from training.dp_sgd.units import Augmentation, Units
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately
from training.randomness import Keystream

LOSS = Loss.usual(3)


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(-3, 4), min_size=1, max_size=20), rows=st.integers(1, 5))
def test_each_row_belongs_to_its_person_and_shares_sum_to_one(labels, rows):
    inputs = (torch.arange(len(labels), dtype=torch.float64)[:, None],)
    units = Units(inputs, torch.zeros(len(labels)), groups=torch.tensor(labels), rows=rows)
    assert units.count == len(set(labels))
    for unit, label in enumerate(sorted(set(labels))):
        (given,), _, weights = units.of(torch.tensor([unit]))
        own = [row for row, other in enumerate(labels) if other == label][:rows]
        used = [int(row) for row, weight in zip(given[:, 0], weights, strict=True) if weight > 0]
        assert used == own
        assert float(weights.sum()) == pytest.approx(1.0)


def persons():
    generator = np.random.default_rng(5)
    groups = torch.from_numpy(generator.integers(0, 9, 40))
    features = torch.from_numpy(generator.normal(size=(40, 6)) * 3)
    return (features,), torch.from_numpy(generator.integers(0, 3, 40)).double(), groups


@pytest.mark.parametrize("gradients", ["book-keeping", "vmap"])
def test_a_persons_rows_make_one_contribution_of_at_most_the_clip_norm(gradients):
    inputs, targets, groups = persons()
    module = model("mlp")

    def total(keep):
        units = Units(tuple(one[keep] for one in inputs), targets[keep], groups=groups[keep], rows=4)
        gradient_sum = GradientSum(module, loss=LOSS, clip_norm=0.3, gradients=gradients, rows=units.rows)
        given, wanted, weights = units.of(torch.arange(units.count))
        found = gradient_sum.over(given, wanted, weights=weights)
        gradient_sum.close()
        return found

    everybody = total(torch.ones(40, dtype=torch.bool))
    expected = [torch.zeros_like(one) for one in module.parameters()]
    for person in groups.unique():
        own = (groups == person).nonzero()[:4, 0]
        loss = LOSS.each(module(inputs[0][own]), targets[own]).mean()
        gradient = torch.autograd.grad(loss, list(module.parameters()))
        norm = float(torch.sqrt(sum((one**2).sum() for one in gradient)))
        for so_far, one in zip(expected, gradient, strict=True):
            so_far += one * min(1.0, 0.3 / norm)
        without = total(groups != person)
        moved = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(everybody, without, strict=True)))
        assert 0 < float(moved) <= 0.3 * (1 + 1e-9)
    assert distance(everybody, expected) <= 1e-12


def test_training_draws_persons_not_rows():
    """With one person of many rows the sum moves by one clipped gradient, whatever the number of rows."""
    for rows in (1, 5):
        module = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(module.weight)
        constants = PrivateSgd(
            rate=Fraction(1), steps=1, divisor=1, clip_norm=0.5, sigma=1e-9, learning_rate=1.0, unit_rows=5,
            gradients="book-keeping",
        )  # fmt: skip
        train_privately(
            module, (torch.ones(rows, 1).double(),), torch.full((rows,), 1e6).double(), constants=constants,
            loss=Loss(kind="mse"), groups=torch.zeros(rows, dtype=torch.int64),
        )  # fmt: skip
        assert module.weight.item() == pytest.approx(0.5, rel=1e-6)


def test_variants_are_shifts_and_flips_of_the_image():
    images = torch.arange(2 * 1 * 5 * 6, dtype=torch.float64).view(2, 1, 5, 6)
    augmentation = Augmentation(multiplicity=40, shift=2, flip=True)
    (found,) = augmentation.of((images,), Keystream())
    assert found.shape == (80, 1, 5, 6)
    allowed = []
    for index in range(2):
        padded = nn.functional.pad(images[index], [2] * 4, mode="reflect")
        flipped = nn.functional.pad(images[index].flip(2), [2] * 4, mode="reflect")
        allowed.append([one[:, y : y + 5, x : x + 6] for one in (padded, flipped) for y in range(5) for x in range(5)])
    seen = set()
    for variant, one in enumerate(found):
        hits = [place for place, candidate in enumerate(allowed[variant // 40]) if torch.equal(one, candidate)]
        assert hits
        seen.update(hits)
    assert len(seen) > 15  # of fifty


def test_an_augmented_example_is_clipped_once():
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 1, 4, 4)))
    targets = torch.tensor([0.0, 1.0, 2.0]).double()
    units = Units((images,), targets, augmentation=Augmentation(multiplicity=4, shift=1), stream=Keystream())
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    given, wanted, weights = units.of(torch.arange(3))
    assert units.rows == 4
    assert torch.equal(weights, torch.full((12,), 0.25).double())
    gradient_sum = GradientSum(module, loss=LOSS, clip_norm=1e-3, gradients="book-keeping", rows=4)
    found = gradient_sum.over(given, wanted, weights=weights)
    gradient_sum.close()
    assert float(torch.sqrt(sum((one**2).sum() for one in found))) <= 3e-3


def test_what_does_not_fit_together_is_refused():
    rows, targets = (torch.zeros(3, 2),), torch.zeros(3)
    for wrong in (
        {"groups": torch.zeros(2)},
        {"groups": torch.zeros(3), "rows": 0},
        {"augmentation": Augmentation(multiplicity=2)},
    ):
        with pytest.raises(ValueError):
            Units(rows, targets, **wrong)
    for wrong in ({"multiplicity": 0}, {"multiplicity": 2, "shift": -1}):
        with pytest.raises(ValueError):
            Augmentation(**wrong)
