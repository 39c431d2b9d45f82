"""Hybrid public key encryption, RFC 9180: base mode with context and export, on the primitives of `cryptography`.

The library's own HPKE is single-shot and has no export, which Oblivious HTTP needs for its response key; so the key
schedule stands here, as short as the RFC allows, and tests compare both. Two KEMs: X25519, and MLKEM768-X25519 (X-Wing,
draft-ietf-hpke-pq), which stays secret if either half does. Read in this order: identifiers, HKDF, KEM, key schedule,
contexts.

Trusts: `cryptography` and the operating system's randomness. Never: reuses a nonce (the sequence number only counts
up), tells why opening failed, or leaves unauthenticated plaintext in a buffer.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum
from typing import NoReturn, Protocol

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from sealgate.ambient import Entropy, random_bytes
from sealgate.errors import DecodeError, OpenError, ProtocolError
from sealgate.protocol.secrets import Secret

# Identifiers: the one place where their numbers and sizes stand -------------------------------------------------------


class Kem(IntEnum):
    """Key encapsulation mechanisms."""

    X25519 = 0x0020
    MLKEM768_X25519 = 0x647A

    @property
    def public_size(self) -> int:
        return 32 if self is Kem.X25519 else 1184 + 32

    @property
    def enc_size(self) -> int:
        return 32 if self is Kem.X25519 else 1088 + 32


class Kdf(IntEnum):
    """Key derivation functions."""

    HKDF_SHA256 = 0x0001


class Aead(IntEnum):
    """Authenticated ciphers. All have 12 bytes of nonce and 16 of tag."""

    AES_128_GCM = 0x0001
    AES_256_GCM = 0x0002
    CHACHA20_POLY1305 = 0x0003

    @property
    def key_size(self) -> int:
        return 16 if self is Aead.AES_128_GCM else 32


SEED_SIZE = 32  # of either KEM's private key
NONCE_SIZE = 12
TAG_SIZE = 16
_MAX_MESSAGES = 2 ** (8 * NONCE_SIZE) - 1
_HASH_SIZE = 32
_XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")

# HKDF (RFC 5869) and its labelled form (RFC 9180 section 4) -----------------------------------------------------------


def hkdf_extract(salt: bytes, key_material: bytes) -> bytes:
    return hmac.digest(salt, key_material, "sha256")


def hkdf_expand(pseudorandom_key: bytes, info: bytes, length: int) -> bytes:
    if not 0 < length <= 255 * _HASH_SIZE:
        raise ValueError("HKDF cannot give that many bytes")
    output = block = b""
    for counter in range(1, -(-length // _HASH_SIZE) + 1):
        block = hmac.digest(pseudorandom_key, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, key_material: bytes) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + suite + label + key_material)


def _labeled_expand(suite: bytes, pseudorandom_key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hkdf_expand(pseudorandom_key, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


# KEM ------------------------------------------------------------------------------------------------------------------


def _x25519_secret(shared: bytes, enc: bytes, public_key: bytes) -> bytes:
    """ExtractAndExpand of DHKEM(X25519, HKDF-SHA256)."""
    suite = b"KEM" + Kem.X25519.to_bytes(2, "big")
    pseudorandom_key = _labeled_extract(suite, b"", b"eae_prk", shared)
    return _labeled_expand(suite, pseudorandom_key, b"shared_secret", enc + public_key, _HASH_SIZE)


def _xwing_secret(mlkem_shared: bytes, x25519_shared: bytes, x25519_enc: bytes, x25519_public: bytes) -> bytes:
    """X-Wing's combiner."""
    return hashlib.sha3_256(mlkem_shared + x25519_shared + x25519_enc + x25519_public + _XWING_LABEL).digest()


def _encapsulate(kem: Kem, public_key: bytes, entropy: Entropy) -> tuple[bytes, bytes]:
    """A fresh shared secret and its encapsulation. Raises ValueError for a key that is not one."""
    if len(public_key) != kem.public_size:
        raise ValueError("public key has the wrong length")
    x25519_public = public_key[-32:]
    ephemeral = X25519PrivateKey.from_private_bytes(entropy(SEED_SIZE))
    x25519_enc = ephemeral.public_key().public_bytes_raw()
    # The library refuses an all-zero shared secret (a low-order point), as RFC 9180 section 7.1.4 demands.
    x25519_shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(x25519_public))
    if kem is Kem.X25519:
        return _x25519_secret(x25519_shared, x25519_enc, public_key), x25519_enc
    mlkem_shared, mlkem_enc = MLKEM768PublicKey.from_public_bytes(public_key[:-32]).encapsulate()
    return _xwing_secret(mlkem_shared, x25519_shared, x25519_enc, x25519_public), mlkem_enc + x25519_enc


class Decapsulator(Protocol):
    """What a receiver opens with: a private key, or the secret that its holder took out of one encapsulation."""

    @property
    def kem(self) -> Kem: ...

    def decapsulate(self, enc: bytes) -> bytes: ...


class KemPrivateKey:
    """A private key of one KEM. Its bytes go in and never come out; it has no useful `repr` and cannot be pickled."""

    __slots__ = ("_mlkem", "_public", "_x25519", "kem")

    def __init__(self, kem: Kem, seed: bytes) -> None:
        if len(seed) != SEED_SIZE:
            raise ValueError("a private key is a seed of 32 bytes")
        self.kem = kem
        self._mlkem: MLKEM768PrivateKey | None = None
        if kem is Kem.X25519:
            self._x25519 = X25519PrivateKey.from_private_bytes(seed)
            self._public = self._x25519.public_key().public_bytes_raw()
        else:
            expanded = hashlib.shake_256(seed).digest(96)
            self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
            self._x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
            self._public = self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, kem: Kem, *, entropy: Entropy = random_bytes) -> KemPrivateKey:
        """A fresh key. `entropy` is injected by tests only."""
        return cls(kem, entropy(SEED_SIZE))

    def public_bytes(self) -> bytes:
        return self._public

    def decapsulate(self, enc: bytes) -> bytes:
        """The shared secret that `enc` carries. Raises ValueError. Called by `setup_receiver` and `OneSecret` only."""
        if len(enc) != self.kem.enc_size:
            raise ValueError("encapsulation has the wrong length")
        x25519_enc = enc[-32:]
        x25519_shared = self._x25519.exchange(X25519PublicKey.from_public_bytes(x25519_enc))
        if self._mlkem is None:
            return _x25519_secret(x25519_shared, x25519_enc, self._public)
        mlkem_shared = self._mlkem.decapsulate(enc[:-32])
        return _xwing_secret(mlkem_shared, x25519_shared, x25519_enc, self._public[-32:])

    def __repr__(self) -> str:
        return f"<KemPrivateKey {self.kem.name}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("KemPrivateKey is neither copied nor serialised")


class OneSecret:
    """The shared secret of one encapsulation: opens what was sealed with it, and nothing else.

    For handing one request to a process that must not have the private key. As secret as the request.
    """

    __slots__ = ("_enc", "_secret", "kem")

    def __init__(self, kem: Kem, enc: bytes, secret: bytes) -> None:
        self.kem = kem
        self._enc = enc
        self._secret = Secret(secret)

    @classmethod
    def taken(cls, private_key: KemPrivateKey, enc: bytes) -> OneSecret:
        """Raises OpenError if `enc` is not an encapsulation for this KEM."""
        try:
            return cls(private_key.kem, enc, private_key.decapsulate(enc))
        except ValueError as error:
            raise OpenError from error

    def decapsulate(self, enc: bytes) -> bytes:
        """The secret, for the encapsulation that it came from. Raises ValueError for another."""
        if enc != self._enc:
            raise ValueError("this secret came from another encapsulation")
        return self._secret.reveal()


# Sequences of messages under one key (RFC 9180 section 5.2) -----------------------------------------------------------


class _Sequence:
    """An AEAD key and the nonce of the next message. Not thread-safe: one owner at a time."""

    __slots__ = ("_base_nonce", "_cipher", "_count")

    def __init__(self, aead: Aead, key: bytes, base_nonce: bytes) -> None:
        if len(key) != aead.key_size or len(base_nonce) != NONCE_SIZE:
            raise ValueError("key or nonce has the wrong length")
        self._cipher = ChaCha20Poly1305(key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key)
        self._base_nonce = int.from_bytes(base_nonce, "big")
        self._count = 0

    def _nonce(self) -> bytes:
        if self._count >= _MAX_MESSAGES:
            raise ProtocolError("no message can be added under this key", code="message-limit")
        return (self._base_nonce ^ self._count).to_bytes(NONCE_SIZE, "big")


class Sealer(_Sequence):
    """Seals messages, each under the next nonce."""

    __slots__ = ()

    def seal(self, aad: bytes, plaintext: bytes | bytearray | memoryview) -> bytes:
        ciphertext = self._cipher.encrypt(self._nonce(), plaintext, aad)
        self._count += 1
        return ciphertext


class Opener(_Sequence):
    """Opens messages in the order in which they were sealed. A failure does not advance the sequence."""

    __slots__ = ()

    def open_into(self, aad: bytes, ciphertext: bytes | bytearray | memoryview, buffer: bytearray | memoryview) -> None:
        """Write the plaintext into `buffer`, exactly 16 bytes shorter. Raises OpenError; the buffer is then zero.

        The library writes plaintext before it has checked the tag, so the buffer is cleared on failure.
        """
        try:
            self._cipher.decrypt_into(self._nonce(), ciphertext, aad, buffer)
        except (ValueError, InvalidTag) as error:
            buffer[:] = bytes(len(buffer))
            raise OpenError from error
        self._count += 1

    def open(self, aad: bytes, ciphertext: bytes | bytearray | memoryview) -> bytearray:
        """The plaintext, in a buffer that can be wiped. Raises OpenError."""
        if len(ciphertext) < TAG_SIZE:
            raise OpenError
        buffer = bytearray(len(ciphertext) - TAG_SIZE)
        self.open_into(aad, ciphertext, buffer)
        return buffer


# Contexts (RFC 9180 section 5.1) --------------------------------------------------------------------------------------


class _Schedule:
    """The key schedule of base mode: no pre-shared key, no sender authentication."""

    __slots__ = ("base_nonce", "exporter", "key", "suite")

    def __init__(self, kem: Kem, kdf: Kdf, aead: Aead, shared_secret: bytes, info: bytes) -> None:
        self.suite = b"HPKE" + kem.to_bytes(2, "big") + kdf.to_bytes(2, "big") + aead.to_bytes(2, "big")
        psk_id_hash = _labeled_extract(self.suite, b"", b"psk_id_hash", b"")
        info_hash = _labeled_extract(self.suite, b"", b"info_hash", info)
        context = b"\x00" + psk_id_hash + info_hash
        secret = _labeled_extract(self.suite, shared_secret, b"secret", b"")
        self.key = _labeled_expand(self.suite, secret, b"key", context, aead.key_size)
        self.base_nonce = _labeled_expand(self.suite, secret, b"base_nonce", context, NONCE_SIZE)
        self.exporter = Secret(_labeled_expand(self.suite, secret, b"exp", context, _HASH_SIZE))

    def export(self, exporter_context: bytes, length: int) -> bytes:
        return _labeled_expand(self.suite, self.exporter.reveal(), b"sec", exporter_context, length)


class SenderContext(Sealer):
    """Seals to the holder of the private key, and exports secrets that both ends know."""

    __slots__ = ("_schedule",)

    def __init__(self, schedule: _Schedule, aead: Aead) -> None:
        super().__init__(aead, schedule.key, schedule.base_nonce)
        self._schedule = schedule

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret bound to this context and to `exporter_context` (RFC 9180 section 5.3)."""
        return self._schedule.export(exporter_context, length)


class ReceiverContext(Opener):
    """Opens what the sender sealed, and exports secrets that both ends know."""

    __slots__ = ("_schedule",)

    def __init__(self, schedule: _Schedule, aead: Aead) -> None:
        super().__init__(aead, schedule.key, schedule.base_nonce)
        self._schedule = schedule

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret bound to this context and to `exporter_context` (RFC 9180 section 5.3)."""
        return self._schedule.export(exporter_context, length)


def setup_sender(
    kem: Kem, kdf: Kdf, aead: Aead, public_key: bytes, info: bytes, *, entropy: Entropy = random_bytes
) -> tuple[bytes, SenderContext]:
    """The encapsulation to send and the context to seal with. Raises DecodeError if `public_key` is not a key.

    `entropy` makes the X25519 half; the ML-KEM half draws its own from the library.
    """
    try:
        shared_secret, enc = _encapsulate(kem, public_key, entropy)
    except ValueError as error:
        raise DecodeError("the recipient's public key is not valid") from error
    except UnsupportedAlgorithm as error:
        raise ProtocolError(f"this build of cryptography lacks {kem.name}", code="unsupported") from error
    return enc, SenderContext(_Schedule(kem, kdf, aead, shared_secret, info), aead)


def setup_receiver(private_key: Decapsulator, kdf: Kdf, aead: Aead, enc: bytes, info: bytes) -> ReceiverContext:
    """The context to open with. Raises OpenError if `enc` is not an encapsulation for this KEM.

    A well-formed `enc` for another key or another `info` gives a context that opens nothing.
    """
    try:
        shared_secret = private_key.decapsulate(enc)
    except ValueError as error:
        raise OpenError from error
    return ReceiverContext(_Schedule(private_key.kem, kdf, aead, shared_secret, info), aead)
