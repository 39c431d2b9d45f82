"""One network of nodes and ties between them, as it was read: what the rows of a network's labelled nodes belong to.

Nodes are numbered from 1; 0 is nobody. Trusts: the form that checked it. Never: a statistic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Network:
    """`features` [nodes, F], raw (F may be 0); `edges` [m, 2], each undirected edge once, nodes counted from 1."""

    features: NDArray[np.float32]
    edges: NDArray[np.int64]

    def degrees(self) -> NDArray[np.int64]:
        """How many neighbours each node has: [nodes]."""
        return np.bincount(self.edges.ravel() - 1, minlength=len(self.features)).astype(np.int64)

    def leaves(self) -> Iterator[bytes]:
        """What a commitment is over, beside the rows: every node's features, then every edge; little-endian."""
        for features in self.features.astype("<f4"):
            yield b"node\x00" + features.tobytes()
        for edge in self.edges.astype("<i8"):
            yield b"edge\x00" + edge.tobytes()
