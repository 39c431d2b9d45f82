"""COSE Receipts (RFC 9942): the proof of inclusion in a form that other transparency services' tools verify.

    18([ {1: -8, 4: kid, 15: {1: origin}, 395: 1}, {396: {-1: [<<[size, index, [hash, ...]]>>]}}, nil, signature ])

A COSE_Sign1 whose detached payload is the root; the reader works the root out from the leaf and the path. It carries no
leaf, and no signature over the tree's size: a C2SP receipt (`receipt`) says more. Anybody makes one from a checkpoint
that the log published (`published.sign_root`); the log itself also from a C2SP receipt that it just gave (`reissue`).

Trusts: the verifier keys it is given. Never: opens anything but one canonical form; accepts two proofs in one receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealgate.errors import DecodeError, LogError, ReceiptError
from sealgate.limits import MAX_PROOF_HASHES, MAX_RECEIPT
from sealgate.protocol import cbor
from sealgate.transparency.cose_root import INCLUSION, VDP, parse_issuer, protected_header, root_message
from sealgate.transparency.merkle import HASH_SIZE, inclusion_root, leaf_hash
from sealgate.transparency.notes import (
    NoteSigner,
    NoteVerifier,
    open_checkpoint,
    parse_signature_line,
    split_note,
    verifiers_of,
)
from sealgate.transparency.published import sign_root
from sealgate.transparency.receipt import VerifiedReceipt, verify_receipt
from sealgate.transparency.record import Record, parse_leaf

MEDIA_TYPE = "application/cose"
COSE_SIGN1 = b"\xd2"  # how every COSE Receipt begins: tag 18
_SIGN1 = 18


@dataclass(frozen=True)
class VerifiedCoseReceipt:
    """A record that a trusted log key vouches to hold. `index` and `size` are what the path was said to be of: the
    signature covers the root alone, and paths to other places of other trees can look the same. It does not prove what
    the record says of a request."""

    record: Record
    leaf: bytes
    index: int
    size: int
    origin: str


def build_cose_receipt(*, index: int, proof: Sequence[bytes], note: bytes, verifiers: Sequence[NoteVerifier]) -> bytes:
    """Out of a checkpoint's note and the path to a record in its tree. Raises LogError if the note is not by a trusted
    key, or carries no signature for COSE Receipts (only published ones do, and not those of earlier releases)."""
    checkpoint = open_checkpoint(note, verifiers).checkpoint
    key, signature = _root_signature(note, verifiers_of(checkpoint.origin, verifiers))
    inclusion = cbor.encode([checkpoint.size, index, list(proof)])
    parts: list[cbor.Value] = [protected_header(key.name, key.key_id), {VDP: {INCLUSION: [inclusion]}}, None, signature]
    return cbor.encode(cbor.Tag(_SIGN1, parts))


def reissue(receipt: bytes, signer: NoteSigner) -> bytes:
    """The log's own C2SP receipt as a COSE Receipt. Signs no root that this very key did not sign as a checkpoint's.
    Raises ReceiptError for a receipt of another log or key."""
    verified = verify_receipt(receipt, [signer.verifier])
    note = sign_root(verified.note, signer.under(verified.checkpoint.origin))
    return build_cose_receipt(index=verified.index, proof=verified.proof, note=note, verifiers=[signer.verifier])


def same_proof(receipt: bytes, proven: VerifiedReceipt, verifiers: Sequence[NoteVerifier]) -> VerifiedCoseReceipt:
    """That a COSE Receipt proves what a C2SP receipt does: the same record, place and tree; raises ReceiptError."""
    verified = verify_cose_receipt(receipt, proven.leaf, verifiers)
    tree = (proven.index, proven.checkpoint.size, proven.checkpoint.origin)
    if (verified.index, verified.size, verified.origin) != tree:
        raise ReceiptError("the COSE receipt is of another tree than the receipt", code="receipt-other")
    return verified


def verify_cose_receipt(receipt: bytes, leaf: bytes, verifiers: Sequence[NoteVerifier]) -> VerifiedCoseReceipt:
    """The record in `leaf`, which the receipt proves to be logged under a trusted key; raises ReceiptError.

    1. The bytes have exactly the form above, under the header of a trusted key.
    2. Leaf and path lead to a root.
    3. That key signed the root.
    4. The leaf is a record, and names the log that signed.
    """
    protected, size, index, path, signature = _parse(receipt)  # 1
    named = verifiers_of(parse_issuer(protected), verifiers)
    verifier = next((one for one in named if protected_header(one.name, one.key_id) == protected), None)
    if verifier is None:
        raise ReceiptError("the COSE receipt is not by a trusted key of a log", code="receipt-key")
    try:
        root = inclusion_root(hashed_leaf=leaf_hash(leaf), index=index, size=size, proof=path)  # 2
        _require_signed(verifier, root, signature)  # 3
        record = parse_leaf(leaf)  # 4
    except LogError as error:
        raise ReceiptError(f"the COSE receipt does not verify: {error}", code=error.code) from error
    except DecodeError as error:
        raise ReceiptError("the COSE receipt's leaf is not a record", code="receipt-leaf") from error
    if record.log != verifier.name:
        raise ReceiptError("the COSE receipt's record belongs to another log", code="receipt-log")
    return VerifiedCoseReceipt(record, leaf, index, size, verifier.name)


def _root_signature(note: bytes, keys: Sequence[NoteVerifier]) -> tuple[NoteVerifier, bytes]:
    root = open_checkpoint(note, keys).checkpoint.root
    by_id = {(key.name, key.cose_line_id): key for key in keys}
    for line in split_note(note)[1]:
        name, key_id, signature = parse_signature_line(line)
        key = by_id.get((name, key_id))
        if key is not None:
            _require_signed(key, root, signature)
            return key, signature
    raise LogError("the checkpoint carries no signature for COSE receipts", code="checkpoint-no-cose")


def _require_signed(key: NoteVerifier, root: bytes, signature: bytes) -> None:
    try:
        public = Ed25519PublicKey.from_public_bytes(key.public_key)
        public.verify(signature, root_message(key.name, key.key_id, root))
    except (InvalidSignature, ValueError) as error:
        raise LogError("the log's signature over the root does not hold", code="cose-signature") from error


def _parse(receipt: bytes) -> tuple[bytes, int, int, list[bytes], bytes]:
    """Protected header, tree size, index, path and signature."""
    malformed = ReceiptError("the COSE receipt is malformed", code="receipt-malformed")
    try:
        match cbor.decode(receipt, limit=MAX_RECEIPT):
            case cbor.Tag(number=18, value=[bytes(protected), dict(unprotected), None, bytes(signature)]):
                pass
            case _:
                raise malformed
        proofs = unprotected.get(VDP)
        if len(unprotected) != 1 or not isinstance(proofs, dict) or set(proofs) != {INCLUSION}:
            raise malformed
        match proofs[INCLUSION]:
            case [bytes(encoded)]:
                pass
            case _:
                raise malformed
        match cbor.decode(encoded, limit=MAX_RECEIPT):
            case [int(size), int(index), list(path)] if not isinstance(size, bool) and not isinstance(index, bool):
                pass
            case _:
                raise malformed
    except DecodeError as error:
        raise malformed from error
    hashes = [item for item in path if isinstance(item, bytes) and len(item) == HASH_SIZE]
    if len(hashes) != len(path) or len(path) > MAX_PROOF_HASHES:
        raise malformed
    return protected, size, index, hashes, signature
