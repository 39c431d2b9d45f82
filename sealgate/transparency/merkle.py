"""The Merkle tree of RFC 9162 (section 2.1) over SHA-256: hashing, growing, proving, checking.

Pure: hashes come from the caller, as leaf hashes or through a `HashSource`. Trusts nothing that it checks. The two
`verify_` functions return None only when the proof holds and raise LogError otherwise; they refuse hashes that are not
32 bytes and consistency proofs from the empty tree, which a literal reading of the RFC lets pass.
Never: holds leaves, reads clocks or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from sealgate.errors import LogError
from sealgate.limits import MAX_PROOF_HASHES

HASH_SIZE = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_TREE_SIZE = 1 << 62

HashSource = Callable[[int, int], bytes]
"""`source(level, index)`: hash of the complete subtree over leaves `index << level` up to `(index + 1) << level`."""


class Node(NamedTuple):
    """A complete subtree, and its hash."""

    level: int
    position: int
    hash: bytes


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256(0x00 || leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: all that is needed to append and to tell the root.

    Holds one hash per set bit of the size. Owned by one thread; copying is not offered because nothing may fork a log.
    """

    def __init__(self) -> None:
        self._peaks: list[Node] = []
        self._size = 0

    @classmethod
    def restore(cls, size: int, source: HashSource) -> Frontier:
        """The right edge of a tree of `size` leaves whose complete subtrees `source` knows."""
        frontier = cls()
        frontier._peaks = [Node(level, index, source(level, index)) for level, index in complete_subtrees(0, size)]
        frontier._size = size
        return frontier

    @property
    def size(self) -> int:
        return self._size

    @property
    def peaks(self) -> tuple[Node, ...]:
        """Complete subtrees of the edge, largest first."""
        return tuple(self._peaks)

    def append(self, hashed_leaf: bytes) -> list[Node]:
        """Add one leaf; returns the subtrees that it completed, the leaf itself first."""
        node = Node(0, self._size, hashed_leaf)
        completed = [node]
        while self._peaks and self._peaks[-1].level == node.level:
            left = self._peaks.pop()
            node = Node(node.level + 1, left.position >> 1, node_hash(left.hash, node.hash))
            completed.append(node)
        self._peaks.append(node)
        self._size += 1
        return completed

    def root(self) -> bytes:
        return _fold([peak.hash for peak in self._peaks])


def _fold(peaks: Sequence[bytes]) -> bytes:
    """The root over complete subtrees given largest first."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def complete_subtrees(low: int, high: int) -> Iterator[tuple[int, int]]:
    """(level, index) of the complete subtrees that make up [low, high), for a `low` aligned to the first of them."""
    while low < high:
        level = (high - low).bit_length() - 1
        yield level, low >> level
        low += 1 << level


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root over these leaf hashes."""
    frontier = Frontier()
    for hashed in leaf_hashes:
        frontier.append(hashed)
    return frontier.root()


def root_at(size: int, source: HashSource) -> bytes:
    """The root that a tree had at `size` leaves."""
    return subtree_hash(0, size, source)


def subtree_hash(low: int, high: int, source: HashSource) -> bytes:
    """Hash of the (possibly right-edge, incomplete) subtree over leaves [low, high) of the RFC's recursion."""
    return _fold([source(level, index) for level, index in complete_subtrees(low, high)])


def split(low: int, high: int) -> int:
    """Where the RFC's recursion divides [low, high): after the largest power of two smaller than its length."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def inclusion_proof(index: int, size: int, source: HashSource) -> list[bytes]:
    """Audit path of leaf `index` in the tree of `size` leaves, the leaf's sibling first."""
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise LogError("no such leaf in a tree of that size", code="proof-range")
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = split(low, high)
        if index < middle:
            path.append(subtree_hash(middle, high, source))
            high = middle
        else:
            path.append(subtree_hash(low, middle, source))
            low = middle
    path.reverse()
    return path


def consistency_proof(first: int, second: int, source: HashSource) -> list[bytes]:
    """That the tree of `second` leaves extends the tree of `first` leaves (0 < first <= second)."""
    if not 0 < first <= second <= MAX_TREE_SIZE:
        raise LogError("no consistency proof exists between these sizes", code="proof-range")
    path: list[bytes] = []
    low, high, whole = 0, second, True  # whole: the old tree's hash of this part is known to the checker
    while first != high:
        middle = split(low, high)
        if first <= middle:
            path.append(subtree_hash(middle, high, source))
            high = middle
        else:
            path.append(subtree_hash(low, middle, source))
            low, whole = middle, False
    if not whole:
        path.append(subtree_hash(low, high, source))
    path.reverse()
    return path


def _require_hashes(*hashes: bytes) -> None:
    for item in hashes:
        if len(item) != HASH_SIZE:
            raise LogError("a hash in the proof is not 32 bytes", code="proof-malformed")


def verify_inclusion(*, hashed_leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise LogError unless `proof` shows the leaf at `index` of the tree of `size` leaves with this `root`."""
    _require_hashes(root)
    if inclusion_root(hashed_leaf=hashed_leaf, index=index, size=size, proof=proof) != root:
        raise LogError("the inclusion proof does not lead to the root", code="proof-wrong")


def inclusion_root(*, hashed_leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that a leaf and its path lead to; raises LogError for a path that no tree of that size has. Worth
    nothing before the root is compared, or a signature over it verified."""
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise LogError("the proof names no leaf of that tree", code="proof-range")
    if len(proof) > MAX_PROOF_HASHES:
        raise LogError("the proof is longer than any tree needs", code="proof-malformed")
    _require_hashes(hashed_leaf, *proof)
    node, last, running = index, size - 1, hashed_leaf
    for sibling in proof:
        if last == 0:
            raise LogError("the inclusion proof is too long", code="proof-wrong")
        if node & 1 or node == last:
            running = node_hash(sibling, running)
            while not node & 1 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            running = node_hash(running, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise LogError("the inclusion proof does not lead to the root", code="proof-wrong")
    return running


def verify_consistency(
    *, first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise LogError unless the tree (`second`, `second_root`) extends the tree (`first`, `first_root`)."""
    if not 0 < first <= second <= MAX_TREE_SIZE:
        raise LogError("a consistency proof needs 0 < first <= second", code="proof-range")
    if len(proof) > 2 * MAX_PROOF_HASHES:
        raise LogError("the proof is longer than any tree needs", code="proof-malformed")
    _require_hashes(first_root, second_root, *proof)
    if first == second:
        if proof or first_root != second_root:
            raise LogError("two trees of one size differ", code="proof-wrong")
        return
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, first_root)  # the old tree is itself a subtree of the new one
    if not path:
        raise LogError("the consistency proof is too short", code="proof-wrong")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for item in path[1:]:
        if last == 0:
            raise LogError("the consistency proof is too long", code="proof-wrong")
        if node & 1 or node == last:
            old, new = node_hash(item, old), node_hash(item, new)
            while not node & 1 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, item)
        node, last = node >> 1, last >> 1
    if last != 0 or old != first_root or new != second_root:
        raise LogError("the newer tree does not extend the older one", code="proof-wrong")
