"""Fetching an export of lines into a file that may be there in part, from an earlier try that broke off.

    OUT.part   what has come so far; kept when the connection breaks
    OUT        takes its place when every record is there

Going on asks again for the last whole record that the part holds: if the service's line is not the part's, byte for
byte, the part is of another range, format or log, and is refused. So a file is never put together out of two exports.
Where the log says that records were pruned, the service is asked for those that are kept; else for every one.

Trusts: the service for the lines' content (they prove nothing; an evidence bundle does). Never: follows a link at the
part's name, or leaves half a line at the end of what it calls complete.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sealgate.client.errors import UsageError
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.limits import MAX_EXPORT_LINE
from sealgate.transparency.exports.part import Progress, last_line, measure
from sealgate.transparency.pruned import KIND as PRUNED

if TYPE_CHECKING:
    from sealgate.client.audit import AuditClient
    from sealgate.transparency.exports.formats import ExportFormat

RECORDS_PER_REQUEST = 100_000  # each request is a record of its own, and shows a credential that is still good


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A file that is whole: its bytes, how many records it has, and the index of the first of them, -1 for none."""

    size: int
    records: int
    first: int


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
) -> Downloaded:
    """Records first..last into `path`. `seen` hears how many records there are more, those of the part first. Raises
    UsageError for a part that is there unasked, or that is not of this export."""
    part = part_of(path)
    with _open_part(part, resume=resume) as out:
        gaps = bool(client.records({"kind": PRUNED}, limit=1).entries)
        start = _go_on(client, out, part, form=form, first=first, last=last, gaps=gaps) if resume else first
        seen(start - first)
        while start <= last:
            stop = min(start + RECORDS_PER_REQUEST - 1, last)
            client.export_lines(start, stop, out, form=form, with_header=out.tell() == 0, kept_only=gaps, seen=seen)
            start = stop + 1
        out.flush()
        os.fsync(out.fileno())
        done = _downloaded(out, form)
    try:
        part.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    return done


def _downloaded(out: BinaryIO, form: ExportFormat) -> Downloaded:
    size = out.tell()
    out.seek(len(form.header))
    line = out.readline(MAX_EXPORT_LINE + 1)
    first = form.index_of(line) if line else -1
    return Downloaded(size=size, records=measure(out, form).records, first=first)


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


def _go_on(
    client: AuditClient, out: BinaryIO, part: Path, *, form: ExportFormat, first: int, last: int, gaps: bool
) -> int:
    """The index of the record to go on with; the file is left open behind the last one that it holds."""
    another = UsageError(f"{part} is not a part of this export: remove it, or ask for the range and format it is of")
    try:
        progress = measure(out, form)
    except DecodeError as error:
        raise another from error
    start = first
    if progress.records:
        begins, at = _ends(out, form, progress, another)
        whole = at - first + 1 == progress.records
        if not first <= begins <= at <= last or not (whole or gaps) or at - begins + 1 < progress.records:
            raise another
        if begins > first:
            _require_gone(client, first, begins - 1, form=form, otherwise=another)
        if client.export_line(at, form=form) != last_line(out, progress):
            raise another
        start = at + 1
    out.truncate(progress.size if progress.records else 0)
    out.seek(0, os.SEEK_END)
    return start


def _ends(out: BinaryIO, form: ExportFormat, progress: Progress, another: UsageError) -> tuple[int, int]:
    """The indices of the first record and of the last."""
    out.seek(len(form.header))
    try:
        return form.index_of(out.readline(MAX_EXPORT_LINE + 1)), form.index_of(last_line(out, progress))
    except DecodeError as error:
        raise another from error


def _require_gone(client: AuditClient, first: int, last: int, *, form: ExportFormat, otherwise: UsageError) -> None:
    """That nothing is kept of a range with which the part does not begin."""

    def refuse(more: int) -> None:
        if more:
            raise otherwise

    client.export_lines(first, last, io.BytesIO(), form=form, with_header=False, kept_only=True, seen=refuse)
