"""Proving a run of leaves: that entries first..last are exactly those positions of the tree behind a checkpoint.

The proof is the hash of every subtree that lies wholly outside the run, left to right: at most two per level of the
tree. A checker folds them with the leaf hashes that it computes itself. Pure; works on a stream of leaf hashes, so a
million entries need no more memory than one. Trusts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sealgate.errors import LogError
from sealgate.limits import MAX_PROOF_HASHES
from sealgate.transparency.merkle import (
    HASH_SIZE,
    MAX_TREE_SIZE,
    Frontier,
    HashSource,
    node_hash,
    split,
    subtree_hash,
)


def range_proof(first: int, last: int, size: int, source: HashSource) -> list[bytes]:
    """Hashes that complete leaves [first, last] to the root of the tree of `size` leaves, left to right."""
    _require_range(first, last, size)
    hashes: list[bytes] = []

    def walk(low: int, high: int) -> None:
        if high <= first or low > last:
            hashes.append(subtree_hash(low, high, source))
        elif not (first <= low and high <= last + 1):
            middle = split(low, high)
            walk(low, middle)
            walk(middle, high)

    walk(0, size)
    return hashes


def range_root(first: int, last: int, size: int, leaf_hashes: Iterator[bytes], proof: Sequence[bytes]) -> bytes:
    """The root that the run and its proof lead to; raises LogError if either has too few or too many hashes.

    Consumes exactly `last - first + 1` items of `leaf_hashes`, in order.
    """
    _require_range(first, last, size)
    if len(proof) > 2 * MAX_PROOF_HASHES or any(len(item) != HASH_SIZE for item in proof):
        raise LogError("the range proof is malformed", code="proof-malformed")
    outside = iter(proof)

    def walk(low: int, high: int) -> bytes:
        if high <= first or low > last:
            return _take(outside)
        if first <= low and high <= last + 1:
            frontier = Frontier()
            for _ in range(high - low):
                frontier.append(_take(leaf_hashes))
            return frontier.root()
        middle = split(low, high)
        left = walk(low, middle)
        return node_hash(left, walk(middle, high))

    root = walk(0, size)
    if next(outside, None) is not None:
        raise LogError("the range proof is too long", code="proof-wrong")
    return root


def _take(hashes: Iterator[bytes]) -> bytes:
    item = next(hashes, None)
    if item is None:
        raise LogError("the range proof is too short", code="proof-wrong")
    return item


def _require_range(first: int, last: int, size: int) -> None:
    if not 0 <= first <= last < size <= MAX_TREE_SIZE:
        raise LogError("the tree holds no such range", code="proof-range")
