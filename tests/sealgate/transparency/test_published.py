"""Published checkpoints carry two signatures: neither can be taken away, exchanged, or taken for the other."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import Checkpoint, NoteSigner, open_checkpoint, sign_checkpoint
from sealgate.transparency.published import open_published, parse_mldsa_log_key, sign_published, strength

ORIGIN = "example.com/log"
SIGNER = NoteSigner.from_seed(ORIGIN, b"\x01" * 32)
MLDSA = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))
CHECKPOINT = Checkpoint(ORIGIN, 7, b"\x05" * 32)
NOTE = sign_checkpoint(CHECKPOINT, SIGNER)
PUBLISHED = sign_published(NOTE, MLDSA, timestamp_s=1_790_000_000)
KEYS = [SIGNER.verifier]


def lines(note: bytes) -> tuple[bytes, list[bytes]]:
    text, _, signatures = note.partition(b"\n\n")
    return text + b"\n\n", signatures.splitlines(keepends=True)


def test_both_signatures_hold_and_whoever_knows_one_key_only_reads_it_too() -> None:
    assert open_published(PUBLISHED, KEYS, [MLDSA.public]).checkpoint == CHECKPOINT
    assert open_published(PUBLISHED, KEYS).checkpoint == CHECKPOINT
    assert open_checkpoint(PUBLISHED, KEYS).checkpoint == CHECKPOINT
    assert strength(ORIGIN, [MLDSA.public]) == "Ed25519 and ML-DSA-44"
    assert strength(ORIGIN, []) == strength("example.com/else", [MLDSA.public]) == "Ed25519 only"


def test_neither_can_be_taken_away_where_both_keys_are_trusted() -> None:
    text, (ed25519, mldsa) = lines(PUBLISHED)
    with pytest.raises(LogError) as caught:
        open_published(text + ed25519, KEYS, [MLDSA.public])
    assert caught.value.code == "checkpoint-mldsa"
    with pytest.raises(LogError) as caught:
        open_published(text + mldsa, KEYS, [MLDSA.public])
    assert caught.value.code == "checkpoint-unsigned"


def test_a_log_without_that_key_is_taken_as_it_is() -> None:
    other = Cosigner("example.com/else", MLDSA44PrivateKey.from_seed_bytes(b"\x06" * 32))
    assert open_published(NOTE, KEYS, [other.public]).checkpoint == CHECKPOINT


def test_a_stranger_under_the_logs_name_does_not_count() -> None:
    stranger = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x07" * 32))
    with pytest.raises(LogError) as caught:
        open_published(sign_published(NOTE, stranger, timestamp_s=1), KEYS, [MLDSA.public])
    assert caught.value.code == "checkpoint-mldsa"


@pytest.mark.parametrize("other", [Checkpoint(ORIGIN, 8, CHECKPOINT.root), Checkpoint(ORIGIN, 7, b"\x09" * 32)])
def test_the_line_of_another_tree_does_not_hold(other: Checkpoint) -> None:
    _, (_, mldsa) = lines(sign_published(sign_checkpoint(other, SIGNER), MLDSA, timestamp_s=1))
    with pytest.raises(LogError) as caught:
        open_published(NOTE + mldsa, KEYS, [MLDSA.public])
    assert caught.value.code == "cosignature"


def test_a_log_publishes_under_its_own_name_with_a_key_of_that_kind() -> None:
    for cosigner in (
        Cosigner("example.com/else", MLDSA44PrivateKey.generate()),
        Cosigner(ORIGIN, Ed25519PrivateKey.generate()),
    ):
        with pytest.raises(LogError):
            sign_published(NOTE, cosigner, timestamp_s=1)


def test_the_text_form_is_read_back_and_nothing_else_is() -> None:
    assert parse_mldsa_log_key(MLDSA.public.vkey) == MLDSA.public
    for vkey in (SIGNER.vkey, Cosigner(ORIGIN, Ed25519PrivateKey.generate()).public.vkey, MLDSA.public.vkey[:-4]):
        with pytest.raises(ConfigurationError):
            parse_mldsa_log_key(vkey)
