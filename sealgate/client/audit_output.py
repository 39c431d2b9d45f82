"""What the `sealgate audit` commands share: the connection, bounded files, and how records are printed.

Trusts: nothing that it prints. Never: writes over a file in place, or reads one without a bound.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.client.arguments import add_connection, add_trust, read_connection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealgate.client.audit import AuditClient, AuditEntry

JSON_HELP = "print JSON instead of text"


def finish(parser: argparse.ArgumentParser, action: Any, *, online: bool) -> None:
    (add_connection if online else add_trust)(parser)
    parser.set_defaults(_audit_action=action)


def open_client(arguments: argparse.Namespace) -> AuditClient:
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


def print_record(arguments: argparse.Namespace, index: int, leaf: bytes, proof: str) -> int:
    import msgspec

    from sealgate.client.times import utc_text
    from sealgate.terminal import render_pairs

    fields: dict[str, Any] = msgspec.json.decode(leaf)
    if arguments.json:
        print(format_json({"index": index, "record": msgspec.Raw(leaf), "proven": proof}))
        return 0
    detail = fields.pop("detail", {})
    pairs: list[tuple[str, object]] = [("index", index), ("time", utc_text(fields["ts_us"]))]
    pairs += [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in fields.items()]
    pairs += [(f"detail.{name}", value) for name, value in detail.items()]
    print(render_pairs([*pairs, ("proven", proof)]))
    return 0


def records_table(entries: Iterable[AuditEntry], *, with_log: bool = False) -> str:
    from sealgate.client.times import utc_text
    from sealgate.terminal import render_table

    rows = [
        (
            *((entry.record.log,) if with_log else ()),
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
    names = ("index", "time (UTC)", "kind", "tenant", "model", "purpose", "outcome", "reason", "id")
    return render_table(("log", *names) if with_log else names, rows)


def record_row(entry: AuditEntry) -> dict[str, Any]:
    import msgspec

    return {"index": entry.index, "record": msgspec.Raw(entry.leaf)}


def format_json(document: object) -> str:
    import msgspec

    from sealgate.terminal import printable_json

    return printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def read_bounded(path: Path, limit: int) -> bytes:
    from sealgate.errors import ConfigurationError

    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigurationError(f"{path} is larger than {limit} bytes: not what it should be")
    return data


def replace_file(path: Path, data: bytes) -> None:
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
