"""`sealgate budget show`: what is used and left of every budget, and when it renews.

Light at import. Trusts: the state directory and the log's database. Never: writes to either; a runtime may be serving.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.command import Command

if TYPE_CHECKING:
    from policy.usage import Usage
    from sealgate.deployment import Deployment

_BAR = 20  # characters of a gauge


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="budget_command", metavar="ACTION", required=True)
    show = commands.add_parser(
        "show",
        help="what is used and left of each budget, and when it renews",
        description="Reads the budgets of the policy in force and the ledger in the log's database. In a gauge, # is "
        "used, + is held for requests that are under way, . is left.",
    )
    show.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")
    show.add_argument("--tenant", metavar="NAME", help="only budgets that count this tenant's requests")
    show.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.ambient import now_us
    from sealgate.deployment import open_deployment

    usages = _read(open_deployment(arguments.state), tenant=arguments.tenant, now_us=now_us())
    print(_document(usages) if arguments.json else _table(usages))
    return 0


def _read(deployment: Deployment, *, tenant: str | None, now_us: int) -> list[Usage]:
    from audit.database import open_database
    from policy.history import PolicyHistory
    from policy.store import load_files
    from policy.usage import read_ledger

    history = PolicyHistory(deployment.policy_history)
    current = history.current()
    files = load_files(deployment.policy) if current is None else history.load_files(current.digest)
    budgets = [one for one in files.budgets if tenant in (None, one.tenant)]
    privacy = [one for one in files.privacy_budgets if tenant is None or one.tenant in (None, tenant)]
    never_started = deployment.log_url.startswith("sqlite") and not deployment.database.exists()
    engine = None if never_started else open_database(deployment.log_url).reader_engine()
    return read_ledger(engine, budgets, privacy, now_us=now_us)


def _table(usages: list[Usage]) -> str:
    from sealgate.terminal import render_table

    if not usages:
        return "No budget is in force here: nothing is limited, and permits that demand noise are refused."
    headings = ("budget", "of", "counts", "used", "held", "left", "limit", "gauge", "a", "renews (UTC)")
    return render_table(
        headings,
        [
            (
                one.budget,
                one.whose,
                one.what,
                *(_amount(one, value) for value in (one.used, one.held, one.left, one.limit)),
                _gauge(one),
                one.window,
                _moment(one.renews_us) or "never",
            )
            for one in usages
        ],
    )


def _amount(usage: Usage, value: int) -> str:
    from sealgate.protocol.obligations import epsilon_text

    return epsilon_text(value) if usage.what == "epsilon" else str(value)


def _gauge(usage: Usage) -> str:
    """Rounded so that anything used shows, and only what is all used looks full."""
    limit = max(1, usage.limit)
    used = min(_BAR, -(-usage.used * _BAR // limit))
    taken = min(_BAR, -(-(usage.used + usage.held) * _BAR // limit))
    if usage.left:
        used, taken = min(used, _BAR - 1), min(taken, _BAR - 1)
    return "#" * used + "+" * (taken - used) + "." * (_BAR - taken)


def _moment(renews_us: int | None) -> str | None:
    from sealgate.client.times import rfc3339

    return None if renews_us is None else rfc3339(renews_us)


def _document(usages: list[Usage]) -> str:
    import msgspec

    from sealgate.terminal import printable_json

    listed = [
        {
            "budget": one.budget,
            "of": one.whose,
            "counts": "epsilon_micro" if one.what == "epsilon" else one.what,
            "used": one.used,
            "held": one.held,
            "left": one.left,
            "limit": one.limit,
            "window": one.window,
            "renews": _moment(one.renews_us),
        }
        for one in usages
    ]
    return printable_json(msgspec.json.format(msgspec.json.encode({"budgets": listed}), indent=2).decode())


BUDGET = Command(
    summary="show what is used and left of every budget",
    description="What requests, units and epsilon the policy in force allows, and how much of it is spent.",
    configure=_configure,
    run=_run,
    extra="server",
)
