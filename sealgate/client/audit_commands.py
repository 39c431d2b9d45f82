"""`sealgate audit`: read the log as an auditor, keep checkpoints, take evidence bundles away, verify them offline.

`verify` needs no network and no credential: the trust file's log keys decide. Every other subcommand is itself put on
record by the service. Never: prints "verified" for what was skipped. Long, because it is five commands of one group.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.client.arguments import add_connection, add_trust, read_connection
from sealgate.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealgate.client.audit import AuditClient, AuditEntry
    from sealgate.transparency.notes import VerifiedCheckpoint

_FILTERS = ("tenant", "actor", "model", "model-digest", "purpose", "kind", "outcome", "reason")
_JSON_HELP = "print JSON instead of text"


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="audit_command", metavar="ACTION", required=True)

    query = commands.add_parser("query", help="list records that match a filter", description=_query.__doc__)
    for name in _FILTERS:
        query.add_argument(f"--{name}", metavar="TEXT", help=f"only records with this {name.replace('-', ' ')}")
    query.add_argument("--since", metavar="TIME", help="from this time on: 2030-01-31T12:00, or an age as 90m, 12h, 7d")
    query.add_argument("--until", metavar="TIME", help="before this time")
    query.add_argument("--limit", type=int, default=100, metavar="N", help="at most N records (default 100)")
    query.add_argument("--oldest", action="store_true", help="oldest first instead of newest first")
    query.add_argument("--json", action="store_true", help=_JSON_HELP)
    _finish(query, _query, online=True)

    show = commands.add_parser("show", help="one record, proven to be in the log", description=_show.__doc__)
    show.add_argument("record", nargs="?", metavar="RECORD_ID", help="the id of a record")
    show.add_argument("--receipt", type=Path, metavar="FILE", help="show the record of a kept receipt; offline")
    show.add_argument("--json", action="store_true", help=_JSON_HELP)
    _finish(show, _show, online=True)

    checkpoint = commands.add_parser("checkpoint", help="the newest signed checkpoint", description=_checkpoint.__doc__)
    checkpoint.add_argument("--out", type=Path, metavar="FILE", help="keep it, for the next audit")
    checkpoint.add_argument("--kept", type=Path, metavar="FILE", help="prove that the log only grew since this one")
    checkpoint.add_argument("--json", action="store_true", help=_JSON_HELP)
    _finish(checkpoint, _checkpoint, online=True)

    export = commands.add_parser("export", help="take an evidence bundle away", description=_export.__doc__)
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the bundle")
    export.add_argument("--first", type=int, default=0, metavar="N", help="first record (default 0)")
    export.add_argument("--last", type=int, metavar="N", help="last record (default: the newest one that is signed)")
    export.add_argument("--kept", type=Path, metavar="FILE", help="add the proof of growth since a kept checkpoint")
    _finish(export, _export, online=True)

    verify = commands.add_parser("verify", help="verify a bundle, offline", description=_verify.__doc__)
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `sealgate audit export` wrote")
    verify.add_argument("--strict", action="store_true", help="a skipped step is a failure")
    verify.add_argument("--receipt", type=Path, action="append", default=[], metavar="FILE", help="must be in the log")
    verify.add_argument("--kept", type=Path, metavar="FILE", help="checkpoint kept from an earlier audit")
    verify.add_argument("--witness-policy", type=Path, metavar="FILE", help="whose cosignatures count (tlog-policy)")
    verify.add_argument("--cosigned", type=Path, metavar="FILE", help="the checkpoint that witnesses cosigned")
    verify.add_argument("--json", action="store_true", help=_JSON_HELP)
    _finish(verify, _verify, online=False)


def _finish(parser: argparse.ArgumentParser, action: Any, *, online: bool) -> None:
    (add_connection if online else add_trust)(parser)
    parser.set_defaults(_audit_action=action)


def _run(arguments: argparse.Namespace) -> int:
    return int(arguments._audit_action(arguments))


# Online ---------------------------------------------------------------------------------------------------------------


def _client(arguments: argparse.Namespace) -> AuditClient:
    from sealgate.client.audit import AuditClient

    connection = read_connection(arguments)
    return AuditClient(
        connection.trust,
        token=connection.token,
        certificate=connection.certificate,
        dpop_key=connection.dpop_key,
        proxy=connection.proxy,
        timeout=connection.timeout_s,
    )


def _query(arguments: argparse.Namespace) -> int:
    """List records. The answer to a filter is not proven complete; export a range and verify it for that."""
    from sealgate.ambient import now_us
    from sealgate.client.audit import MAX_PAGE
    from sealgate.client.errors import UsageError
    from sealgate.client.times import parse_moment

    if arguments.limit < 1:
        raise UsageError("--limit must be at least 1")
    wanted = {name.replace("-", "_"): getattr(arguments, name.replace("-", "_")) for name in _FILTERS}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    now = now_us()
    for name, option in (("from_us", arguments.since), ("to_us", arguments.until)):
        if option is not None:
            wanted[name] = str(parse_moment(option, now_us=now))
    _check_question(wanted)
    if arguments.oldest:
        wanted["order"] = "oldest"
    entries: list[AuditEntry] = []
    cursor: str | None = None
    with _client(arguments) as client:
        while True:
            page = client.records(wanted, cursor=cursor, limit=min(MAX_PAGE, arguments.limit - len(entries)))
            entries += page.entries
            cursor = page.cursor
            if cursor is None or not page.entries or len(entries) >= arguments.limit:
                break
    if arguments.json:
        print(_format({"records": [_row(entry) for entry in entries], "more": cursor is not None}))
    else:
        print(_records_table(entries))
        more = "; more match: raise --limit" if cursor is not None else ""
        print(f"\n{len(entries)} records of a log of {page.tree_size}{more}")
    return 0


def _check_question(wanted: dict[str, str]) -> None:
    """Refuse what no record can match: an empty answer to a slip looks like a log without such records."""
    from sealgate.client.errors import UsageError
    from sealgate.transparency.record import KINDS

    kind = wanted.get("kind")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no kind of record '{kind[:40]}'; there are: {', '.join(KINDS)}")
    if "from_us" in wanted and "to_us" in wanted and int(wanted["from_us"]) >= int(wanted["to_us"]):
        raise UsageError("--since must be earlier than --until; an age such as 7d is counted back from now")


def _show(arguments: argparse.Namespace) -> int:
    """Show one record with the proof that it is in the log: by its id from the service, or from a kept receipt."""
    from sealgate.client.errors import UsageError

    if (arguments.record is None) == (arguments.receipt is None):
        raise UsageError("name one record: its id, or --receipt FILE")
    if arguments.record is not None and arguments.record.isdecimal():
        raise UsageError(
            f"{arguments.record[:20]} is an index; `show` takes the id, the last column of `sealgate audit query`"
        )
    if arguments.receipt is not None:
        return _show_receipt(arguments)
    with _client(arguments) as client:
        entry = client.record(arguments.record)
        checkpoint = client.prove(entry).checkpoint
    return _print_record(arguments, entry.index, entry.leaf, f"in {checkpoint.origin} at size {checkpoint.size}")


def _show_receipt(arguments: argparse.Namespace) -> int:
    from sealgate.evidence.trust import load_trust
    from sealgate.limits import MAX_RECEIPT
    from sealgate.transparency.receipt import verify_receipt

    trust = load_trust(arguments.trust)
    receipt = verify_receipt(_read(arguments.receipt, MAX_RECEIPT), trust.log_keys)
    checkpoint = receipt.checkpoint
    return _print_record(arguments, receipt.index, receipt.leaf, f"in {checkpoint.origin} at size {checkpoint.size}")


def _print_record(arguments: argparse.Namespace, index: int, leaf: bytes, proof: str) -> int:
    import msgspec

    from sealgate.client.times import utc_text
    from sealgate.terminal import render_pairs

    fields: dict[str, Any] = msgspec.json.decode(leaf)
    if arguments.json:
        print(_format({"index": index, "record": msgspec.Raw(leaf), "proven": proof}))
        return 0
    detail = fields.pop("detail", {})
    pairs: list[tuple[str, object]] = [("index", index), ("time", utc_text(fields["ts_us"]))]
    pairs += [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in fields.items()]
    pairs += [(f"detail.{name}", value) for name, value in detail.items()]
    print(render_pairs([*pairs, ("proven", proof)]))
    return 0


def _checkpoint(arguments: argparse.Namespace) -> int:
    """Fetch the newest checkpoint and verify its signature; with --kept, prove that the log only grew since then."""
    from sealgate.client.errors import UsageError
    from sealgate.limits import MAX_NOTE
    from sealgate.terminal import render_pairs
    from sealgate.transparency.published import strength

    if arguments.out is not None and arguments.out.exists():
        raise UsageError(f"{arguments.out} exists; a kept checkpoint is never replaced: name another file")
    grown = ""
    with _client(arguments) as client:
        if arguments.kept is None:
            verified = client.checkpoint()
        else:
            old, verified = client.prove_growth(_read(arguments.kept, MAX_NOTE))
            grown = f"only grew, from {old.checkpoint.size} to {verified.checkpoint.size} records"
    if arguments.out is not None:
        _replace(arguments.out, verified.note)
    checkpoint = verified.checkpoint
    document = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
    if arguments.json:
        print(_format(document | ({"grown": grown} if grown else {})))
    else:
        signed = f"{', '.join(verified.signers)} ({strength(checkpoint.origin, client.trust.log_mldsa_keys)})"
        pairs = [*document.items(), ("signed by", signed)]
        pairs += [("proven", grown)] if grown else []
        print(render_pairs([*pairs, *([("kept in", str(arguments.out))] if arguments.out is not None else [])]))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    """Write the evidence bundle of a range of records. It proves nothing before `sealgate audit verify`."""
    from sealgate.limits import MAX_NOTE
    from sealgate.transparency.notes import open_checkpoint

    kept = None if arguments.kept is None else _read(arguments.kept, MAX_NOTE)
    with _client(arguments) as client:
        since = None if kept is None else open_checkpoint(kept, client.trust.log_keys).checkpoint.size or None
        last = _newest(client.checkpoint()) if arguments.last is None else arguments.last
        written = _download(client, arguments.out, first=arguments.first, last=last, since=since)
    print(f"{arguments.out}: records {arguments.first} to {last}, {written} bytes")
    words = ["sealgate", "audit", "verify", arguments.out, "--trust", arguments.trust]
    words += ["--kept", arguments.kept] if arguments.kept is not None else []
    print("verify it with: " + shlex.join(map(str, words)))
    return 0


def _newest(verified: VerifiedCheckpoint) -> int:
    return verified.checkpoint.size - 1


def _download(client: AuditClient, path: Path, *, first: int, last: int, since: int | None) -> int:
    """Into a file beside the target, which replaces it only when the export is complete."""
    import os
    import tempfile

    from sealgate.errors import ConfigurationError

    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            written = client.export(first, last, out, consistent_with=since)
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return written


# Offline --------------------------------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace) -> int:
    """Verify an evidence bundle without the service: signature, every record, the tree, ends, workers, receipts."""
    from sealgate.client.errors import UsageError
    from sealgate.evidence.trust import load_trust
    from sealgate.limits import MAX_NOTE, MAX_RECEIPT
    from sealgate.transparency.verifier import LogTrust, verify_bundle
    from sealgate.transparency.witness_policy import load_witness_policy

    if arguments.cosigned is not None and arguments.witness_policy is None:
        raise UsageError("--cosigned needs --witness-policy: whose cosignatures count?")
    trust = load_trust(arguments.trust)
    kept = None if arguments.kept is None else _read(arguments.kept, MAX_NOTE)
    receipts = [_read(path, MAX_RECEIPT) for path in arguments.receipt]
    log_trust = LogTrust(
        verifiers=trust.log_keys,
        mldsa_keys=trust.log_mldsa_keys,
        kept_checkpoint=kept,
        witnesses=None if arguments.witness_policy is None else load_witness_policy(arguments.witness_policy),
        cosigned_checkpoint=None if arguments.cosigned is None else _read(arguments.cosigned, MAX_NOTE),
    )
    report = verify_bundle(arguments.bundle, log_trust, arguments.strict, receipts)
    skipped = [step for step in report.steps if step.status == "skipped"]
    if arguments.json:
        steps = [
            {"number": step.number, "name": step.name, "status": step.status, "detail": step.detail}
            for step in report.steps
        ]
        document = {"ok": report.ok, "strict": report.strict, "records": _covered(report), "steps": steps}
        print(_format(document | {"limits": report.limits}))
    else:
        _print_report(report, skipped)
    return 0 if report.ok else 1


def _print_report(report: Any, skipped: list[Any]) -> None:
    from sealgate.terminal import printable

    for line in report.lines():
        print(printable(line))
    if not report.ok:
        print(f"\nREFUSED: {len(report.failures)} of {len(report.steps)} steps do not hold")
    elif skipped:
        names = ", ".join(str(step.number) for step in skipped)
        print(f"\nNothing that was checked is wrong, but steps were skipped ({names}): not fully verified")
    else:
        checkpoint = report.require()
        held = f"records {report.first} to {report.last} of the {checkpoint.size} of {checkpoint.origin}"
        print()
        print(printable(f"VERIFIED: all {len(report.steps)} steps hold for {held}"))


def _covered(report: Any) -> dict[str, Any] | None:
    """What part of which log a report is about: a bundle of three records proves nothing about the fourth."""
    checkpoint = report.checkpoint
    if checkpoint is None:
        return None
    return {"origin": checkpoint.origin, "first": report.first, "last": report.last, "size": checkpoint.size}


# Forms ----------------------------------------------------------------------------------------------------------------


def _records_table(entries: Iterable[AuditEntry]) -> str:
    from sealgate.client.times import utc_text
    from sealgate.terminal import render_table

    rows = [
        (
            entry.index,
            utc_text(entry.record.ts_us),
            entry.record.kind,
            entry.record.tenant,
            entry.record.model,
            entry.record.purpose,
            entry.record.outcome,
            entry.record.reason,
            entry.record.id,
        )
        for entry in entries
    ]
    return render_table(("index", "time (UTC)", "kind", "tenant", "model", "purpose", "outcome", "reason", "id"), rows)


def _row(entry: AuditEntry) -> dict[str, Any]:
    import msgspec

    return {"index": entry.index, "record": msgspec.Raw(entry.leaf)}


def _format(document: object) -> str:
    import msgspec

    from sealgate.terminal import printable_json

    return printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def _read(path: Path, limit: int) -> bytes:
    from sealgate.errors import ConfigurationError

    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigurationError(f"{path} is larger than {limit} bytes: not what it should be")
    return data


def _replace(path: Path, data: bytes) -> None:
    """Through a file beside it whose name nobody can foresee, and put a link in the place of."""
    import os
    import tempfile

    from sealgate.errors import ConfigurationError

    try:
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


AUDIT = Command(
    summary="query the audit log, export evidence, verify it offline",
    description="Reads the audit log with an auditor's credential (each read is on record), and verifies evidence "
    "bundles without the service.",
    configure=_configure,
    run=_run,
)
