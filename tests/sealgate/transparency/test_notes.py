"""Signed notes and checkpoints: the published example of Go's note package, strictness, and who may sign for whom."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, LogError
from sealgate.protocol.secrets import Secret
from sealgate.transparency.notes import (
    Checkpoint,
    NoteSigner,
    NoteVerifier,
    open_checkpoint,
    parse_decimal,
    sign_checkpoint,
)

ORIGIN = "example.com/log"
SIGNER = NoteSigner.from_seed(ORIGIN, Secret(b"\x07" * 32))
OTHER = NoteSigner.from_seed("other.example/log", b"\x08" * 32)
CHECKPOINT = Checkpoint(ORIGIN, 42, b"\x09" * 32)
NOTE = sign_checkpoint(CHECKPOINT, SIGNER)

# The example key pair and note of golang.org/x/mod/sumdb/note.
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_LINE = (
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_published_key_and_signature() -> None:
    signer = NoteSigner.from_seed("PeterNeumann", GO_SEED)
    assert signer.vkey == GO_VKEY
    assert NoteVerifier.parse(GO_VKEY) == signer.verifier
    assert signer.sign_line(GO_TEXT).decode() == GO_LINE


def test_a_checkpoint_round_trips() -> None:
    verified = open_checkpoint(NOTE, [SIGNER.verifier])
    assert verified.checkpoint == CHECKPOINT
    assert verified.signers == (ORIGIN,)
    assert NOTE.startswith(b"example.com/log\n42\n")


def test_pem_and_seed_are_the_same_key() -> None:
    pem = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    assert NoteSigner.from_pem(ORIGIN, pem).vkey == SIGNER.vkey
    for bad in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(ConfigurationError):
            NoteSigner.from_pem(ORIGIN, bad)


def test_signatures_of_strangers_are_ignored_and_do_not_help() -> None:
    text = CHECKPOINT.text()
    both = text + b"\n" + OTHER.sign_line(text) + SIGNER.sign_line(text)
    assert open_checkpoint(both, [SIGNER.verifier]).checkpoint == CHECKPOINT
    only_stranger = text + b"\n" + OTHER.sign_line(text)
    with pytest.raises(LogError) as caught:
        open_checkpoint(only_stranger, [SIGNER.verifier])
    assert caught.value.code == "checkpoint-unsigned"


def test_one_log_cannot_sign_for_another() -> None:
    """Both keys are trusted, each for its own origin only."""
    text = CHECKPOINT.text()
    with pytest.raises(LogError):
        open_checkpoint(text + b"\n" + OTHER.sign_line(text), [SIGNER.verifier, OTHER.verifier])
    with pytest.raises(LogError):
        sign_checkpoint(CHECKPOINT, OTHER)


def test_a_bad_signature_of_a_known_key_refuses_the_note() -> None:
    text = CHECKPOINT.text()
    wrong = SIGNER.sign_line(b"something else\n")
    with pytest.raises(LogError) as caught:
        open_checkpoint(text + b"\n" + SIGNER.sign_line(text) + wrong, [SIGNER.verifier])
    assert caught.value.code == "checkpoint-signature"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(NOTE) * 8 - 1))
def test_no_bit_can_change(bit: int) -> None:
    changed = bytearray(NOTE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LogError):
        open_checkpoint(bytes(changed), [SIGNER.verifier])


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
def test_garbage_is_a_typed_refusal(data: bytes) -> None:
    for note in (data, CHECKPOINT.text() + data, CHECKPOINT.text() + b"\n" + data):
        with pytest.raises(LogError):
            open_checkpoint(note, [SIGNER.verifier])


@pytest.mark.parametrize(
    "text",
    [
        b"example.com/log\n042\n" + base64.b64encode(b"\x09" * 32) + b"\n",
        b"example.com/log\n+42\n" + base64.b64encode(b"\x09" * 32) + b"\n",
        b"example.com/log\n42\n" + base64.b64encode(b"\x09" * 31) + b"\n",
        b"example.com/log\n42\n" + base64.b64encode(b"\x09" * 32) + b"\nextension\n",
        b"example.com/log\n42\n",
        b"\n42\n" + base64.b64encode(b"\x09" * 32) + b"\n",
        b"example.com/log\n" + b"9" * 40 + b"\n" + base64.b64encode(b"\x09" * 32) + b"\n",
    ],
)
def test_signed_but_malformed_text_is_refused(text: bytes) -> None:
    with pytest.raises(LogError):
        open_checkpoint(text + b"\n" + SIGNER.sign_line(text), [SIGNER.verifier])


@pytest.mark.parametrize(
    "note", [NOTE + NOTE.split(b"\n\n")[1] * 40, b"x" * 70_000, NOTE[:-1], NOTE + b"\n", NOTE + b"x"]
)
def test_bounds_and_framing(note: bytes) -> None:
    with pytest.raises(LogError):
        open_checkpoint(note, [SIGNER.verifier])


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "a+b",
        "a+00000000+AAAA",
        SIGNER.vkey[:-4] + "AAAA",
        SIGNER.vkey.replace("example", "exbmple"),
        "a b+1+c",
        "+1+c",
    ],
)
def test_damaged_keys_are_configuration_errors(vkey: str) -> None:
    with pytest.raises(ConfigurationError):
        NoteVerifier.parse(vkey)


@pytest.mark.parametrize("name", ["", "with space", "with+plus", "tab\t", "\u2003", "x" * 300, "new\nline"])
def test_names_that_a_note_cannot_carry(name: str) -> None:
    with pytest.raises(ConfigurationError):
        NoteSigner.from_seed(name, b"\x01" * 32)


@pytest.mark.parametrize("text", ["", "01", "-1", "1 ", "\u0661", "9" * 20, str(2**62 + 1)])
def test_decimals_have_one_form(text: str) -> None:
    with pytest.raises(ValueError):
        parse_decimal(text)
