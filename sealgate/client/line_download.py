"""Fetching an export of lines into a file that may be there in part, from an earlier try that broke off.

    OUT.part   what has come so far; kept when the connection breaks
    OUT        takes its place when every record is there

Going on asks again for the last whole record that the part holds: if the service's line is not the part's, byte for
byte, the part is of another range, format or log, and is refused. So a file is never put together out of two exports.

Trusts: the service for the lines' content (they prove nothing; an evidence bundle does). Never: follows a link at the
part's name, or leaves half a line at the end of what it calls complete.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sealgate.client.errors import UsageError
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.transparency.exports.part import last_line, measure

if TYPE_CHECKING:
    from sealgate.client.audit import AuditClient
    from sealgate.transparency.exports.formats import ExportFormat

RECORDS_PER_REQUEST = 100_000  # each request is a record of its own, and shows a credential that is still good


def part_of(path: Path) -> Path:
    """Where the part of a file is kept."""
    return path.with_name(path.name + ".part")


def download_lines(
    client: AuditClient,
    path: Path,
    *,
    form: ExportFormat,
    first: int,
    last: int,
    resume: bool,
    seen: Callable[[int], None],
) -> int:
    """Records first..last into `path`; returns its size. `seen` hears how many records there are more, those of the
    part first. Raises UsageError for a part that is there unasked, or that is not of this export."""
    part = part_of(path)
    with _open_part(part, resume=resume) as out:
        have = _go_on(client, out, part, form=form, first=first, last=last) if resume else 0
        seen(have)
        start = first + have
        while start <= last:
            stop = min(start + RECORDS_PER_REQUEST - 1, last)
            client.export_lines(start, stop, out, form=form, with_header=start == first, seen=seen)
            start = stop + 1
        out.flush()
        os.fsync(out.fileno())
        size = out.tell()
    try:
        part.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    return size


def _open_part(part: Path, *, resume: bool) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if resume else os.O_EXCL)
    try:
        descriptor = os.open(part, flags, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{part} is there from an export that broke off: --resume goes on with it") from error
    except OSError as error:
        raise ConfigurationError(f"{part} cannot be written: {error.strerror}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise ConfigurationError(f"{part} is not a file of yours")
    return os.fdopen(descriptor, "r+b")


def _go_on(client: AuditClient, out: BinaryIO, part: Path, *, form: ExportFormat, first: int, last: int) -> int:
    """How many records the part holds; the file is left open behind the last of them."""
    another = UsageError(f"{part} is not a part of this export: remove it, or ask for the range and format it is of")
    try:
        progress = measure(out, form)
    except DecodeError as error:
        raise another from error
    if progress.records > last - first + 1:
        raise another
    if progress.records:
        at = first + progress.records - 1
        if client.export_line(at, form=form) != last_line(out, progress):
            raise another
    out.truncate(progress.size if progress.records else 0)
    out.seek(0, os.SEEK_END)
    return progress.records
