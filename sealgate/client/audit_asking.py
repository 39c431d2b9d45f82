"""`sealgate audit query`, `show` and `receipt`: records that match a filter, one with its proof, and a kept proof.

Trusts: the log keys of the trust file. Never: calls a filter's answer complete.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.client.audit_logs import EVERY, add_log, add_shard, asked_log, every_log, say_missing
from sealgate.client.audit_output import (
    JSON_HELP,
    finish,
    format_json,
    open_client,
    print_record,
    read_bounded,
    record_row,
    records_table,
    replace_file,
)

if TYPE_CHECKING:
    from sealgate.client.audit import AuditClient, AuditEntry, AuditPage

_FILTERS = ("tenant", "actor", "model", "model-digest", "purpose", "kind", "outcome", "reason")


def configure(commands: Any) -> None:
    """Add them."""
    query = commands.add_parser("query", help="list records that match a filter", description=_query.__doc__)
    for name in _FILTERS:
        query.add_argument(f"--{name}", metavar="TEXT", help=f"only records with this {name.replace('-', ' ')}")
    query.add_argument("--since", metavar="TIME", help="from this time on: 2030-01-31T12:00, or an age as 90m, 12h, 7d")
    query.add_argument("--until", metavar="TIME", help="before this time")
    query.add_argument("--limit", type=int, default=100, metavar="N", help="at most N records (default 100)")
    query.add_argument("--oldest", action="store_true", help="oldest first instead of newest first")
    query.add_argument("--json", action="store_true", help=JSON_HELP)
    add_log(query, every=True)
    finish(query, _query, online=True)

    show = commands.add_parser("show", help="one record, proven to be in the log", description=_show.__doc__)
    show.add_argument("record", nargs="?", metavar="RECORD", help="the id or the index of a record")
    show.add_argument("--receipt", type=Path, metavar="FILE", help="show the record of a kept receipt; offline")
    show.add_argument("--cose", type=Path, metavar="FILE", help="also as COSE Receipt (RFC 9942); its leaf: FILE.leaf")
    show.add_argument("--json", action="store_true", help=JSON_HELP)
    add_log(show, every=False)
    add_shard(show)
    finish(show, _show, online=True)

    receipt = commands.add_parser("receipt", help="verify a kept receipt, offline", description=_receipt.__doc__)
    receipt.add_argument("receipt", type=Path, metavar="FILE", help="a receipt, or a COSE Receipt (RFC 9942)")
    receipt.add_argument("--leaf", type=Path, metavar="FILE", help="a COSE Receipt's record (default: FILE.leaf)")
    receipt.add_argument("--json", action="store_true", help=JSON_HELP)
    finish(receipt, _receipt, online=False)


def _query(arguments: argparse.Namespace) -> int:
    """List records. The answer to a filter is not proven complete; export a range and verify it for that."""
    from sealgate.ambient import now_us
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
    with open_client(arguments) as client:
        clients, missing = ([asked_log(client, arguments)], ()) if arguments.log != EVERY else every_log(client)
        found = [_first(one, wanted, arguments.limit) for one in clients]
    entries = [entry for one in found for entry in one.entries]
    if len(found) > 1:
        entries.sort(key=lambda entry: entry.record.ts_us, reverse=not arguments.oldest)
    more = len(entries) > arguments.limit or any(one.cursor is not None for one in found)
    entries = entries[: arguments.limit]
    if arguments.json:
        document = {"records": [record_row(entry) for entry in entries], "more": more}
        print(format_json(document | ({"missing": missing} if arguments.log == EVERY else {})))
    else:
        print(records_table(entries, with_log=arguments.log == EVERY))
        of = " and ".join(f"a log of {one.tree_size}" for one in found) or "no log"
        said = "; there may be more: raise --limit" if more else ""
        print(f"\n{len(entries)} {'record' if len(entries) == 1 else 'records'} of {of}{said}")
    say_missing(missing)
    return 1 if missing else 0


def _first(client: AuditClient, wanted: dict[str, str], limit: int) -> AuditPage:
    """Up to `limit` records that match, in as many pages as they take."""
    from sealgate.client.audit import MAX_EMPTY_PAGES, MAX_PAGE, AuditPage

    entries: list[AuditEntry] = []
    cursor: str | None = None
    empty = 0  # pages in a row: one looks at a part of the log only, and goes on
    while True:
        page = client.records(wanted, cursor=cursor, limit=min(MAX_PAGE, limit - len(entries)))
        entries += page.entries
        cursor, empty = page.cursor, 0 if page.entries else empty + 1
        if cursor is None or len(entries) >= limit or empty >= MAX_EMPTY_PAGES:
            return AuditPage(tuple(entries), cursor, page.tree_size)


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
    """Show one record with the proof that it is in the log: by its id or index from the service, or from a kept
    receipt."""
    from sealgate.client.errors import UsageError

    if (arguments.record is None) == (arguments.receipt is None):
        raise UsageError("name one record: its id or index, or --receipt FILE")
    if arguments.receipt is not None:
        if arguments.cose is not None:
            raise UsageError("a COSE receipt is made from what the log publishes: ask by the record's id")
        return _show_receipt(arguments)
    with open_client(arguments) as connection:
        client = asked_log(connection, arguments)
        entry = client.record(arguments.record)
        if arguments.cose is None:
            checkpoint = client.prove(entry).checkpoint
        else:
            verified, receipt = client.cose_receipt(entry)
            checkpoint = verified.checkpoint
            replace_file(arguments.cose, receipt)
            replace_file(arguments.cose.with_name(arguments.cose.name + ".leaf"), entry.leaf)
    return print_record(arguments, entry.index, entry.leaf, f"in {checkpoint.origin} at size {checkpoint.size}")


def _receipt(arguments: argparse.Namespace) -> int:
    """Verify a receipt that was kept, without the service, and show the record that it proves. A COSE Receipt carries
    no record: that is read from the file beside it."""
    from sealgate.client.errors import UsageError
    from sealgate.evidence.trust import load_trust
    from sealgate.limits import MAX_LEAF, MAX_RECEIPT
    from sealgate.transparency.cose_receipt import COSE_SIGN1, verify_cose_receipt

    data = read_bounded(arguments.receipt, MAX_RECEIPT)
    if not data.startswith(COSE_SIGN1):
        if arguments.leaf is not None:
            raise UsageError(f"{arguments.receipt} is no COSE receipt: it carries its record itself; leave --leaf away")
        return _show_receipt(arguments)
    beside = arguments.leaf or arguments.receipt.with_name(arguments.receipt.name + ".leaf")
    leaf = read_bounded(beside, MAX_LEAF)
    proven = verify_cose_receipt(data, leaf, load_trust(arguments.trust).log_keys)
    where = f"in {proven.origin}, as its signed root proves (COSE Receipt: its number is not covered by the signature)"
    return print_record(arguments, proven.index, leaf, where)


def _show_receipt(arguments: argparse.Namespace) -> int:
    from sealgate.evidence.trust import load_trust
    from sealgate.limits import MAX_RECEIPT
    from sealgate.transparency.receipt import verify_receipt

    trust = load_trust(arguments.trust)
    receipt = verify_receipt(read_bounded(arguments.receipt, MAX_RECEIPT), trust.log_keys)
    checkpoint = receipt.checkpoint
    return print_record(arguments, receipt.index, receipt.leaf, f"in {checkpoint.origin} at size {checkpoint.size}")
