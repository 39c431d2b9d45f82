"""`sealgate audit`: read the log as an auditor, keep checkpoints, take evidence bundles away, verify them offline.

One module for each group of its commands. Every subcommand that asks the service is itself put on record there.
"""

from __future__ import annotations

import argparse

from sealgate.client import audit_asking, audit_evidence, audit_exports, audit_holds, audit_logs, audit_reports
from sealgate.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="audit_command", metavar="ACTION", required=True)
    for group in (audit_asking, audit_logs, audit_evidence, audit_exports, audit_reports, audit_holds):
        group.configure(commands)


def _run(arguments: argparse.Namespace) -> int:
    return int(arguments._audit_action(arguments))


AUDIT = Command(
    summary="query the audit log, export evidence, verify it offline",
    description="Reads the audit log with an auditor's credential (each read is on record), and verifies evidence "
    "bundles without the service.",
    configure=_configure,
    run=_run,
)
