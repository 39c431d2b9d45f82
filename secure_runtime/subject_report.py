"""Everything that the log holds about one person (GDPR Article 15), with the proof of each record.

The records are found by the index, so that none is missing is not proven by this report; that each is in the log is.
Trusts: the log's database for finding, the log's key for nothing: receipts are verified by whoever gets them.
Never: holds what another person did, or a request's content, which the log does not have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from audit.limits import MAX_PAGE, PUBLISH_WAIT_S
from audit.pruner import read_holds
from audit.query import AuditReader, Entry, RecordFilter
from audit.retention import DAY_US, load_retention
from sealgate.ambient import Clock, monotonic_ns, now_us
from sealgate.client.times import utc_text
from sealgate.errors import ConfigurationError
from sealgate.terminal import printable_json, render_pairs, render_table
from sealgate.transparency.notes import parse_checkpoint_text, split_note
from sealgate.transparency.receipt import build_receipt

if TYPE_CHECKING:
    from sealgate.deployment import Deployment
    from sealgate.protocol.administration import SubjectFound

FORMAT = "sealgate-subject-report@v1"
LIMITS = (
    "The log holds no question and no answer: only fingerprints of sealed messages.",
    "Each record's receipt proves that it is in the log. That no other record is about this person is what the index "
    "says; a replay of the whole log (`sealgate audit verify`, records of this pseudonym) proves it.",
    "Records under a pseudonym that was erased before, and records that were pruned, are not here and cannot be found.",
    "Records of failed authentication name nobody. What the gateway's own log, backups, and the provider of tokens "
    "hold is not here.",
)
_POLL_S = 0.02


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What was done for one purpose with one model, and until when it is kept."""

    purpose: str
    model: str
    records: int
    outcomes: dict[str, int]
    first: str
    last: str
    kept_days: int
    last_due: str


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """One record, and the receipt that proves it (C2SP tlog-proof)."""

    index: int
    record: msgspec.Raw
    receipt: str


class SubjectReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. Times are UTC."""

    format: str
    log: str
    tenant: str
    subject: str
    pseudonym: str
    made: str
    asked_by_record: int
    records_in_log: int
    uses: tuple[Use, ...]
    models: tuple[dict[str, str], ...]
    holds: tuple[str, ...]
    records: tuple[Proven, ...]
    limits: tuple[str, ...] = LIMITS


def build_report(
    deployment: Deployment, found: SubjectFound, *, tenant: str, subject: str, clock: Clock = now_us
) -> SubjectReport:
    """Read and prove. Raises LogUnavailable, LogDamaged."""
    origin = deployment.settings.deployment.origin
    with closing(AuditReader(deployment.log_url, origin=origin)) as reader:
        newest = _covering_checkpoint(reader, found.record)
        ended = reader.shards().all[:-1]
        signed = {shard.origin: _signed(reader.checkpoint(origin=shard.origin)) for shard in ended}
        signed[newest.origin] = newest
        size = sum(one.size for one in signed.values())
        entries = [entry for entry in _entries(reader, found.actor) if _covers(signed, entry)]
        proven = tuple(
            Proven(
                index=entry.index,
                record=msgspec.Raw(entry.leaf),
                receipt=_receipt(reader, entry, signed[entry.record.log]),
            )
            for entry in entries
        )
    held = [placed.hold for placed in read_holds(deployment.log_url)]
    holds = [hold.name for hold in held if hold.covers(tenant=tenant, actor=found.actor)]
    return SubjectReport(
        format=FORMAT,
        log=origin,
        tenant=tenant,
        subject=subject,
        pseudonym=found.actor,
        made=utc_text(clock()),
        asked_by_record=found.record,
        records_in_log=size,
        uses=tuple(_uses(deployment, entries)),
        models=tuple(_models(entries)),
        holds=tuple(holds),
        records=proven,
    )


def report_json(report: SubjectReport) -> str:
    """For machines, and to hand out."""
    return printable_json(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())


def report_text(report: SubjectReport) -> str:
    """For people: what is known, without the records themselves."""
    pairs = [
        ("tenant", report.tenant),
        ("subject", report.subject),
        ("pseudonym", report.pseudonym),
        ("log", report.log),
        ("records", f"{len(report.records)} of {report.records_in_log}"),
        ("held by", ", ".join(report.holds) or "no hold"),
        ("on record", f"that this was asked: record {report.asked_by_record}"),
    ]
    rows = [
        (
            use.purpose or "(none)",
            use.model or "(none)",
            use.records,
            ", ".join(f"{count} {name}" for name, count in use.outcomes.items()),
            use.first,
            use.last,
            use.kept_days,
            use.last_due,
        )
        for use in report.uses
    ]
    headings = ("purpose", "model", "records", "of which", "first (UTC)", "last", "kept, days", "the last until")
    return "\n".join([render_pairs(pairs), "", render_table(headings, rows), "", *(f"- {x}" for x in report.limits)])


def write_report(report: SubjectReport, path: Path) -> None:
    """To a new file that only its owner reads: it names a person."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already; name another file") from error
    with os.fdopen(handle, "wb") as file:
        file.write(report_json(report).encode() + b"\n")


@dataclass(frozen=True)
class _Signed:
    """A shard's checkpoint, and what it says."""

    note: bytes
    origin: str
    size: int


def _signed(note: bytes) -> _Signed:
    checkpoint = parse_checkpoint_text(split_note(note)[0])
    return _Signed(note, checkpoint.origin, checkpoint.size)


def _covers(signed: Mapping[str, _Signed], entry: Entry) -> bool:
    return entry.record.log in signed and entry.index < signed[entry.record.log].size


def _receipt(reader: AuditReader, entry: Entry, signed: _Signed) -> str:
    path = reader.inclusion(entry.index, signed.size, origin=signed.origin)
    return build_receipt(entry.index, entry.leaf, path, signed.note).decode()


def _covering_checkpoint(reader: AuditReader, index: int) -> _Signed:
    """A signed checkpoint of the newest tree, which has the record: the writer stores it a moment after."""
    deadline = monotonic_ns() + int(PUBLISH_WAIT_S * 1e9)
    while True:
        signed = _signed(reader.checkpoint())
        if signed.size > index or monotonic_ns() > deadline:
            return signed
        time.sleep(_POLL_S)


def _entries(reader: AuditReader, actor: str) -> Iterator[Entry]:
    cursor: str | None = None
    while True:
        page = reader.records(RecordFilter(actor=actor, oldest_first=True), cursor, MAX_PAGE)
        yield from page.records
        cursor = page.cursor
        if cursor is None:
            return


def _uses(deployment: Deployment, entries: list[Entry]) -> Iterator[Use]:
    retention = load_retention(deployment.retention)
    grouped: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        key = (entry.record.tenant, entry.record.purpose, entry.record.model)
        grouped.setdefault(key, []).append(entry)
    for (tenant, purpose, model), some in sorted(grouped.items()):
        outcomes: dict[str, int] = {}
        for entry in some:
            outcomes[entry.record.kind] = outcomes.get(entry.record.kind, 0) + 1
        times = [entry.record.ts_us for entry in some]
        days = retention.days(tenant=tenant, purpose=purpose)
        yield Use(
            purpose=purpose,
            model=model,
            records=len(some),
            outcomes=outcomes,
            first=utc_text(min(times)),
            last=utc_text(max(times)),
            kept_days=days,
            last_due=utc_text(max(times) + days * DAY_US),
        )


def _models(entries: list[Entry]) -> Iterator[dict[str, str]]:
    """Which weights decided, under which certificate of privacy."""
    seen = {
        (entry.record.model, entry.record.model_digest, entry.record.certificate_digest)
        for entry in entries
        if entry.record.model_digest
    }
    for model, digest, certificate in sorted(seen):
        yield {"model": model, "model_digest": digest, "certificate_digest": certificate}
