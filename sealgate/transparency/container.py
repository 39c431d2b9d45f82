"""A ZIP file of one exact form, so that every byte of it is accounted for.

Members are stored, not compressed, under fixed times and attributes; any unzip opens it. The reader accepts only the
bytes that the writer writes for the same names and contents: nothing before, between or behind, so a changed byte
anywhere is noticed and nothing can unpack to more than it is. Trusts nothing. Never: extracts to disk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from sealgate.errors import DecodeError
from sealgate.limits import MAX_BUNDLE, MAX_BUNDLE_MEMBER, MAX_BUNDLE_MEMBERS

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_DATE = (1 << 5) | 1  # 1980-01-01, the format's first day
_UTF8 = 0x0800
_VERSION = 20
_UNIX = 3 << 8
_MODE = (0o100644 << 16) & 0xFFFFFFFF
_MAX_NAME = 120


def _require_name(name: str) -> bytes:
    raw = name.encode("ascii", "replace")
    plain = name.isascii() and name.isprintable() and not name.startswith("/") and "\\" not in name
    if not name or len(raw) > _MAX_NAME or not plain or ".." in name:
        raise DecodeError("a member's name is not allowed")
    return raw


def _local(name: bytes, crc: int, size: int) -> bytes:
    return _LOCAL.pack(b"PK\x03\x04", _VERSION, _UTF8, 0, 0, _DATE, crc, size, size, len(name), 0) + name


def _central(name: bytes, crc: int, size: int, offset: int) -> bytes:
    fixed = (b"PK\x01\x02", _UNIX | _VERSION, _VERSION, _UTF8, 0, 0, _DATE, crc, size, size, len(name), 0, 0, 0, 0)
    return _CENTRAL.pack(*fixed, _MODE, offset) + name


def _end(members: int, directory_size: int, directory_offset: int) -> bytes:
    return _END.pack(b"PK\x05\x06", 0, 0, members, members, directory_size, directory_offset, 0)


class ContainerWriter:
    """Writes members one after the other to a stream that need not be seekable; `close` writes the directory."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._offset = 0
        self._directory: list[bytes] = []
        self._names: set[str] = set()

    def add(self, name: str, content: bytes) -> None:
        raw = _require_name(name)
        header = _local(raw, zlib.crc32(content), len(content))
        total = self._offset + len(header) + len(content)
        if name in self._names or len(self._names) >= MAX_BUNDLE_MEMBERS:
            raise DecodeError("the bundle has this member already, or too many")
        if len(content) > MAX_BUNDLE_MEMBER or total > MAX_BUNDLE:
            raise DecodeError("the bundle grows too large; export a smaller range")
        self._out.write(header)
        self._out.write(content)
        self._directory.append(_central(raw, zlib.crc32(content), len(content), self._offset))
        self._names.add(name)
        self._offset = total

    def close(self) -> None:
        """Finish the file. The stream stays open."""
        directory = b"".join(self._directory)
        self._out.write(directory + _end(len(self._directory), len(directory), self._offset))


class ContainerReader:
    """Members of a seekable stream, whose form was checked completely when this was made; raises DecodeError.

    Contents are read when asked for, one member at a time, and their checksum is checked then.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._members: dict[str, tuple[int, int, int]] = {}  # name to offset of content, size, checksum
        directory: list[bytes] = []
        offset = 0
        for name, crc, size, header in self._headers():
            raw = name.encode("ascii")
            if name in self._members or len(self._members) >= MAX_BUNDLE_MEMBERS:
                raise DecodeError("the bundle names a member twice, or too many")
            self._members[name] = (offset + len(header), size, crc)
            directory.append(_central(raw, crc, size, offset))
            offset += len(header) + size
            if offset > MAX_BUNDLE:
                raise DecodeError("the bundle is too large")
            stream.seek(offset)
        joined = b"".join(directory)
        tail = joined + _end(len(directory), len(joined), offset)
        stream.seek(offset)
        if not directory:
            raise DecodeError("this is no evidence bundle")
        if stream.read(len(tail) + 1) != tail:
            raise DecodeError("the bundle's directory does not match its members")

    def _headers(self) -> Iterator[tuple[str, int, int, bytes]]:
        """Local headers in order; the caller moves the stream behind each content."""
        self._stream.seek(0)
        while True:
            fixed = self._stream.read(_LOCAL.size)
            if fixed[:4] != b"PK\x03\x04" or len(fixed) < _LOCAL.size:
                return
            fields = _LOCAL.unpack(fixed)
            crc, size, name_size = fields[6], fields[7], fields[9]
            if name_size > _MAX_NAME or size > MAX_BUNDLE_MEMBER:
                raise DecodeError("a member of the bundle is too large")
            raw = self._stream.read(name_size)
            try:
                name = raw.decode("ascii")
            except UnicodeDecodeError as error:
                raise DecodeError("a member's name is not allowed") from error
            _require_name(name)
            if fixed + raw != _local(raw, crc, size):
                raise DecodeError("the bundle is not in the one form that is allowed")
            yield name, crc, size, fixed + raw

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(self._members)

    def read(self, name: str) -> bytes:
        """One member's content."""
        try:
            offset, size, crc = self._members[name]
        except KeyError as error:
            raise DecodeError(f"the bundle has no member '{name}'") from error
        self._stream.seek(offset)
        content = self._stream.read(size)
        if len(content) != size or zlib.crc32(content) != crc:
            raise DecodeError("a member of the bundle is damaged")
        return content
