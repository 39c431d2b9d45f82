"""Private prediction: the bound that it rests on, what it really gives, and that nothing true is left."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sealgate.certificate.manifest import ValueRange
from secure_runtime.errors import BadInput
from secure_runtime.worker.engine.discrete_laplace import DiscreteLaplace
from secure_runtime.worker.engine.noise import (
    GRID,
    nearest_probabilities,
    noised,
    noised_row,
    on_simplex,
    require_few_rows,
    sensitivity,
)


def stream(seed: str) -> Callable[[int], bytes]:
    counter = 0

    def take(size: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(f"{seed} {counter}".encode()).digest(size)

    return take


def classifier(classes: int) -> Any:
    names = tuple(f"c{number}" for number in range(classes))
    return SimpleNamespace(
        outputs=(
            SimpleNamespace(role="scores", name="scores", labels=names),
            SimpleNamespace(role="label", name="label", labels=names),
        ),
        value_range=None,
    )


def regression(span: ValueRange | None) -> Any:
    return SimpleNamespace(outputs=(SimpleNamespace(role="value", name="y", labels=()),), value_range=span)


# The bound: whatever a model gives, two answers differ by at most 2 --------------------------------------------------

anything = st.floats(width=32) | st.sampled_from([0.0, 1.0, 0.5, 1e-38, -1.0, 2.0, float("nan"), float("inf")])
rows_of = {size: st.lists(anything, min_size=size, max_size=size) for size in range(1, 13)}
pairs = st.integers(1, 12).flatmap(lambda size: st.tuples(rows_of[size], rows_of[size]))


@settings(max_examples=300, deadline=None)
@given(pairs)
def test_any_two_answers_are_within_the_sensitivity(pair: tuple[list[float], list[float]]) -> None:
    one, other = (on_simplex(row) for row in pair)
    for row in (one, other):
        assert all(isinstance(number, int) and number >= 0 for number in row)
        assert sum(row) == GRID
    assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) <= 2 * GRID
    if len(one) == 2:  # the second alone is noised
        assert abs(one[1] - other[1]) <= sensitivity(2) == GRID
    else:
        assert sensitivity(len(one)) == 2 * GRID


def test_probabilities_keep_their_places_on_the_grid() -> None:
    assert on_simplex([0.25, 0.75]) == [GRID // 4, GRID * 3 // 4]
    row = torch.softmax(torch.linspace(-3, 3, 11), dim=0).tolist()
    assert all(abs(number / GRID - score) < 3e-6 for number, score in zip(on_simplex(row), row, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-20 * GRID, 20 * GRID), min_size=1, max_size=12))
def test_noised_numbers_go_to_the_next_probabilities(row: list[int]) -> None:
    """Against a bisection for the level at which what stands above it sums to 1."""
    low, high = min(row) - GRID, float(max(row))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(0.0, n - middle) for n in row) > GRID else (low, middle)
    expected = [max(0.0, number - low) / GRID for number in row]
    assert nearest_probabilities(row) == pytest.approx(expected, abs=1e-6)


# What it gives ------------------------------------------------------------------------------------------------------


def empirical_epsilon(
    epsilon_micro: int, *, claimed_micro: int, classes: int = 3, draws: int = 20_000
) -> tuple[float, float]:
    """A lower bound (99.9 %) for epsilon, from the event that tells two opposite answers apart best; and the claim."""
    rate = sensitivity(classes) * 1_000_000
    noise = DiscreteLaplace(numerator=epsilon_micro, denominator=rate, entropy=stream("neighbours"))
    rest = [0.0] * (classes - 2)

    def seen(row: list[float]) -> int:
        rows = (noised_row(row, noise) for _ in range(draws))
        return sum(first >= GRID and second <= 0 for first, second, *_ in rows)

    often, rarely = seen([1.0, 0.0, *rest]), seen([0.0, 1.0, *rest])
    least = stats.beta.ppf(0.0005, often, draws - often + 1)
    most = stats.beta.ppf(0.9995, rarely + 1, draws - rarely)
    return math.log(least / most), claimed_micro / 1e6


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_neighbouring_models_are_no_easier_told_apart_than_promised(classes: int) -> None:
    measured, claimed = empirical_epsilon(1_000_000, claimed_micro=1_000_000, classes=classes)
    assert measured <= claimed
    assert measured > 0.85 * claimed, "the measure is sharp: less noise would show"


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("error", [1.25, 2.0])
def test_the_measure_notices_too_little_noise(error: float, classes: int) -> None:
    measured, claimed = empirical_epsilon(int(1_000_000 * error), claimed_micro=1_000_000, classes=classes)
    assert measured > claimed


def test_labels_are_as_wrong_as_the_noise_makes_them() -> None:
    """P(the smaller of two scores wins): noise of scale 1 / epsilon carries the one that is noised past a half."""
    rows = torch.tensor([[1.0, 0.0]]).repeat(8000, 1)
    outputs = {"scores": rows, "label": torch.zeros(8000, dtype=torch.int64)}
    made = noised(outputs, classifier(2), epsilon_micro=2_000_000, entropy=stream("labels"))
    wrong = int(made["label"].sum())
    expected = math.exp(-1) / 2
    assert stats.binomtest(wrong, 8000, expected).pvalue > 0.001


def test_a_value_is_noised_over_its_public_range() -> None:
    span = ValueRange(low="-10", high="30")
    made = noised({"y": torch.full((4000,), 0.0)}, regression(span), epsilon_micro=8_000_000, entropy=stream("value"))[
        "y"
    ]
    inside = made[(made > -10) & (made < 30)] / 5.0  # scale: width / epsilon
    assert made.min() == -10.0
    cut = stats.laplace.cdf([-2.0, 6.0])
    assert stats.kstest(inside.tolist(), lambda x: (stats.laplace.cdf(x) - cut[0]) / (cut[1] - cut[0])).pvalue > 0.001
    assert stats.binomtest(int((made == -10.0).sum()), 4000, float(cut[0])).pvalue > 0.001


# Nothing true is left -------------------------------------------------------------------------------------------------


def test_every_output_comes_from_the_same_noised_numbers() -> None:
    scores = torch.softmax(torch.randn(200, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    outputs = {"scores": scores, "label": scores.argmax(dim=1)}
    made = noised(outputs, classifier(5), epsilon_micro=500_000, entropy=stream("five"))
    assert (made["scores"].argmax(dim=1) == made["label"]).all()
    assert made["scores"].min() >= 0
    assert torch.allclose(made["scores"].sum(dim=1), torch.ones(200), atol=1e-5)
    agreed = int((made["label"] == outputs["label"]).sum())
    assert agreed < 90, "at half an epsilon the true label is mostly lost"
    again = noised(outputs, classifier(5), epsilon_micro=500_000, entropy=stream("other"))
    assert not torch.equal(made["scores"], again["scores"])


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0])
def test_a_model_that_gives_no_probabilities_is_noised_like_any_other(odd: float) -> None:
    rows = torch.full((3, 4), odd)
    made = noised({"scores": rows, "label": torch.zeros(3)}, classifier(4), epsilon_micro=10**6, entropy=stream("odd"))
    assert torch.isfinite(made["scores"]).all()
    span = ValueRange(low="0", high="1")
    made = noised({"y": torch.full((3,), odd)}, regression(span), epsilon_micro=10**6, entropy=stream("odd"))
    assert torch.isfinite(made["y"]).all()


@pytest.mark.parametrize(
    "manifest",
    [
        regression(None),
        SimpleNamespace(outputs=(SimpleNamespace(role="scores", name="scores", labels=("a", "b")),), value_range=None),
        SimpleNamespace(outputs=(SimpleNamespace(role="embedding", name="e", labels=()),), value_range=None),
    ],
)
def test_outputs_whose_range_nobody_declared_are_not_given(manifest: Any) -> None:
    outputs = {output.name: torch.zeros(1, 2) for output in manifest.outputs}
    with pytest.raises(BadInput) as caught:
        noised(outputs, manifest, epsilon_micro=10**6, entropy=stream("x"))
    assert caught.value.code == "noise-without-bounds"


def test_rows_and_scores_of_one_request_are_bounded() -> None:
    require_few_rows(32, classifier(2), noise_rows=32)
    for rows, classes in ((33, 2), (32, 1025)):
        with pytest.raises(BadInput) as caught:
            require_few_rows(rows, classifier(classes), noise_rows=32)
        assert (caught.value.code, caught.value.status) == ("too-many-noised-rows", 413)
