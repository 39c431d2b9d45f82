"""Range proofs: a run of leaves, and nothing else, leads to the root."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import LogError
from sealgate.transparency.merkle import Frontier, leaf_hash
from sealgate.transparency.ranges import range_proof, range_root


def grow(size: int):
    frontier, nodes = Frontier(), {}
    hashes = [leaf_hash(number.to_bytes(2, "big")) for number in range(size)]
    for hashed in hashes:
        nodes.update({(node.level, node.position): node.hash for node in frontier.append(hashed)})
    return hashes, frontier.root(), lambda level, index: nodes[level, index]


def test_every_range_of_every_small_tree() -> None:
    for size in range(1, 34):
        hashes, root, source = grow(size)
        for first in range(size):
            for last in range(first, size):
                proof = range_proof(first, last, size, source)
                assert range_root(first, last, size, iter(hashes[first : last + 1]), proof) == root
                assert len(proof) <= 2 * size.bit_length()


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 600), st.data())
def test_no_changed_range_leads_to_the_root(size: int, data: st.DataObject) -> None:
    hashes, root, source = grow(size)
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    proof, run = range_proof(first, last, size, source), hashes[first : last + 1]
    other = leaf_hash(b"other")
    at = data.draw(st.integers(0, len(run) - 1))
    forgeries = [
        (first, last, [*run[:at], other, *run[at + 1 :]], proof),
        (first, last, [*run[:at], *run[at + 1 :]], proof),
        (first, last, run, [*proof, other]),
        (first, last, run, proof[:-1]),
        (first, last, run, [other[:31]]),
    ]
    if len(set(run)) > 1:
        forgeries.append((first, last, run[::-1], proof))
    if last + 1 < size:
        forgeries.append((first + 1, last + 1, run, proof))  # the same leaves, said to stand elsewhere
    for low, high, leaves, attempt in forgeries:
        if attempt is proof[:-1] and not proof:
            continue
        try:
            reached = range_root(low, high, size, iter(leaves), attempt)
        except LogError:
            continue
        assert reached != root or (leaves == run and attempt == proof and (low, high) == (first, last))


def test_ranges_outside_the_tree_are_refused() -> None:
    _, _, source = grow(4)
    for first, last, size in ((0, 4, 4), (3, 2, 4), (-1, 2, 4), (0, 0, 0)):
        with pytest.raises(LogError):
            range_proof(first, last, size, source)
        with pytest.raises(LogError):
            range_root(first, last, size, iter([]), [])
