"""The sampler against the exact probabilities, with entropy that is the same every time so that nothing is left to
chance."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from secure_runtime.worker.engine.discrete_laplace import DiscreteLaplace

DRAWS = 20_000


def stream(seed: str) -> Callable[[int], bytes]:
    """Unpredictable enough for statistics, and always the same."""
    counter = 0

    def take(size: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(f"{seed} {counter}".encode()).digest(size)

    return take


def probability(value: int, rate: float) -> float:
    return (math.exp(rate) - 1) / (math.exp(rate) + 1) * math.exp(-abs(value) * rate)


def p_value(draws: list[int], rate: float) -> float:
    """Chi-square of the draws against the exact probabilities, tails put together."""
    edge = max(1, round(3.5 / rate))
    counted = Counter(max(-edge, min(edge, value)) for value in draws)
    expected = [probability(value, rate) for value in range(-edge + 1, edge)]
    tail = (1 - sum(expected)) / 2
    expected = [tail, *expected, tail]
    observed = [counted[value] for value in range(-edge, edge + 1)]
    return float(stats.chisquare(observed, [share * len(draws) for share in expected]).pvalue)


RATES = [(1, 1), (1, 2), (3, 2), (5, 2), (7, 1), (500_000, 1_000_000), (1, 7), (13, 100)]


@pytest.mark.parametrize(("numerator", "denominator"), RATES)
def test_draws_have_the_exact_distribution(numerator: int, denominator: int) -> None:
    noise = DiscreteLaplace(numerator=numerator, denominator=denominator, entropy=stream(f"{numerator}/{denominator}"))
    draws = [noise.draw() for _ in range(DRAWS)]
    assert p_value(draws, numerator / denominator) > 0.001


def test_the_measure_notices_a_rate_that_is_a_little_off() -> None:
    noise = DiscreteLaplace(numerator=1, denominator=2, entropy=stream("1/2"))
    draws = [noise.draw() for _ in range(DRAWS)]
    assert p_value(draws, 0.5) > 0.001
    assert p_value(draws, 0.55) < 1e-6
    assert p_value([abs(value) for value in draws], 0.5) < 1e-6


def test_the_scale_is_right_where_every_value_is_rare() -> None:
    """At the rates that answers are noised with: sizes against the continuous distribution that they approach."""
    grid = 1 << 20
    noise = DiscreteLaplace(numerator=500_000, denominator=2 * grid * 1_000_000, entropy=stream("grid"))
    draws = [noise.draw() / (4 * grid) for _ in range(DRAWS)]
    assert stats.kstest(draws, stats.laplace.cdf).pvalue > 0.001
    assert any(value % 2 for value in (noise.draw() for _ in range(64))), "the grid is used to its last step"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**70), st.integers(1, 2**40))
def test_any_rate_ends_and_uses_fresh_bytes(numerator: int, denominator: int) -> None:
    fetched: list[int] = []
    source = stream("any")

    def entropy(size: int) -> bytes:
        fetched.append(size)
        return source(size)

    one = DiscreteLaplace(numerator=numerator, denominator=denominator, entropy=entropy)
    assert isinstance(one.draw(), int)
    assert fetched
    DiscreteLaplace(numerator=numerator, denominator=denominator, entropy=entropy).draw()
    assert len(fetched) >= 2, "a second sampler starts with bytes of its own"


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 0), (-1, 1)])
def test_no_rate_is_no_noise(numerator: int, denominator: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        DiscreteLaplace(numerator=numerator, denominator=denominator, entropy=stream("x"))


def test_no_float_takes_part() -> None:
    """Neither a literal nor a division nor the math module's functions: whole numbers only."""
    import ast
    import inspect

    from secure_runtime.worker.engine import discrete_laplace

    tree = ast.parse(inspect.getsource(discrete_laplace))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Div)]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, float)]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names.isdisjoint({"float", "exp", "random", "torch"})
