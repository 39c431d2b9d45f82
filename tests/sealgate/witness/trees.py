"""A log's tree in memory, and others that share its beginning: what a witness is asked about."""

from __future__ import annotations

from sealgate.transparency.merkle import Frontier, consistency_proof, leaf_hash
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.witness.witness import Submission, encode_submission

ORIGIN = "example.com/log"
LOG = NoteSigner.from_seed(ORIGIN, b"\x07" * 32)


class Tree:
    """A log's tree with every size's root; `salt` makes another history."""

    def __init__(self, size: int, *, salt: bytes = b"", from_: int = 0) -> None:
        frontier, self._nodes, self.roots = Frontier(), {}, [b""]
        for number in range(size):
            leaf = b"%d" % number + (salt if number >= from_ else b"")
            self._nodes.update({(node.level, node.position): node.hash for node in frontier.append(leaf_hash(leaf))})
            self.roots.append(frontier.root())

    def note(self, size: int, signer: NoteSigner = LOG) -> bytes:
        root = self.roots[size] if size else Frontier().root()
        return sign_checkpoint(Checkpoint(signer.name, size, root), signer)

    def body(self, old: int, new: int) -> bytes:
        proof = consistency_proof(old, new, lambda level, at: self._nodes[level, at]) if 0 < old < new else []
        return encode_submission(Submission(old, tuple(proof), self.note(new)))


TREE = Tree(40)
