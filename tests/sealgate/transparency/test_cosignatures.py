"""Cosignatures: the exact bytes of the specification, checked by building them here a second time, by hand."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency.cosignatures import Cosigner, CosignerKey, verify_cosignatures
from sealgate.transparency.notes import Checkpoint, NoteSigner, open_checkpoint, sign_checkpoint

ORIGIN = "example.com/behind-the-sofa"
ROOT = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
CHECKPOINT = Checkpoint(ORIGIN, 20852163, ROOT)
LOG = NoteSigner.from_seed(ORIGIN, b"\x07" * 32)
ED25519 = Cosigner("witness.example.com/w1", Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))
ML_DSA = Cosigner("witness.example.com/w1", MLDSA44PrivateKey.from_seed_bytes(b"\x09" * 32))
BOTH = pytest.mark.parametrize("cosigner", [ED25519, ML_DSA], ids=["ed25519", "ml-dsa-44"])
TIME_S = 1679315147


def cosigned(*cosigners: Cosigner, checkpoint: Checkpoint = CHECKPOINT, at: int = TIME_S) -> bytes:
    return sign_checkpoint(checkpoint, LOG) + b"".join(one.cosign(checkpoint, timestamp_s=at) for one in cosigners)


def blob_of(line: bytes) -> bytes:
    return base64.b64decode(line.decode().split(" ")[2])


def test_the_ed25519_message_is_that_of_the_specification() -> None:
    blob = blob_of(ED25519.cosign(CHECKPOINT, timestamp_s=TIME_S))
    name, public = ED25519.public.name.encode(), ED25519.public.public_key
    assert blob[:4] == hashlib.sha256(name + b"\n\x04" + public).digest()[:4]
    assert blob[4:12] == TIME_S.to_bytes(8, "big")
    message = (
        b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )
    Ed25519PrivateKey.from_private_bytes(b"\x08" * 32).public_key().verify(blob[12:], message)
    assert len(blob) == 4 + 8 + 64


def test_the_ml_dsa_message_is_that_of_the_specification() -> None:
    blob = blob_of(ML_DSA.cosign(CHECKPOINT, timestamp_s=TIME_S))
    name, public = ML_DSA.public.name.encode(), ML_DSA.public.public_key
    assert blob[:4] == hashlib.sha256(name + b"\n\x06" + public).digest()[:4]
    message = (
        b"subtree/v1\n\x00"
        + b"\x16witness.example.com/w1"
        + bytes.fromhex("0000000064185 0cb".replace(" ", ""))
        + b"\x1bexample.com/behind-the-sofa"
        + bytes(8)
        + bytes.fromhex("00000000013e2dc3")
        + ROOT
    )
    MLDSA44PrivateKey.from_seed_bytes(b"\x09" * 32).public_key().verify(blob[12:], message)
    assert len(blob) == 4 + 8 + 2420


def test_both_kinds_on_one_note_and_the_logs_own_signature_still_holds() -> None:
    note = cosigned(ED25519, ML_DSA)
    found = verify_cosignatures(note, [ED25519.public, ML_DSA.public])
    assert [(one.key, one.timestamp_s) for one in found] == [(ED25519.public, TIME_S), (ML_DSA.public, TIME_S)]
    assert open_checkpoint(note, [LOG.verifier]).checkpoint == CHECKPOINT


@BOTH
def test_unknown_witnesses_are_passed_over(cosigner: Cosigner) -> None:
    stranger = Cosigner("stranger.example/w", Ed25519PrivateKey.generate())
    assert verify_cosignatures(cosigned(cosigner), [stranger.public]) == ()


@BOTH
def test_the_newest_word_of_a_witness_counts(cosigner: Cosigner) -> None:
    note = cosigned(cosigner, at=TIME_S + 5) + cosigner.cosign(CHECKPOINT, timestamp_s=TIME_S)
    assert [one.timestamp_s for one in verify_cosignatures(note, [cosigner.public])] == [TIME_S + 5]


@BOTH
@pytest.mark.parametrize("other", [Checkpoint(ORIGIN, 20852164, ROOT), Checkpoint(ORIGIN, 20852163, bytes(32))])
def test_a_cosignature_of_another_tree_does_not_count(cosigner: Cosigner, other: Checkpoint) -> None:
    note = sign_checkpoint(CHECKPOINT, LOG) + cosigner.cosign(other, timestamp_s=TIME_S)
    with pytest.raises(LogError, match="does not hold"):
        verify_cosignatures(note, [cosigner.public])


@BOTH
@given(place=st.integers(4, 75), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_cosignature_is_noticed(cosigner: Cosigner, place: int, bit: int) -> None:
    line = cosigner.cosign(CHECKPOINT, timestamp_s=TIME_S)
    blob = bytearray(blob_of(line))
    blob[place] ^= 1 << bit
    altered = f"\u2014 {cosigner.public.name} {base64.b64encode(bytes(blob)).decode()}\n".encode()
    with pytest.raises(LogError):
        verify_cosignatures(sign_checkpoint(CHECKPOINT, LOG) + altered, [cosigner.public])


def test_a_witness_of_that_name_with_another_key_says_nothing() -> None:
    other = Cosigner(ML_DSA.public.name, MLDSA44PrivateKey.generate())
    assert verify_cosignatures(cosigned(other), [ML_DSA.public]) == ()


def test_an_ml_dsa_cosignature_names_its_witness_so_it_cannot_be_moved_to_another_name() -> None:
    twin = CosignerKey("other.example/w", ML_DSA.public.kind, ML_DSA.public.public_key)
    blob = blob_of(ML_DSA.cosign(CHECKPOINT, timestamp_s=TIME_S))
    moved = f"\u2014 {twin.name} {base64.b64encode(twin.key_id + blob[4:]).decode()}\n".encode()
    with pytest.raises(LogError):
        verify_cosignatures(sign_checkpoint(CHECKPOINT, LOG) + moved, [twin])


@BOTH
def test_a_logs_signature_is_no_cosignature_and_no_key_of_one(cosigner: Cosigner) -> None:
    with pytest.raises(ConfigurationError):
        CosignerKey.parse(LOG.vkey)
    with pytest.raises(LogError):
        open_checkpoint(cosigned(cosigner), [NoteSigner.from_seed("other", b"\x01" * 32).verifier])


@BOTH
def test_keys_travel_as_text(cosigner: Cosigner) -> None:
    assert CosignerKey.parse(cosigner.public.vkey) == cosigner.public
    with pytest.raises(ConfigurationError):
        CosignerKey.parse(cosigner.public.vkey[:-8] + "AAAAAAA=")


@BOTH
@pytest.mark.parametrize("at", [0, -1, 2**63])
def test_a_cosignature_needs_a_time(cosigner: Cosigner, at: int) -> None:
    with pytest.raises(LogError):
        cosigner.cosign(CHECKPOINT, timestamp_s=at)
