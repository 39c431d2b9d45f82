"""Makes the networks that examples/network/*.toml train on.

    python examples/network/prepare.py people people.npz      1,500 made-up people of three groups, with features
    python examples/network/prepare.py club club.npz          Zachary's karate club (1977), without features

The people are a stochastic block model: who is of one group is more likely tied, and five features say a little about
the group. They are drawn from a generator with a fixed seed and are nobody's data. The club's 34 members and 78 ties
come with networkx, which torch brings along.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

PEOPLE = 1500
GROUPS = 3
FEATURES = 5
ALIKE, OTHER = 0.03, 0.004  # chances of a tie within a group and between groups
APART = 0.5  # how far the groups' features lie apart, in standard deviations
MOST_TIES = 40  # nobody has more: ties beyond are not made
BLUR = 1.0


def people() -> dict[str, Any]:
    """Features [people, 5], ties [m, 2] counted from 1, and the group of each."""
    draw = np.random.default_rng(1)
    group = draw.integers(0, GROUPS, size=PEOPLE)
    centres = draw.normal(size=(GROUPS, FEATURES)) * APART
    features = centres[group] + BLUR * draw.normal(size=(PEOPLE, FEATURES))
    chance = np.where(group[:, None] == group[None, :], ALIKE, OTHER)
    ties, count = [], np.zeros(PEOPLE, dtype=np.int64)
    for one, other in np.argwhere(np.triu(draw.random(chance.shape) < chance, k=1)).tolist():
        if count[one] < MOST_TIES and count[other] < MOST_TIES:
            ties.append((one + 1, other + 1))
            count[[one, other]] += 1
    return {"features": features.astype(np.float32), "edges": np.array(ties), "group": group}


def club() -> dict[str, Any]:
    """Ties [78, 2] counted from 1, and whom each member followed when the club split."""
    import networkx

    graph = networkx.karate_club_graph()
    side = [str(graph.nodes[member]["club"]) for member in sorted(graph)]
    return {"edges": np.array(graph.edges) + 1, "side": np.array(side)}


def main() -> None:
    """Write the network that the first argument names to the file that the second names."""
    made = {"people": people, "club": club}[sys.argv[1]]()
    np.savez_compressed(Path(sys.argv[2]), **made)
    print(f"{sys.argv[2]}: {len(made['edges'])} ties")


if __name__ == "__main__":
    main()
