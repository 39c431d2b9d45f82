"""Noisy sums over neighbours (Sajadmanesh et al. 2023, "GAP", algorithm 1): the only place where edges are read.

    x0 = rows of norm at most one
    xk = normalise(shorten(A x(k-1)) + noise)        for each hop k

A node's vector has norm at most one before each sum, whatever the noise made of it. So an edge {u, v} changes two rows
of A x, each by at most one; a node with at most D neighbours changes theirs, each by at most one, and its own, which is
a sum of at most D vectors, or shorter where sums are scaled down. What follows after the noise (normalising, the next
hop, the classifier) costs nothing.

Trusts: edges that were checked (each once, no loops). Never: sees a label, or sums rows that it did not normalise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_TINY = 1e-300  # a row of zeros stays one


def normalised(rows: torch.Tensor) -> torch.Tensor:
    """Each row with an L2 norm of one, rows of zeros as they are: float64 [n, d]."""
    largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(_TINY)  # rows of 1e200 have a norm, too
    rows = rows / largest
    found: torch.Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(_TINY)
    return found


def neighbour_sums(rows: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """A x for an undirected graph: float64 [n, d], int64 [m, 2] counted from 0 -> [n, d]. Private."""
    sums = torch.zeros_like(rows)
    sums.index_add_(0, edges[:, 0], rows[edges[:, 1]])
    sums.index_add_(0, edges[:, 1], rows[edges[:, 0]])
    return sums


def shortened(sums: torch.Tensor, norm: float) -> torch.Tensor:
    """Rows longer than `norm` (above zero, or infinite) scaled down to it: [n, d].

    A projection onto a ball, which moves no two rows apart, and bounds what a node's own row can hold.
    """
    found: torch.Tensor = sums * (norm / sums.norm(dim=1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0)
    return found


def noisy_aggregates(
    vectors: torch.Tensor,
    edges: torch.Tensor,
    *,
    hops: int,
    sum_norm: float,
    noise: Callable[[int], torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """x1 to x(hops), float64 [n, d] each, of vectors [n, d]; `noise(count)` gives the values that are added."""
    found: list[torch.Tensor] = []
    rows = normalised(vectors)
    for _ in range(hops):
        sums = shortened(neighbour_sums(rows, edges), sum_norm)
        rows = normalised(sums + noise(sums.numel()).reshape(sums.shape))
        found.append(rows)
    return tuple(found)
