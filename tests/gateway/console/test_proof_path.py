"""The picture of a proof leads where the tree's own root is, and says of every box which records it stands for."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.console.proof_path import WIDTH, climb, draw
from sealgate.errors import LogError
from sealgate.transparency.merkle import inclusion_proof, leaf_hash, root_of, subtree_hash

SIZES = st.integers(1, 70).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def tree(size):
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]

    def source(level, index):
        return root_of(leaves[index << level : (index + 1) << level])

    return leaves, source


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_the_path_ends_at_the_root_and_every_box_is_the_hash_of_its_records(case):
    size, index = case
    leaves, source = tree(size)
    steps = climb(leaves[index], index=index, size=size, proof=inclusion_proof(index, size, source))
    drawing = draw(leaves[index], index=index, steps=steps)
    assert drawing.boxes[-1].hash == root_of(leaves).hex()
    for box in drawing.boxes:
        assert box.hash == subtree_hash(box.first, box.last + 1, source).hex()
        assert 0 <= box.x <= WIDTH - box.width
        assert 0 <= box.y <= drawing.height - box.height
    top = next(box for box in drawing.boxes if box.role == "root")
    assert (top.first, top.last, top.y) == (0, size - 1, min(box.y for box in drawing.boxes))


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_boxes_do_not_overlap(case):
    size, index = case
    leaves, source = tree(size)
    steps = climb(leaves[index], index=index, size=size, proof=inclusion_proof(index, size, source))
    boxes = draw(leaves[index], index=index, steps=steps).boxes
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            apart = one.x + one.width <= other.x or other.x + other.width <= one.x
            assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y


def test_a_proof_of_another_length_is_refused():
    leaves, source = tree(9)
    proof = inclusion_proof(3, 9, source)
    for wrong in (proof[:-1], [*proof, hashlib.sha256(b"").digest()], []):
        with pytest.raises(LogError):
            climb(leaves[3], index=3, size=9, proof=wrong)
