"""Completions: every field is under the signature, and a record that carries one can rebuild it."""

from __future__ import annotations

import base64
import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import VerificationError
from sealgate.protocol.binding import bind_certificate, bind_token
from sealgate.protocol.completion import (
    MAX_SIGNED_TOGETHER,
    Completion,
    CompletionVerifier,
    Statement,
    sign_completion,
    sign_completions,
    verify_completion,
)
from sealgate.transparency.merkle import inclusion_root, leaf_hash

KEY = Ed25519PrivateKey.generate()
STATEMENT = Statement(
    instance="i",
    seq=1,
    grant="g",
    outcome="completed",
    reason="",
    model="m",
    model_digest="a",
    certificate_digest="b",
    units=3,
    req_commit="c",
    resp_commit="d",
)


def test_a_signed_completion_verifies() -> None:
    assert verify_completion(sign_completion(STATEMENT, KEY), KEY.public_key()) == STATEMENT


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(Statement)])
def test_every_field_is_under_the_signature(name: str) -> None:
    signed = sign_completion(STATEMENT, KEY)
    value = getattr(STATEMENT, name)
    changed = msgspec.structs.replace(STATEMENT, **{name: value + 1 if isinstance(value, int) else value + "x"})
    with pytest.raises(VerificationError):
        verify_completion(Completion(statement=changed, signature=signed.signature), KEY.public_key())


def test_another_key_does_not_verify() -> None:
    with pytest.raises(VerificationError):
        verify_completion(sign_completion(STATEMENT, Ed25519PrivateKey.generate()), KEY.public_key())


@settings(max_examples=200)
@given(st.text(max_size=100))
def test_garbage_signatures_are_one_refusal(text: str) -> None:
    with pytest.raises(VerificationError):
        verify_completion(Completion(statement=STATEMENT, signature=text), KEY.public_key())


def swept(count: int) -> list[Statement]:
    return [msgspec.structs.replace(STATEMENT, seq=number + 1, grant=f"g{number}") for number in range(count)]


def raw_of(completion: Completion) -> bytes:
    return base64.urlsafe_b64decode(completion.signature + "=" * (-len(completion.signature) % 4))


def with_raw(completion: Completion, raw: bytes) -> Completion:
    text = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return Completion(statement=completion.statement, signature=text)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, MAX_SIGNED_TOGETHER, MAX_SIGNED_TOGETHER + 1, 150])
def test_each_completion_of_a_sweep_verifies_without_the_others(count: int) -> None:
    completions = sign_completions(swept(count), KEY)
    assert [verify_completion(one, KEY.public_key()) for one in reversed(completions)] == swept(count)[::-1]
    signatures = {raw_of(one)[:64] for one in completions}
    assert len(signatures) == -(-count // MAX_SIGNED_TOGETHER), "one signature for each so many"
    verifier = CompletionVerifier(KEY.public_key())
    assert [verifier.verify(one) for one in completions] == swept(count)


@pytest.mark.parametrize("count", [2, 3, 7, 33])
def test_the_tree_of_a_sweep_is_that_of_rfc_9162(count: int) -> None:
    """Oracle: the log's own tree, which has the RFC's published vectors."""
    for index, completion in enumerate(sign_completions(swept(count), KEY)):
        raw = raw_of(completion)
        path = [raw[at : at + 32] for at in range(68, len(raw), 32)]
        root = inclusion_root(
            hashed_leaf=leaf_hash(completion.statement.signed_bytes()), index=index, size=count, proof=path
        )
        signed = b"sealgate completions of a sweep v1\x00" + count.to_bytes(4, "big") + root
        KEY.public_key().verify(raw[:64], signed)


def test_no_byte_of_a_swept_signature_may_change() -> None:
    completion = sign_completions(swept(5), KEY)[2]
    raw = raw_of(completion)
    verifier = CompletionVerifier(KEY.public_key())
    verifier.verify(completion)
    for at in range(len(raw)):
        changed = with_raw(completion, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(VerificationError):
            verifier.verify(changed)
    for other in (raw[:64], raw[:-32], raw + bytes(32), raw + b"\0", raw[:66]):
        with pytest.raises(VerificationError):
            verifier.verify(with_raw(completion, other))


def test_a_statement_beside_the_sweep_does_not_ride_on_its_signature() -> None:
    """The verifier has just verified the sweep's root: that must help nobody else."""
    completions = sign_completions(swept(4), KEY)
    verifier = CompletionVerifier(KEY.public_key())
    verifier.verify(completions[0])
    forged = msgspec.structs.replace(completions[1].statement, units=9)
    with pytest.raises(VerificationError):
        verifier.verify(Completion(statement=forged, signature=completions[1].signature))
    with pytest.raises(VerificationError, match="does not hold"):
        verifier.verify(Completion(statement=completions[1].statement, signature=completions[2].signature))
    verifier.verify(completions[3])


def test_a_root_is_no_statement() -> None:
    """A signature over one statement is not one over a sweep, nor the other way round."""
    alone = sign_completion(STATEMENT, KEY)
    inner = hashlib.sha256(b"\x00" + STATEMENT.signed_bytes()).digest()
    for form in (raw_of(alone) + b"\0\0\0\2" + inner, raw_of(alone) + b"\0\0\0\1"):
        with pytest.raises(VerificationError):
            verify_completion(with_raw(alone, form), KEY.public_key())


def test_bindings_of_different_kinds_and_credentials_never_meet() -> None:
    found = {bind_token("a"), bind_token("b"), bind_certificate(b"a"), bind_certificate(b"b")}
    assert len(found) == 4
    assert all(len(binding) == 43 for binding in found)
