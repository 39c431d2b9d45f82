"""Makes the graphs that examples/graph/*.toml train on: small networks of people of three kinds.

    python examples/graph/prepare.py graphs.npz

In half of the networks people of one kind keep together (class "together"); in the others who knows whom has nothing to
do with their kinds (class "mixed"). Kinds and edges are drawn from a generator with a fixed seed: these are nobody's
data, so that anybody gets the same file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRAPHS = 4000
NODES = 16  # at most; the smallest networks have half as many
KINDS = 3
ALIKE, OTHER, ANY = 0.45, 0.12, 0.23  # chances of an edge: within a kind, between kinds, and where kinds do not matter


def graph(draw: np.random.Generator, *, together: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Node features [NODES, KINDS] and edges [NODES, NODES]; nodes that are there have a one on the diagonal."""
    count = int(draw.integers(NODES // 2, NODES + 1))
    kinds = draw.integers(0, KINDS, size=count)
    same = kinds[:, None] == kinds[None, :]
    chance = np.where(same, ALIKE, OTHER) if together else np.full(same.shape, ANY)
    upper = np.triu(draw.random(same.shape) < chance, k=1)
    nodes = np.zeros((NODES, KINDS), dtype=np.float32)
    nodes[np.arange(count), kinds] = 1
    edges = np.zeros((NODES, NODES), dtype=np.float32)
    edges[:count, :count] = upper | upper.T | np.eye(count, dtype=bool)
    return nodes, edges


def main() -> None:
    """Write the file that the first argument names."""
    draw = np.random.default_rng(1)
    kind = draw.integers(0, 2, size=GRAPHS)
    made = [graph(draw, together=bool(one)) for one in kind]
    target = Path(sys.argv[1])
    np.savez_compressed(
        target, nodes=np.stack([one for one, _ in made]), edges=np.stack([one for _, one in made]), kind=kind
    )
    print(f"{target}: {GRAPHS} graphs of at most {NODES} nodes")


if __name__ == "__main__":
    main()
