"""The command `sealgate log`: what the owner of the log's database does. Light: the work is imported when it runs.

Here and not in `audit`, because the budgets' tables of `policy` stand in the same database.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    prepare = commands.add_parser(
        "prepare",
        help="create or bring up to date the tables and roles of a log in PostgreSQL",
        description=(
            "Run it as the owner of the database that `[log] database` names (PGUSER, or the system user), while the "
            "runtime stands still. Makes what is missing, takes away what roles have too much; again, it changes "
            "nothing. Then grant the roles that it names to those that log in."
        ),
    )
    prepare.add_argument("state", metavar="STATE", type=Path, help="the deployment's directory (see `sealgate init`)")


def _run(arguments: argparse.Namespace) -> int:
    from audit.preparation import prepare_database
    from policy.budget import BudgetBook
    from sealgate.deployment import open_deployment
    from sealgate.terminal import say

    done = prepare_database(open_deployment(arguments.state).log_url, extra_tables=(BudgetBook.tables,))
    say(f"tables: revision {done.revision}; created: {', '.join(done.created) or 'none, all were there'}")
    say(f"roles to grant: {', '.join(done.roles)}")
    return 0


LOG = Command(
    summary="prepare the PostgreSQL database of the audit log: tables, roles, grants",
    description="Commands for the owner of the audit log's database; see docs/operations.md, PostgreSQL.",
    configure=_configure,
    run=_run,
    extra="server",
)
