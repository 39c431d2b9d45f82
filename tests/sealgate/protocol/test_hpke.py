"""HPKE: every published vector of our suites, the library's own HPKE as second opinion, and what must be refused."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from importlib import resources
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke as library
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError, OpenError, ProtocolError
from sealgate.protocol import hpke
from sealgate.protocol.hpke import Aead, Kdf, Kem, KemPrivateKey, ReceiverContext, SenderContext

EXPORT_ONLY = 0xFFFF
SUITES = [(kem, aead) for kem in Kem for aead in Aead]


def load(name: str) -> list[dict[str, Any]]:
    vectors = json.loads((resources.files("cryptography_vectors") / "HPKE" / name).read_text())
    return [vector for vector in vectors if vector["mode"] == 0 and vector["kem_id"] in list(Kem)]


RFC = load("test-vectors.json")
PQ = load("hpke-pq-test-vectors.json")
OURS = [v for v in RFC + PQ if v["kdf_id"] == Kdf.HKDF_SHA256 and v["aead_id"] != EXPORT_ONLY]


def name(vector: dict[str, Any]) -> str:
    return f"{vector['kem_id']:04x}-{vector['kdf_id']:04x}-{vector['aead_id']:04x}"


def unhex(vector: dict[str, Any], key: str) -> bytes:
    return bytes.fromhex(vector[key])


def test_the_vectors_are_all_there() -> None:
    # The RFC: one base-mode vector per AEAD. The post-quantum draft: one of our suite, and more of our KEMs.
    assert sorted(map(name, OURS)) == ["0020-0001-0001", "0020-0001-0002", "0020-0001-0003", "647a-0001-0003"]
    assert len(RFC) == 8
    assert len(PQ) == 3


@pytest.mark.parametrize("vector", RFC + PQ, ids=name)
def test_kem_of_every_vector(vector: dict[str, Any]) -> None:
    """The KEM does not depend on KDF and AEAD, so vectors of suites that we do not offer test it too."""
    key = KemPrivateKey(Kem(vector["kem_id"]), unhex(vector, "skRm"))
    assert key.public_bytes() == unhex(vector, "pkRm")
    assert key.decapsulate(unhex(vector, "enc")) == unhex(vector, "shared_secret")
    if "skEm" in vector:
        secret, enc = hpke._encapsulate(key.kem, key.public_bytes(), lambda count: unhex(vector, "skEm")[:count])
        assert (secret, enc) == (unhex(vector, "shared_secret"), unhex(vector, "enc"))


def contexts(vector: dict[str, Any]) -> tuple[SenderContext, ReceiverContext]:
    """Through the front door where the sender's randomness is published; else from the published shared secret."""
    kem, aead = Kem(vector["kem_id"]), Aead(vector["aead_id"])
    key = KemPrivateKey(kem, unhex(vector, "skRm"))
    info = unhex(vector, "info")
    receiver = hpke.setup_receiver(key, Kdf.HKDF_SHA256, aead, unhex(vector, "enc"), info)
    if kem is Kem.X25519:
        enc, sender = hpke.setup_sender(
            kem, Kdf.HKDF_SHA256, aead, key.public_bytes(), info, entropy=lambda _: unhex(vector, "skEm")
        )
        assert enc == unhex(vector, "enc")
        return sender, receiver
    # The library's ML-KEM takes no randomness from outside, so the sender starts behind the encapsulation.
    schedule = hpke._Schedule(kem, Kdf.HKDF_SHA256, aead, unhex(vector, "shared_secret"), info)
    return SenderContext(schedule, aead), receiver


@pytest.mark.parametrize("vector", OURS, ids=name)
def test_schedule_encryptions_and_exports_of_every_vector(vector: dict[str, Any]) -> None:
    sender, receiver = contexts(vector)
    for context in (sender, receiver):
        assert context._schedule.key == unhex(vector, "key")
        assert context._schedule.base_nonce == unhex(vector, "base_nonce")
        assert context._schedule.exporter.reveal() == unhex(vector, "exporter_secret")
        for export in vector["exports"]:
            exported = context.export(bytes.fromhex(export["exporter_context"]), export["L"])
            assert exported.hex() == export["exported_value"]
    assert len(vector["encryptions"]) >= 10
    for number, message in enumerate(vector["encryptions"]):
        nonce, aad, plaintext, ciphertext = (bytes.fromhex(message[part]) for part in ("nonce", "aad", "pt", "ct"))
        assert aad == b"Count-%d" % number
        assert sender._nonce() == receiver._nonce() == nonce
        assert sender.seal(aad, plaintext) == ciphertext
        assert receiver.open(aad, ciphertext) == plaintext


# The library's single-shot HPKE ---------------------------------------------------------------------------------------

LIBRARY_KEM = {Kem.X25519: library.KEM.X25519, Kem.MLKEM768_X25519: library.KEM.MLKEM768_X25519}
LIBRARY_AEAD = {
    Aead.AES_128_GCM: library.AEAD.AES_128_GCM,
    Aead.AES_256_GCM: library.AEAD.AES_256_GCM,
    Aead.CHACHA20_POLY1305: library.AEAD.CHACHA20_POLY1305,
}


def library_key(kem: Kem, seed: bytes) -> Any:
    if kem is Kem.X25519:
        return X25519PrivateKey.from_private_bytes(seed)
    expanded = hashlib.shake_256(seed).digest(96)
    return library.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    )


@pytest.mark.parametrize(("kem", "aead"), SUITES)
@settings(max_examples=15, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), info=st.binary(max_size=80), plaintext=st.binary(max_size=300))
def test_agrees_with_the_library_both_ways(kem: Kem, aead: Aead, seed: bytes, info: bytes, plaintext: bytes) -> None:
    key, other = KemPrivateKey(kem, seed), library_key(kem, seed)
    suite = library.Suite(LIBRARY_KEM[kem], library.KDF.HKDF_SHA256, LIBRARY_AEAD[aead])
    enc, sender = hpke.setup_sender(kem, Kdf.HKDF_SHA256, aead, key.public_bytes(), info)
    assert suite.decrypt(enc + sender.seal(b"", plaintext), other, info) == plaintext
    theirs = suite.encrypt(plaintext, other.public_key(), info)
    receiver = hpke.setup_receiver(key, Kdf.HKDF_SHA256, aead, theirs[: kem.enc_size], info)
    assert receiver.open(b"", theirs[kem.enc_size :]) == plaintext


# Refusals -------------------------------------------------------------------------------------------------------------

# Points of small order on Curve25519, and what is congruent to them (RFC 7748 section 6.1; curve25519 documentation).
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_an_all_zero_x25519_secret_is_refused_in_both_kems_and_both_roles(point: str) -> None:
    low = bytes.fromhex(point)
    with pytest.raises(DecodeError):
        hpke.setup_sender(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM, low, b"")
    with pytest.raises(OpenError):
        hpke.setup_receiver(KemPrivateKey.generate(Kem.X25519), Kdf.HKDF_SHA256, Aead.AES_128_GCM, low, b"")
    hybrid = KemPrivateKey.generate(Kem.MLKEM768_X25519)
    with pytest.raises(DecodeError):
        hpke.setup_sender(hybrid.kem, Kdf.HKDF_SHA256, Aead.AES_128_GCM, hybrid.public_bytes()[:-32] + low, b"")
    enc, _ = hpke.setup_sender(hybrid.kem, Kdf.HKDF_SHA256, Aead.AES_128_GCM, hybrid.public_bytes(), b"")
    with pytest.raises(OpenError):
        hpke.setup_receiver(hybrid, Kdf.HKDF_SHA256, Aead.AES_128_GCM, enc[:-32] + low, b"")


def test_an_ml_kem_key_out_of_range_is_refused() -> None:
    public = b"\xff" * 1184 + KemPrivateKey.generate(Kem.X25519).public_bytes()
    with pytest.raises(DecodeError):
        hpke.setup_sender(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM, public, b"")


@pytest.mark.parametrize("kem", list(Kem))
@pytest.mark.parametrize("change", [-1, 1, -32])
def test_wrong_lengths_are_refused(kem: Kem, change: int) -> None:
    key = KemPrivateKey.generate(kem)
    public = (key.public_bytes() + b"x")[: kem.public_size + change]
    with pytest.raises(DecodeError):
        hpke.setup_sender(kem, Kdf.HKDF_SHA256, Aead.AES_128_GCM, public, b"")
    with pytest.raises(OpenError):
        hpke.setup_receiver(key, Kdf.HKDF_SHA256, Aead.AES_128_GCM, bytes(kem.enc_size + change), b"")
    with pytest.raises(ValueError, match="seed"):
        KemPrivateKey(kem, bytes(32 + change))


@pytest.mark.parametrize(("kem", "aead"), SUITES)
def test_any_change_makes_opening_fail_alike(kem: Kem, aead: Aead) -> None:
    key, stranger = KemPrivateKey.generate(kem), KemPrivateKey.generate(kem)
    enc, sender = hpke.setup_sender(kem, Kdf.HKDF_SHA256, aead, key.public_bytes(), b"info")
    sealed = sender.seal(b"aad", b"plaintext")

    def attempt(private: KemPrivateKey, enc: bytes, info: bytes, aad: bytes, sealed: bytes, aead: Aead) -> str:
        with pytest.raises(OpenError) as caught:
            hpke.setup_receiver(private, Kdf.HKDF_SHA256, aead, enc, info).open(aad, sealed)
        return str(caught.value)

    def flip(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    other = next(one for one in Aead if one is not aead)
    texts = {
        attempt(stranger, enc, b"info", b"aad", sealed, aead),
        attempt(key, flip(enc, 0), b"info", b"aad", sealed, aead),
        attempt(key, flip(enc, len(enc) - 2), b"info", b"aad", sealed, aead),
        attempt(key, enc, b"other", b"aad", sealed, aead),
        attempt(key, enc, b"info", b"", sealed, aead),
        attempt(key, enc, b"info", b"aad", sealed[:-1], aead),
        attempt(key, enc, b"info", b"aad", sealed[:10], aead),
        attempt(key, enc, b"info", b"aad", b"", aead),
        attempt(key, enc, b"info", b"aad", sealed, other),
        *(attempt(key, enc, b"info", b"aad", flip(sealed, at), aead) for at in range(len(sealed))),
    }
    assert texts == {str(OpenError())}
    assert hpke.setup_receiver(key, Kdf.HKDF_SHA256, aead, enc, b"info").open(b"aad", sealed) == b"plaintext"


@pytest.mark.parametrize("aead", list(Aead))
def test_a_failure_clears_the_buffer_and_keeps_the_sequence(aead: Aead) -> None:
    key = KemPrivateKey.generate(Kem.X25519)
    enc, sender = hpke.setup_sender(key.kem, Kdf.HKDF_SHA256, aead, key.public_bytes(), b"")
    sealed = sender.seal(b"", b"plaintext of some length")
    receiver = hpke.setup_receiver(key, Kdf.HKDF_SHA256, aead, enc, b"")
    buffer = bytearray(b"\xaa" * (len(sealed) - hpke.TAG_SIZE))
    with pytest.raises(OpenError):
        receiver.open_into(b"", sealed[:-1] + bytes([sealed[-1] ^ 1]), buffer)
    assert buffer == bytes(len(buffer))
    receiver.open_into(b"", sealed, buffer)
    assert buffer == b"plaintext of some length"
    with pytest.raises(OpenError):  # the same message again: the sequence went on
        receiver.open_into(b"", sealed, buffer)
    with pytest.raises(OpenError):
        receiver.open_into(b"", sender.seal(b"", b"12"), bytearray(3))


def test_a_context_ends_before_a_nonce_repeats() -> None:
    key = KemPrivateKey.generate(Kem.X25519)
    _, sender = hpke.setup_sender(key.kem, Kdf.HKDF_SHA256, Aead.AES_128_GCM, key.public_bytes(), b"")
    sender._count = 2**96 - 1
    with pytest.raises(ProtocolError) as caught:
        sender.seal(b"", b"one too many")
    assert caught.value.code == "message-limit"


def test_export_lengths_are_bounded() -> None:
    key = KemPrivateKey.generate(Kem.X25519)
    _, sender = hpke.setup_sender(key.kem, Kdf.HKDF_SHA256, Aead.AES_128_GCM, key.public_bytes(), b"")
    assert len(sender.export(b"", 255 * 32)) == 255 * 32
    for length in (0, 255 * 32 + 1):
        with pytest.raises(ValueError, match="HKDF"):
            sender.export(b"", length)


@pytest.mark.parametrize("kem", list(Kem))
def test_private_keys_do_not_leave(kem: Kem) -> None:
    seed = bytes(range(32))
    key = KemPrivateKey.generate(kem, entropy=lambda count: seed[:count])
    assert key.public_bytes() == KemPrivateKey(kem, seed).public_bytes()
    assert seed.hex() not in repr(key)
    assert not hasattr(key, "__dict__")
    assert [name for name in dir(key) if "private" in name.lower()] == []
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            act(key)
