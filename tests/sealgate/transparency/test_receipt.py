"""Receipts: what verifies is exactly what was logged; everything else is one typed refusal."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ReceiptError
from sealgate.transparency.merkle import leaf_hash
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.transparency.receipt import build_receipt, verify_receipt


def test_every_record_has_a_receipt_that_verifies(log) -> None:
    for index, record in enumerate(log.records):
        verified = verify_receipt(log.receipt(index), [log.signer.verifier])
        assert (verified.record, verified.leaf, verified.index) == (record, log.leaves[index], index)
        assert verified.checkpoint.size == len(log.leaves)


def test_the_form_is_tlog_proof(log) -> None:
    lines = log.receipt(3).decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert base64.b64decode(lines[1].removeprefix("extra ")) == log.leaves[3]
    assert lines[2] == "index 3"
    assert lines[lines.index("") + 1 :] == log.checkpoint().decode().split("\n")


def test_no_bit_of_a_receipt_can_change(log) -> None:
    receipt = log.receipt(4)
    for at in range(len(receipt)):
        for bit in (0, 3, 7):
            changed = receipt[:at] + bytes([receipt[at] ^ 1 << bit]) + receipt[at + 1 :]
            with pytest.raises(ReceiptError):
                verify_receipt(changed, [log.signer.verifier])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_a_typed_refusal(data: bytes) -> None:
    verifier = NoteSigner.from_seed("example.com/log", b"\x01" * 32).verifier
    magic = b"c2sp.org/tlog-proof@v1\n"
    for receipt in (
        data,
        magic + data,
        magic + b"extra e30=\nindex 0\n" + data,
        magic + b"extra e30=\nindex 0\n\n" + data,
    ):
        with pytest.raises(ReceiptError):
            verify_receipt(receipt, [verifier])


def test_keys_of_strangers_do_not_count(log) -> None:
    stranger = NoteSigner.from_seed(log.origin, b"\x55" * 32)
    with pytest.raises(ReceiptError):
        verify_receipt(log.receipt(0), [stranger.verifier])
    with pytest.raises(ReceiptError):
        verify_receipt(log.receipt(0), [])


def test_a_receipt_moved_to_another_index_or_leaf(log) -> None:
    receipt = log.receipt(3)
    other_leaf = receipt.replace(base64.b64encode(log.leaves[3]), base64.b64encode(log.leaves[5]))
    for changed in (receipt.replace(b"index 3", b"index 5"), other_leaf, receipt.replace(b"index 3", b"index 03")):
        assert changed != receipt
        with pytest.raises(ReceiptError):
            verify_receipt(changed, [log.signer.verifier])


def test_a_signed_leaf_of_another_log_or_no_record(log) -> None:
    """The tree of one log may hold any bytes; a receipt is only for a record of that very log."""
    foreign = log.leaves[0].replace(b"example.com/log", b"example.com/old")
    for leaf in (foreign, b"{}", b"not json"):
        note = sign_checkpoint(Checkpoint(log.origin, 1, leaf_hash(leaf)), log.signer)
        with pytest.raises(ReceiptError):
            verify_receipt(build_receipt(0, leaf, [], note), [log.signer.verifier])


def test_bounds(log) -> None:
    receipt = log.receipt(0)
    note = log.checkpoint()
    for changed in (
        build_receipt(0, b"", [], note),
        build_receipt(0, b"x" * 9000, [], note),
        build_receipt(0, log.leaves[0], [b"\0" * 32] * 65, note),
        build_receipt(0, log.leaves[0], [b"\0" * 31], note),
        receipt + b"\n" * 70_000,
    ):
        with pytest.raises(ReceiptError):
            verify_receipt(changed, [log.signer.verifier])
