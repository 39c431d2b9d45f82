"""A writer to be killed: prunes a log in small pages, prints what was deleted, never stops by itself.

prune_writer.py URL PEOPLE      lines: `pruned INDICES`, then `done`
"""

from __future__ import annotations

import sys
from pathlib import Path

from audit import pruning
from audit.errors import PrivacyRefused
from audit.holds import holds_in_force
from audit.log import AuditLog
from audit.pruner import Pruner
from audit.retention import DAY_US, parse_retention
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.pruned import INDICES, Indices
from sealgate.transparency.record import Record

ORIGIN = "example.com/log"
NOW = 2000 * DAY_US


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(url: str, people: str) -> None:
    pruning.PRUNE_RECORDS = 7
    rules = parse_retention(b"default_days = 100\n[[rule]]\npurpose = 'treatment'\ndays = 1000\n")
    log = AuditLog.open(
        url, signer=NoteSigner.from_seed(ORIGIN, b"\x01" * 32), subjects_key=b"\x02" * 32, person_keys=Path(people),
        origin=ORIGIN, clock=lambda: NOW,
    )  # fmt: skip
    pruner = Pruner(url)
    start: int | None = 0
    while start is not None:
        with log.reading() as connection:
            found = pruning.search(connection, rules, holds_in_force(connection), start=start, now_us=NOW)
        start = found.next
        try:
            effect = pruning.pruning(found.records, rules, now_us=NOW)
            done = log.append(Record(kind="retention.pruned"), effect).result() if found.records else None
        except PrivacyRefused:
            done = None
        if done is not None:
            indices = Indices.parse(done.record.detail[INDICES])
            if pruner.needed:
                pruner.delete(indices, rules, now_us=NOW)
            say(f"pruned {indices}")
    say("done")
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
