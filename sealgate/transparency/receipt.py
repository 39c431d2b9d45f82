"""Receipts: proof that one record is in the log, as a C2SP tlog-proof that carries the leaf as its extra data.

    c2sp.org/tlog-proof@v1
    extra BASE64(leaf)
    index N
    BASE64(hash) ...
    (empty line)
    checkpoint

The extra data of a tlog-proof is not authenticated by itself; here it is, because its hash is what the proof proves.
Trusts: the verifier keys it is given. Never: opens anything but one canonical form of a receipt.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from sealgate.errors import DecodeError, LogError, ReceiptError
from sealgate.limits import MAX_LEAF, MAX_PROOF_HASHES, MAX_RECEIPT
from sealgate.transparency.merkle import HASH_SIZE, leaf_hash, verify_inclusion
from sealgate.transparency.notes import Checkpoint, NoteVerifier, open_checkpoint, parse_decimal
from sealgate.transparency.record import Record, parse_leaf

_MAGIC = b"c2sp.org/tlog-proof@v1\n"


@dataclass(frozen=True)
class VerifiedReceipt:
    """A record that a trusted log key vouches to hold at `index`.

    Holding one proves that the record is in the tree behind `checkpoint`. It does not prove what the record says of a
    request: compare its commitments with what was sent and received.
    """

    record: Record
    leaf: bytes
    index: int
    checkpoint: Checkpoint
    note: bytes
    proof: tuple[bytes, ...]


def build_receipt(index: int, leaf: bytes, proof: Sequence[bytes], checkpoint_note: bytes) -> bytes:
    """The receipt's bytes. Only for what is durable: the caller answers for that."""
    lines = [_MAGIC, b"extra ", binascii.b2a_base64(leaf), b"index %d\n" % index]
    lines += map(binascii.b2a_base64, proof)  # which ends the line too
    return b"".join([*lines, b"\n", checkpoint_note])


def verify_receipt(receipt: bytes, verifiers: Sequence[NoteVerifier]) -> VerifiedReceipt:
    """The record that the receipt proves to be logged under a trusted key; raises ReceiptError.

    1. The text has exactly the form above.
    2. The checkpoint is signed by a trusted log key.
    3. The leaf's hash is at the index of the tree behind the checkpoint.
    4. The leaf is a record, and names the log that signed.
    """
    index, leaf, proof, note = _parse(receipt)  # 1
    try:
        verified = open_checkpoint(note, verifiers)  # 2
        checkpoint = verified.checkpoint
        verify_inclusion(
            hashed_leaf=leaf_hash(leaf), index=index, size=checkpoint.size, proof=proof, root=checkpoint.root
        )  # 3
        record = parse_leaf(leaf)  # 4
    except LogError as error:
        raise ReceiptError(f"the receipt does not verify: {error}", code=error.code) from error
    except DecodeError as error:
        raise ReceiptError("the receipt's leaf is not a record", code="receipt-leaf") from error
    if record.log != checkpoint.origin:
        raise ReceiptError("the receipt's record belongs to another log", code="receipt-log")
    return VerifiedReceipt(record, leaf, index, checkpoint, note, tuple(proof))


def _parse(receipt: bytes) -> tuple[int, bytes, list[bytes], bytes]:
    malformed = ReceiptError("the receipt is malformed", code="receipt-malformed")
    if len(receipt) > MAX_RECEIPT or not receipt.startswith(_MAGIC):
        raise malformed
    head, blank, note = receipt[len(_MAGIC) :].partition(b"\n\n")
    lines = head.split(b"\n")
    if not blank or not 2 <= len(lines) <= 2 + MAX_PROOF_HASHES:
        raise malformed
    if not lines[0].startswith(b"extra ") or not lines[1].startswith(b"index "):
        raise malformed
    try:
        leaf = base64.b64decode(lines[0][6:], validate=True)
        index = parse_decimal(lines[1][6:].decode("ascii"))
        proof = [base64.b64decode(line, validate=True) for line in lines[2:]]
    except (binascii.Error, ValueError) as error:
        raise malformed from error
    if not leaf or len(leaf) > MAX_LEAF or any(len(item) != HASH_SIZE for item in proof):
        raise malformed
    if build_receipt(index, leaf, proof, note) != receipt:
        raise malformed
    return index, leaf, proof, note
