"""The command `sealgate log`: the log's public keys, and what the owner of its database does.

Light: the work is imported when it runs. Here and not in `audit`, because the budgets' tables of `policy` stand in the
same database.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command

_STATE_HELP = "the deployment's directory (see `sealgate init`)"


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
    prepare.add_argument("state", metavar="STATE", type=Path, help=_STATE_HELP)
    prepare.set_defaults(_log_action=_prepare)
    days = commands.add_parser(
        "rebuild-days",
        help="make the roll-ups by day anew, from the records",
        description=(
            "Reports add older days up from roll-ups that the writer keeps. Where those are damaged, this counts every "
            "record that is kept anew. Run it while the runtime stands still, as the owner of the database. Records "
            "that were pruned are counted no more."
        ),
    )
    days.add_argument("state", metavar="STATE", type=Path, help=_STATE_HELP)
    days.set_defaults(_log_action=_rebuild_days)
    keys = commands.add_parser(
        "keys",
        help="the log's public keys, as trust files list them",
        description=(
            "Prints log_keys and log_mldsa_keys for client/trust.toml. Run it as the keys' owner; the runtime may run."
        ),
    )
    keys.add_argument("state", metavar="STATE", type=Path, help=_STATE_HELP)
    keys.add_argument("--make-mldsa", action="store_true", help="make log/mldsa.key where a deployment has none yet")
    keys.set_defaults(_log_action=_keys)


def _run(arguments: argparse.Namespace) -> int:
    return int(arguments._log_action(arguments))


def _keys(arguments: argparse.Namespace) -> int:
    import sys

    from sealgate.deployment import open_deployment
    from secure_runtime.host.key_files import load_log_cosigner, load_note_signer, make_log_mldsa_key

    deployment = open_deployment(arguments.state)
    origin, place = deployment.settings.deployment.origin, deployment.log_mldsa_key
    signer = load_note_signer(deployment.log_key, origin)
    if arguments.make_mldsa:
        make_log_mldsa_key(place)
        print(f"made {place}: it signs from the runtime's next start on; then give clients these", file=sys.stderr)
    mldsa = load_log_cosigner(place, origin)
    print(f'log_keys = ["{signer.vkey}"]')
    if mldsa is not None:
        print(f'log_mldsa_keys = [\n  "{mldsa.public.vkey}",\n]')
    else:
        print(f"{place} is not there: the log publishes under Ed25519 only; --make-mldsa makes one", file=sys.stderr)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from audit.preparation import prepare_database
    from policy.budget import BudgetBook
    from sealgate.deployment import open_deployment
    from sealgate.terminal import say

    done = prepare_database(open_deployment(arguments.state).log_url, extra_tables=(BudgetBook.tables,))
    say(f"tables: revision {done.revision}; created: {', '.join(done.created) or 'none, all were there'}")
    say(f"roles to grant: {', '.join(done.roles)}")
    return 0


def _rebuild_days(arguments: argparse.Namespace) -> int:
    from audit.rebuilding import rebuild_roll_ups
    from sealgate.deployment import open_deployment
    from sealgate.terminal import say

    deployment = open_deployment(arguments.state)
    done = rebuild_roll_ups(deployment.log_url, origin=deployment.settings.deployment.origin)
    say(f"counted anew: {done.days} days, {done.groups} groups of records")
    return 0


LOG = Command(
    summary="the audit log's public keys; prepare its PostgreSQL database; rebuild its roll-ups",
    description="Commands for the owner of the audit log's keys and database; see docs/operations.md.",
    configure=_configure,
    run=_run,
    extra="server",
)
