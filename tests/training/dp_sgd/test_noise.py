"""Discrete noise against the distribution's own formula, and the exact path of its coins; the grid's promises."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from training.dp_sgd import discrete
from training.dp_sgd.discrete import discrete_gaussian
from training.dp_sgd.noise import ROOM, ROUNDED_BITS, SMOOTHING, SUMMATION, DiscreteNoise, GaussianNoise, Grid, noise_of
from training.randomness import BLOCK, Keystream

NEVER = 1e-9


@pytest.mark.parametrize("deviation", [1, 2, 7])
def test_integers_have_the_probabilities_of_the_formula(deviation):
    values = discrete_gaussian(Keystream(), deviation=deviation, count=60_000)
    assert len(values) == 60_000
    reach = 4 * deviation
    support = np.arange(-40 * deviation, 40 * deviation + 1)
    weights = np.exp(-(support.astype(float) ** 2) / (2 * deviation**2))
    expected = dict(zip(support.tolist(), (weights / weights.sum()).tolist(), strict=True))
    inside = np.arange(-reach, reach + 1)
    counts = [int((values == one).sum()) for one in inside]
    shares = [expected[int(one)] for one in inside]
    rest = len(values) - sum(counts)
    test = stats.chisquare([*counts, rest], [len(values) * one for one in (*shares, 1 - sum(shares))])
    assert test.pvalue > NEVER


def test_wide_noise_is_gaussian():
    deviation = 1 << 26
    values = discrete_gaussian(Keystream(), deviation=deviation, count=60_000) / deviation
    assert stats.kstest(values, "norm").pvalue > NEVER
    assert len(np.unique(values)) > 59_000


def test_the_exact_path_of_a_coin_agrees_with_the_fast_one(monkeypatch):
    """Every coin is sent the slow way; the distribution must be the same, and near ties must be decided rightly."""
    monkeypatch.setattr(discrete, "_ERROR", 2.0)
    values = discrete_gaussian(Keystream(), deviation=3, count=400)
    assert stats.kstest(values + np.random.default_rng(1).uniform(-0.5, 0.5, 400), stats.norm(0, 3).cdf).pvalue > 1e-6


@settings(max_examples=40, deadline=None)
@given(bottom=st.integers(1, 10**28), share=st.integers(0, 10**6), word=st.integers(0, 2**64 - 1))
def test_continued_bits_decide_by_exact_arithmetic(bottom, share, word):
    """Against another library's arithmetic; the bits that follow are zeros."""

    class Zeros:
        def words(self, count):
            return np.zeros(count, dtype=np.uint64)

    top = bottom * 40 * share // 10**6  # x up to 40
    with mpmath.workdps(120):
        chance = mpmath.exp(-mpmath.mpf(top) / bottom)
        assert discrete._toss_on(Zeros(), word, top, bottom) == (mpmath.mpf(word) / 2**64 < chance)


def test_sums_come_out_on_the_grid_and_the_grid_keeps_its_promises():
    for coordinates, sigma, clip in ((10, 1.0, 1.0), (270_000, 0.7, 0.1), (1, 20.0, 3.0)):
        grid = Grid.of(sigma=sigma, clip_norm=clip, coordinates=coordinates)
        # What a unit can move: its clipped gradient, two roundings, what summation loses; the noise covers it.
        moved = clip * (1 + SUMMATION) + grid.unit * math.sqrt(coordinates)
        continuous = math.sqrt(grid.deviation**2 - SMOOTHING**2) * grid.unit
        assert continuous >= sigma * moved
        assert continuous <= sigma * clip * 1.001  # and costs no accuracy that anybody would see
    noise = noise_of("discrete-gaussian", Keystream(), sigma=1.0, clip_norm=0.1, coordinates=500)
    assert isinstance(noise, DiscreteNoise)
    summed = [torch.full((20, 20), 0.123456789, dtype=torch.float64), torch.zeros(100, dtype=torch.float64)]
    noise.add(summed)
    released = torch.cat([one.ravel() for one in summed])
    assert torch.equal((released / noise.grid.unit).round() * noise.grid.unit, released)
    assert 0.05 < float(summed[1].std()) < 0.2
    assert abs(float(summed[0].mean()) - 0.123456789) < 0.05


def test_what_summation_may_lose_is_counted_for_any_order_of_a_large_step():
    """A running sum of n terms of size C is off by up to half a rounding of each partial sum; two sums are compared."""
    units, value = 200_000, 0.1
    terms = np.full(units, value)
    running = float(np.cumsum(terms)[-1])
    off = abs(running - math.fsum(terms.tolist())) / value
    assert off > 2.0**-30  # what used to be counted
    assert 2 * off < SUMMATION
    assert units**2 * 2.0**-53 < SUMMATION < 2.0**-15


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_noisy_sums_lie_on_the_grid_whatever_the_sum_was(dtype):
    deviation = 0.25
    noise = GaussianNoise(Keystream(), deviation)
    sums = [torch.randn(BLOCK + 3, dtype=torch.float64), torch.full((7, 5), 1e3 / 3, dtype=torch.float64)]
    summed = [one.clone().to(dtype) for one in sums]
    noise.add(summed)
    exact = deviation * (1 + ROOM)
    for before, after in zip(sums, summed, strict=True):
        units = after.double() / exact * 2.0**ROUNDED_BITS
        off = (units - units.round()).abs()
        assert bool((off <= 2 * torch.finfo(dtype).eps * (1 + units.abs())).all())
        assert float(((after.double() - before) / exact).abs().max()) < 8
    moved = ((summed[0].double() - sums[0]) / exact).numpy()
    # Rounding is felt neither in the deviation (10^-8) nor in the shape.
    assert abs(moved.std() - 1) < 6 / np.sqrt(2 * len(moved))
    assert stats.kstest(moved, "norm").pvalue > NEVER


def test_each_grid_value_is_as_likely_as_its_cell_of_the_exact_gaussian():
    """The chances of the exact mechanism: a normal value's, between the borders of the cell, for a sum off the grid."""
    cell, where, count = 2.0**-ROUNDED_BITS, 0.3 * 2.0**-ROUNDED_BITS, 2_000_000
    noise = GaussianNoise(Keystream(), 1.0 / (1.0 + ROOM))
    summed = [torch.full((count,), where, dtype=torch.float64)]
    noise.add(summed)
    units = (summed[0] / cell).round().long().numpy()  # looked at around zero, where cells are likeliest
    edges = (np.arange(-200, 201) - 0.5) * cell - where
    chances = np.diff(stats.norm.cdf(edges))
    counts = np.bincount(np.clip(units + 200, -1, 400) + 1, minlength=402)
    inside = counts[1:401]
    rest = len(units) - inside.sum()
    test = stats.chisquare([*inside, rest], np.array([*chances, 1 - chances.sum()]) * len(units))
    assert test.pvalue > NEVER


def test_noise_of_blocks_and_tensors_is_never_used_twice():
    summed = [torch.zeros(one, dtype=torch.float64) for one in (3, BLOCK, 5, BLOCK)]
    GaussianNoise(Keystream(), 1.0).add(summed)
    values = torch.cat(summed)
    assert float((values[BLOCK:] == values[:-BLOCK]).double().mean()) < 0.02
    assert abs(float((values[BLOCK:] * values[:-BLOCK]).mean())) < 6.5 / math.sqrt(BLOCK)


def test_impossible_deviations_are_refused():
    for deviation in (0, -1, 1 << 40):
        with pytest.raises(ValueError):
            discrete_gaussian(Keystream(), deviation=deviation, count=1)
