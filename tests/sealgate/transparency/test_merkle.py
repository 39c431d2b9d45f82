"""The Merkle tree against published vectors, against pymerkle, and against an attacker who may change anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymerkle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import LogError
from sealgate.transparency.merkle import (
    EMPTY_ROOT,
    Frontier,
    HashSource,
    complete_subtrees,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_at,
    root_of,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "tree.json").read_text())
LEAVES = [bytes.fromhex(leaf) for leaf in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(root) for root in VECTORS["roots"]]
SOME_HASH = bytes.fromhex("abacaba000000000000000000000000000000000000000000060061e00123456")


def grow(leaves: list[bytes]) -> tuple[list[bytes], list[bytes], HashSource]:
    """Leaf hashes, the root at every size from 0, and a source of complete subtrees."""
    frontier, nodes, roots = Frontier(), {}, [EMPTY_ROOT]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    for hashed in hashes:
        for node in frontier.append(hashed):
            nodes[node.level, node.position] = node.hash
        roots.append(frontier.root())
    return hashes, roots, lambda level, index: nodes[level, index]


def refused(verify: Callable[..., None], case: dict[str, Any]) -> bool:
    try:
        verify(**case)
    except LogError:
        return True
    return False


# Vectors -------------------------------------------------------------------------------------------------------------


def test_published_roots() -> None:
    _, roots, source = grow(LEAVES)
    assert roots == [bytes.fromhex(VECTORS["empty_root"]), *ROOTS]
    assert [root_at(size, source) for size in range(9)] == roots
    assert [root_of(map(leaf_hash, LEAVES[:size])) for size in range(9)] == roots


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=lambda v: f"{v['index']}-of-{v['size']}")
def test_published_inclusion_proofs(vector: dict[str, Any]) -> None:
    hashes, _, source = grow(LEAVES)
    index, size, proof = vector["index"], vector["size"], [bytes.fromhex(item) for item in vector["proof"]]
    assert inclusion_proof(index, size, source) == proof
    verify_inclusion(hashed_leaf=hashes[index], index=index, size=size, proof=proof, root=ROOTS[size - 1])


@pytest.mark.parametrize("vector", VECTORS["consistency"], ids=lambda v: f"{v['first']}-to-{v['second']}")
def test_published_consistency_proofs(vector: dict[str, Any]) -> None:
    _, roots, source = grow(LEAVES)
    first, second, proof = vector["first"], vector["second"], [bytes.fromhex(item) for item in vector["proof"]]
    assert consistency_proof(first, second, source) == proof
    verify_consistency(first=first, second=second, first_root=roots[first], second_root=roots[second], proof=proof)


def inclusion_refusals(case: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The published ways to spoil an inclusion proof."""
    proof, root = case["proof"], case["root"]
    yield "index - 1", {"index": case["index"] - 1}
    yield "index + 1", {"index": case["index"] + 1}
    yield "index ^ 2", {"index": case["index"] ^ 2}
    yield "size * 2", {"size": case["size"] * 2}
    yield "size / 2", {"size": case["size"] // 2}
    yield "wrong leaf", {"hashed_leaf": b"WrongLeaf"}
    yield "empty root", {"root": EMPTY_ROOT}
    yield "random root", {"root": SOME_HASH}
    yield "trailing garbage", {"proof": [*proof, b""]}
    yield "trailing root", {"proof": [*proof, root]}
    yield "preceding garbage", {"proof": [b"", *proof]}
    yield "preceding root", {"proof": [root, *proof]}
    for at, item in enumerate(proof):
        yield f"bit of proof[{at}]", {"proof": [*proof[:at], bytes([item[0] ^ 8]) + item[1:], *proof[at + 1 :]]}
    if proof:
        yield "removed component", {"proof": proof[:-1]}
    if len(proof) > 1:
        yield "inserted component", {"proof": [proof[0], SOME_HASH, *proof[1:]]}


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=lambda v: f"{v['index']}-of-{v['size']}")
def test_published_refusals_of_inclusion(vector: dict[str, Any]) -> None:
    case: dict[str, Any] = {
        "hashed_leaf": leaf_hash(LEAVES[vector["index"]]),
        "index": vector["index"],
        "size": vector["size"],
        "proof": [bytes.fromhex(item) for item in vector["proof"]],
        "root": ROOTS[vector["size"] - 1],
    }
    verify_inclusion(**case)
    for name, change in inclusion_refusals(case):
        assert refused(verify_inclusion, {**case, **change}), name


@pytest.mark.parametrize(("index", "size"), [(0, 0), (0, 1), (1, 0), (2, 1)])
@pytest.mark.parametrize(("hashed", "root"), [(SOME_HASH, b""), (b"", EMPTY_ROOT), (SOME_HASH, EMPTY_ROOT), (b"", b"")])
def test_published_refusals_without_a_proof(index: int, size: int, hashed: bytes, root: bytes) -> None:
    with pytest.raises(LogError):
        verify_inclusion(hashed_leaf=hashed, index=index, size=size, proof=[], root=root)


def consistency_refusals(case: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The published ways to spoil a consistency proof."""
    proof, old, new = case["proof"], case["first_root"], case["second_root"]
    yield "first - 1", {"first": case["first"] - 1}
    yield "first + 1", {"first": case["first"] + 1}
    yield "first ^ 2", {"first": case["first"] ^ 2}
    yield "second * 2", {"second": case["second"] * 2}
    yield "second / 2", {"second": case["second"] // 2}
    yield "wrong first root", {"first_root": b"WrongRoot"}
    yield "wrong second root", {"second_root": b"WrongRoot"}
    yield "swapped roots", {"first_root": new, "second_root": old}
    yield "empty proof", {"proof": []}
    for name, item in (("garbage", b""), ("first root", old), ("second root", new)):
        yield f"trailing {name}", {"proof": [*proof, item]}
        yield f"preceding {name}", {"proof": [item, *proof]}
    yield "preceding proof[0]", {"proof": [proof[0], *proof]}
    yield "truncated", {"proof": proof[:-1]}
    for at, item in enumerate(proof):
        yield f"bit of proof[{at}]", {"proof": [*proof[:at], bytes([item[0] ^ 16]) + item[1:], *proof[at + 1 :]]}


@pytest.mark.parametrize("vector", VECTORS["consistency"][1:], ids=lambda v: f"{v['first']}-to-{v['second']}")
def test_published_refusals_of_consistency(vector: dict[str, Any]) -> None:
    case: dict[str, Any] = {
        "first": vector["first"],
        "second": vector["second"],
        "first_root": ROOTS[vector["first"] - 1],
        "second_root": ROOTS[vector["second"] - 1],
        "proof": [bytes.fromhex(item) for item in vector["proof"]],
    }
    verify_consistency(**case)
    for name, change in consistency_refusals(case):
        assert refused(verify_consistency, {**case, **change}), name


@pytest.mark.parametrize(
    ("first", "second", "old", "new", "proof"),
    [
        (0, 0, EMPTY_ROOT, EMPTY_ROOT, []),  # true, and useless: the empty tree vouches for nothing
        (0, 1, EMPTY_ROOT, SOME_HASH, []),
        (0, 8, EMPTY_ROOT, ROOTS[7], []),
        (0, 1, EMPTY_ROOT, EMPTY_ROOT, [EMPTY_ROOT]),
        (1, 1, SOME_HASH, EMPTY_ROOT, []),
        (1, 1, EMPTY_ROOT, EMPTY_ROOT, [EMPTY_ROOT]),
        (1, 1, b"", b"", []),
        (1, 0, SOME_HASH, SOME_HASH, []),
        (2, 1, SOME_HASH, SOME_HASH, []),
        (1, 2, SOME_HASH, SOME_HASH, []),
    ],
)
def test_edge_cases_that_a_literal_verifier_lets_pass(
    first: int, second: int, old: bytes, new: bytes, proof: list[bytes]
) -> None:
    with pytest.raises(LogError):
        verify_consistency(first=first, second=second, first_root=old, second_root=new, proof=proof)


# A second implementation ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=70), st.data())
def test_agrees_with_pymerkle(leaves: list[bytes], data: st.DataObject) -> None:
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        oracle.append_entry(leaf)
    hashes, roots, source = grow(leaves)
    size = data.draw(st.integers(1, len(leaves)))
    assert roots[size] == oracle.get_state(size)
    index = data.draw(st.integers(0, size - 1))
    theirs = oracle.prove_inclusion(index + 1, size)  # pymerkle counts from 1
    ours = inclusion_proof(index, size, source)
    assert [bytes.fromhex(item) for item in theirs.serialize()["path"]][1:] == ours
    pymerkle.verify_inclusion(hashes[index], oracle.get_state(size), theirs)
    first = data.draw(st.integers(1, size))
    verify_consistency(
        first=first,
        second=size,
        first_root=oracle.get_state(first),
        second_root=oracle.get_state(size),
        proof=consistency_proof(first, size, source),
    )


# Properties ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_every_proof_verifies_and_no_changed_one_does(size: int, data: st.DataObject) -> None:
    hashes, roots, source = grow([number.to_bytes(2, "big") for number in range(size)])
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, source)
    case: dict[str, Any] = {
        "hashed_leaf": hashes[index], "index": index, "size": size, "proof": proof, "root": roots[size],
    }  # fmt: skip
    verify_inclusion(**case)
    other = data.draw(st.integers(0, size - 1))
    changed = dict(case)
    kind = data.draw(st.sampled_from(["leaf", "index", "proof", "root", "length"]))
    if kind == "leaf":
        changed["hashed_leaf"] = _flip(hashes[index], data.draw)
    elif kind == "index" and other != index:
        changed["index"] = other
    elif kind == "proof" and proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        changed["proof"] = [*proof[:at], _flip(proof[at], data.draw), *proof[at + 1 :]]
    elif kind == "root":
        changed["root"] = _flip(roots[size], data.draw)
    else:
        changed["proof"] = [*proof, SOME_HASH]
    with pytest.raises(LogError):
        verify_inclusion(**changed)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_a_rewritten_past_has_no_consistency_proof(size: int, data: st.DataObject) -> None:
    """The honest proof between two sizes never connects a tree in which one old leaf was replaced."""
    leaves = [number.to_bytes(2, "big") for number in range(size)]
    _, roots, source = grow(leaves)
    first = data.draw(st.integers(1, size))
    proof = consistency_proof(first, size, source)
    verify_consistency(first=first, second=size, first_root=roots[first], second_root=roots[size], proof=proof)
    rewritten = list(leaves)
    rewritten[data.draw(st.integers(0, first - 1))] = b"rewritten"
    _, forged_roots, forged_source = grow(rewritten)
    for attempt in (proof, consistency_proof(first, size, forged_source)):
        with pytest.raises(LogError):
            verify_consistency(
                first=first, second=size, first_root=roots[first], second_root=forged_roots[size], proof=attempt
            )


@settings(max_examples=100, deadline=None)
@given(
    st.integers(-2, 2**63),
    st.integers(-2, 2**63),
    st.lists(st.binary(min_size=31, max_size=33), max_size=140),
    st.data(),
)
def test_garbage_is_refused_and_nothing_else_happens(a: int, b: int, proof: list[bytes], data: st.DataObject) -> None:
    root = data.draw(st.binary(max_size=40))
    with pytest.raises(LogError):
        verify_inclusion(hashed_leaf=SOME_HASH, index=a, size=b, proof=proof, root=root)
    if (a, proof) != (b, []):
        with pytest.raises(LogError):
            verify_consistency(first=a, second=b, first_root=root, second_root=SOME_HASH, proof=proof)


@given(st.integers(0, 2000))
def test_right_edge_can_be_restored_from_subtrees(size: int) -> None:
    hashes, roots, source = grow([number.to_bytes(2, "big") for number in range(size)])
    restored = Frontier.restore(size, source)
    assert (restored.size, restored.root()) == (size, roots[size])
    restored.append(SOME_HASH)
    assert restored.root() == root_of([*hashes, SOME_HASH])
    assert sum(1 << level for level, _ in complete_subtrees(0, size)) == size


def test_proofs_that_do_not_exist_are_refused() -> None:
    _, _, source = grow(LEAVES)
    for call in (
        lambda: inclusion_proof(8, 8, source),
        lambda: inclusion_proof(-1, 8, source),
        lambda: consistency_proof(0, 8, source),
        lambda: consistency_proof(9, 8, source),
    ):
        with pytest.raises(LogError):
            call()


def _flip(value: bytes, draw: Callable[..., Any]) -> bytes:
    at = draw(st.integers(0, len(value) * 8 - 1))
    return (int.from_bytes(value, "big") ^ (1 << at)).to_bytes(len(value), "big")
