"""DP-SGD against a loop that anybody can check: gradients row by row, the clip bound, the noise, neighbours."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from sealgate.certificate.architectures import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec
from secure_runtime.models.architectures import build
from training.dp_sgd.gradient_sum import GradientSum
from training.dp_sgd.noise import GaussianNoise
from training.errors import TrainingError
from training.initialisation import initialise
from training.losses import Loss
from training.private_sgd import (
    PrivateSgd,
    train_privately,
)
from training.randomness import Keystream

SPECS = {
    "linear": LinearRegressionSpec(inputs=4),
    "logistic-2": LogisticRegressionSpec(inputs=4, classes=2),
    "logistic-3": LogisticRegressionSpec(inputs=4, classes=3),
    "mlp-relu": MlpSpec(inputs=4, hidden=(6, 5), activation="relu", classes=3),
    "mlp-silu-value": MlpSpec(inputs=4, hidden=(6,), activation="silu", classes=0),
}


@pytest.fixture(params=SPECS, ids=list(SPECS))
def spec(request):
    return SPECS[request.param]


def data(spec, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(11)
    features = torch.from_numpy(generator.normal(size=(rows, 4)) * 4)
    classes = spec.classes
    targets = generator.integers(0, classes, rows) if classes else generator.normal(size=rows)
    return features, torch.from_numpy(targets.astype(np.float64))


def module_for(spec) -> torch.nn.Module:
    module = build(spec).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(np.random.default_rng(2).normal(size=tuple(parameter.shape))))
    return module


def one_by_one(module, features, targets, classes, clip) -> list[torch.Tensor]:
    """The oracle: one row, one backward pass, one clip; no Opacus."""
    total = [torch.zeros_like(p) for p in module.parameters()]
    for row in range(len(features)):
        loss = Loss.usual(classes).each(module(features[row : row + 1]), targets[row : row + 1]).sum()
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        norm = float(torch.sqrt(sum((g**2).sum() for g in gradients)))
        for sum_so_far, gradient in zip(total, gradients, strict=True):
            sum_so_far += gradient * min(1.0, clip / norm) if norm else gradient
    return total


@pytest.mark.parametrize("clip", [0.01, 1.0, 1000.0])
def test_clipped_sums_are_those_of_a_loop_over_rows(spec, clip):
    features, targets = data(spec)
    module = module_for(spec)
    wanted = one_by_one(module, features, targets, spec.classes, clip)
    gradient_sum = GradientSum(module, loss=Loss.usual(spec.classes), clip_norm=clip)
    found = gradient_sum.over((features,), targets)
    gradient_sum.close()
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_parts_of_bounded_memory_give_the_same_sum(spec):
    features, targets = data(spec)
    sums = []
    for numbers in (10**9, 100):
        gradient_sum = GradientSum(module_for(spec), loss=Loss.usual(spec.classes), clip_norm=1.0, part_numbers=numbers)
        sums.append(gradient_sum.over((features,), targets))
        gradient_sum.close()
    for whole, parts in zip(*sums, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-12, atol=1e-13)


def test_no_single_row_moves_the_sum_by_more_than_the_clip_norm(spec):
    features, targets = data(spec)
    features[0] *= 1e6  # an outlier that would dominate everything
    module = module_for(spec)
    gradient_sum = GradientSum(module, loss=Loss.usual(spec.classes), clip_norm=0.7)
    everybody = gradient_sum.over((features,), targets)
    for row in range(len(features)):
        others = torch.arange(len(features)) != row
        without = gradient_sum.over((features[others],), targets[others])
        moved = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(everybody, without, strict=True)))
        assert float(moved) <= 0.7 * (1 + 1e-9)
    gradient_sum.close()


def test_no_rows_give_a_zero_sum_and_still_noise(spec):
    module = module_for(spec)
    gradient_sum = GradientSum(module, loss=Loss.usual(spec.classes), clip_norm=1.0)
    features, targets = data(spec)
    empty = gradient_sum.over((features[:0],), targets[:0])
    gradient_sum.close()
    assert all(bool((one == 0).all()) for one in empty)
    GaussianNoise(Keystream(), 1.0).add(empty)
    noise = torch.cat([one.ravel() for one in empty])
    assert float((noise != 0).double().mean()) > 0.5  # rounding makes a few of them zero


def test_the_noise_of_a_step_has_the_declared_deviation_and_no_other_divisor():
    """From the outside: rate so low that no row is ever drawn; the weights then hold noise alone."""
    spec = LogisticRegressionSpec(inputs=2000, classes=2)
    module = build(spec).double()
    rows = torch.zeros((5, 2000), dtype=torch.float64)
    constants = PrivateSgd(rate=Fraction(1, 10**12), steps=4, divisor=50.0, clip_norm=3.0, sigma=2.0, learning_rate=0.1)
    executed = train_privately(
        module, (rows,), torch.zeros(5, dtype=torch.float64), constants=constants, loss=Loss.usual(2)
    )
    assert executed == 4
    weights = module.layers[0].weight.detach().numpy().ravel()
    expected = 0.1 * 2.0 * 3.0 / 50.0 * np.sqrt(4)
    assert stats.kstest(weights / expected, "norm").pvalue > 1e-9
    assert 0.85 < weights.std() / expected < 1.15


def test_manual_seed_does_not_reproduce_a_run(spec):
    features, targets = data(spec)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        module = build(spec).double()
        initialise(module)
        constants = PrivateSgd(rate=Fraction(1), steps=2, divisor=40, clip_norm=1, sigma=1, learning_rate=0.1)
        train_privately(module, (features,), targets, constants=constants, loss=Loss.usual(spec.classes))
        results.append(torch.cat([p.detach().ravel() for p in module.parameters()]))
    assert not bool((results[0] == results[1]).any())


class Replay:
    """The same entropy again: what nobody outside this test can have."""

    def __init__(self) -> None:
        self.counter = itertools.count()

    def __call__(self, count: int) -> bytes:
        return bytes([next(self.counter) % 251]) * count


@pytest.mark.parametrize("row", [0, 17, 39])
def test_neighbours_under_the_same_noise_differ_by_one_clipped_gradient(row):
    """Frozen noise on a fine grid, two data sets that differ in one row: the update moves by at most C / E[B]."""
    spec = SPECS["mlp-relu"]
    features, targets = data(spec)
    others = torch.arange(40) != row
    constants = PrivateSgd(rate=Fraction(1), steps=1, divisor=20, clip_norm=0.5, sigma=1e-8, learning_rate=1.0)
    ends = []
    for rows, wanted in ((features, targets), (features[others], targets[others])):
        module = module_for(spec)
        train_privately(module, (rows,), wanted, constants=constants, loss=Loss.usual(3), entropy=Replay())
        ends.append(torch.cat([p.detach().ravel() for p in module.parameters()]))
    moved = float((ends[0] - ends[1]).norm())
    assert 0 < moved <= 0.5 / 20 * (1 + 1e-8)


def test_momentum_and_averaging_are_what_they_say():
    spec = LinearRegressionSpec(inputs=1)
    rows, targets = torch.ones((1, 1), dtype=torch.float64), torch.tensor([1e9], dtype=torch.float64)
    # The gradient of this row is always clipped: (-1, -1) / sqrt(2), so the path is known in closed form.
    module = build(spec).double()
    constants = PrivateSgd(
        rate=Fraction(1), steps=3, divisor=1, clip_norm=1, sigma=1e-9, learning_rate=1, momentum=0.5, average_steps=2
    )
    train_privately(module, (rows,), targets, constants=constants, loss=Loss.usual(0))
    path = np.cumsum([1.0, 1.5, 1.75]) / np.sqrt(2)
    assert module.layers[0].weight.item() == pytest.approx(path[1:].mean())


def test_training_leaves_no_trace_of_the_training_library():
    spec = SPECS["mlp-relu"]
    module = module_for(spec)
    features, targets = data(spec)
    constants = PrivateSgd(rate=Fraction(1, 2), steps=2, divisor=20, clip_norm=1, sigma=1, learning_rate=0.1)
    train_privately(module, (features,), targets, constants=constants, loss=Loss.usual(3))
    assert not any("_module" in name for name in module.state_dict())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in module.modules())
    again = GradientSum(module, loss=Loss.usual(3), clip_norm=1.0)  # would refuse if its hooks were still there
    again.close()


def test_initialisation_is_fresh_for_layers_and_zero_for_convex_models():
    first, second = build(SPECS["mlp-relu"]).double(), build(SPECS["mlp-relu"]).double()
    initialise(first)
    initialise(second)
    assert not torch.equal(first.layers[0].weight, second.layers[0].weight)
    assert first.layers[0].weight.abs().max().item() <= (3 / 4) ** 0.5
    linear = build(SPECS["logistic-2"]).double()
    initialise(linear)
    assert bool((linear.layers[0].weight == 0).all())


def test_divergence_is_an_error_not_a_model():
    spec = LinearRegressionSpec(inputs=4)
    features, targets = data(spec)
    constants = PrivateSgd(
        rate=Fraction(1), steps=3, divisor=1, clip_norm=1, sigma=1, learning_rate=1e308, momentum=0.9
    )
    with pytest.raises(TrainingError) as caught:
        train_privately(build(spec).double(), (features,), targets, constants=constants, loss=Loss.usual(0))
    assert caught.value.code == "diverged"
