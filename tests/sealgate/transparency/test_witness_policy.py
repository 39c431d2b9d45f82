"""Policies: the example of the specification, every rule of the file format, and quorums against a brute force."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.transparency.witness_policy import load_witness_policy, parse_witness_policy

LOG = NoteSigner.from_seed("example.com/log", b"\x07" * 32)
CHECKPOINT = Checkpoint("example.com/log", 5, b"\x05" * 32)
NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
WITNESSES = {
    name: Cosigner(f"{name.lower()}.example/w", Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))
    for number, name in enumerate(NAMES, 1)
}
HEAD = f"log {LOG.vkey}\n" + "".join(f"witness {name} {one.public.vkey}\n" for name, one in WITNESSES.items())
EXAMPLE = f"""
# The example of the specification.
{HEAD}
group X-witnesses 2 X1 X2 X3
group\tY-witnesses  any Y1 Y2 Y3
group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def note(*names: str) -> bytes:
    lines = (WITNESSES[name].cosign(CHECKPOINT, timestamp_s=1) for name in names)
    return sign_checkpoint(CHECKPOINT, LOG) + b"".join(lines)


@pytest.mark.parametrize("names", [tuple(c) for n in range(7) for c in itertools.combinations(NAMES, n)])
def test_the_quorum_of_the_example(names: tuple[str, ...]) -> None:
    policy = parse_witness_policy(EXAMPLE.encode())
    enough = sum(name[0] == "X" for name in names) >= 2 and any(name[0] == "Y" for name in names)
    if enough:
        assert {one.key for one in policy.require_witnessed(note(*names)).cosignatures} == {
            WITNESSES[name].public for name in names
        }
    else:
        with pytest.raises(LogError, match="X-and-Y") as raised:
            policy.require_witnessed(note(*names))
        assert raised.value.code == "no-quorum"


def test_one_bad_cosignature_of_a_known_witness_refuses_the_note() -> None:
    policy = parse_witness_policy(EXAMPLE.encode())
    other = Checkpoint("example.com/log", 6, b"\x06" * 32)
    with pytest.raises(LogError, match="does not hold"):
        policy.require_witnessed(note("X1", "X2", "Y1") + WITNESSES["X3"].cosign(other, timestamp_s=1))


def test_a_quorum_does_not_stand_for_the_logs_signature() -> None:
    stranger = NoteSigner.from_seed("example.com/log", b"\x70" * 32)
    lines = b"".join(one.cosign(CHECKPOINT, timestamp_s=1) for one in WITNESSES.values())
    with pytest.raises(LogError, match="no trusted key"):
        parse_witness_policy(EXAMPLE.encode()).require_witnessed(sign_checkpoint(CHECKPOINT, stranger) + lines)


def test_none_asks_for_no_witness_and_further_logs_may_be_named() -> None:
    policy = parse_witness_policy(b"quorum none\n")
    assert policy.require_witnessed(note(), logs=(LOG.verifier,)).cosignatures == ()
    with pytest.raises(LogError):
        policy.require_witnessed(note())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs a quorum line"),
        (HEAD, "needs a quorum line"),
        ("quorum none\nquorum none\n", "line 2: there may be one quorum line only"),
        ("quorum X1\n", "line 1: 'X1' is not defined above"),
        (f"{HEAD}{HEAD}quorum none\n", "key is there twice"),
        (f"{HEAD}witness X9 {WITNESSES['X1'].public.vkey}\nquorum none\n", "would count as two"),
        (f"{HEAD}group X1 any X2\nquorum none\n", "the name 'X1' is taken"),
        (f"{HEAD}group none any X2\nquorum none\n", "the name 'none' is taken"),
        (f"{HEAD}group g any none\nquorum g\n", "'none' is not defined"),
        (f"{HEAD}group g 3 X1 X2\nquorum g\n", "from 1 to 2"),
        (f"{HEAD}group g 0 X1 X2\nquorum g\n", "from 1 to 2"),
        (f"{HEAD}group g 01 X1 X2\nquorum g\n", "from 1 to 2"),
        (f"{HEAD}group g any\nquorum g\n", "not one of"),
        (f"{HEAD}group g any h\ngroup h any X1\nquorum g\n", "'h' is not defined above"),
        (f"{HEAD}group g any X1\ngroup h any X1\nquorum g\n", "a member twice"),
        (f"{HEAD}Quorum X1\n", "not one of"),
        (f"log {WITNESSES['X1'].public.vkey}\nquorum none\n", "line 1"),
        (f"witness w {LOG.vkey}\nquorum none\n", "line 1"),
        ("quorum\rnone\n", "control character"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match="witness policy") as raised:
        parse_witness_policy(text.encode())
    assert says in str(raised.value)


@given(st.binary(max_size=200))
def test_garbage_is_a_configuration_error(data: bytes) -> None:
    try:
        parse_witness_policy(data)
    except ConfigurationError:
        return
    assert b"quorum" in data


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_witness_policy(tmp_path / "none")
    (tmp_path / "policy").write_text(EXAMPLE)
    assert load_witness_policy(tmp_path / "policy").quorum == "X-and-Y"
