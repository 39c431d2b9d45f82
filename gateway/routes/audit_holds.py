"""Holds and erasures, as the log has them on record: what must be kept, by whose order, and whose name is gone.

A hold is two records, its placing and its release; here they come together. Names may be used again after a release, so
the k-th release of a name ends the k-th hold of that name: a name that is in force cannot be placed twice.
An auditor of one tenant sees what is about that tenant; a hold over the whole log is about none.
Trusts: the policy's permit; what is read are leaves, and can be proven like any. Never: changes a hold, or names a
person: records have pseudonyms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from audit.errors import LogDamaged
from audit.holds import PLACED, RELEASED
from audit.limits import MAX_PAGE
from audit.query import AuditReader, Entry, RecordFilter
from gateway.audit_reading import own_records
from gateway.errors import Problem
from gateway.gate import Asking, Gate
from gateway.limits import MAX_AUDIT_HOLDS, MAX_AUDIT_TEXT
from gateway.routes.audit import Limit, Log, Text, encode, read_recorded, row
from gateway.routes.openapi import answers
from policy.decide import Permit

_REFUSALS = (400, 401, 403, 404, 503)
_JSON = "application/json"
_ERASURES = {"erased": "erasure.completed", "refused": "erasure.refused"}

Few = Annotated[int, QueryParameter(ge=1, le=MAX_AUDIT_HOLDS)]
Yes = Annotated[int, QueryParameter(ge=0, le=1)]
Outcome = Annotated[str, QueryParameter(max_length=MAX_AUDIT_TEXT, description="'erased' or 'refused'.")]


@get("/audit/v1/holds", responses=answers(_JSON, *_REFUSALS), summary="Legal holds")
async def holds(
    request: Asking,
    gate: NamedDependency[Gate],
    tenant: Text = None,
    in_force: Yes = 0,
    cursor: Text = None,
    limit: Few = MAX_AUDIT_HOLDS,
    log: Log = None,
) -> Response[bytes]:
    """Newest first: the record that placed each hold, and the one that released it, or null. With `in_force=1` those
    without a release only: then a page may be short, or empty, while its `cursor` still leads on."""

    def read(reader: AuditReader, permit: Permit) -> bytes:
        wanted = own_records(RecordFilter(tenant=tenant, kind=PLACED), permit)
        if wanted is None:
            return encode({"holds": [], "cursor": None, "tree_size": reader.shards().size})
        page = reader.records(wanted, cursor, limit)
        released = _releases(reader, {entry.record.reason for entry in page.records})
        rows = [_hold(entry, released.get(entry.record.id)) for entry in page.records]
        rows = [one for one in rows if not in_force or one["in_force"]]
        return encode({"holds": rows, "cursor": page.cursor, "tree_size": page.tree_size})

    return await read_recorded(request, gate, "holds", read, log=log)


@get("/audit/v1/erasures", responses=answers(_JSON, *_REFUSALS), summary="Names that were erased")
async def erasures(
    request: Asking,
    gate: NamedDependency[Gate],
    tenant: Text = None,
    outcome: Outcome = "erased",
    cursor: Text = None,
    limit: Limit = 100,
    log: Log = None,
) -> Response[bytes]:
    """Newest first, a record each: names that were erased, or (`outcome=refused`) that a hold kept from it."""
    kind = _ERASURES.get(outcome)

    def read(reader: AuditReader, permit: Permit) -> bytes:
        if kind is None:
            raise Problem("malformed-request", detail="The parameter 'outcome' is 'erased' or 'refused'.")
        wanted = own_records(RecordFilter(tenant=tenant, kind=kind), permit)
        if wanted is None:
            return encode({"erasures": [], "cursor": None, "tree_size": reader.shards().size})
        page = reader.records(wanted, cursor, limit)
        rows = [row(entry) for entry in page.records]
        return encode({"erasures": rows, "cursor": page.cursor, "tree_size": page.tree_size})

    return await read_recorded(request, gate, "erasures", read, log=log)


ROUTES = (holds, erasures)


def _releases(reader: AuditReader, names: Iterable[str]) -> dict[str, Entry]:
    """By the id of the record that placed a hold of one of these names: the record that released it."""
    ended: dict[str, Entry] = {}
    for name in sorted(names):
        released = _all(reader, RELEASED, name)  # first: what is placed meanwhile is not released yet
        placed = _all(reader, PLACED, name)
        if not len(placed) - 1 <= len(released) <= len(placed):
            raise LogDamaged("a hold was placed or released twice, or one of its records cannot be found")
        ended |= {before.record.id: after for before, after in zip(placed, released, strict=False)}
    return ended


def _all(reader: AuditReader, kind: str, name: str) -> list[Entry]:
    """Every record of this kind that names the hold, oldest first."""
    found: list[Entry] = []
    cursor: str | None = None
    while True:
        page = reader.records(RecordFilter(kind=kind, reason=name, oldest_first=True), cursor, MAX_PAGE)
        found += page.records
        if page.cursor is None:
            return found
        cursor = page.cursor


def _hold(placed: Entry, released: Entry | None) -> dict[str, Any]:
    record = placed.record
    return {
        "name": record.reason,
        "tenant": record.tenant,
        "actor": record.actor,
        "in_force": released is None,
        "placed": row(placed),
        "released": None if released is None else row(released),
    }
