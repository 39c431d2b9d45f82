"""Binary HTTP, RFC 9292: the request or response that stands inside the seal. Both framings, strict and bounded.

    known length          0|1, control data, section length + field lines, content length + content, trailers, zeros
    indeterminate length  2|3, control data, field lines + 0, (chunk length + chunk)* + 0, trailers, zeros

Empty parts may be cut off at the end; zero bytes may follow (padding). Text is `str`: names are lower-case ASCII,
values ISO 8859-1 (every byte sequence has one, and it is kept). Reading order: values, encoding, decoding, rules.

Trusts nothing: what decodes here obeys HTTP/2's rules for names, values and pseudo-fields. Stricter than the RFC: no
pseudo-fields at all, no connection-specific fields, paths begin with "/". Never: shows content in `repr` or errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from sealgate.errors import DecodeError
from sealgate.limits import MAX_CHUNKS, MAX_FIELD_SECTION, MAX_FIELDS, MAX_INNER_MESSAGE, MAX_TARGET
from sealgate.protocol.padding import size_class
from sealgate.protocol.varint import encode_varint, read_varint

Fields: TypeAlias = tuple[tuple[str, str], ...]
Bytes: TypeAlias = bytes | bytearray | memoryview
PadTo: TypeAlias = Callable[[int], int] | None

_MAX_INFORMATIONAL = 16  # 1xx responses before the final one; they are read and dropped

_TARGET = re.compile(  # method, scheme, authority (visible ASCII but for @ / ? # \), path (but for #); a line each
    r"""[!#$%&'*+\-.^_`|~0-9A-Za-z]+\n[a-z][a-z0-9+.\-]*\n[!"$-.0->A-\[\]-~]*\n/[!"$-~]*"""
)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(  # no NUL, CR or LF, nor white space at either end
    r"(?:[\x01-\x08\x0b\x0c\x0e-\x1f!-\xff](?:[\x01-\x09\x0b\x0c\x0e-\xff]*[\x01-\x08\x0b\x0c\x0e-\x1f!-\xff])?)?"
)
_CONNECTION = frozenset({"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"})


# Values ---------------------------------------------------------------------------------------------------------------


class _Message:
    """What requests and responses share."""

    fields: Fields

    def field(self, name: str) -> str | None:
        """The value of a header field that may stand once: None if absent, DecodeError if repeated."""
        values = [value for key, value in self.fields if key == name]
        if len(values) > 1:
            raise DecodeError(f"the field {name} is given more than once", code="field-repeated")
        return values[0] if values else None


@dataclass(frozen=True)
class Request(_Message):
    """An HTTP request. `path` includes the query. A decoded `body` is a view into the bytes that were decoded."""

    method: str
    scheme: str
    authority: str
    path: str = field(repr=False)
    fields: Fields = field(default=(), repr=False)
    body: Bytes = field(default=b"", repr=False)
    trailers: Fields = field(default=(), repr=False)


@dataclass(frozen=True)
class Response(_Message):
    """A final HTTP response. A decoded `body` is a view into the bytes that were decoded."""

    status: int
    fields: Fields = field(default=(), repr=False)
    body: Bytes = field(default=b"", repr=False)
    trailers: Fields = field(default=(), repr=False)


# Encoding -------------------------------------------------------------------------------------------------------------


def encode_request(request: Request, *, indeterminate: bool = False, pad_to: PadTo = size_class) -> bytes:
    """The bytes to seal. `pad_to` gives the padded length for a length; None leaves the message as it is."""
    _check_target(request.method, request.scheme, request.authority, request.path)
    target = (request.method, request.scheme, request.authority, request.path)
    control = b"".join(_prefixed(part.encode("ascii")) for part in target)
    return _encode(2 if indeterminate else 0, control, request, pad_to)


def encode_response(response: Response, *, indeterminate: bool = False, pad_to: PadTo = size_class) -> bytes:
    """As `encode_request`."""
    if not 200 <= response.status <= 599:
        raise DecodeError("the status is not that of a final response")
    return _encode(3 if indeterminate else 1, encode_varint(response.status), response, pad_to)


def _encode(framing: int, control: bytes, message: Request | Response, pad_to: PadTo) -> bytes:
    headers, trailers = _field_lines(message.fields), _field_lines(message.trailers)
    body = memoryview(message.body).cast("B")
    parts: list[Bytes]
    if framing < 2:
        parts = [_prefixed(headers), encode_varint(len(body)), body, _prefixed(trailers)]
    else:
        length = encode_varint(len(body)) if len(body) else b""
        parts = [headers, b"\x00", length, body, b"\x00", trailers, b"\x00"]
    parts = [encode_varint(framing), control, *parts]
    size = sum(map(len, parts))
    if size > MAX_INNER_MESSAGE:
        raise DecodeError("the message is too large", code="too-large")
    padding = 0 if pad_to is None else max(0, min(pad_to(size), MAX_INNER_MESSAGE) - size)
    return b"".join((*parts, bytes(padding)))


def _prefixed(data: bytes) -> bytes:
    return encode_varint(len(data)) + data


def _field_lines(fields: Fields) -> bytes:
    _check_fields(fields)
    section = b"".join([_prefixed(text.encode("latin-1")) for field in fields for text in field])
    if len(section) > MAX_FIELD_SECTION:
        raise DecodeError("the field section is too large")
    return section


# Decoding -------------------------------------------------------------------------------------------------------------


def decode_request(data: Bytes) -> Request:
    """The request in exactly these bytes. Raises DecodeError."""
    reader = _Reader(data)
    framing = reader.integer()
    if framing not in (0, 2):
        raise DecodeError("the message is not a request")
    method, scheme, authority, path = reader.text(), reader.text(), reader.text(), reader.text()
    _check_target(method, scheme, authority, path)
    return Request(method, scheme, authority, path, *reader.rest(indeterminate=framing == 2))


def decode_response(data: Bytes) -> Response:
    """The final response in exactly these bytes; informational ones before it are dropped. Raises DecodeError."""
    reader = _Reader(data)
    framing = reader.integer()
    if framing not in (1, 3):
        raise DecodeError("the message is not a response")
    for _ in range(_MAX_INFORMATIONAL + 1):
        status = reader.integer()
        if 200 <= status <= 599:
            return Response(status, *reader.rest(indeterminate=framing == 3))
        if not 100 <= status <= 199:
            raise DecodeError("the response's status is out of range")
        reader.fields(indeterminate=framing == 3)
    raise DecodeError("there are too many informational responses")


class _Reader:
    """A cursor over the message. Every read is bounded by what is there before anything is allocated."""

    def __init__(self, data: Bytes) -> None:
        if len(data) > MAX_INNER_MESSAGE:
            raise DecodeError("the message is too large", code="too-large")
        self._data = memoryview(data)
        self._at = 0

    def integer(self) -> int:
        value, self._at = read_varint(self._data, self._at)
        return value

    def take(self, length: int) -> memoryview:
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise DecodeError("the message ends early")
        return self._data[start : self._at]

    def text(self) -> str:
        """A part of the target: its length, and as many bytes."""
        length = self.integer()
        if length > MAX_TARGET:
            raise DecodeError("a part of the target is too long")
        return str(self.take(length), "latin-1")

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def rest(self, *, indeterminate: bool) -> tuple[Fields, memoryview, Fields]:
        """Header fields, content, trailers and padding: all that follows the control data."""
        headers = self.fields(indeterminate=indeterminate)
        content = self._chunks() if indeterminate else self.take(0 if self.at_end else self.integer())
        trailers = self.fields(indeterminate=indeterminate)
        padding = self._data[self._at :]
        if bytes(padding).count(0) != len(padding):
            raise DecodeError("the message is followed by bytes that are not padding")
        return headers, content, trailers

    def fields(self, *, indeterminate: bool) -> Fields:
        """One field section; an absent one is empty."""
        if self.at_end:
            return ()
        length = MAX_FIELD_SECTION if indeterminate else self.integer()
        if length > MAX_FIELD_SECTION:
            raise DecodeError("the field section is too large")
        end = self._at + length
        if not indeterminate and end > len(self._data):
            raise DecodeError("the message ends early")
        fields: list[tuple[str, str]] = []
        while indeterminate or self._at < end:
            size = self.integer()
            if size == 0:
                if indeterminate:
                    break
                raise DecodeError("a field has no name")
            name, value = self.take(size), self.take(self.integer())
            if self._at > end or len(fields) >= MAX_FIELDS:
                raise DecodeError("the field section is too large or its length is wrong")
            fields.append((str(name, "latin-1"), str(value, "latin-1")))
        found = tuple(fields)
        _check_fields(found)
        return found

    def _chunks(self) -> memoryview:
        """Content of indeterminate length. One chunk stays a view, more are joined in a buffer of their own."""
        chunks: list[memoryview] = []
        while not (self.at_end and not chunks):
            length = self.integer()
            if length == 0:
                break
            if len(chunks) >= MAX_CHUNKS:
                raise DecodeError("the content has too many chunks")
            chunks.append(self.take(length))
        return chunks[0] if len(chunks) == 1 else memoryview(bytearray().join(chunks))


# Rules for both directions --------------------------------------------------------------------------------------------


def _check_target(method: str, scheme: str, authority: str, path: str) -> None:
    if max(len(method), len(scheme), len(authority), len(path)) > MAX_TARGET:
        raise DecodeError("a part of the target is too long")
    if not _TARGET.fullmatch(f"{method}\n{scheme}\n{authority}\n{path}"):
        raise DecodeError("the method, the scheme, the authority or the path is not valid")


def _check_fields(fields: Fields) -> None:
    if len(fields) > MAX_FIELDS:
        raise DecodeError("there are too many fields")
    for name, value in fields:
        if not _NAME.fullmatch(name) or (name in _CONNECTION and (name, value) != ("te", "trailers")):
            raise DecodeError("a field name is not valid here")
        if not _VALUE.fullmatch(value):
            raise DecodeError("a field value is not valid")
