"""AdaSSP and objective perturbation: their noise, their accuracy on real data, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

from sealgate.ambient import random_bytes
from sealgate.errors import ConfigurationError
from training.errors import TrainingError
from training.mechanisms.adassp import plan_adassp, solve_adassp, sums_of
from training.mechanisms.objective import gradient_bound, plan_objective, solve_objective


def with_intercept(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat((rows, torch.ones(len(rows), 1, dtype=rows.dtype)), dim=1)


def line(rows: int, noise: float, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    features = generator.uniform(-1, 1, (rows, 3))
    values = features @ np.array([0.5, -0.25, 0.1]) + 0.05 + generator.normal(0, noise, rows)
    return torch.from_numpy(features), torch.from_numpy(np.clip(values, -1, 1))


def test_plans_meet_their_target_from_below():
    for target in (300_000, 1_000_000, 5_000_000):
        found = plan_adassp(target_micro=target, delta="0.00001", row_norm_micro=2_000_000).account.epsilon()
        assert target - 400 <= found.add_remove_micro + 10 <= target
        plan = plan_objective(target_micro=target, delta="0.00001", row_norm_micro=2_000_000, population=10_000)
        assert target * 0.99 <= plan.account.epsilon().add_remove_micro + 10 <= target


def test_a_true_line_is_found_and_scaling_rows_does_not_move_it():
    rows, targets = line(40_000, 0.05)
    truth = torch.tensor([0.5, -0.25, 0.1, 0.05], dtype=torch.float64)
    for bound in (2_000_000, 1_200_000):
        plan = plan_adassp(target_micro=1_000_000, delta="0.00001", row_norm_micro=bound)
        assert (solve_adassp(plan, rows, targets, entropy=random_bytes) - truth).abs().max() < 0.05


def test_adassp_differs_from_run_to_run_as_much_as_its_noise():
    """For orthogonal rows the moments' noise over n / 3 is the spread of each weight."""
    rows, targets = line(40_000, 0.0)
    plan = plan_adassp(target_micro=500_000, delta="0.00001", row_norm_micro=2_000_000)
    found = torch.stack([solve_adassp(plan, rows, targets, entropy=random_bytes) for _ in range(200)])
    moments = plan.moments_micro / 1e6 * 2.0
    gram = plan.gram_micro / 1e6 * 4.0 * float(torch.tensor([0.5, 0.25, 0.1, 0.05]).norm())
    expected = float(np.hypot(moments, gram)) / (40_000 / 3)
    assert 0.7 * expected < float(found.std(dim=0)[:3].mean()) < 1.3 * expected


def test_the_objectives_minimum_moves_with_its_noise():
    """Around the minimum the weights spread by the Hessian's inverse times the noise."""
    generator = np.random.default_rng(4)
    rows = torch.from_numpy(generator.uniform(-1, 1, (20_000, 2)))
    labels = torch.from_numpy((generator.random(20_000) < 1 / (1 + np.exp(-2 * rows[:, 0].numpy()))).astype(float))
    plan = plan_objective(target_micro=300_000, delta="0.00001", row_norm_micro=1_800_000, population=20_000)
    found = torch.stack([solve_objective(plan, rows, labels, entropy=random_bytes) for _ in range(120)])
    center, design = found.mean(dim=0), with_intercept(rows)
    assert center[0] == pytest.approx(2, abs=0.2)
    likely = torch.sigmoid(design @ center)
    hessian = (design.T * (likely * (1 - likely))) @ design
    expected = plan.account.sigma_micro / 1e6 * 1.8 * torch.linalg.inv(hessian).norm(dim=1)
    assert (found.std(dim=0) / expected - 1).abs().max() < 0.3


def test_a_gradient_that_cannot_be_bounded_releases_nothing():
    rows, targets = line(2_000, 0.1)
    plan = plan_objective(target_micro=1_000_000, delta="0.00001", row_norm_micro=2_000_000, population=2_000)
    strict = replace(plan, account=replace(plan.account, gradient_tolerance="0.00000000000000001"))
    with pytest.raises(TrainingError, match="closely enough"):
        solve_objective(strict, rows, (targets > 0).double(), entropy=random_bytes)


def test_targets_out_of_reach():
    with pytest.raises(ConfigurationError, match="no noise"):
        plan_adassp(target_micro=90_000_000, delta="0.00001", row_norm_micro=1_000_000)
    with pytest.raises(ConfigurationError, match="regularisation"):
        plan_objective(
            target_micro=100_000,
            delta="0.00001",
            row_norm_micro=1_000_000,
            population=1000,
            regularisation_micro=1_000_000,
        )


def test_real_patients_by_both():
    """The tumours of Wisconsin and the diabetes study: few rows, so the epsilons are what such data can bear."""
    cancer = datasets.load_breast_cancer()
    rows = cancer.data[:, :10]
    scaled = torch.from_numpy(np.clip(2 * rows / (rows.max(axis=0)) - 1, -1, 1))
    labels = torch.from_numpy(cancer.target.astype(float))
    plan = plan_objective(target_micro=3_000_000, delta="0.0001", row_norm_micro=3_320_000, population=500)
    weights = solve_objective(plan, scaled, labels, entropy=random_bytes)
    assert float((((with_intercept(scaled) @ weights) > 0) == (labels > 0.5)).double().mean()) > 0.8
    plan = plan_adassp(target_micro=20_000_000, delta="0.0001", row_norm_micro=1_500_000)
    study = datasets.load_diabetes()
    features = torch.from_numpy(np.clip(study.data[:, [2, 8]] / 0.2, -1, 1))
    values = torch.from_numpy((study.target - 185) / 165)
    weights = solve_adassp(plan, features, values, entropy=random_bytes)
    residual = values - with_intercept(features) @ weights
    assert 1 - float((residual**2).sum() / ((values - values.mean()) ** 2).sum()) > 0.3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.0, 1.0, 30.0, 3000.0]))
def test_the_bound_on_the_gradient_holds_in_fifty_digits(seed, size):
    """Far from the middle, residuals are tiny differences: float64 would lose all of their digits."""
    generator = np.random.default_rng(seed)
    rows = generator.uniform(-1, 1, (30, 3))
    labels = (rows[:, 0] > 0).astype(float)
    weights, slope = size * generator.normal(size=3), generator.normal(size=3)
    with mpmath.workdps(50):
        total = [mpmath.mpf(0.25) * w + b for w, b in zip(weights.tolist(), slope.tolist(), strict=True)]
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
            z = sum(mpmath.mpf(x) * w for x, w in zip(row, weights.tolist(), strict=True))
            total = [t + (1 / (1 + mpmath.exp(-z)) - label) * x for t, x in zip(total, row, strict=True)]
        true = float(mpmath.sqrt(sum(t**2 for t in total)))
    found = gradient_bound(*map(torch.from_numpy, (weights, rows, labels)), 0.25, torch.from_numpy(slope))
    assert true * (1 - 1e-15) <= found <= true * (1 + 1e-9) + 1e-12


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 1.0, 1e3, 1e150]), bound=st.sampled_from([0.5, 1.7]))
def test_a_row_moves_adassps_sums_by_what_their_noise_is_counted_in(seed, size, bound):
    """The least eigenvalue and X'X by B^2, X'y by B Y: with and without one row, however long it is."""
    generator = np.random.default_rng(seed)
    rows = torch.from_numpy(generator.uniform(-1, 1, (8, 3)))
    rows[-1] *= size
    targets = torch.from_numpy(generator.uniform(-1, 1, 8))
    gram, moments = sums_of(rows, targets, bound=bound)
    other_gram, other_moments = sums_of(rows[:-1], targets[:-1], bound=bound)
    moved = torch.triu(gram - other_gram)
    least = torch.linalg.eigvalsh(gram)[0] - torch.linalg.eigvalsh(other_gram)[0]
    assert float(moved.norm()) <= bound**2 * (1 + 1e-9)
    assert abs(float(least)) <= bound**2 * (1 + 1e-9)
    assert float((moments - other_moments).norm()) <= bound * (1 + 1e-9)
