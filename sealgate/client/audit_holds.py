"""`sealgate audit holds` and `erasures`: what must be kept until further notice, and whose names are gone.

Both list records that the service found; each can be proven like any (`sealgate audit show INDEX`), and that none is
missing only a bundle shows. Trusts: nothing that it prints. Never: shows more than the records say, which name nobody.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sealgate.client.audit_logs import add_log, asked_log
from sealgate.client.audit_output import JSON_HELP, finish, format_json, open_client, record_row, records_table

if TYPE_CHECKING:
    from sealgate.client.audit import AuditEntry, ListedHold


def configure(commands: Any) -> None:
    """Add them."""
    holds = commands.add_parser("holds", help="legal holds, newest first", description=_holds.__doc__)
    holds.add_argument("--in-force", action="store_true", help="only those that were not released")
    _common(holds)
    finish(holds, _holds, online=True)

    erasures = commands.add_parser("erasures", help="names that were erased", description=_erasures.__doc__)
    erasures.add_argument("--refused", action="store_true", help="those that a hold kept from it instead")
    _common(erasures)
    finish(erasures, _erasures, online=True)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", metavar="TEXT", help="only those about this tenant")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="at most N (default 100)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    add_log(parser, every=False)


def _holds(arguments: argparse.Namespace) -> int:
    """List legal holds: whom or what they cover, since when, and until when. A hold without a tenant covers the whole
    log, one without a person everybody of its tenant."""
    from sealgate.client.audit import MAX_EMPTY_PAGES
    from sealgate.client.times import utc_text
    from sealgate.terminal import render_table

    _require_limit(arguments)
    held: list[ListedHold] = []
    cursor: str | None = None
    empty = 0  # pages in a row
    with open_client(arguments) as connection:
        client = asked_log(connection, arguments)
        while True:
            part, cursor = client.holds(tenant=arguments.tenant, in_force=arguments.in_force, cursor=cursor)
            held += part
            empty = 0 if part else empty + 1
            if cursor is None or len(held) >= arguments.limit or empty >= MAX_EMPTY_PAGES:
                break
    more = cursor is not None or len(held) > arguments.limit
    held = held[: arguments.limit]
    if arguments.json:
        rows = [
            {
                "name": hold.name,
                "placed": record_row(hold.placed),
                "released": None if hold.released is None else record_row(hold.released),
            }
            for hold in held
        ]
        print(format_json({"holds": rows, "more": more}))
        return 0
    table = [
        (
            hold.name,
            hold.placed.record.tenant or "(the whole log)",
            hold.placed.record.actor,
            utc_text(hold.placed.record.ts_us),
            "in force" if hold.released is None else utc_text(hold.released.record.ts_us),
            hold.placed.index,
            "" if hold.released is None else hold.released.index,
        )
        for hold in held
    ]
    headings = ("hold", "tenant", "person", "placed (UTC)", "released (UTC)", "record", "released by")
    print(render_table(headings, table))
    print(f"\n{len(held)} {'hold' if len(held) == 1 else 'holds'}{_more(more)}")
    return 0


def _erasures(arguments: argparse.Namespace) -> int:
    """List the erasures of names: when, of whom (the pseudonym that nobody can resolve any more), and on which ground.
    With --refused, those that a hold did not let happen."""
    from sealgate.client.audit import MAX_EMPTY_PAGES

    _require_limit(arguments)
    found: list[AuditEntry] = []
    cursor: str | None = None
    empty = 0  # pages in a row
    with open_client(arguments) as connection:
        client = asked_log(connection, arguments)
        while True:
            page = client.erasures(
                tenant=arguments.tenant,
                refused=arguments.refused,
                cursor=cursor,
                limit=min(100, arguments.limit - len(found)),
            )
            found += page.entries
            cursor, empty = page.cursor, 0 if page.entries else empty + 1
            if cursor is None or len(found) >= arguments.limit or empty >= MAX_EMPTY_PAGES:
                break
    if arguments.json:
        print(format_json({"erasures": [record_row(entry) for entry in found], "more": cursor is not None}))
        return 0
    print(records_table(found))
    print(f"\n{len(found)} {'erasure' if len(found) == 1 else 'erasures'}{_more(cursor is not None)}")
    return 0


def _require_limit(arguments: argparse.Namespace) -> None:
    from sealgate.client.errors import UsageError

    if arguments.limit < 1:
        raise UsageError("--limit must be at least 1")


def _more(more: bool) -> str:
    return "; there are more: raise --limit" if more else ""
