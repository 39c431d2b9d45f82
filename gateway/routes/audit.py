"""The auditor's view of the log. Each call is authorised by the policy, and is a durable record before it reads.

    authenticate, ask the policy (query-audit or export-audit), record the read, read, answer

Records are of the caller's own tenant unless the policy says otherwise (`Permit.records_of`); proofs, tiles and
checkpoints are hashes, the same for everybody, and so are the two records in which shards name each other: without
them nobody proves that the log grew over a turn. Exports stand in `audit_exports`.
Trusts: the policy's permit; readers verify what they get. Never: reads before the read is on record; changes the log.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter

from audit.errors import QueryRefused
from audit.limits import MAX_PAGE, TILE_WIDTH
from audit.query import AuditReader, Entry, RecordFilter
from gateway.audit_reading import authorise_reading, own_records, read_log
from gateway.errors import Problem
from gateway.gate import Asking, Gate
from gateway.limits import MAX_AUDIT_TEXT
from gateway.routes.openapi import answers
from policy.decide import Permit
from sealgate.transparency.carried import begins_shard, ends_shard

_REFUSALS = (400, 401, 403, 404, 503)
_JSON = "application/json"
_INDEX = re.compile(r"0|[1-9][0-9]{0,14}")
_TILE = re.compile(r"((?:x[0-9]{3}/){0,3}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_RECORDED = frozenset(
    {"tenant", "actor", "model", "model_digest", "purpose", "kind", "outcome", "reason", "from_us", "to_us", "limit"}
    | {"order", "in_force", "identifier", "index", "size", "first", "second", "level", "tile", "cosigned", "shard"}
)

Text = Annotated[str | None, QueryParameter(max_length=MAX_AUDIT_TEXT)]
Number = Annotated[int | None, QueryParameter(ge=0, lt=2**53)]
Needed = Annotated[int, QueryParameter(ge=0, lt=2**53)]
Cosigned = Annotated[int, QueryParameter(ge=0, le=1)]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
Log = Annotated[
    str | None, QueryParameter(max_length=MAX_AUDIT_TEXT, description="Of another host: see /audit/v1/logs")
]
Shard = Annotated[
    str | None,
    QueryParameter(max_length=MAX_AUDIT_TEXT, description="Origin of one of the log's shards; not given: the newest"),
]


def wanted_records(
    tenant: Text = None,
    actor: Text = None,
    model: Text = None,
    model_digest: Text = None,
    purpose: Text = None,
    kind: Text = None,
    outcome: Text = None,
    reason: Text = None,
    from_us: Number = None,
    to_us: Number = None,
    order: Text = None,
) -> RecordFilter:
    """The filter in a query; what is left out means anything."""
    if order not in (None, "newest", "oldest"):
        raise Problem("malformed-request", detail="The parameter 'order' is 'newest' or 'oldest'.")
    return RecordFilter(
        tenant=tenant,
        actor=actor,
        model=model,
        model_digest=model_digest,
        purpose=purpose,
        kind=kind,
        outcome=outcome,
        reason=reason,
        from_us=from_us,
        to_us=to_us,
        oldest_first=order == "oldest",
    )


@get(
    "/audit/v1/records",
    dependencies={"wanted": Provide(wanted_records, sync_to_thread=False)},
    responses=answers(_JSON, *_REFUSALS),
    summary="Query records",
)
async def records(
    request: Asking,
    gate: NamedDependency[Gate],
    wanted: NamedDependency[RecordFilter],
    cursor: Text = None,
    limit: Limit = 100,
    log: Log = None,
) -> Response[bytes]:
    """Newest first (`order=oldest` turns it round). `cursor` goes on in the same snapshot, whose size is `tree_size`.
    A page may be short, or empty, while its `cursor` still leads on: names that seldom come together are looked for in
    one part of the log at a time. A record is a leaf: its canonical JSON is what is hashed into the tree."""

    def read(reader: AuditReader, permit: Permit) -> bytes:
        allowed = own_records(wanted, permit)
        if allowed is None:
            return encode({"records": [], "cursor": None, "tree_size": reader.shards().size})
        page = reader.records(allowed, cursor, limit)
        rows = [row(entry) for entry in page.records]
        return encode({"records": rows, "cursor": page.cursor, "tree_size": page.tree_size})

    return await read_recorded(request, gate, "records", read, log=log)


@get("/audit/v1/records/{identifier:str}", responses=answers(_JSON, *_REFUSALS), summary="One record")
async def record(
    request: Asking, gate: NamedDependency[Gate], identifier: FromPath[str], log: Log = None, shard: Shard = None
) -> Response[bytes]:
    """The record with this id, or at this index of a shard. Another tenant's record is not found."""

    def read(reader: AuditReader, permit: Permit) -> bytes:
        by_index = _INDEX.fullmatch(identifier) is not None
        entry = (
            reader.record_at(int(identifier), origin=shard) if by_index else reader.record(identifier[:MAX_AUDIT_TEXT])
        )
        edge = begins_shard(entry.record) or ends_shard(entry.record)
        if permit.records_of not in (None, entry.record.tenant) and not edge:
            raise QueryRefused("no record that is kept has this id or index", code="not-found")
        return encode(row(entry))

    return await read_recorded(request, gate, "record", read, log=log)


@get("/audit/v1/checkpoint", responses=answers("text/plain", *_REFUSALS), summary="The newest signed checkpoint")
async def checkpoint(
    request: Asking, gate: NamedDependency[Gate], cosigned: Cosigned = 0, log: Log = None, shard: Shard = None
) -> Response[bytes]:
    """A C2SP signed note; with `cosigned=1`, the newest one that the log's witnesses cosigned."""

    def read(reader: AuditReader, _: Permit) -> bytes:
        return reader.checkpoint(cosigned=bool(cosigned), origin=shard)

    return await read_recorded(request, gate, "checkpoint", read, log=log, media_type="text/plain")


@get("/audit/v1/proofs/inclusion", responses=answers(_JSON, *_REFUSALS), summary="Proof that a record is in the log")
async def inclusion(
    request: Asking, gate: NamedDependency[Gate], index: Needed, size: Needed, log: Log = None, shard: Shard = None
) -> Response[bytes]:
    """RFC 9162 inclusion proof of the record at `index` in the tree of `size` records; hashes in base64."""

    def read(reader: AuditReader, _: Permit) -> bytes:
        return encode({"index": index, "size": size, "hashes": _hashes(reader.inclusion(index, size, origin=shard))})

    return await read_recorded(request, gate, "inclusion", read, log=log)


@get("/audit/v1/proofs/consistency", responses=answers(_JSON, *_REFUSALS), summary="Proof that the log only grew")
async def consistency(
    request: Asking, gate: NamedDependency[Gate], first: Needed, second: Needed, log: Log = None, shard: Shard = None
) -> Response[bytes]:
    """RFC 9162 consistency proof between the trees of `first` and `second` records; hashes in base64."""

    def read(reader: AuditReader, _: Permit) -> bytes:
        return encode(
            {"first": first, "second": second, "hashes": _hashes(reader.consistency(first, second, origin=shard))}
        )

    return await read_recorded(request, gate, "consistency", read, log=log)


@get(
    "/audit/v1/tile/{level:int}/{tile:path}", responses=answers("application/octet-stream", *_REFUSALS), summary="Tile"
)
async def tile(
    request: Asking,
    gate: NamedDependency[Gate],
    level: FromPath[int],
    tile: FromPath[str],
    log: Log = None,
    shard: Shard = None,
) -> Response[bytes]:
    """A C2SP tile: the index in groups of three digits (`x001/x234/067`), with `.p/WIDTH` behind it if partial."""
    index, width = _tile_place(tile)
    octets = "application/octet-stream"
    return await read_recorded(
        request,
        gate,
        "tile",
        lambda reader, _: reader.tile(level, index, width, origin=shard),
        log=log,
        media_type=octets,
    )


@get("/audit/v1/logs", responses=answers(_JSON, *_REFUSALS), summary="The logs that can be read here")
async def logs(request: Asking, gate: NamedDependency[Gate]) -> Response[bytes]:
    """The log of this gateway's host, and those of other hosts that the parameter `log` may name elsewhere: the origin
    of each, how many records it has, and whether it can be read now. One that cannot is named all the same."""
    return await read_recorded(
        request, gate, "logs", lambda _, permit: encode({"logs": gate.logs.states(permit)}), log=None
    )


ROUTES = (records, record, checkpoint, inclusion, consistency, tile, logs)


# The one way to read -------------------------------------------------------------------------------------------------


async def read_recorded(
    request: Asking,
    gate: Gate,
    question: str,
    read: Callable[[AuditReader, Permit], bytes],
    *,
    log: str | None,
    media_type: str = _JSON,
) -> Response[bytes]:
    may = await authorise_reading(request, gate, question, kind="audit.query", said=_said(request), log=log)
    content = await read_log(gate, may, read)
    return Response(content=content, media_type=media_type, headers=may.headers)


def _said(request: Asking) -> dict[str, str]:
    """What was asked, for the record: known parameters only."""
    given = {name: str(value) for name, value in {**request.query_params, **request.path_params}.items()}
    return {name: value for name, value in given.items() if name in _RECORDED}


# Forms ---------------------------------------------------------------------------------------------------------------


def row(entry: Entry) -> dict[str, Any]:
    return {"index": entry.index, "record": msgspec.Raw(entry.leaf)}


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _hashes(proof: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(one).decode("ascii") for one in proof]


def _tile_place(path: str) -> tuple[int, int]:
    """Index and width of a tile from its C2SP path."""
    match = _TILE.fullmatch(path.strip("/"))
    if match is None:
        raise Problem("not-found", detail="The log has no such tile.")
    width = int(match[2]) if match[2] else TILE_WIDTH
    return int(match[1].replace("/", "").replace("x", "")), width
