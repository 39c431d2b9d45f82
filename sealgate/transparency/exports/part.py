"""How far a file that was cut off got: how many whole records it holds, and where the last of them ends.

A download that breaks leaves whole lines and at most one broken one. The broken one is thrown away, the lines are
counted, and the rest is asked for from the next record on. Trusts: that the file holds lines of one format and of one
range; one that begins differently is refused. Never: reads the file into memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from sealgate.errors import DecodeError
from sealgate.limits import MAX_EXPORT_LINE
from sealgate.transparency.exports.formats import ExportFormat

_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Progress:
    """What is there: `records` whole ones in the first `size` bytes (the header counted in the size)."""

    records: int
    size: int


def measure(stream: BinaryIO, form: ExportFormat) -> Progress:
    """Count the whole records of a file of this format; raises DecodeError if it begins as another one does."""
    stream.seek(0)
    head = stream.read(len(form.header))
    if head != form.header[: len(head)]:
        raise DecodeError(f"the file is no {form.name} export")
    if len(head) < len(form.header):
        return Progress(0, 0)
    records, size, at = 0, len(head), len(head)
    while block := stream.read(_BLOCK):
        records += block.count(b"\n")
        last = block.rfind(b"\n")
        if last >= 0:
            size = at + last + 1
        at += len(block)
    return Progress(records, size)


def last_line(stream: BinaryIO, progress: Progress) -> bytes:
    """The last whole record's line, with its end; raises DecodeError if it is longer than a line can be."""
    start = max(progress.size - MAX_EXPORT_LINE - 1, 0)
    stream.seek(start)
    tail = stream.read(progress.size - start)
    before = tail.rfind(b"\n", 0, len(tail) - 1)
    if before < 0 and start:
        raise DecodeError("a line is longer than any export has")
    return tail[before + 1 :]


class ExportLines:
    """Checks the form of an export as it comes: its header, then as many lines as records were asked for, whole. Fewer
    are right where `gaps` may be: records that are no longer kept have none."""

    def __init__(self, form: ExportFormat, records: int, *, gaps: bool = False) -> None:
        self._form = form
        self._gaps = gaps
        self._head = b""
        self._left = records
        self._line = 0  # bytes of the line that has begun

    def take(self, piece: bytes) -> bytes:
        """The lines in the next piece, without the header; raises DecodeError for what is no such export."""
        missing = len(self._form.header) - len(self._head)
        if missing > 0:
            self._head += piece[:missing]
            piece = piece[missing:]
            if not self._form.header.startswith(self._head):
                raise DecodeError(f"the service's answer is no {self._form.name} export")
        ended = piece.count(b"\n")
        self._left -= ended
        self._line = len(piece) - piece.rfind(b"\n") - 1 if ended else self._line + len(piece)
        if self._left < 0 or (self._left == 0 and self._line):
            raise DecodeError("the service's answer holds more than was asked for")
        if self._line > MAX_EXPORT_LINE:
            raise DecodeError("a line is longer than any export has")
        return piece

    def finish(self) -> None:
        """Raise DecodeError unless everything came."""
        if (self._left and not self._gaps) or self._line or len(self._head) < len(self._form.header):
            raise DecodeError("the service's answer ends early")
