"""Oblivious HTTP: RFC 9458 appendix A and the chunked draft's appendix, byte for byte; and what must be refused."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError, OpenError, ProtocolError, TruncatedError, UnknownKeyError
from sealgate.limits import (
    CHUNK,
    CHUNKED_ABOVE,
    DEFAULT_MESSAGE,
    MAX_INNER_MESSAGE,
    MAX_KEY_CONFIGS,
    MAX_SEALED_MESSAGE,
)
from sealgate.protocol import hpke, ohttp
from sealgate.protocol.chunked import ChunkDecoder, ChunkEncoder, open_whole
from sealgate.protocol.hpke import Aead, Kdf, Kem, KemPrivateKey
from sealgate.protocol.ohttp import (
    MEDIA_CHUNKED_REQUEST,
    MEDIA_CHUNKED_RESPONSE,
    MEDIA_REQUEST,
    MEDIA_RESPONSE,
    KeyConfig,
    SealedRequest,
    decode_key_configs,
    encode_key_configs,
    open_request,
    seal_request,
)
from sealgate.protocol.sizes import sealed_size
from sealgate.protocol.varint import encode_varint, read_varint

unhex = bytes.fromhex
INNER_REQUEST = unhex("00034745540568747470730b6578616d706c652e636f6d012f")
INNER_RESPONSE = unhex("0140c8")

KEYS = {kem: KemPrivateKey(kem, bytes(range(32))) for kem in Kem}
SHAPES = [(kem, aead, chunked) for kem in Kem for aead in Aead for chunked in (False, True)]


def config_of(kem: Kem, key_id: int = 7) -> KeyConfig:
    return KeyConfig(key_id, kem, KEYS[kem].public_bytes())


# RFC 9458 appendix A --------------------------------------------------------------------------------------------------

A_SECRET_KEY = unhex("3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a")
A_CONFIG = unhex("01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003")
A_EPHEMERAL = unhex("bc51d5e930bda26589890ac7032f70ad12e4ecb37abb1b65b1256c9c48999c73")
A_ENC = unhex("4b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b472")
A_REQUEST = unhex(
    "010020000100014b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad1"
    "9dec96c208b4726374e469135906992e1268c594d2a10c695d858c40a026e796"
    "5e7d86b83dd440b2c0185204b4d63525"
)
A_NONCE = unhex("c789e7151fcba46158ca84b04464910d")
A_RESPONSE = unhex("c789e7151fcba46158ca84b04464910d86f9013e404feea014e7be4a441f234f857fbd")


def test_appendix_a_key_configuration() -> None:
    config = KeyConfig.decode(A_CONFIG)
    key = KemPrivateKey(Kem.X25519, A_SECRET_KEY)
    assert config == KeyConfig(1, Kem.X25519, key.public_bytes(), ((1, 1), (1, 3)))
    assert config.encode() == A_CONFIG
    assert decode_key_configs(len(A_CONFIG).to_bytes(2, "big") + A_CONFIG) == (config,)


def test_appendix_a_request_and_response() -> None:
    envelope, media_type, opener = seal_request(
        KeyConfig.decode(A_CONFIG), INNER_REQUEST, aead=Aead.AES_128_GCM, entropy=lambda _: A_EPHEMERAL
    )
    assert (envelope, media_type) == (A_REQUEST, MEDIA_REQUEST)
    sealed = SealedRequest.parse(A_REQUEST, MEDIA_REQUEST)
    assert (sealed.key_id, sealed.kem, sealed.kdf, sealed.aead) == (1, Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
    assert sealed.enc == A_ENC
    plaintext, sealer = open_request(sealed, KemPrivateKey(Kem.X25519, A_SECRET_KEY), entropy=lambda _: A_NONCE)
    assert plaintext.view() == INNER_REQUEST
    assert sealer.seal(INNER_RESPONSE) == (A_RESPONSE, MEDIA_RESPONSE)
    assert opener.open(A_RESPONSE, MEDIA_RESPONSE) == INNER_RESPONSE


def test_appendix_a_intermediate_values() -> None:
    info = unhex("6d6573736167652f626874747020726571756573740001002000010001")
    key = KemPrivateKey(Kem.X25519, A_SECRET_KEY)
    context = hpke.setup_receiver(key, Kdf.HKDF_SHA256, Aead.AES_128_GCM, A_ENC, info)
    secret = context.export(b"message/bhttp response", 16)
    assert secret.hex() == "62d87a6ba569ee81014c2641f52bea36"
    prk = hpke.hkdf_extract(A_ENC + A_NONCE, secret)
    assert prk.hex() == "979aaeae066cf211ab407b31ae49767f344e1501e475c84e8aff547cc5a683db"
    assert hpke.hkdf_expand(prk, b"key", 16).hex() == "5d0172a080e428b16d298c4ea0db620d"
    assert hpke.hkdf_expand(prk, b"nonce", 12).hex() == "f6bf1aeb88d6df87007fa263"


# draft-ietf-ohai-chunked-ohttp, appendix A ----------------------------------------------------------------------------

C_SECRET_KEY = unhex("1c190d72acdbe4dbc69e680503bb781a932c70a12c8f3754434c67d8640d8698")
C_CONFIG = unhex("010020668eb21aace159803974a4c67f08b4152d29bed10735fd08f98ccdd6fe09570800080001000100010003")
C_EPHEMERAL = unhex("b26d565f3f875ed480d1abced3d665159650c99174fd0b124ac4bda0c64ae324")
C_ENC = unhex("8811eb457e100811c40a0aa71340a1b81d804bb986f736f2f566a7199761a032")
C_REQUEST_CHUNKS = [
    unhex("1c2ad24942d4d692563012f2980c8fef437a336b9b2fc938ef77a5834f"),
    unhex("1d2e33d8fd25577afe31bd1c79d094f76b6250ae6549b473ecd950501311"),
    unhex("001c6c1395d0ef7c1022297966307b8a7f"),
]
C_REQUEST = unhex("01002000010001") + C_ENC + b"".join(C_REQUEST_CHUNKS)
C_NONCE = unhex("bcce7f4cb921309ba5d62edf1769ef09")
C_RESPONSE_CHUNKS = [
    unhex("1179bf1cc87fa0e2c02de4546945aa3d1e48"),
    unhex("12b348b5bd4c594c16b6170b07b475845d1f32"),
    unhex("00ed9d8a796617a5b27265f4d73247f639"),
]


def test_chunked_example_request() -> None:
    key = KemPrivateKey(Kem.X25519, C_SECRET_KEY)
    config = KeyConfig.decode(C_CONFIG)
    assert config.public_key == key.public_bytes()
    info = unhex("6d6573736167652f6268747470206368756e6b656420726571756573740001002000010001")
    enc, sender = hpke.setup_sender(
        Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM, config.public_key, info, entropy=lambda _: C_EPHEMERAL
    )
    assert enc == C_ENC
    encoder = ChunkEncoder(sender)
    assert [encoder.chunk(INNER_REQUEST[:12]), encoder.chunk(INNER_REQUEST[12:]), encoder.final()] == C_REQUEST_CHUNKS
    plaintext, _ = open_request(SealedRequest.parse(C_REQUEST, MEDIA_CHUNKED_REQUEST), key)
    assert plaintext.view() == INNER_REQUEST


def test_chunked_example_response() -> None:
    sealed = SealedRequest.parse(C_REQUEST, MEDIA_CHUNKED_REQUEST)
    _, sealer = open_request(sealed, KemPrivateKey(Kem.X25519, C_SECRET_KEY), entropy=lambda _: C_NONCE)
    assert sealer._keys._secret.reveal().hex() == "1d4484834ae36102a6ac42a5523454d9"
    assert sealer._keys.derive(C_NONCE) == (
        Aead.AES_128_GCM,
        unhex("8209f78f2a1610d80c7125009b00aff0"),
        unhex("fead854635d2d5527d64f546"),
    )
    nonce, encoder = sealer.stream()
    assert nonce == C_NONCE
    pieces = [encoder.chunk(INNER_RESPONSE[:1]), encoder.chunk(INNER_RESPONSE[1:]), encoder.final()]
    assert pieces == C_RESPONSE_CHUNKS
    # The client end, whole and in pieces.
    _, _, opener = seal_request(
        KeyConfig.decode(C_CONFIG), INNER_REQUEST, chunked=True, aead=Aead.AES_128_GCM, entropy=lambda _: C_EPHEMERAL
    )
    assert opener.open(C_NONCE + b"".join(pieces), MEDIA_CHUNKED_RESPONSE) == INNER_RESPONSE
    decoder = opener.stream(C_NONCE)
    assert [bytes(one) for piece in pieces for one in decoder.feed(piece)] == [INNER_RESPONSE[:1], INNER_RESPONSE[1:]]
    assert decoder.close() == b""


# Exchanges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kem", "aead", "chunked"), SHAPES)
@pytest.mark.parametrize("size", [3, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_exchange(kem: Kem, aead: Aead, chunked: bool, size: int) -> None:
    inner, answer = bytes(size - 1) + b"q", bytes(size - 1) + b"a"
    envelope, media_type, opener = seal_request(config_of(kem), inner, chunked=chunked, aead=aead)
    sealed = SealedRequest.parse(envelope, media_type)
    assert sealed.commitment() == hashlib.sha256(envelope).hexdigest()
    plaintext, sealer = open_request(sealed, KEYS[kem])
    assert plaintext.view() == inner
    reply, reply_type = sealer.seal(memoryview(answer))
    assert opener.open(reply, reply_type) == answer
    assert sealer.seal(answer)[0] != reply
    assert reply_type == (MEDIA_CHUNKED_RESPONSE if chunked else MEDIA_RESPONSE)
    assert seal_request(config_of(kem), inner, chunked=chunked, aead=aead)[0] != envelope


def test_large_messages_are_chunked_by_themselves() -> None:
    config = config_of(Kem.MLKEM768_X25519)
    assert seal_request(config, bytes(CHUNKED_ABOVE))[1] == MEDIA_REQUEST
    envelope, media_type, _ = seal_request(config, bytes(DEFAULT_MESSAGE))
    assert media_type == MEDIA_CHUNKED_REQUEST
    assert len(envelope) <= sealed_size(DEFAULT_MESSAGE)
    assert len(open_request(SealedRequest.parse(envelope, media_type), KEYS[config.kem])[0]) == DEFAULT_MESSAGE
    with pytest.raises(DecodeError):
        seal_request(config, bytes(MAX_INNER_MESSAGE + 1))


def test_the_largest_message_fits_what_is_accepted() -> None:
    config = config_of(Kem.MLKEM768_X25519)
    envelope, media_type, opener = seal_request(config, bytes(MAX_INNER_MESSAGE))
    assert len(envelope) <= MAX_SEALED_MESSAGE
    plaintext, sealer = open_request(SealedRequest.parse(envelope, media_type), KEYS[config.kem])
    assert len(plaintext) == MAX_INNER_MESSAGE
    answer, answer_type = sealer.seal(plaintext.view())
    assert len(opener.open(answer, answer_type)) == MAX_INNER_MESSAGE


def test_preferred_ciphers() -> None:
    assert SealedRequest.parse(*seal_request(config_of(Kem.MLKEM768_X25519), b"x")[:2]).aead is Aead.AES_256_GCM
    assert SealedRequest.parse(*seal_request(config_of(Kem.X25519), b"x")[:2]).aead is Aead.AES_128_GCM
    foreign = KeyConfig(1, Kem.X25519, KEYS[Kem.X25519].public_bytes(), ((3, 1), (1, 3)))
    assert SealedRequest.parse(*seal_request(foreign, b"x")[:2]).aead is Aead.CHACHA20_POLY1305
    with pytest.raises(DecodeError):
        seal_request(foreign, b"x", aead=Aead.AES_128_GCM)
    with pytest.raises(DecodeError):
        seal_request(KeyConfig(1, Kem.X25519, foreign.public_key, ((3, 1),)), b"x")


def test_the_answer_is_bound_to_its_request() -> None:
    config = config_of(Kem.X25519)
    envelope, media_type, _ = seal_request(config, b"one")
    _, _, other = seal_request(config, b"one")
    _, sealer = open_request(SealedRequest.parse(envelope, media_type), KEYS[Kem.X25519])
    with pytest.raises(OpenError):
        other.open(*sealer.seal(b"answer"))


def test_keys_of_another_kind_are_unknown_and_others_open_nothing() -> None:
    sealed = SealedRequest.parse(*seal_request(config_of(Kem.X25519), b"x")[:2])
    with pytest.raises(UnknownKeyError):
        open_request(sealed, KEYS[Kem.MLKEM768_X25519])
    with pytest.raises(OpenError):
        open_request(sealed, KemPrivateKey.generate(Kem.X25519))


def test_the_answer_must_have_the_type_that_was_asked_for() -> None:
    _, _, opener = seal_request(config_of(Kem.X25519), b"x")
    for media_type in (MEDIA_CHUNKED_RESPONSE, MEDIA_REQUEST, "application/json", ""):
        with pytest.raises(DecodeError):
            opener.open(bytes(64), media_type)
    for size in range(40):
        with pytest.raises(OpenError):
            opener.open(bytes(size), MEDIA_RESPONSE)
    with pytest.raises(ValueError, match="chunked"):
        opener.stream(bytes(16))


def test_repr_shows_neither_bodies_nor_secrets() -> None:
    envelope, media_type, _ = seal_request(config_of(Kem.X25519), b"x")
    assert len(repr(SealedRequest.parse(envelope, media_type))) < 300


# Truncation, order and shape of chunks --------------------------------------------------------------------------------


def chunks_of(body: bytes) -> Iterator[bytes]:
    """Cut an encoded chunk sequence into its parts, length prefixes included."""
    at = 0
    while at < len(body):
        length, start = read_varint(body, at)
        end = start + length if length else len(body)
        yield body[at:end]
        at = end


@pytest.fixture
def three_chunks() -> tuple[bytes, list[bytes]]:
    """Header and parts of a request of two data chunks and the final one."""
    envelope, media_type, _ = seal_request(config_of(Kem.X25519), bytes(CHUNK + 5), chunked=True)
    assert media_type == MEDIA_CHUNKED_REQUEST
    head, parts = envelope[: 7 + 32], list(chunks_of(envelope[7 + 32 :]))
    assert len(parts) == 3
    return head, parts


def attempt(head: bytes, *parts: bytes) -> None:
    open_request(SealedRequest.parse(head + b"".join(parts), MEDIA_CHUNKED_REQUEST), KEYS[Kem.X25519])


def test_shortened_and_reordered_requests(three_chunks: tuple[bytes, list[bytes]]) -> None:
    head, (first, second, final) = three_chunks
    attempt(head, first, second, final)
    for parts in ([first, second], [first], [first, second[:-1]], [first, second, b"\x00"], [first, second, final[:9]]):
        with pytest.raises(TruncatedError):
            attempt(head, *parts)
    for parts in (
        [second, first, final],
        [first, final],
        [second, final],
        [final],
        [first, first, second, final],
        [first, second, second, final],
        [first, second, final + b"x"],
        [first, second, final[:-1] + bytes([final[-1] ^ 1])],
        [first, b"\x00" + read_tail(second)],  # a data chunk passed off as the final one
        [first, second, encode_varint(16) + final[1:], final],  # the final one passed off as data
    ):
        with pytest.raises(OpenError):
            attempt(head, *parts)


def read_tail(chunk: bytes) -> bytes:
    return chunk[read_varint(chunk, 0)[1] :]


def test_every_truncation_of_a_response() -> None:
    envelope, media_type, opener = seal_request(config_of(Kem.X25519), b"q", chunked=True)
    _, sealer = open_request(SealedRequest.parse(envelope, media_type), KEYS[Kem.X25519])
    reply, reply_type = sealer.seal(b"the answer")
    for end in range(len(reply)):
        with pytest.raises((TruncatedError, OpenError)) as whole:
            opener.open(reply[:end], reply_type)
        if end < opener.nonce_size:
            continue
        assert isinstance(whole.value, TruncatedError)
        decoder = opener.stream(reply[: opener.nonce_size])
        decoder.feed(reply[opener.nonce_size : end])
        with pytest.raises(TruncatedError):
            decoder.close()


def test_only_the_final_chunk_may_be_empty() -> None:
    attempt(seal_request(config_of(Kem.X25519), b"", chunked=True)[0])  # an empty message is one final chunk
    # An empty chunk before it is refused even though it is authentic.
    config = config_of(Kem.X25519)
    header = unhex("07002000010001")
    info = b"message/bhttp chunked request\x00" + header
    enc, sender = hpke.setup_sender(config.kem, Kdf.HKDF_SHA256, Aead.AES_128_GCM, config.public_key, info)
    empty, final = encode_varint(16) + sender.seal(b"", b""), encode_varint(0) + sender.seal(b"final", b"data")
    with pytest.raises(OpenError):
        attempt(header + enc, empty, final)
    sealer = hpke.Sealer(Aead.AES_128_GCM, bytes(16), bytes(12))
    decoder = ChunkDecoder(hpke.Opener(Aead.AES_128_GCM, bytes(16), bytes(12)))
    with pytest.raises(OpenError):
        decoder.feed(encode_varint(16) + sealer.seal(b"", b""))


def test_the_size_is_refused_before_anything_is_opened() -> None:
    body = b"\x00" + bytes(MAX_INNER_MESSAGE + 17)  # one final chunk of one byte too many
    head = seal_request(config_of(Kem.X25519), b"", chunked=True)[0][: 7 + 32]
    tracemalloc.start()
    with pytest.raises(DecodeError):
        open_whole(hpke.Opener(Aead.AES_128_GCM, bytes(16), bytes(12)), memoryview(body))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    with pytest.raises(DecodeError):
        attempt(head, body)


def test_what_was_opened_before_a_failure_is_wiped() -> None:
    buffers: list[memoryview] = []

    class Recording(hpke.Opener):
        def open_into(self, aad: bytes, ciphertext: object, buffer: object) -> None:
            super().open_into(aad, ciphertext, buffer)  # type: ignore[arg-type]
            assert any(buffer)  # type: ignore[call-overload]
            buffers.append(buffer)  # type: ignore[arg-type]

    encoder = ChunkEncoder(hpke.Sealer(Aead.AES_128_GCM, bytes(16), bytes(12)))
    body = b"".join([encoder.chunk(b"secret"), encoder.chunk(b"secrets"), encoder.final()])
    with pytest.raises(OpenError):
        open_whole(Recording(Aead.AES_128_GCM, bytes(16), bytes(12)), memoryview(body[:-1] + b"!"))
    assert [bytes(buffer) for buffer in buffers] == [bytes(6), bytes(7)]


def test_the_number_of_chunks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealgate.protocol.chunked.MAX_CHUNKS", 5)
    key, nonce = bytes(16), bytes(12)

    def sealed(count: int) -> bytes:
        encoder = ChunkEncoder(hpke.Sealer(Aead.AES_128_GCM, key, nonce))
        return b"".join([encoder.chunk(b"x") for _ in range(count)] + [encoder.final()])

    for count, fits in ((4, True), (6, False)):
        decoder = ChunkDecoder(hpke.Opener(Aead.AES_128_GCM, key, nonce))
        envelope = seal_request(config_of(Kem.X25519), b"", chunked=True)[0][: 7 + 32]
        if fits:
            decoder.feed(sealed(count))
            assert decoder.close() == b""
            continue
        with pytest.raises(DecodeError):
            decoder.feed(sealed(count))
        with pytest.raises(OpenError):  # broken for good
            decoder.feed(b"")
        with pytest.raises(OpenError):
            decoder.close()
        with pytest.raises(DecodeError):
            attempt(envelope, sealed(count))


def test_a_decoder_holds_no_more_than_its_limit() -> None:
    def fresh() -> ChunkDecoder:
        return ChunkDecoder(hpke.Opener(Aead.AES_128_GCM, bytes(16), bytes(12)), limit=1000)

    with pytest.raises(DecodeError):
        fresh().feed(bytes(1001))
    with pytest.raises(DecodeError):  # a length beyond the limit is refused before its bytes come
        fresh().feed(encode_varint(5000))
    patient = fresh()
    assert patient.feed(encode_varint(500)) == []
    assert patient.feed(bytes(400)) == []


def test_the_encoder_refuses_misuse() -> None:
    encoder = ChunkEncoder(hpke.Sealer(Aead.AES_128_GCM, bytes(16), bytes(12)))
    for data in (b"", bytes(CHUNK + 1)):
        with pytest.raises(ValueError, match="chunk"):
            encoder.chunk(data)
    encoder.final()
    with pytest.raises(ValueError, match="ended"):
        encoder.final()
    with pytest.raises(ValueError, match="final"):
        encoder.chunk(b"x")


def test_our_responses_have_the_shape_that_clients_understand() -> None:
    envelope, media_type, opener = seal_request(config_of(Kem.X25519), b"q", chunked=True)
    _, sealer = open_request(SealedRequest.parse(envelope, media_type), KEYS[Kem.X25519])
    reply, _ = sealer.seal(bytes(CHUNK + 10))
    sizes = [len(read_tail(part)) - 16 for part in chunks_of(reply[opener.nonce_size :])]
    assert sizes == [CHUNK, 10, 0]


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(1, 60), max_size=8), st.data())
def test_streams_in_any_pieces(message: bytes, cuts: list[int], data: st.DataObject) -> None:
    encoder = ChunkEncoder(hpke.Sealer(Aead.CHACHA20_POLY1305, bytes(32), bytes(12)))
    stream, at = b"", 0
    for cut in [*cuts, len(message)]:
        if message[at : at + cut]:
            stream += encoder.chunk(message[at : at + cut])
        at += cut
    stream += encoder.final()
    decoder = ChunkDecoder(hpke.Opener(Aead.CHACHA20_POLY1305, bytes(32), bytes(12)))
    opened, rest = b"", stream
    while rest:
        step = data.draw(st.integers(1, len(rest)))
        opened += b"".join(decoder.feed(rest[:step]))
        rest = rest[step:]
    assert opened + decoder.close() == message


# An independent opener of responses -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=100))
def test_responses_open_under_a_second_reading_of_the_rfc(answer: bytes) -> None:
    """RFC 9458 section 4.4 with the library's HKDF and AEAD only; the exported secret is the context's."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    envelope, media_type, _ = seal_request(config_of(Kem.X25519), b"q", aead=Aead.AES_256_GCM)
    sealed = SealedRequest.parse(envelope, media_type)
    info = b"message/bhttp request\x00" + envelope[:7]
    context = hpke.setup_receiver(KEYS[Kem.X25519], Kdf.HKDF_SHA256, Aead.AES_256_GCM, sealed.enc, info)
    reply, _ = open_request(sealed, KEYS[Kem.X25519])[1].seal(answer)
    secret = context.export(b"message/bhttp response", 32)
    salt = sealed.enc + reply[:32]
    key, nonce = (HKDF(SHA256(), size, salt, label).derive(secret) for label, size in ((b"key", 32), (b"nonce", 12)))
    assert AESGCM(key).decrypt(nonce, reply[32:], None) == answer


# Key configurations ---------------------------------------------------------------------------------------------------


def test_configurations_of_unknown_kems_are_skipped() -> None:
    p256 = b"\x05\x00\x10" + b"\x04" * 65 + b"\x00\x04\x00\x01\x00\x01"
    known = [config_of(Kem.MLKEM768_X25519), config_of(Kem.X25519, 8)]
    listed = encode_key_configs(known)
    framed = len(p256).to_bytes(2, "big") + p256
    assert decode_key_configs(framed + listed) == tuple(known)
    for nothing in (framed, b""):
        with pytest.raises(DecodeError) as caught:
            decode_key_configs(nothing)
        assert caught.value.code == "no-usable-key"
    with pytest.raises(DecodeError):
        decode_key_configs(framed * MAX_KEY_CONFIGS + listed)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: raw[:2], lambda raw: b""])
def test_malformed_configurations_are_refused(change: object) -> None:
    raw = change(config_of(Kem.X25519).encode())  # type: ignore[operator]
    with pytest.raises(DecodeError):
        KeyConfig.decode(raw)
    with pytest.raises(DecodeError):
        decode_key_configs(len(raw).to_bytes(2, "big") + raw)


def test_configurations_without_ciphers_or_with_odd_lists_are_refused() -> None:
    head = config_of(Kem.X25519).encode()[: 3 + 32]
    for tail in (b"\x00\x00", b"\x00\x03\x00\x01\x00", b"\x00\x04\x00\x01\x00\x01\x00\x01\x00\x01"):
        with pytest.raises(DecodeError):
            KeyConfig.decode(head + tail)
    for bad in (KeyConfig(256, Kem.X25519, bytes(32)), KeyConfig(1, Kem.X25519, bytes(31))):
        with pytest.raises(DecodeError):
            bad.encode()


# Garbage --------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_key_configurations(data: bytes) -> None:
    for decode in (decode_key_configs, KeyConfig.decode):
        try:
            decode(data)
        except ProtocolError:
            continue


def parse_and_open(envelope: bytes, media_type: str) -> None:
    sealed = SealedRequest.parse(envelope, media_type)
    open_request(sealed, KEYS[sealed.kem])


REQUEST_HEADS = st.sampled_from(
    [b"", b"\x07\x00\x20\x00\x01\x00\x01", b"\x07\x64\x7a\x00\x01\x00\x02", b"\x07\x00\x20\x00\x02\x00\x01"]
)


@settings(max_examples=300, deadline=None)
@given(REQUEST_HEADS, st.binary(max_size=200), st.sampled_from([MEDIA_REQUEST, MEDIA_CHUNKED_REQUEST, "text/plain"]))
def test_garbage_requests(head: bytes, data: bytes, media_type: str) -> None:
    data = data * 8 if head[1:3] == b"\x64\x7a" else data
    with pytest.raises(ProtocolError):
        parse_and_open(head + data, media_type)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_damaged_requests_and_responses(data: st.DataObject, chunked: bool) -> None:
    kem = data.draw(st.sampled_from(list(Kem)))
    envelope, media_type, opener = seal_request(config_of(kem), b"question", chunked=chunked)
    reply, reply_type = open_request(SealedRequest.parse(envelope, media_type), KEYS[kem])[1].seal(b"answer")

    def damage(whole: bytes) -> bytes:
        at = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "extend"]))
        if kind == "flip":
            return whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
        return whole[:at] if kind == "cut" else whole + whole[at:]

    with pytest.raises(ProtocolError):
        parse_and_open(damage(envelope), media_type)
    with pytest.raises(ProtocolError):
        opener.open(damage(reply), reply_type)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 40))
def test_garbage_streams(data: bytes, step: int) -> None:
    decoder = ChunkDecoder(hpke.Opener(Aead.AES_128_GCM, bytes(16), bytes(12)))

    def drive() -> None:
        for at in range(0, len(data), step):
            decoder.feed(data[at : at + step])
        decoder.close()

    with pytest.raises(ProtocolError):
        drive()


def test_oversized_envelopes_are_refused_by_length_alone() -> None:
    with pytest.raises(DecodeError) as caught:
        SealedRequest.parse(bytes(MAX_SEALED_MESSAGE + 1), MEDIA_REQUEST)
    assert caught.value.code == "too-large"


def test_media_types_are_exact() -> None:
    assert ohttp.MEDIA_KEYS == "application/ohttp-keys"
    envelope, _, _ = seal_request(config_of(Kem.X25519), b"x")
    for media_type in ("message/ohttp-res", "Message/OHTTP-req", "message/ohttp-req; x=y"):
        with pytest.raises(DecodeError) as caught:
            SealedRequest.parse(envelope, media_type)
        assert caught.value.code == "unsupported-media-type"
