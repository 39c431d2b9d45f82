"""DSSE: the standard's own encoding, round trips, and one typed refusal for everything else."""

from __future__ import annotations

import base64

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.dsse import open_envelope, pre_authentication_encoding, sign_envelope
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.statement import parse_bundle_statement, parse_certificate_statement
from sealgate.errors import CertificateError

KEY = Ed25519PrivateKey.generate()
KNOWN = publishers_of({"us": KEY.public_key()})


def opened(data: bytes):
    return open_envelope(data, KNOWN, limit=100_000, signature_code="bundle-signature")


def code_of(data: bytes) -> str:
    with pytest.raises(CertificateError) as caught:
        opened(data)
    return caught.value.code


def test_the_encoding_of_the_specification():
    assert (
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(st.binary(max_size=500))
@settings(max_examples=50)
def test_what_was_signed_comes_back(payload):
    found = opened(sign_envelope(payload, KEY))
    assert (found.payload, found.publisher.name) == (payload, "us")


@given(st.binary(max_size=300))
@settings(max_examples=150)
def test_garbage_is_refused(data):
    assert code_of(data) == "envelope-malformed"


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=150)
def test_any_flipped_byte_is_refused(position, mask):
    data = bytearray(sign_envelope(b"a payload of some length", KEY))
    data[position % len(data)] ^= mask
    assert code_of(bytes(data)) in {"envelope-malformed", "publisher-unknown", "bundle-signature"}


def changed(**changes) -> bytes:
    envelope = msgspec.json.decode(sign_envelope(b"payload", KEY))
    return msgspec.json.encode({**envelope, **changes}, order="sorted")


def test_forms_that_other_readers_would_accept():
    good = sign_envelope(b"payload", KEY)
    envelope = msgspec.json.decode(good)
    (signature,) = envelope["signatures"]
    assert code_of(good + b"\n") == "envelope-malformed"
    assert code_of(b" " + good) == "envelope-malformed"
    assert code_of(changed(signatures=[])) == "envelope-malformed"
    assert code_of(changed(signatures=[signature, signature])) == "envelope-malformed"
    assert code_of(changed(extra=1)) == "envelope-malformed"
    assert code_of(changed(payloadType="text/plain")) == "envelope-malformed"
    # "payload" encodes to cGF5bG9hZA==; the last digit's unused bits can be set without changing the bytes.
    assert base64.b64decode("cGF5bG9hZB==") == b"payload"
    assert code_of(changed(payload="cGF5bG9hZB==")) == "envelope-malformed"
    assert code_of(changed(payload=base64.b64encode(b"payloaD").decode())) == "bundle-signature"
    assert code_of(changed(signatures=[{**signature, "sig": "AAAA"}])) == "bundle-signature"
    assert code_of(b"[" * 100_001) == "envelope-malformed"
    assert code_of(b"[" * 50_000) == "envelope-malformed"


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["_type", "subject", "predicateType", "predicate", "x"]), inner, max_size=5
            )
        ),
        max_leaves=12,
    ).map(lambda value: msgspec.json.encode(value, order="sorted"))
)
@settings(max_examples=200)
def test_garbage_statements_are_refused(payload):
    for parse in (parse_bundle_statement, parse_certificate_statement):
        with pytest.raises(CertificateError) as caught:
            parse(payload)
        assert caught.value.code == "statement-malformed"
