"""Completions: every field is under the signature, and a record that carries one can rebuild it."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import VerificationError
from sealgate.protocol.binding import bind_certificate, bind_token
from sealgate.protocol.completion import Completion, Statement, sign_completion, verify_completion

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


def test_bindings_of_different_kinds_and_credentials_never_meet() -> None:
    found = {bind_token("a"), bind_token("b"), bind_certificate(b"a"), bind_certificate(b"b")}
    assert len(found) == 4
    assert all(len(binding) == 43 for binding in found)
