"""How far a file that was cut off got: how many whole records it holds, and where the last of them ends.

A download that breaks leaves whole lines and at most one broken one. The broken one is thrown away, the lines are
counted, and the rest is asked for from the next record on. Trusts: that the file holds lines of one format and of one
range; one that begins differently is refused. Never: reads the file into memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from sealgate.errors import DecodeError
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
