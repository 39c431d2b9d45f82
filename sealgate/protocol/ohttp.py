"""Oblivious HTTP, RFC 9458, and its chunked variant: key configurations, sealed requests, sealed responses.

    request  := key id (1) | KEM (2) | KDF (2) | AEAD (2) | enc | ciphertext or chunks
    response := nonce | ciphertext or chunks              under a key that both ends export from the request's context

The labels are the standard ones, so foreign clients interoperate. Life of one exchange, in order: `seal_request` at the
client, `SealedRequest.parse` at everybody in between, `open_request` and `ResponseSealer.seal` at the worker,
`ResponseOpener.open` at the client.

Trusts: the key configuration that the caller verified (evidence does that). Never: tells why opening failed, seals two
responses under one nonce, or checks freshness and replay (the gatekeeper does).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

from sealgate.ambient import Entropy, random_bytes
from sealgate.errors import DecodeError, OpenError, UnknownKeyError
from sealgate.limits import CHUNKED_ABOVE, MAX_INNER_MESSAGE, MAX_KEY_CONFIGS, MAX_KEY_CONFIGS_BYTES, MAX_SEALED_MESSAGE
from sealgate.protocol.chunked import ChunkDecoder, ChunkEncoder, open_whole
from sealgate.protocol.hpke import (
    NONCE_SIZE,
    TAG_SIZE,
    Aead,
    Decapsulator,
    Kdf,
    Kem,
    Opener,
    ReceiverContext,
    Sealer,
    SenderContext,
    hkdf_expand,
    hkdf_extract,
    setup_receiver,
    setup_sender,
)
from sealgate.protocol.secrets import Plaintext, Secret

MEDIA_REQUEST = "message/ohttp-req"
MEDIA_RESPONSE = "message/ohttp-res"
MEDIA_CHUNKED_REQUEST = "message/ohttp-chunked-req"
MEDIA_CHUNKED_RESPONSE = "message/ohttp-chunked-res"
MEDIA_KEYS = "application/ohttp-keys"

_HEADER = struct.Struct(">BHHH")
_SUITES = {struct.pack(">HHH", kem, kdf, aead): (kem, kdf, aead) for kem in Kem for kdf in Kdf for aead in Aead}
_KIND = {False: b"message/bhttp", True: b"message/bhttp chunked"}
_PREFERRED = {  # a post-quantum KEM with a 256-bit cipher; otherwise the fastest
    Kem.MLKEM768_X25519: (Aead.AES_256_GCM, Aead.CHACHA20_POLY1305, Aead.AES_128_GCM),
    Kem.X25519: (Aead.AES_128_GCM, Aead.AES_256_GCM, Aead.CHACHA20_POLY1305),
}
ALL_SYMMETRIC = tuple((int(Kdf.HKDF_SHA256), int(aead)) for aead in _PREFERRED[Kem.MLKEM768_X25519])
"""What our own key configurations offer."""


def commitment(envelope: bytes | bytearray | memoryview) -> str:
    """What the log and the worker's completion say of a sealed message: the SHA-256 of its exact bytes, in hex."""
    return hashlib.sha256(envelope).hexdigest()


# Key configurations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyConfig:
    """A public key to seal to, and the (KDF, AEAD) pairs that its holder accepts (RFC 9458 section 3)."""

    key_id: int
    kem: Kem
    public_key: bytes
    symmetric: tuple[tuple[int, int], ...] = ALL_SYMMETRIC

    def encode(self) -> bytes:
        if not 0 <= self.key_id <= 255 or len(self.public_key) != self.kem.public_size or not self.symmetric:
            raise DecodeError("the key configuration is not valid")
        pairs = b"".join(struct.pack(">HH", kdf, aead) for kdf, aead in self.symmetric)
        head = struct.pack(">BH", self.key_id, self.kem)
        return head + self.public_key + struct.pack(">H", len(pairs)) + pairs

    @classmethod
    def decode(cls, data: bytes | memoryview) -> KeyConfig:
        """One configuration, nothing after it. Raises DecodeError, with code `unknown-kem` for a KEM not known here."""
        raw = bytes(data)
        if len(raw) < 3:
            raise DecodeError("the key configuration ends early")
        key_id, kem_id = struct.unpack_from(">BH", raw)
        try:
            kem = Kem(kem_id)
        except ValueError as error:
            raise DecodeError("the key configuration has an unknown KEM", code="unknown-kem") from error
        at = 3 + kem.public_size
        if len(raw) < at + 2:
            raise DecodeError("the key configuration ends early")
        (size,) = struct.unpack_from(">H", raw, at)
        if size == 0 or size % 4 or len(raw) != at + 2 + size:
            raise DecodeError("the key configuration's list of ciphers is malformed")
        pairs = tuple((kdf, aead) for kdf, aead in struct.iter_unpack(">HH", raw[at + 2 :]))
        return cls(key_id, kem, raw[3:at], pairs)

    def choose_aead(self) -> Aead:
        """The cipher that we like best among the offered ones. Raises DecodeError if none is known here."""
        for aead in _PREFERRED[self.kem]:
            if (Kdf.HKDF_SHA256, aead) in self.symmetric:
                return aead
        raise DecodeError("the key configuration offers no known cipher", code="unknown-cipher")


def encode_key_configs(configs: Sequence[KeyConfig]) -> bytes:
    """The media type application/ohttp-keys: each configuration with its length before it."""
    encoded = [config.encode() for config in configs]
    return b"".join(struct.pack(">H", len(one)) + one for one in encoded)


def decode_key_configs(data: bytes | memoryview) -> tuple[KeyConfig, ...]:
    """The configurations that can be used here, in the order given; those of unknown KEMs are skipped.

    Raises DecodeError for anything malformed, and when nothing is left to use.
    """
    raw = bytes(data[: MAX_KEY_CONFIGS_BYTES + 1])
    if len(raw) > MAX_KEY_CONFIGS_BYTES:
        raise DecodeError("the list of key configurations is too large")
    configs: list[KeyConfig] = []
    at = count = 0
    while at < len(raw):
        count += 1
        start = at + 2
        at = start + int.from_bytes(raw[at:start], "big")
        if count > MAX_KEY_CONFIGS or start > len(raw) or at > len(raw):
            raise DecodeError("the list of key configurations is malformed")
        try:
            configs.append(KeyConfig.decode(raw[start:at]))
        except DecodeError as error:
            if error.code != "unknown-kem":
                raise
    if not configs:
        raise DecodeError("no key configuration can be used here", code="no-usable-key")
    return tuple(configs)


# Requests -------------------------------------------------------------------------------------------------------------


class SealedRequest(NamedTuple):
    """An encapsulated request whose header was read and whose body is opaque.

    Holding one proves: the bytes are within bounds, begin with a header of a suite known here, and are long enough to
    hold a sealed message. It does not prove that anybody can open it, that the key is held, that it is fresh, or that
    what is inside is a request.
    """

    key_id: int
    kem: Kem
    kdf: Kdf
    aead: Aead
    enc: bytes
    media_type: str
    raw: bytes
    chunked: bool

    def __repr__(self) -> str:
        return f"<SealedRequest to key {self.key_id}>"

    @classmethod
    def parse(cls, raw: bytes, media_type: str) -> SealedRequest:
        """Raises DecodeError; its code is `unsupported-media-type`, `too-large`, `unsupported-suite` or `malformed`."""
        if media_type not in (MEDIA_REQUEST, MEDIA_CHUNKED_REQUEST):
            raise DecodeError("not a media type of a sealed request", code="unsupported-media-type")
        if len(raw) > MAX_SEALED_MESSAGE:
            raise DecodeError("the sealed request is too large", code="too-large")
        if len(raw) < _HEADER.size:
            raise DecodeError("the sealed request ends early")
        suite = _SUITES.get(raw[1 : _HEADER.size])
        if suite is None:
            raise DecodeError("the sealed request names an unknown suite", code="unsupported-suite")
        kem, kdf, aead = suite
        body = _HEADER.size + kem.enc_size
        chunked = media_type == MEDIA_CHUNKED_REQUEST
        if len(raw) < body + TAG_SIZE + chunked:
            raise DecodeError("the sealed request ends early")
        return cls(raw[0], kem, kdf, aead, raw[_HEADER.size : body], media_type, raw, chunked)

    def commitment(self) -> str:
        """SHA-256 of the exact bytes, in hex."""
        return commitment(self.raw)


def seal_request(
    config: KeyConfig,
    inner: bytes,
    *,
    chunked: bool | None = None,
    aead: Aead | None = None,
    entropy: Entropy = random_bytes,
) -> tuple[bytes, str, ResponseOpener]:
    """Seal one Binary HTTP request: the envelope, its media type, and what opens the answer to it.

    The caller vouches for `config`: whoever holds its private key reads `inner`. `chunked` None means by size.
    """
    if len(inner) > MAX_INNER_MESSAGE:
        raise DecodeError("the request is too large to be sealed", code="too-large")
    chunked = len(inner) > CHUNKED_ABOVE if chunked is None else chunked
    aead = config.choose_aead() if aead is None else aead
    if (Kdf.HKDF_SHA256, aead) not in config.symmetric:
        raise DecodeError("the key configuration does not offer that cipher", code="unknown-cipher")
    header = _HEADER.pack(config.key_id, config.kem, Kdf.HKDF_SHA256, aead)
    info = _KIND[chunked] + b" request\x00" + header
    enc, context = setup_sender(config.kem, Kdf.HKDF_SHA256, aead, config.public_key, info, entropy=entropy)
    parts = ChunkEncoder(context).whole(inner) if chunked else [context.seal(b"", inner)]
    envelope = _joined(header + enc, parts)
    media_type = MEDIA_CHUNKED_REQUEST if chunked else MEDIA_REQUEST
    return envelope, media_type, ResponseOpener(_ResponseKeys(context, aead, enc, chunked=chunked))


def open_request(
    sealed: SealedRequest, private_key: Decapsulator, *, entropy: Entropy = random_bytes
) -> tuple[Plaintext, ResponseSealer]:
    """Unseal. The caller has found `private_key` by `sealed.key_id`; its KEM must be the request's.

    Raises UnknownKeyError, OpenError or, for chunks only, TruncatedError and DecodeError.
    """
    if private_key.kem is not sealed.kem:
        raise UnknownKeyError("no key of that kind has this identifier")
    header_and_enc = _HEADER.size + len(sealed.enc)
    info = _KIND[sealed.chunked] + b" request\x00" + sealed.raw[: _HEADER.size]
    context = setup_receiver(private_key, sealed.kdf, sealed.aead, sealed.enc, info)
    body = memoryview(sealed.raw)[header_and_enc:]
    inner = open_whole(context, body) if sealed.chunked else context.open(b"", body)
    keys = _ResponseKeys(context, sealed.aead, sealed.enc, chunked=sealed.chunked)
    return Plaintext(inner), ResponseSealer(keys, entropy=entropy)


def _joined(head: bytes, parts: Iterable[bytes]) -> bytes:
    """In one piece; chunks are made one by one, so that not all of them are in memory beside the whole."""
    whole = BytesIO()
    whole.write(head)
    whole.writelines(parts)
    return whole.getvalue()


# Responses ------------------------------------------------------------------------------------------------------------


class _ResponseKeys:
    """What both ends derive from the request's context (RFC 9458 section 4.4)."""

    def __init__(self, context: SenderContext | ReceiverContext, aead: Aead, enc: bytes, *, chunked: bool) -> None:
        self.aead, self.enc, self.chunked = aead, enc, chunked
        self.nonce_size = max(NONCE_SIZE, aead.key_size)
        self.media_type = MEDIA_CHUNKED_RESPONSE if chunked else MEDIA_RESPONSE
        self._secret = Secret(context.export(_KIND[chunked] + b" response", self.nonce_size))

    def derive(self, nonce: bytes) -> tuple[Aead, bytes, bytes]:
        """Cipher, key and base nonce of the response that begins with `nonce`."""
        pseudorandom_key = hkdf_extract(self.enc + nonce, self._secret.reveal())
        key = hkdf_expand(pseudorandom_key, b"key", self.aead.key_size)
        return self.aead, key, hkdf_expand(pseudorandom_key, b"nonce", NONCE_SIZE)


class ResponseSealer:
    """Seals the answer to the request that it came from. Each call draws a fresh nonce."""

    def __init__(self, keys: _ResponseKeys, *, entropy: Entropy) -> None:
        self._keys = keys
        self._entropy = entropy

    def seal(self, inner: bytes | bytearray | memoryview) -> tuple[bytes, str]:
        """The envelope and its media type: chunked exactly if the request was."""
        if len(inner) > MAX_INNER_MESSAGE:
            raise DecodeError("the response is too large to be sealed", code="too-large")
        nonce = self._entropy(self._keys.nonce_size)
        sealer = Sealer(*self._keys.derive(nonce))
        if not self._keys.chunked:
            return nonce + sealer.seal(b"", inner), self._keys.media_type
        return _joined(nonce, ChunkEncoder(sealer).whole(inner)), self._keys.media_type

    def stream(self) -> tuple[bytes, ChunkEncoder]:
        """For an answer that comes in pieces: the first bytes to send, and the encoder of the rest."""
        if not self._keys.chunked:
            raise ValueError("only a chunked request is answered in pieces")
        nonce = self._entropy(self._keys.nonce_size)
        return nonce, ChunkEncoder(Sealer(*self._keys.derive(nonce)))


class ResponseOpener:
    """Opens the answer to the one request that it came from."""

    def __init__(self, keys: _ResponseKeys) -> None:
        self._keys = keys
        self.nonce_size = keys.nonce_size
        self.media_type = keys.media_type

    def open(self, sealed_response: bytes, media_type: str) -> bytes:
        """The Binary HTTP response. Raises OpenError, TruncatedError or DecodeError (wrong type, too large)."""
        if media_type != self.media_type:
            raise DecodeError("the answer is not of the media type that the request asked for")
        if len(sealed_response) > MAX_SEALED_MESSAGE:
            raise DecodeError("the sealed response is too large", code="too-large")
        if len(sealed_response) < self.nonce_size:
            raise OpenError
        opener = Opener(*self._keys.derive(sealed_response[: self.nonce_size]))
        body = memoryview(sealed_response)[self.nonce_size :]
        return bytes(open_whole(opener, body) if self._keys.chunked else opener.open(b"", body))

    def stream(self, nonce: bytes) -> ChunkDecoder:
        """For an answer that comes in pieces: a decoder for what follows its first `nonce_size` bytes."""
        if not self._keys.chunked or len(nonce) != self.nonce_size:
            raise ValueError("only a chunked request is answered in pieces, after a nonce of nonce_size bytes")
        return ChunkDecoder(Opener(*self._keys.derive(nonce)))
