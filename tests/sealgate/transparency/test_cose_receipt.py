"""COSE Receipts: verified by two libraries that are not ours (`scitt-cose` as a whole, `cwt` the signature), and
refused by all of us when anything in them is changed."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.errors import LogError, ReceiptError
from sealgate.transparency.cose_receipt import build_cose_receipt, reissue, same_proof, verify_cose_receipt
from sealgate.transparency.merkle import inclusion_proof, leaf_hash, root_of
from sealgate.transparency.notes import Checkpoint, NoteSigner, open_checkpoint, sign_checkpoint, split_note
from sealgate.transparency.published import sign_root
from sealgate.transparency.receipt import build_receipt, verify_receipt


def pem_of(log: Any) -> bytes:
    key = Ed25519PublicKey.from_public_bytes(log.signer.verifier.public_key)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def made(log: Any, index: int) -> bytes:
    return build_cose_receipt(index=index, proof=path(log, index), note=published(log), verifiers=[log.signer.verifier])


def published(log: Any) -> bytes:
    return sign_root(log.checkpoint(), log.signer)


def path(log: Any, index: int) -> list[bytes]:
    return inclusion_proof(index, len(log.leaves), log._source()[1])


def test_every_record_has_one_that_verifies(log: Any) -> None:
    for index, leaf in enumerate(log.leaves):
        verified = verify_cose_receipt(made(log, index), leaf, [log.signer.verifier])
        assert (verified.index, verified.size) == (index, len(log.leaves))
        assert (verified.record, verified.origin) == (log.records[index], log.origin)


def test_an_independent_verifier_accepts_it_and_refuses_another_leaf(log: Any) -> None:
    scitt = pytest.importorskip("scitt_cose", reason="SKIPPED FOR WANT OF scitt-cose: pip install 'sealgate[dev]'")
    pem = pem_of(log)
    for index, leaf in enumerate(log.leaves):
        receipt = made(log, index)
        result = scitt.verify_receipt(receipt, leaf_entry_hex=leaf.hex(), log_public_key_pem=pem)
        assert result.ok, result.errors
        assert (result.tree_size, result.leaf_index) == (len(log.leaves), index)
        assert result.root == root_of(map(leaf_hash, log.leaves)).hex()
        assert result.issuer == log.origin
        other = log.leaves[index - 1]
        assert not scitt.verify_receipt(receipt, leaf_entry_hex=other.hex(), log_public_key_pem=pem).ok
        for at in range(0, len(receipt), 3):
            changed = receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :]
            assert not scitt.verify_receipt(changed, leaf_entry_hex=leaf.hex(), log_public_key_pem=pem).ok


def test_a_cose_library_verifies_the_signature_over_the_root(log: Any) -> None:
    cwt = pytest.importorskip("cwt", reason="SKIPPED FOR WANT OF cwt: pip install 'sealgate[dev]'")
    key = cwt.COSEKey.from_pem(pem_of(log), kid=log.signer.verifier.key_id)
    root = root_of(map(leaf_hash, log.leaves))
    cose = cwt.COSE.new(verify_kid=True)
    assert cose.decode(made(log, 2), key, detached_payload=root) == root
    with pytest.raises(cwt.VerifyError):
        cose.decode(made(log, 2), key, detached_payload=bytes(32))


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_changed_byte_and_no_cut_passes(log: Any, data: st.DataObject) -> None:
    """But for what the signature does not cover: which place of which tree a path of that shape was said to be of."""
    receipt, keys = made(log, 3), [log.signer.verifier]
    at = data.draw(st.integers(0, len(receipt) - 1))
    changed = receipt[:at] + bytes([receipt[at] ^ data.draw(st.integers(1, 255))]) + receipt[at + 1 :]
    for bad in (changed, receipt[:at], receipt + b"\0", receipt[at:]):
        if bad == receipt:
            continue
        try:
            verified = verify_cose_receipt(bad, log.leaves[3], keys)
        except ReceiptError:
            continue
        assert unplaced(bad) == unplaced(receipt)
        assert (verified.leaf, verified.origin) == (log.leaves[3], log.origin)


def unplaced(receipt: bytes) -> Any:
    """The receipt without index and size."""
    protected, unprotected, payload, signature = cbor2.loads(receipt).value
    return protected, cbor2.loads(unprotected[396][-1][0])[2], payload, signature


def test_a_path_of_one_shape_may_be_said_to_be_of_another_place(log: Any) -> None:
    """What the guide says that a COSE receipt does not prove; beside the other receipt it is refused."""
    keys = [log.signer.verifier]
    protected, unprotected, payload, signature = cbor2.loads(made(log, 3)).value
    size, index, path = cbor2.loads(unprotected[396][-1][0])
    elsewhere = cbor2.dumps([size + 2, index, path])
    moved = cbor2.dumps(cbor2.CBORTag(18, [protected, {396: {-1: [elsewhere]}}, payload, signature]))
    verified = verify_cose_receipt(moved, log.leaves[3], keys)
    assert (verified.leaf, verified.size) == (log.leaves[3], size + 2)
    with pytest.raises(ReceiptError, match="another tree"):
        same_proof(moved, verify_receipt(log.receipt(3), keys), keys)


@given(garbage=st.binary(max_size=80))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_a_refusal(log: Any, garbage: bytes) -> None:
    with pytest.raises(ReceiptError):
        verify_cose_receipt(garbage, log.leaves[0], [log.signer.verifier])


def test_forms_that_are_not_the_one(log: Any) -> None:
    protected, unprotected, payload, signature = cbor2.loads(made(log, 3)).value
    inclusion = unprotected[396][-1][0]
    size, index, path = cbor2.loads(inclusion)
    root = root_of(map(leaf_hash, log.leaves))
    spoiled: list[Any] = [
        [protected, unprotected, root, signature],
        [protected, unprotected | {4: b"x"}, payload, signature],
        [protected, {396: {-1: [inclusion, inclusion]}}, payload, signature],
        [protected, {396: {-2: [inclusion]}}, payload, signature],
        [protected, {396: {-1: [cbor2.dumps([size, index, path[:-1]])]}}, payload, signature],
        [protected, {396: {-1: [cbor2.dumps([size, index, [*path, bytes(32)]])]}}, payload, signature],
        [protected, {396: {-1: [cbor2.dumps([size, index + 1, path])]}}, payload, signature],
        [protected, {396: {-1: [cbor2.dumps([True, False, []])]}}, payload, signature],
        [protected, {}, payload, signature],
        [cbor2.dumps({1: -8, 395: 1}), unprotected, payload, signature],
    ]
    for parts in spoiled:
        with pytest.raises(ReceiptError):
            verify_cose_receipt(cbor2.dumps(cbor2.CBORTag(18, parts)), log.leaves[3], [log.signer.verifier])
    with pytest.raises(ReceiptError):
        verify_cose_receipt(cbor2.dumps([protected, unprotected, payload, signature]), log.leaves[3], [])


def test_only_a_trusted_key_of_that_log_counts(log: Any) -> None:
    receipt = made(log, 1)
    other = NoteSigner.from_seed(log.origin, b"\x09" * 32)
    elsewhere = NoteSigner.from_seed("elsewhere/log", b"\x01" * 32)
    for keys in ([], [other.verifier], [elsewhere.verifier]):
        with pytest.raises(ReceiptError):
            verify_cose_receipt(receipt, log.leaves[1], keys)


def test_a_note_without_the_line_makes_none(log: Any) -> None:
    note, bare, proof = published(log), log.checkpoint(), path(log, 1)
    _, lines = split_note(note)
    assert len(lines) == 2
    keys = [log.signer.verifier]
    with pytest.raises(LogError) as caught:
        build_cose_receipt(index=1, proof=proof, note=bare, verifiers=keys)
    assert caught.value.code == "checkpoint-no-cose"
    swapped = note.replace(lines[1].encode(), log_line_of(log, bytes(32)).rstrip(b"\n"))
    with pytest.raises(LogError) as caught:
        build_cose_receipt(index=1, proof=proof, note=swapped, verifiers=keys)
    assert caught.value.code == "cose-signature"


def log_line_of(log: Any, root: bytes) -> bytes:
    line: bytes = log.signer.sign_root_line(root)
    return line


def test_the_line_for_cose_never_stands_for_the_notes_signature(log: Any) -> None:
    text, lines = split_note(published(log))
    with pytest.raises(LogError):
        open_checkpoint(text + b"\n" + lines[1].encode() + b"\n", [log.signer.verifier])


def plain(log: Any, index: int) -> bytes:
    return build_receipt(index, log.leaves[index], path(log, index), log.checkpoint())


def test_the_log_makes_one_of_its_own_receipt_which_others_verify(log: Any) -> None:
    scitt = pytest.importorskip("scitt_cose", reason="SKIPPED FOR WANT OF scitt-cose: pip install 'sealgate[dev]'")
    keys = [log.signer.verifier]
    for index, leaf in enumerate(log.leaves):
        receipt = plain(log, index)
        cose = reissue(receipt, log.signer)
        assert cose == made(log, index)
        assert scitt.verify_receipt(cose, leaf_entry_hex=leaf.hex(), log_public_key_pem=pem_of(log)).ok
        assert same_proof(cose, verify_receipt(receipt, keys), keys).record == log.records[index]
        other = verify_receipt(plain(log, (index + 1) % len(log.leaves)), keys)
        with pytest.raises(ReceiptError):
            same_proof(cose, other, keys)


def test_no_root_is_signed_that_the_key_did_not_sign_as_a_checkpoints(log: Any) -> None:
    receipt = plain(log, 1)
    for signer in (NoteSigner.from_seed(log.origin, b"\x09" * 32), NoteSigner.from_seed("elsewhere/log", b"\x01" * 32)):
        with pytest.raises(ReceiptError):
            reissue(receipt, signer)
    for at in range(0, len(receipt), 7):
        changed = receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :]
        with pytest.raises(ReceiptError):
            reissue(changed, log.signer)


def test_a_receipt_of_the_same_record_in_another_tree_is_another(log: Any) -> None:
    keys, size = [log.signer.verifier], len(log.leaves) - 1
    smaller = Checkpoint(log.origin, size, root_of(map(leaf_hash, log.leaves[:size])))
    proof = inclusion_proof(
        0, size, lambda level, at: root_of(map(leaf_hash, log.leaves[at << level : (at + 1) << level]))
    )
    before = build_receipt(0, log.leaves[0], proof, sign_checkpoint(smaller, log.signer))
    with pytest.raises(ReceiptError) as caught:
        same_proof(made(log, 0), verify_receipt(before, keys), keys)
    assert caught.value.code == "receipt-other"
