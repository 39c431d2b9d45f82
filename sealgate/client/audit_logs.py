"""`sealgate audit logs`, and what `--log` means elsewhere: one service may read the logs of several hosts.

Which logs there are, the service says; which there should be, the trust file: a log whose key it holds and that the
service does not read, or cannot read now, is named as missing, loudly. Trusts: the trust file's log keys.
Never: takes the records of one log for another's.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from sealgate.client.audit_output import JSON_HELP, finish, format_json, open_client

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sealgate.client.audit import AuditClient, ServedLog

EVERY = "all"


def configure(commands: Any) -> None:
    """Add it."""
    logs = commands.add_parser("logs", help="which logs the service reads", description=_logs.__doc__)
    logs.add_argument("--json", action="store_true", help=JSON_HELP)
    finish(logs, _logs, online=True)


def add_log(parser: argparse.ArgumentParser, *, every: bool) -> None:
    """`--log`."""
    more = f", or '{EVERY}': every one, merged by time" if every else ""
    parser.add_argument("--log", metavar="NAME", help=f"ask for another host's log (see `sealgate audit logs`){more}")


def asked_log(client: AuditClient, arguments: argparse.Namespace) -> AuditClient:
    """The client for the one log, and the shard of it, that is asked for."""
    of_log = client if arguments.log is None else client.of(arguments.log)
    shard = getattr(arguments, "shard", None)
    return of_log if shard is None else of_log.within(shard)


def add_shard(parser: argparse.ArgumentParser) -> None:
    """`--shard`."""
    parser.add_argument("--shard", metavar="NAME", help="a shard of the log, by its origin (default: the newest)")


def every_log(client: AuditClient) -> tuple[list[AuditClient], tuple[str, ...]]:
    """A client for each log that can be read now, and the names of those that cannot be or that nobody reads here."""
    served = client.logs()
    return [client.of(log.origin) for log in served if log.reachable], _missing(client, served)


def say_missing(names: Iterable[str]) -> None:
    """On standard error, so that it is seen beside any form of answer."""
    from sealgate.terminal import printable

    for name in names:
        print(
            printable(f"MISSING: the log {name} could not be asked: nothing of it is in this answer"), file=sys.stderr
        )


def _logs(arguments: argparse.Namespace) -> int:
    """List the logs that the service reads, and those of the trust file that it does not. Exit code 1 if one of them is
    missing."""
    from sealgate.terminal import render_table

    with open_client(arguments) as client:
        served = client.logs()
        missing = _missing(client, served)
    if arguments.json:
        print(format_json({"logs": served, "missing": missing}))
    else:
        rows: list[tuple[str, str, int | None, str]] = []
        for log in served:
            rows.append((log.origin, "yes" if log.own else "", log.size, _state(log)))
            if len(log.shards) > 1:
                rows += [(f"  shard {shard.origin}", "", shard.size, "") for shard in log.shards]
        print(render_table(("log", "of this host", "records", "state"), rows))
    say_missing(missing)
    return 1 if missing else 0


def _state(log: ServedLog) -> str:
    return "" if log.reachable else f"cannot be read now ({log.reason})"


def _missing(client: AuditClient, served: Sequence[ServedLog]) -> tuple[str, ...]:
    """What cannot be read now, and what the trust file knows and the service does not name."""
    from sealgate.transparency.several import missing_logs

    away = [log.origin for log in served if not log.reachable]
    known = dict.fromkeys(verifier.name for verifier in client.trust.log_keys)
    unnamed = missing_logs(known, [log.origin for log in served])
    return tuple(dict.fromkeys((*away, *unnamed)))
