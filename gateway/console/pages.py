"""The pages that read: timeline, a record with its proof, who looked, what is in force, budgets, evidence bundles.

Each is authorised by the policy and on record before it reads (`Console.may_read`), and reads within the permit: an
auditor of one tenant sees that tenant's records, budgets and readers. Lists are pages of keyset cursors.
Trusts: the permit. Never: OFFSET, a count over the whole log, or another tenant's record for who may not see it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, BinaryIO
from urllib.parse import quote

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Redirect, Stream

from audit.activity import Activity
from audit.database import open_database
from audit.errors import LogUnavailable, QueryRefused
from audit.query import AuditReader, Entry, Page, RecordFilter
from gateway.audit_exporting import export_stream
from gateway.audit_reading import own_records, read_log
from gateway.console.chart import Series, chart_of, kinds_of, series_of
from gateway.console.frame import HEADERS, Console
from gateway.console.presentation import (
    READINGS,
    SPANS,
    TABS,
    filters_of,
    gauge_of,
    grouped,
    meaning_of,
    minute_of,
    row_of,
    wanted_of,
)
from gateway.console.proof_path import Drawing, climb, draw
from gateway.errors import Problem
from gateway.gate import Asking
from gateway.limits import CONSOLE_PAGE, MAX_AUDIT_TEXT
from policy.decide import Permit
from policy.errors import LedgerUnreadable
from policy.usage import Usage, read_ledger
from sealgate.errors import LogError
from sealgate.transparency.merkle import leaf_hash, verify_inclusion
from sealgate.transparency.notes import parse_checkpoint_text, split_note

_PARAMETERS = frozenset(
    {"tenant", "actor", "model", "purpose", "kind", "outcome", "reason", "from", "to", "order", "cursor"}
)


@get("/console", include_in_schema=False)
async def timeline(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """Every record, or those that a filter leaves, newest first."""
    return await _list(request, console, question="timeline", template="timeline.html", path="/console", tabs=TABS)


@get("/console/readers", include_in_schema=False)
async def readers(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """Who looked at what: reads, exports, reviews."""
    return await _list(
        request, console, question="readers", template="readers.html", path="/console/readers", tabs=READINGS
    )


async def _list(
    request: Asking,
    console: Console,
    *,
    question: str,
    template: str,
    path: str,
    tabs: tuple[tuple[str, str], ...],
) -> Response[bytes]:
    query = _query(request)
    if tabs is READINGS and query.get("kind") not in dict(READINGS):
        query["kind"] = READINGS[0][0]
    wanted, said = wanted_of(query), filters_of(query)
    may = await console.may_read(request, question, said)
    series = series_of(wanted.kind)
    page, activity = await read_log(
        console.gate, may, lambda reader, permit: _page(reader, permit, wanted, query.get("cursor"), series)
    )
    now = console.clock()
    spans = [(name, minute_of(now - seconds * 1_000_000), label) for name, seconds, label in SPANS]
    return console.page(
        "rows.html" if "hx-request" in request.headers and "cursor" in query else template,
        may,
        title="Who looked" if tabs is READINGS else "Timeline",
        path=path,
        chart=None if activity is None else chart_of(activity, series),
        rows=[row_of(entry) for entry in page.records],
        shard=page.records[0].record.log if page.records else "",
        range=_range_of(page),
        more=page.cursor,
        size=page.tree_size,
        continued="cursor" in query,
        filters=said,
        tabs=tabs,
        spans=spans,
    )


def _page(
    reader: AuditReader, permit: Permit, wanted: RecordFilter, cursor: str | None, series: tuple[Series, ...]
) -> tuple[Page, Activity | None]:
    """A page of records; on the first one, what they are a part of."""
    allowed = own_records(wanted, permit)
    if allowed is None:
        return Page((), None, reader.shards().size), None
    activity = None if cursor else reader.activity(allowed, kinds=kinds_of(series))
    return reader.records(allowed, cursor, CONSOLE_PAGE), activity


def _range_of(page: Page) -> tuple[int, int]:
    """First and last number on the page, of the records that are of the same shard as the first one."""
    numbers = [entry.index for entry in page.records if entry.record.log == page.records[0].record.log]
    return min(numbers, default=0), max(numbers, default=0)


@get("/console/records/{identifier:str}", include_in_schema=False)
async def record(request: Asking, console: NamedDependency[Console], identifier: FromPath[str]) -> Response[bytes]:
    """One record, by id or by number, and the proof that it is in the log."""
    identifier = identifier[:MAX_AUDIT_TEXT]
    may = await console.may_read(request, "record", {"identifier": identifier})

    def read(reader: AuditReader, permit: Permit) -> tuple[Entry, _Proof | None]:
        numbered = identifier.isascii() and identifier.isdecimal() and len(identifier) <= 15
        entry = reader.record_at(int(identifier)) if numbered else reader.record(identifier)
        if permit.records_of not in (None, entry.record.tenant):
            raise QueryRefused("no record that is kept has this id or index", code="not-found")
        return entry, _proof_of(reader, entry)

    entry, proof = await read_log(console.gate, may, read)
    return console.page(
        "record.html",
        may,
        title=f"Record {entry.index}",
        shard=entry.record.log,
        row=row_of(entry),
        groups=grouped(entry.record),
        meaning=meaning_of(entry.record.kind),
        leaf=entry.leaf.decode(),
        leaf_base64=_base64(entry.leaf),
        proof=proof,
    )


@get("/console/records", include_in_schema=False)
async def numbered(request: Asking) -> Response[None]:
    """The form for a record's number or id leads to its page."""
    wanted = quote(request.query_params.get("record", "").strip().removeprefix("#")[:MAX_AUDIT_TEXT], safe="")
    return Redirect(f"/console/records/{wanted}" if wanted else "/console", status_code=303, headers=HEADERS)


class _Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What the page hands to the browser, and the picture of it."""

    size: int
    root: str
    note: str
    note_base64: str
    hashes: list[str]
    drawing: Drawing
    wrong: bool


def _proof_of(reader: AuditReader, entry: Entry) -> _Proof | None:
    """The proof under the newest checkpoint; None for a record so new that none covers it."""
    try:
        note = reader.checkpoint(origin=entry.record.log)
    except LogUnavailable as error:
        if error.code == "not-published":
            return None
        raise
    checkpoint = parse_checkpoint_text(split_note(note)[0])
    if entry.index >= checkpoint.size:
        return None
    hashes = reader.inclusion(entry.index, checkpoint.size, origin=entry.record.log)
    hashed = leaf_hash(entry.leaf)
    steps = climb(hashed, index=entry.index, size=checkpoint.size, proof=hashes)
    wrong = False
    try:
        verify_inclusion(
            hashed_leaf=hashed, index=entry.index, size=checkpoint.size, proof=hashes, root=checkpoint.root
        )
    except LogError:
        wrong = True  # shown as it is: an auditor must see a log that does not add up
    return _Proof(
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        note=note.decode(),
        note_base64=_base64(note),
        hashes=[_base64(one) for one in hashes],
        drawing=draw(hashed, index=entry.index, steps=steps),
        wrong=wrong,
    )


@get("/console/policy", include_in_schema=False)
async def policy(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """The policy, the models and the runtime in force."""
    may = await console.may_read(request, "policy", {})
    in_force = await console.gate.policies.now()
    return console.page(
        "policy.html",
        may,
        title="Policy and models",
        policy=in_force,
        rules=sorted(in_force.rules.values(), key=lambda rule: (rule.file, rule.id)),
        runtime=console.gate.link.state,
    )


@get("/console/budgets", include_in_schema=False)
async def budgets(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """What is used, held and left."""
    may = await console.may_read(request, "budgets", {})
    in_force = await console.gate.policies.now()
    own = may.permit.records_of
    counted = [one for one in in_force.budgets if own in (None, one.tenant)]
    private = [one for one in in_force.privacy_budgets if own is None or one.tenant in (None, own)]

    def read(_: AuditReader, __: Permit) -> list[Usage]:
        try:
            engine = open_database(console.log_url).reader_engine()
            return read_ledger(engine, counted, private, now_us=console.clock())
        except LedgerUnreadable as error:
            raise LogUnavailable("the ledger cannot be read now", code="reader", retry_after_s=5) from error

    usages = await read_log(console.gate, may, read)
    return console.page("budgets.html", may, title="Budgets", gauges=[gauge_of(one) for one in usages])


@post("/console/evidence", include_in_schema=False, status_code=200)
async def evidence(request: Asking, console: NamedDependency[Console]) -> Stream:
    """The evidence bundle of a range, as a file."""
    form = await console.read_form(request)
    first, last, shard = _number(form, "first"), _number(form, "last"), form.get("shard", "")[:MAX_AUDIT_TEXT]
    said = {"first": str(first), "last": str(last)} | ({"shard": shard} if shard else {})
    may = await console.may_read(request, "evidence", said, kind="audit.export")

    def write(out: BinaryIO) -> None:
        console.gate.audit.export(first, last, out, origin=shard or None)

    name = f"audit-{first}-{last}.zip"
    return await export_stream(console.gate, may, write, media_type="application/zip", filename=name)


ROUTES: tuple[Any, ...] = (timeline, readers, numbered, record, policy, budgets, evidence)


def _query(request: Asking) -> dict[str, str]:
    """The parameters that pages know. Raises Problem for others, and for values that are too long."""
    given = dict(request.query_params)
    if not set(given) <= _PARAMETERS or any(len(value) > MAX_AUDIT_TEXT for value in given.values()):
        raise Problem("malformed-request", detail="This page does not know one of the parameters.")
    return given


def _number(form: Mapping[str, str], name: str) -> int:
    text = form.get(name, "").strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise Problem("malformed-request", detail="A record's number is a whole number from 0.")
    return int(text)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
