"""`sealgate audit export` and `convert`: a range of the log in a file, as evidence or in a form for other systems.

`export` fetches it: an evidence bundle by default, or lines (`--format`), which can be gone on with after a break
(`--resume`). `convert` makes the same lines from a bundle, offline, and only from one that verifies.
Never: writes over a file before the new one is whole; calls lines proven.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from sealgate.client.audit_logs import add_log, add_shard, asked_log
from sealgate.client.audit_output import finish, open_client, read_bounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from sealgate.client.audit import AuditClient
    from sealgate.client.line_download import Downloaded
    from sealgate.transparency.exports.formats import ExportFormat

BUNDLE = "bundle"
_SHOWN = 2000  # characters of a list of pruned records
FORMATS = ("ndjson", "ocsf", "cloudevents", "syslog", "csv")  # said here so that --help need not load them
_FORMAT_HELP = "ndjson, ocsf (OCSF 1.9), cloudevents (CloudEvents 1.0), syslog (RFC 5424) or csv"


def configure(commands: Any) -> None:
    """Add them."""
    export = commands.add_parser("export", help="take a range of the log away", description=_export.__doc__)
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it")
    export.add_argument(
        "--format",
        choices=(BUNDLE, *FORMATS),
        default=BUNDLE,
        metavar="FORMAT",
        help=f"bundle (evidence; the default), {_FORMAT_HELP}",
    )
    export.add_argument("--first", type=int, default=0, metavar="N", help="first record (default 0)")
    export.add_argument("--last", type=int, metavar="N", help="last record (default: the newest one that is signed)")
    export.add_argument("--kept", type=Path, metavar="FILE", help="add the proof of growth since a kept checkpoint")
    export.add_argument("--cosigned", action="store_true", help="last record: the newest one that witnesses cosigned")
    export.add_argument("--force", action="store_true", help="replace the file that is there")
    export.add_argument("--resume", action="store_true", help="go on with an export that broke off (not of a bundle)")
    add_log(export, every=False)
    add_shard(export)
    finish(export, _export, online=True)

    convert = commands.add_parser("convert", help="a bundle in another form, offline", description=_convert.__doc__)
    convert.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `sealgate audit export` wrote")
    convert.add_argument("--format", choices=FORMATS, required=True, metavar="FORMAT", help=_FORMAT_HELP)
    convert.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: standard output)")
    convert.add_argument("--force", action="store_true", help="replace the file that is there")
    finish(convert, _convert, online=False)


# Online --------------------------------------------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> int:
    """Write a range of records to a file. A bundle holds all that proves them, and proves nothing before `sealgate
    audit verify`; the other formats hold a line a record, prove nothing, and can be gone on with (--resume)."""
    from sealgate.client.errors import UsageError

    lines = arguments.format != BUNDLE
    if lines and arguments.kept is not None:
        raise UsageError("--kept belongs into an evidence bundle: leave --format away")
    if arguments.resume and not lines:
        raise UsageError("a bundle is one whole and cannot be gone on with: leave --resume away")
    if arguments.cosigned and arguments.last is not None:
        raise UsageError("--cosigned names the last record: leave --last away")
    _require_free(arguments)
    with open_client(arguments) as connection:
        client = asked_log(connection, arguments)
        last = arguments.last
        if last is None:
            last = client.checkpoint(cosigned=arguments.cosigned).checkpoint.size - 1
        if not 0 <= arguments.first <= last:
            raise UsageError(f"--first must be from 0 to {last}, the last record asked for")
        if lines:
            _say_lines(arguments, last, _export_lines(client, arguments, last))
        else:
            written = _export_bundle(client, arguments, last)
            print(f"{arguments.out}: records {arguments.first} to {last}, {written} bytes")
    if not lines:
        words = ["sealgate", "audit", "verify", arguments.out, "--trust", arguments.trust]
        words += ["--kept", arguments.kept] if arguments.kept is not None else []
        print("verify it with: " + shlex.join(map(str, words)))
    return 0


def _export_bundle(client: AuditClient, arguments: argparse.Namespace, last: int) -> int:
    from sealgate.client.progress import ProgressBar
    from sealgate.limits import MAX_NOTE
    from sealgate.transparency.notes import open_checkpoint

    kept = None if arguments.kept is None else read_bounded(arguments.kept, MAX_NOTE)
    since = None if kept is None else open_checkpoint(kept, client.trust.log_keys).checkpoint.size or None
    with ProgressBar(last - arguments.first + 1, unit="records") as bar:

        def write(out: BinaryIO) -> None:
            watched = cast("BinaryIO", _Watched(out, bar.advance))
            client.export(arguments.first, last, watched, consistent_with=since)

        return _write_beside(arguments.out, write)


def _say_lines(arguments: argparse.Namespace, last: int, done: Downloaded) -> None:
    """What the file holds, and what it does not because it is no longer kept."""
    asked = last - arguments.first + 1
    print(f"{arguments.out}: records {arguments.first} to {last}, {done.size} bytes")
    if done.records < asked:
        begins = f"the first one that is kept is record {done.first}" if done.records else "none of them is"
        print(f"{asked - done.records} of these {asked} records are no longer kept and have no line; {begins}")
        print("an evidence bundle of the range says which they are, and proves that they stood there")


def _require_free(arguments: argparse.Namespace) -> None:
    """An export may be the last copy of what was pruned since: it is replaced only where that is said."""
    from sealgate.client.errors import UsageError

    if arguments.out is not None and os.path.lexists(arguments.out) and not arguments.force:
        raise UsageError(f"{arguments.out} exists: name another file, or replace it with --force")


def _export_lines(client: AuditClient, arguments: argparse.Namespace, last: int) -> Downloaded:
    from sealgate.client.errors import UsageError
    from sealgate.client.line_download import download_lines, part_of
    from sealgate.client.progress import ProgressBar
    from sealgate.errors import SealgateError

    form = _format(arguments.format)
    part, first = part_of(arguments.out), arguments.first
    with ProgressBar(last - first + 1, unit="records") as bar:
        try:
            return download_lines(
                client, arguments.out, form=form, first=first, last=last, resume=arguments.resume, seen=bar.advance
            )
        except UsageError:
            raise
        except (SealgateError, KeyboardInterrupt):
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
            elif part.exists():
                print(f"\n{part} holds what came; go on with the same command and --resume", file=sys.stderr)
            raise


# Offline -------------------------------------------------------------------------------------------------------------


def _convert(arguments: argparse.Namespace) -> int:
    """Write the records of an evidence bundle in another form, without the service. The bundle is verified first; of
    one that does not verify, nothing is written."""
    from sealgate.client.progress import ProgressBar
    from sealgate.errors import ConfigurationError
    from sealgate.transparency.bundle import Bundle, PrunedEntry
    from sealgate.transparency.exports.leaves import place

    form = _format(arguments.format)
    gone: list[int] = []
    _require_free(arguments)
    try:
        with arguments.bundle.open("rb") as stream:
            if not _verified(arguments, stream):
                return 1
            bundle = Bundle(stream)

            def write(out: BinaryIO) -> None:
                with ProgressBar(bundle.count, unit="records") as bar:
                    out.write(form.header)
                    for index, leaf in enumerate(bundle.items(), bundle.manifest.first):
                        if isinstance(leaf, PrunedEntry):  # of those that are no longer kept there is nothing
                            gone.append(index)
                        else:
                            out.write(form.line(place(index, leaf)))
                        bar.advance(1)

            if arguments.out is None:
                write(sys.stdout.buffer)
                sys.stdout.buffer.flush()
                _say_gone(gone, bundle.count)
                return 0
            written = _write_beside(arguments.out, write)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ConfigurationError(f"{arguments.bundle} cannot be read: {error.strerror}") from error
    print(f"{arguments.out}: records {bundle.manifest.first} to {bundle.manifest.last}, {written} bytes")
    _say_gone(gone, bundle.count)
    return 0


def _say_gone(gone: list[int], count: int) -> None:
    """Which records of a bundle have no line, on standard error: the log announced that they were pruned."""
    from sealgate.transparency.pruned import Indices

    if not gone:
        return
    named = str(Indices.of(gone))
    shown = named if len(named) <= _SHOWN else named[:_SHOWN].rpartition(" ")[0] + " ..."
    print(f"{len(gone)} of the {count} records were pruned and have no line: {shown}", file=sys.stderr)


def _verified(arguments: argparse.Namespace, stream: BinaryIO) -> bool:
    """Whether nothing is wrong with the bundle; says what is, on standard error."""
    from sealgate.evidence.trust import load_trust
    from sealgate.terminal import printable
    from sealgate.transparency.verifier import LogTrust, verify_bundle

    trust = load_trust(arguments.trust)
    report = verify_bundle(stream, LogTrust(verifiers=trust.log_keys, mldsa_keys=trust.log_mldsa_keys))
    for step in report.failures:
        print(printable(str(step)), file=sys.stderr)
    if report.failures:
        print("REFUSED: the bundle does not verify, so nothing was converted", file=sys.stderr)
    return report.ok


# Files ---------------------------------------------------------------------------------------------------------------


class _Watched:
    """A file that tells how many lines pass into it: in a bundle, nearly one a record."""

    def __init__(self, out: BinaryIO, seen: Callable[[int], None]) -> None:
        self._out, self._seen = out, seen

    def write(self, data: bytes) -> int:
        written = self._out.write(data)
        self._seen(data.count(b"\n"))
        return written


def _format(name: str) -> ExportFormat:
    from sealgate.transparency.exports.formats import FORMATS as BY_NAME

    return BY_NAME[name]


def _write_beside(path: Path, write: Callable[[BinaryIO], None]) -> int:
    """Into a file beside the target, which replaces it only when all is written; its size."""
    import tempfile

    from sealgate.errors import ConfigurationError

    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return size
