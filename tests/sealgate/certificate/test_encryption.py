"""Encrypted bundles: what opens, what does not, and that nothing signed changes. The format is read back by hand."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tracemalloc

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate import sealed_weights
from sealgate.certificate.bundle import verify_bundle, verify_statements
from sealgate.certificate.encryption import decrypt_bundle, encrypt_bundle, rewrap_bundle
from sealgate.certificate.files import CARD, KEY, SEALED_WEIGHTS, SIGNATURE, WEIGHTS
from sealgate.certificate.key_envelope import SealedWeights
from sealgate.certificate.wrapping_keys import KEY_VARIABLE, KeyRing, open_key, open_key_ring, write_new_key
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.protocol.secrets import Secret


@pytest.fixture
def key(tmp_path):
    return write_new_key(tmp_path / "models.key")


@pytest.fixture
def ring(key):
    return KeyRing((key,))


@pytest.fixture
def sealed(bundle, forge, key):
    encrypt_bundle(bundle, forge.publishers, key)
    return bundle


def code(call, *arguments, **named) -> str:
    with pytest.raises(CertificateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_an_encrypted_bundle_is_the_same_model_under_the_same_signatures(bundle, forge, key, ring):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    plain = verify_bundle(bundle, forge.publishers)
    encrypt_bundle(bundle, forge.publishers, key)
    after = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert set(after) == set(before) - {WEIGHTS} | {SEALED_WEIGHTS, KEY}
    assert all(after[name] == before[name] for name in set(after) & set(before))
    assert not any(forge.weights[8:40] in data for data in after.values())
    steps = []
    found = verify_bundle(bundle, forge.publishers, data_key=ring.unwrap, told=lambda *step: steps.append(step))
    assert (found.weights, found.facts, found.locked_under) == (plain.weights, plain.facts, key.name)
    assert len(steps) == 11
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["models.key", "toy"]  # no draft is left
    decrypt_bundle(bundle, forge.publishers, ring)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_an_independent_reading_of_the_format(sealed, forge, tmp_path):
    """By the words of the documentation, with nothing of ours."""
    envelope = json.loads((sealed / KEY).read_bytes())
    secret = base64.b64decode((tmp_path / "models.key").read_bytes())
    wrapped, weights = base64.b64decode(envelope["wrapped"]), envelope["weights"]

    def canonical(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    context = canonical({"purpose": "sealgate data key", "key": envelope["key"], "weights": weights})
    data_key = AESGCM(secret).decrypt(wrapped[:12], wrapped[12:], context)
    data = (sealed / SEALED_WEIGHTS).read_bytes().removeprefix(b"sealgate-weights/1\n")
    context = canonical({"purpose": "sealgate bundle weights", **weights})
    assert AESGCM(data_key).decrypt(bytes(11) + b"\1", data, context) == forge.weights
    assert weights["sha256"] == hashlib.sha256(forge.weights).hexdigest()


def test_without_the_key_the_statements_verify_and_the_weights_do_not(sealed, forge, key):
    said = verify_statements(sealed, forge.publishers)
    assert (said.facts.name, said.locked_under) == ("toy", key.name)
    assert not hasattr(said, "weights")
    assert code(verify_bundle, sealed, forge.publishers) == "weights-locked"
    (sealed / CARD).write_bytes(b"# another\n")
    assert code(verify_statements, sealed, forge.publishers) == "file-digest"


def test_another_key_is_named_beside_the_one_it_takes(sealed, forge, key, tmp_path):
    other = write_new_key(tmp_path / "other.key")
    with pytest.raises(CertificateError, match=f"{key.name}; given: {other.name}") as caught:
        verify_bundle(sealed, forge.publishers, data_key=KeyRing((other,)).unwrap)
    assert caught.value.code == "weights-locked"


def test_the_wrapping_key_changes_and_the_weights_are_not_touched(sealed, forge, key, ring, tmp_path):
    old, before = (sealed / KEY).read_bytes(), (sealed / SEALED_WEIGHTS).stat()
    new = write_new_key(tmp_path / "new.key")
    assert rewrap_bundle(sealed, forge.publishers, ring, to=new).locked_under == new.name
    assert (sealed / SEALED_WEIGHTS).stat() == before
    assert code(verify_bundle, sealed, forge.publishers, data_key=ring.unwrap) == "weights-locked"
    (sealed / KEY).write_bytes(old)  # as the documentation says: the old pair still opens
    assert verify_bundle(sealed, forge.publishers, data_key=KeyRing((new, key)).unwrap).locked_under == key.name


def test_each_byte_of_both_files_counts(sealed, forge, ring):
    for name in (KEY, SEALED_WEIGHTS):
        whole = (sealed / name).read_bytes()
        for position in range(0, len(whole), 7):
            changed = bytearray(whole)
            changed[position] ^= 1
            (sealed / name).write_bytes(bytes(changed))
            found = code(verify_bundle, sealed, forge.publishers, data_key=ring.unwrap)
            assert found in {"key-envelope", "weights-locked", "weights-sealed"}, (name, position, found)
        (sealed / name).write_bytes(whole)
    assert verify_bundle(sealed, forge.publishers, data_key=ring.unwrap).weights == forge.weights


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_a_file_of_another_length(sealed, forge, ring, change):
    path = sealed / SEALED_WEIGHTS
    path.write_bytes(change(path.read_bytes()))
    assert code(verify_bundle, sealed, forge.publishers, data_key=ring.unwrap) == "weights-sealed"


def test_parts_of_two_encryptions_do_not_mix(sealed, forge_type, forge, key, ring, tmp_path):
    """The same weights under two data keys: neither file opens with the other's key."""
    twin = forge.write(tmp_path / "twin" / "toy")
    encrypt_bundle(twin, forge.publishers, key)
    (sealed / KEY).write_bytes((twin / KEY).read_bytes())
    assert code(verify_bundle, sealed, forge.publishers, data_key=ring.unwrap) == "weights-sealed"


def test_a_key_for_other_weights_is_refused_before_it_is_opened(sealed, forge_type, key, tmp_path, forge):
    other = forge_type(key=forge.key)
    other.weights = other.weights[:-4] + b"\0\0\0\0"
    elsewhere = other.write(tmp_path / "elsewhere" / "toy")
    encrypt_bundle(elsewhere, other.publishers, key)
    for name in (KEY, SEALED_WEIGHTS):
        (sealed / name).write_bytes((elsewhere / name).read_bytes())

    def never(_envelope):
        raise AssertionError("no key is asked for")

    assert code(verify_bundle, sealed, forge.publishers, data_key=never) == "key-envelope"


def test_a_bundle_holds_its_weights_once(sealed, forge, ring):
    (sealed / WEIGHTS).write_bytes(forge.weights)
    assert code(verify_bundle, sealed, forge.publishers, data_key=ring.unwrap) == "unexpected-file"
    (sealed / WEIGHTS).unlink()
    (sealed / KEY).unlink()
    assert code(verify_bundle, sealed, forge.publishers, data_key=ring.unwrap) == "missing-file"


def test_what_was_encrypted_already_or_not_at_all_is_said(sealed, forge, key, ring, tmp_path):
    with pytest.raises(ConfigurationError, match="encrypted already"):
        encrypt_bundle(sealed, forge.publishers, key)
    plain = forge.write(tmp_path / "plain" / "toy")
    for call in (decrypt_bundle, lambda *given: rewrap_bundle(*given, to=key)):
        with pytest.raises(ConfigurationError, match="not encrypted"):
            call(plain, forge.publishers, ring)


def test_a_refused_result_leaves_the_bundle_as_it_was(bundle, forge, key, monkeypatch):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    monkeypatch.setattr("sealgate.certificate.encryption.seal_weights", lambda plain, *_: iter([plain]))
    assert code(encrypt_bundle, bundle, forge.publishers, key) == "weights-sealed"
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["models.key", "toy"]


# The chunks, small enough to have many


def described(plain: bytes, chunk: int) -> SealedWeights:
    digest = hashlib.sha256(plain).hexdigest()
    return SealedWeights(schema=1, cipher="AES-256-GCM", chunk=chunk, size=len(plain), sha256=digest)


KEY_BYTES = Secret(bytes(range(32)))


def pieces(plain: bytes, chunk: int) -> list[bytes]:
    return list(sealed_weights.seal_weights(plain, described(plain, chunk), KEY_BYTES))


def opened(parts: list[bytes], plain: bytes, chunk: int) -> bytes:
    return sealed_weights.unseal_weights(io.BytesIO(b"".join(parts)), described(plain, chunk), KEY_BYTES)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=64), st.integers(1, 20))
def test_any_size_comes_back_and_no_piece_can_be_moved(plain, chunk):
    parts = pieces(plain, chunk)
    assert opened(parts, plain, chunk) == plain
    assert sum(map(len, parts)) == sealed_weights.sealed_size(described(plain, chunk))
    wrong = [parts[:-1], [*parts, parts[-1]], parts[1:]]
    if len(parts) > 2:
        wrong += [[parts[0], parts[2], parts[1], *parts[3:]], [parts[0], *parts[2:]], [*parts[:-1], parts[1]]]
    for one in wrong:
        with pytest.raises(CertificateError) as caught:
            opened(one, plain, chunk)
        assert caught.value.code == "weights-sealed"


def test_memory_beside_the_weights_is_a_few_chunks():
    chunk = 1 << 20
    plain = os.urandom(24 * chunk)
    data = io.BytesIO(b"".join(pieces(plain, chunk)))
    weights = described(plain, chunk)
    tracemalloc.start()
    try:
        assert len(sealed_weights.unseal_weights(data, weights, KEY_BYTES)) == len(plain)
        peak = tracemalloc.get_traced_memory()[1]
        for piece in sealed_weights.seal_weights(plain, weights, KEY_BYTES):
            del piece
        assert tracemalloc.get_traced_memory()[1] == peak  # sealing never held as much
    finally:
        tracemalloc.stop()
    assert peak < len(plain) * 1.25 + 4 * chunk  # the growing buffer may have an eighth to spare


# Where keys come from


def test_a_key_comes_from_a_private_file_or_the_environment(tmp_path, key, monkeypatch):
    assert (tmp_path / "models.key").stat().st_mode & 0o777 == 0o600
    assert open_key("file:models.key", folder=tmp_path).name == key.name
    monkeypatch.setenv(KEY_VARIABLE, (tmp_path / "models.key").read_text())
    assert open_key("environment").name == key.name
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ConfigurationError, match=KEY_VARIABLE):
        open_key("environment")
    assert str(key._secret.reveal()) not in repr(key)
    assert key.name != write_new_key(tmp_path / "other.key").name


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"A" * 43 + b"=", 0o644, "chmod 600"),
        (b"AAAA", 0o600, "32 bytes"),
        (b"\xff\xfe", 0o600, "not base64"),
        (b"A" * 5000, 0o600, "too large"),
    ],
)
def test_a_key_file_that_will_not_do(tmp_path, content, mode, said):
    path = tmp_path / "k"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=said):
        open_key(f"file:{path}")


@pytest.mark.parametrize("source", ["", "file:", "vault:", "s3:bucket", "models.key", "environment:X"])
def test_a_source_of_no_known_kind(source):
    with pytest.raises(ConfigurationError, match="no source of a key"):
        open_key(source)


def test_keys_are_bounded_and_never_written_over(tmp_path, key):
    with pytest.raises(ConfigurationError, match="exists"):
        write_new_key(tmp_path / "models.key")
    with pytest.raises(ConfigurationError, match="more than"):
        open_key_ring([f"file:{tmp_path}/models.key"] * 17)


def test_signed_files_are_checked_before_any_key_is_asked_for(sealed, forge):
    (sealed / SIGNATURE).write_bytes(b"{}")

    def never(_envelope):
        raise AssertionError("no key is asked for")

    assert code(verify_bundle, sealed, forge.publishers, data_key=never) == "envelope-malformed"
