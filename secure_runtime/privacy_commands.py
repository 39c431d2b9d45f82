"""`sealgate privacy`: what operators owe to the people in the log, and how long it keeps what it knows.

    subject    everything that is recorded about one person (GDPR Article 15)
    erase      delete a person's name (Article 17)
    hold, release, holds   keep records, and who they are about, until further notice
    prune      delete records whose time is over
    retention  the rules, and what they mean today

Each goes to the runtime host and is on record before it is done; who asks is what the kernel says. Light at import.
Trusts: the state directory. Never: prints a name that was not given to it, or deletes what the host did not announce.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.command import Command
from sealgate.protocol.grounds import GROUNDS

if TYPE_CHECKING:
    from sealgate.deployment import Deployment
    from sealgate.protocol.administration import RecordsPruned


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="privacy_command", metavar="ACTION", required=True)
    subject = commands.add_parser(
        "subject",
        help="everything that is recorded about one person",
        description="The records about one person, what they were for, how long they are kept, and which holds keep "
        "them. That it was asked is a record too.",
    )
    erase = commands.add_parser(
        "erase",
        help="delete a person's name, so that a pseudonym is left that nobody can resolve",
        description="Records stay; they never held the name. It cannot be undone. A hold blocks it. Grounds: "
        + "; ".join(f"{name} {text}" for name, text in GROUNDS.items())
        + ".",
    )
    hold = commands.add_parser(
        "hold",
        help="keep records, and who they are about, until they are released",
        description="Over one person (--tenant and --subject), one tenant, or the whole log.",
    )
    release = commands.add_parser("release", help="lift a hold", description="What it held may be erased and pruned.")
    holds = commands.add_parser("holds", help="the holds that are in force", description="Reads the log's database.")
    prune = commands.add_parser(
        "prune",
        help="delete records whose time is over",
        description="By the rules of STATE/retention.toml. Their hashes stay, so all proofs about other records hold. "
        "With a log in PostgreSQL, run it as a user with the pruner's role (PGUSER).",
    )
    retention = commands.add_parser(
        "retention", help="how long what is kept", description="The rules of STATE/retention.toml, as of today."
    )
    for sub in (subject, erase, hold, release, holds, prune, retention):
        sub.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")
    for sub, needed in ((subject, True), (erase, True), (hold, False)):
        sub.add_argument("--tenant", metavar="NAME", required=needed, default="", help="the person's tenant")
        sub.add_argument("--subject", metavar="NAME", required=needed, default="", help="what the tenant calls them")
    for sub in (hold, release):
        sub.add_argument("name", metavar="NAME", help="what the hold is called on record; name a case, not a person")
    erase.add_argument("--ground", choices=list(GROUNDS), required=True, help="why: GDPR Article 17(1)")
    for sub in (subject, erase, hold, release, prune):
        sub.add_argument("--note", default="", help="one line for the record: why (never a name)")
    subject.add_argument("--out", metavar="FILE", type=Path, help="write the whole report there (JSON, with proofs)")
    prune.add_argument("--dry-run", action="store_true", help="only say how many records are due")
    for sub in (subject, holds, prune, retention):
        sub.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.deployment import open_deployment

    run = {
        "subject": _subject,
        "erase": _erase,
        "hold": _hold,
        "release": _release,
        "holds": _holds,
        "prune": _prune,
        "retention": _retention,
    }[arguments.privacy_command]
    return run(open_deployment(arguments.state), arguments)


# People --------------------------------------------------------------------------------------------------------------


def _subject(deployment: Deployment, arguments: argparse.Namespace) -> int:
    from sealgate.administration import ask_host
    from sealgate.errors import ConfigurationError
    from sealgate.protocol.administration import AskAboutSubject, SubjectFound
    from secure_runtime.subject_report import build_report, report_json, report_text, write_report

    if arguments.out is not None and arguments.out.exists():
        raise ConfigurationError(f"{arguments.out} is there already; name another file")
    frame = AskAboutSubject(tenant=arguments.tenant, subject=arguments.subject, note=arguments.note)
    found = ask_host(deployment, frame, SubjectFound)
    report = build_report(deployment, found, tenant=arguments.tenant, subject=arguments.subject)
    if arguments.out is not None:
        write_report(report, arguments.out)
    print(report_json(report) if arguments.json else report_text(report))
    if arguments.out is not None and not arguments.json:
        print(f"\nThe report with every record and its proof is in {arguments.out}.")
    return 0


def _erase(deployment: Deployment, arguments: argparse.Namespace) -> int:
    from sealgate.administration import ask_host
    from sealgate.protocol.administration import EraseSubject, SubjectErased
    from sealgate.terminal import printable
    from secure_runtime.names_left import files_that_name

    frame = EraseSubject(
        tenant=arguments.tenant, subject=arguments.subject, ground=arguments.ground, note=arguments.note
    )
    done = ask_host(deployment, frame, SubjectErased)
    print(f"The name is deleted, as record {done.record} says. Its records stay, under a pseudonym of nobody.")
    print("The key that it was sealed under is deleted too: no copy of the log's database names this person any more.")
    if not done.scrubbed:
        print("Traces may stand in the -wal files beside the log until they are next emptied: somebody was reading.")
    left = files_that_name(deployment, arguments.subject)
    if left:
        print("The name, or what could not be read, still stands in files that are yours to change or delete:")
        for path in left:
            print(f"  {printable(str(path.relative_to(deployment.root)))}")
    print(
        "Copies elsewhere are yours to delete too: backups of log/people.sqlite, proxies' logs, the provider of tokens."
    )
    return 0


# Holds ---------------------------------------------------------------------------------------------------------------


def _hold(deployment: Deployment, arguments: argparse.Namespace) -> int:
    from sealgate.administration import tell_host
    from sealgate.errors import ConfigurationError
    from sealgate.protocol.administration import PlaceHold

    if arguments.subject and not arguments.tenant:
        raise ConfigurationError("a person is one of a tenant: give --tenant too")
    frame = PlaceHold(name=arguments.name, tenant=arguments.tenant, subject=arguments.subject, note=arguments.note)
    recorded = tell_host(deployment, frame)
    over = "one person" if arguments.subject else f"tenant {arguments.tenant}" if arguments.tenant else "the whole log"
    print(f"Hold {arguments.name} over {over} is in force, as record {recorded.record} says.")
    return 0


def _release(deployment: Deployment, arguments: argparse.Namespace) -> int:
    from sealgate.administration import tell_host
    from sealgate.protocol.administration import ReleaseHold

    recorded = tell_host(deployment, ReleaseHold(name=arguments.name, note=arguments.note))
    print(f"Hold {arguments.name} is lifted, as record {recorded.record} says.")
    return 0


def _holds(deployment: Deployment, arguments: argparse.Namespace) -> int:
    import json

    from audit.pruner import read_holds
    from sealgate.client.times import utc_text
    from sealgate.terminal import render_table

    found = read_holds(deployment.log_url)
    if arguments.json:
        listed = [
            {
                "name": placed.hold.name,
                "tenant": placed.hold.tenant,
                "actor": placed.hold.actor,
                "log": placed.origin,
                "record": placed.index,
                "placed": utc_text(placed.hold.placed_us),
            }
            for placed in found
        ]
        print(json.dumps({"holds": listed}, indent=2))
    elif not found:
        print("No hold is in force.")
    else:
        rows = [
            (
                placed.hold.name,
                placed.hold.tenant or "every tenant",
                placed.hold.actor or "everybody",
                f"{placed.index} of {placed.origin}",
                utc_text(placed.hold.placed_us),
            )
            for placed in found
        ]
        print(render_table(("hold", "tenant", "pseudonym", "record", "since (UTC)"), rows))
    return 0


# Retention -----------------------------------------------------------------------------------------------------------


def _retention(deployment: Deployment, arguments: argparse.Namespace) -> int:
    import json

    from audit.retention import DAY_US, load_retention
    from sealgate.ambient import now_us
    from sealgate.client.times import utc_text
    from sealgate.terminal import render_table

    retention = load_retention(deployment.retention)
    now = now_us()
    listed = [(rule.tenant or "", rule.purpose or "", rule.days) for rule in retention.rules]
    if arguments.json:
        rules = [{"tenant": tenant, "purpose": purpose, "days": days} for tenant, purpose, days in listed]
        print(
            json.dumps({"digest": retention.digest, "default_days": retention.default_days, "rules": rules}, indent=2)
        )
        return 0
    rows = [
        *((tenant or "any", purpose or "any", days) for tenant, purpose, days in listed),
        ("any", "any other", retention.default_days),
        ("none", "(openings, policies, workers, keys)", retention.longest_days),
    ]
    print(
        render_table(
            ("tenant", "purpose", "days", "due if older than (UTC)"),
            [(*row, utc_text(max(0, now - row[2] * DAY_US))) for row in rows],
        )
    )
    print("\nRecords of holds, erasures and prunings are never deleted, nor is what a hold covers.")
    return 0


def _prune(deployment: Deployment, arguments: argparse.Namespace) -> int:
    import json

    from audit.pruner import count_due
    from audit.retention import load_retention
    from sealgate.ambient import now_us
    from sealgate.terminal import say
    from secure_runtime.pruning_run import prune_all

    if arguments.dry_run:
        due = count_due(deployment.log_url, load_retention(deployment.retention), now_us=now_us())
        rows = [{"tenant": tenant, "purpose": purpose, "due": count} for (tenant, purpose), count in due.items()]
        if arguments.json:
            print(json.dumps({"due": rows}, indent=2))
            return 0
        for row in rows:
            print(f"{row['due']} records of tenant {row['tenant'] or '(none)'}, purpose {row['purpose'] or '(none)'}")
        print(f"{sum(due.values())} records are due; nothing was deleted.")
        return 0

    def told(answer: RecordsPruned, count: int) -> None:
        if not arguments.json:
            say(f"{count} records are deleted, as record {answer.record} announced")

    done = prune_all(deployment, note=arguments.note, told=told)
    if arguments.json:
        print(json.dumps({"pruned": done.records, "announced_by": list(done.announced_by), "forgotten": done.names}))
    else:
        print(f"{done.records} records are deleted, and the names of {done.names} people of whom none is left.")
    return 0


PRIVACY = Command(
    summary="what is known of one person; erase, hold, and prune what the log keeps",
    description="What operators owe to the people in the audit log, and how long it keeps what it knows.",
    configure=_configure,
    run=_run,
    extra="server",
)
