"""Chunks of Oblivious HTTP (draft-ietf-ohai-chunked-ohttp): each sealed by itself, in order, the last one marked.

    chunk := length (varint, > 0) | sealed bytes          repeated
    final := 0 (varint) | sealed bytes to the end         sealed with the associated data "final"

Order is bound by the sequence number in the nonce, the end by the associated data: whoever cuts a message short cannot
make the reader believe that it is whole. We write data chunks and then an empty final chunk, the shape that every
client in our trials understands. Pure: bytes in, bytes out.

Trusts nothing. Never: reports a message as whole without its authenticated final chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

from sealgate.errors import DecodeError, OpenError, TruncatedError
from sealgate.limits import CHUNK, MAX_CHUNKS, MAX_INNER_MESSAGE, MAX_SEALED_MESSAGE
from sealgate.protocol.hpke import TAG_SIZE, Opener, Sealer
from sealgate.protocol.varint import encode_varint, read_varint

_FINAL = b"final"


class ChunkEncoder:
    """Seals a stream piece by piece. Call `chunk` for data as it comes, and `final` exactly once at the end."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._ended = False

    def chunk(self, data: bytes | bytearray | memoryview) -> bytes:
        """One non-final chunk; `data` is not empty and at most CHUNK bytes."""
        if self._ended or not 0 < len(data) <= CHUNK:
            raise ValueError("a chunk holds 1 to CHUNK bytes and comes before the final one")
        sealed = self._sealer.seal(b"", data)
        return encode_varint(len(sealed)) + sealed

    def final(self) -> bytes:
        """The empty final chunk."""
        if self._ended:
            raise ValueError("the stream has ended")
        self._ended = True
        return encode_varint(0) + self._sealer.seal(_FINAL, b"")

    def whole(self, message: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """All chunks of a message that is at hand."""
        view = memoryview(message)
        for start in range(0, len(view), CHUNK):
            yield self.chunk(view[start : start + CHUNK])
        yield self.final()


class ChunkDecoder:
    """Opens a stream piece by piece: feed bytes as they arrive, then `close` at the end of the outer message.

    What `feed` returns is authentic and in order, but whether the message is whole is known only when `close` returns.
    Holds at most `limit` bytes. After any error the decoder is unusable.
    """

    def __init__(self, opener: Opener, *, limit: int = MAX_SEALED_MESSAGE) -> None:
        self._opener = opener
        self._left = limit
        self._chunks = 0
        self._buffer = bytearray()
        self._in_final = False
        self._broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytearray]:
        """The plaintext of every chunk that is complete now. Raises OpenError or DecodeError."""
        if self._broken:
            raise OpenError
        self._broken = True  # until this call succeeds
        self._left -= len(data)
        if self._left < 0:
            raise DecodeError("the chunked message is too large")
        self._buffer += data
        opened: list[bytearray] = []
        start = 0
        while not self._in_final and start < len(self._buffer):
            if start + (1 << (self._buffer[start] >> 6)) > len(self._buffer):
                break
            length, content = read_varint(self._buffer, start)
            if length == 0:
                self._in_final = True
                start = content
                break
            self._check(length)
            if content + length > len(self._buffer):
                break
            self._chunks += 1
            opened.append(self._opener.open(b"", self._buffer[content : content + length]))
            start = content + length
        del self._buffer[:start]
        self._broken = False
        return opened

    def _check(self, length: int) -> None:
        if length <= TAG_SIZE:
            raise OpenError  # a chunk without data: the draft calls it a decryption error
        if self._chunks >= MAX_CHUNKS:
            raise DecodeError("the message has too many chunks")
        if length > self._left + len(self._buffer):
            raise DecodeError("the chunked message is too large")

    def close(self) -> bytearray:
        """The plaintext of the final chunk, often empty. Raises TruncatedError if it did not come, or OpenError."""
        if self._broken:
            raise OpenError
        self._broken = True
        if not self._in_final or len(self._buffer) < TAG_SIZE:
            raise TruncatedError("the sealed message ends before its final chunk")
        return self._opener.open(_FINAL, self._buffer)


def open_whole(opener: Opener, body: memoryview) -> bytearray:
    """Open all chunks of a message that is at hand, into one buffer that can be wiped.

    Raises TruncatedError if the final chunk is missing, OpenError, or DecodeError. All lengths are read and bounded
    before the buffer is allocated; on any failure it is cleared.
    """
    chunks = _split(body)
    size = sum(end - start - TAG_SIZE for start, end in chunks)
    if size > MAX_INNER_MESSAGE:
        raise DecodeError("the message is too large")
    buffer = bytearray(size)
    view = memoryview(buffer)
    try:
        at = 0
        for index, (start, end) in enumerate(chunks):
            width = end - start - TAG_SIZE
            aad = _FINAL if index == len(chunks) - 1 else b""
            opener.open_into(aad, body[start:end], view[at : at + width])
            at += width
    except OpenError:
        view[:] = bytes(size)
        raise
    finally:
        view.release()
    return buffer


def _split(body: memoryview) -> list[tuple[int, int]]:
    """Where the sealed bytes of each chunk stand; the last pair is the final chunk."""
    chunks: list[tuple[int, int]] = []
    offset = 0
    while len(chunks) < MAX_CHUNKS:
        try:
            length, start = read_varint(body, offset)
        except DecodeError as error:
            raise TruncatedError("the sealed message ends before its final chunk") from error
        end = start + length if length else len(body)
        if end > len(body) or (length == 0 and end - start < TAG_SIZE):
            raise TruncatedError("the sealed message ends before its final chunk")
        if 0 < length <= TAG_SIZE:
            raise OpenError  # a chunk without data: the draft calls it a decryption error
        chunks.append((start, end))
        if length == 0:
            return chunks
        offset = end
    raise DecodeError("the message has too many chunks")
