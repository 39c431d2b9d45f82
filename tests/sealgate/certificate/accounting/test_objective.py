"""Objective perturbation's epsilon against the mechanism itself: its density, integrated, in one dimension."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sealgate.certificate.accounting.objective import PerturbedObjective
from sealgate.certificate.gaussian import gaussian_delta
from sealgate.errors import CertificateError

PLAN = PerturbedObjective(
    row_norm_micro=1_000_000,
    regularisation_micro=2_000_000,
    sigma_micro=3_000_000,
    gradient_tolerance="0.00000001",
    output_sigma_micro=10_000,
    delta="0.00001",
)


def density(rows: np.ndarray, labels: np.ndarray, *, ridge: float, sigma: float, weights: np.ndarray) -> np.ndarray:
    """The density of the minimum in one dimension: that of b at -gradient, times the second derivative."""
    likely = 1 / (1 + np.exp(-np.outer(weights, rows)))
    slope = ((likely - labels) * rows).sum(axis=1) + ridge * weights
    curvature = (likely * (1 - likely) * rows**2).sum(axis=1) + ridge
    return np.exp(-((slope / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi)) * curvature


def hockey_stick(first: np.ndarray, second: np.ndarray, epsilon: float, step: float) -> float:
    return float(np.maximum(first - np.exp(epsilon) * second, 0).sum() * step)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("others", [0, 3, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("ridge", "sigma"), [(2.0, 3.0), (0.5, 1.0), (20.0, 0.8)])
def test_no_row_shows_more_than_is_claimed(label, others, ridge, sigma):
    generator = np.random.default_rng(others)
    rows, labels = generator.uniform(-1, 1, others), (generator.random(others) < 0.5).astype(float)
    weights = np.linspace(-12 * sigma / ridge - 60, 12 * sigma / ridge + 60, 400_001)
    step = float(weights[1] - weights[0])
    without = density(rows, labels, ridge=ridge, sigma=sigma, weights=weights)
    assert without.sum() * step == pytest.approx(1, abs=1e-6)
    account = replace(PLAN, regularisation_micro=int(ridge * 1e6), sigma_micro=int(sigma * 1e6))
    worst = 0.0
    for row in (-1.0, 0.7, 1.0):
        beside = density(np.append(rows, row), np.append(labels, label), ridge=ridge, sigma=sigma, weights=weights)
        for epsilon in (0.2, 0.5, 1.0, 2.0):
            cost = account.determinant_cost()
            claimed = gaussian_delta(1 / sigma, epsilon - cost) if epsilon > cost else 1.0
            for first, second in ((without, beside), (beside, without)):
                found = hockey_stick(first, second, epsilon, step)
                assert found <= claimed + 1e-7
                worst = max(worst, found / claimed if claimed < 1 else 0.0)
    assert others > 3 or worst > 0.003  # alone, a row really shows something


def test_the_figure_is_the_gaussians_beside_the_determinants():
    found = PLAN.epsilon()
    assert found.add_remove_micro >= PLAN.closed_form_micro()
    assert found.add_remove_micro - PLAN.closed_form_micro() < 300
    assert found.add_remove_micro < found.replace_one_micro < 2.6 * found.add_remove_micro


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"row_norm_micro": 0}, "parameters-out-of-range"),
        ({"regularisation_micro": 0}, "parameters-out-of-range"),
        ({"sigma_micro": 1000}, "parameters-out-of-range"),
        ({"output_sigma_micro": 0}, "parameters-out-of-range"),
        ({"gradient_tolerance": "1e-9"}, "parameters-out-of-range"),
        ({"gradient_tolerance": "0"}, "parameters-out-of-range"),
        ({"gradient_tolerance": "0.0001"}, "delta"),
        ({"delta": "1"}, "delta"),
    ],
)
def test_constants_that_carry_no_epsilon(change, code):
    with pytest.raises(CertificateError) as caught:
        replace(PLAN, **change).epsilon()
    assert caught.value.code == code
