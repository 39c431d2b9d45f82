"""The sensitivity that epsilon rests on: what one edge, or one node, can change of a sum, on random networks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.mechanisms.aggregation import neighbour_sums, noisy_aggregates, normalised, shortened

TINY = 1e-9
FLOATS = st.floats(-1e200, 1e200, allow_nan=False, width=64)


@st.composite
def networks(draw: st.DrawFn, *, most: int = 9):
    """Vectors [n, d] of any length, and the edges of a simple graph, int64 [m, 2] from 0."""
    nodes, width = draw(st.integers(2, most)), draw(st.integers(1, 4))
    pairs = [(one, other) for one in range(nodes) for other in range(one)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True))
    numbers = draw(st.lists(FLOATS, min_size=nodes * width, max_size=nodes * width))
    vectors = torch.tensor(numbers, dtype=torch.float64).reshape(nodes, width)
    return vectors, torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)


def sums_of(vectors: torch.Tensor, edges: torch.Tensor, norm: float = math.inf) -> torch.Tensor:
    return shortened(neighbour_sums(normalised(vectors), edges), norm)


@given(network=networks())
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_the_adjacency_matrix(network):
    vectors, edges = network
    matrix = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for one, other in edges.tolist():
        matrix[one, other] = matrix[other, one] = 1
    rows = normalised(vectors)
    assert torch.allclose(neighbour_sums(rows, edges), matrix @ rows, atol=TINY)


@given(network=networks(), norm=st.sampled_from([math.inf, 2.0, 0.5]), data=st.data())
@settings(max_examples=80, deadline=None)
def test_an_edge_moves_two_rows_by_at_most_one_each(network, norm, data):
    vectors, edges = network
    if len(edges):
        gone = data.draw(st.integers(0, len(edges) - 1))
        less = torch.cat((edges[:gone], edges[gone + 1 :]))
        moved = (sums_of(vectors, edges, norm) - sums_of(vectors, less, norm)).norm(dim=1)
        assert float(moved.max()) <= 1 + TINY
        assert float(moved.square().sum()) <= 2 + TINY
        assert set(torch.nonzero(moved > TINY).ravel().tolist()) <= set(edges[gone].tolist())


@given(network=networks(), norm=st.sampled_from([math.inf, 2.0, 0.5]), data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_node_moves_its_neighbours_and_its_own_row_within_the_declared_bound(network, norm, data):
    vectors, edges = network
    node = data.draw(st.integers(0, len(vectors) - 1))
    degree = int((edges == node).sum())
    # Without the node there are no edges to it, and its vector is any other.
    changed = vectors.clone()
    changed[node] = torch.tensor(data.draw(st.lists(FLOATS, min_size=vectors.shape[1], max_size=vectors.shape[1])))
    less = edges[(edges != node).all(dim=1)]
    moved = (sums_of(vectors, edges, norm) - sums_of(changed, less, norm)).norm(dim=1)
    own = min(float(degree), norm)
    assert float(moved[node]) <= own + TINY
    assert float(moved.square().sum()) <= degree + own**2 + TINY


def test_the_bounds_are_met():
    star = torch.tensor([(0, node) for node in range(1, 6)])
    alike = torch.ones(6, 1, dtype=torch.float64) * 1e100
    moved = sums_of(alike, star) - sums_of(alike, star[:0])
    assert float(moved.square().sum()) == 5 + 25
    assert float((sums_of(alike, star, 3.0) - sums_of(alike, star[:0], 3.0)).square().sum()) == pytest.approx(5 + 9)


@given(network=networks())
@settings(max_examples=40, deadline=None)
def test_rows_are_unit_or_zero_whatever_they_were(network):
    norms = normalised(network[0]).norm(dim=1)
    zero = (network[0] == 0).all(dim=1)
    assert torch.allclose(norms[~zero], torch.ones(int((~zero).sum()), dtype=torch.float64))
    assert not norms[zero].any()


def test_every_hop_reads_what_was_noised_before_it():
    """With noise that drowns the sums, the second hop depends on the first's noise and no longer on the vectors."""
    edges = torch.tensor([(0, 1), (1, 2), (0, 2)])
    drawn = [torch.full((6,), 1e9, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)]

    def run(vectors: torch.Tensor) -> torch.Tensor:
        values = iter(drawn)
        return noisy_aggregates(vectors, edges, hops=2, sum_norm=math.inf, noise=lambda _count: next(values))[1]

    here = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(run(here), run(-here), atol=1e-6)
    assert torch.allclose(run(here), torch.full((3, 2), math.sqrt(0.5), dtype=torch.float64), atol=1e-6)
