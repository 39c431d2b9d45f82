"""What the log hands out, judged by programs that share no line with it: each accepts it and refuses what was changed.

Go's golang.org/x/mod/sumdb (notes, receipts, growth, the whole tree, every record out of the tiles), Sigstore's
verifier for JavaScript (checkpoints and receipts), pymerkle (roots). COSE receipts: tests/sealgate/transparency.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from audit.query import RecordFilter
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.merkle import leaf_hash
from sealgate.transparency.notes import parse_checkpoint_text, split_note
from tests.peers.components import PEERS, require_sigstore, require_tlog_checker

Case = dict[str, Any]
Check = Callable[[Case], tuple[bool, str]]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Check:
    program = require_tlog_checker(tmp_path_factory.mktemp("go"))
    return lambda case: judged([str(program)], case)


@pytest.fixture(scope="module")
def sigstore() -> Check:
    node = require_sigstore()
    return lambda case: judged([node, str(PEERS / "tlog" / "sigstore.mjs")], case)


def judged(command: list[str], case: Case) -> tuple[bool, str]:
    done = subprocess.run(command, input=json.dumps(encoded(case)), capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.returncode == 0, done.stdout


def encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [encoded(item) for item in value]
    return {name: encoded(item) for name, item in value.items()} if isinstance(value, dict) else value


@pytest.fixture
def case(bench: Any) -> Case:
    """A log of some 300 records, so that a tile is full, with an ML-DSA-44 key as real ones have."""
    log = bench.open()
    bench.start_worker(log)
    receipts = [bench.request(log).receipt for _ in range(30)]
    older = log.checkpoint()
    waiting = [log.append(bench.draft(reason=str(number))) for number in range(230)]
    receipts += [one.result().receipt for one in waiting[::40]]
    log.close()
    reader = bench.reader()
    newest = reader.checkpoint()
    size, before = (parse_checkpoint_text(split_note(note)[0]).size for note in (newest, older))
    leaves, cursor = [], None
    while True:
        page = reader.records(RecordFilter(oldest_first=True), cursor, 1000)
        leaves += [entry.leaf for entry in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    tiles = {f"0/{index:03d}": reader.tile(0, index) for index in range(size // 256)}
    tiles |= {f"0/{size // 256:03d}.p/{size % 256}": reader.tile(0, size // 256, size % 256)}
    tiles |= {f"1/000.p/{size // 256}": reader.tile(1, 0, size // 256)}
    made = {
        "VKey": bench.verifier.vkey,
        "Checkpoint": newest,
        "Older": older,
        "Consistency": reader.consistency(before, size),
        "Receipts": receipts,
        "Leaves": leaves,
        "Tiles": tiles,
    }
    reader.close()
    return made


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_go_accepts_the_log_and_refuses_each_part_that_was_changed(case: Case, go: Check) -> None:
    held, said = go(case)
    assert held, said
    assert said.startswith(f"ok: {len(case['Leaves'])} records, 36 receipts, 3 tiles")
    tile = next(iter(case["Tiles"]))
    spoiled = {
        "checkpoint": case | {"Checkpoint": changed(case["Checkpoint"], case["Checkpoint"].index(b"\n") + 1)},
        "consistency": case | {"Consistency": [changed(case["Consistency"][0], 0), *case["Consistency"][1:]]},
        "receipt": case | {"Receipts": [*case["Receipts"][:3], without_a_hash(case["Receipts"][3])]},
        "root": case | {"Leaves": [changed(case["Leaves"][0], 9), *case["Leaves"][1:]]},
        "tiles": case | {"Tiles": case["Tiles"] | {tile: changed(case["Tiles"][tile], 0)}},
    }
    spoiled["root"]["Receipts"] = []
    for step, bad in spoiled.items():
        held, said = go(bad)
        assert not held, step
        assert said.startswith(f"{step}: "), said
    held, said = go(case | {"Leaves": [case["Leaves"][1], case["Leaves"][0], *case["Leaves"][2:]]})
    assert not held
    assert said.startswith("root: ")


def test_go_refuses_receipts_whose_parts_were_exchanged(case: Case, go: Check) -> None:
    receipt = case["Receipts"][5]
    other = case["Receipts"][6]
    for bad in (
        re.sub(rb"index \d+", b"index 3", receipt),
        re.sub(rb"extra \S+", re.search(rb"extra \S+", other)[0], receipt),  # type: ignore[index]
        receipt.partition(b"\n\n")[0] + b"\n\n" + other.partition(b"\n\n")[2],
    ):
        held, said = go(case | {"Receipts": [bad]})
        assert not held
        assert said.startswith("receipt: ")


def test_sigstore_accepts_the_log_and_refuses_what_was_changed(case: Case, sigstore: Check) -> None:
    held, said = sigstore(case)
    assert held, said
    receipt, other = case["Receipts"][5], case["Receipts"][6]
    signed = receipt.index(b"\n\n") + 2
    for bad in (
        without_a_hash(receipt),
        re.sub(rb"index \d+", b"index 3", receipt),
        re.sub(rb"extra \S+", re.search(rb"extra \S+", other)[0], receipt),  # type: ignore[index]
        changed(receipt, receipt.index(b"\n", signed) + 1),
        changed(receipt, len(receipt) - 20),
    ):
        held, said = sigstore(case | {"Receipts": [bad]})
        assert not held, bad
    note = case["Checkpoint"]
    assert not sigstore(case | {"Checkpoint": changed(note, note.index(b"\n") + 1)})[0]


def test_pymerkle_finds_the_same_root(case: Case) -> None:
    pymerkle = pytest.importorskip("pymerkle", reason="SKIPPED FOR WANT OF pymerkle: pip install 'sealgate[dev]'")
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for leaf in case["Leaves"]:
        assert tree.get_leaf(tree.append_entry(leaf)) == leaf_hash(leaf)
    for note in (case["Older"], case["Checkpoint"]):
        checkpoint = parse_checkpoint_text(split_note(note)[0])
        assert tree.get_state(checkpoint.size) == checkpoint.root
    tree.append_entry(b"one more")
    assert tree.get_state() != checkpoint.root


def test_lines_of_signatures_that_they_do_not_know_are_passed_over(case: Case, go: Check, sigstore: Check) -> None:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

    witness = Cosigner(bench_name(case), MLDSA44PrivateKey.generate())
    checkpoint = parse_checkpoint_text(split_note(case["Checkpoint"])[0])
    signed = case["Checkpoint"] + witness.cosign(checkpoint, timestamp_s=1)
    assert go(case | {"Checkpoint": signed})[0]
    assert sigstore(case | {"Checkpoint": signed})[0]


def bench_name(case: Case) -> str:
    return str(case["VKey"].split("+")[0])


def without_a_hash(receipt: bytes) -> bytes:
    head, _, note = receipt.partition(b"\n\n")
    return head.rpartition(b"\n")[0] + b"\n\n" + note
