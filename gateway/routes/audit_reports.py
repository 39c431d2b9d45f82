"""Reports on the log, and the statement of an auditor that somebody looked at it.

A report over one tenant is for whoever may read that tenant's records; one over the whole log, and a review of it,
needs the right to all of them. Trusts: the policy's permit; the answer is the database's word, and says so. Never:
answers before the question is on record, or calls proven what a client did not verify.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter

from audit.query import AuditReader
from gateway.audit_reading import authorise_reading, own_question, read_log
from gateway.errors import Problem
from gateway.gate import Asking, Gate
from gateway.limits import MAX_AUDIT_TEXT, MAX_REVIEW
from gateway.routes.audit import Log
from gateway.routes.openapi import ReviewOperation, answers
from policy.decide import Permit
from sealgate.errors import DecodeError
from sealgate.transparency.reports.catalogue import REPORTS
from sealgate.transparency.reports.question import Question
from sealgate.transparency.reports.reviewing import ReviewStatement

_REFUSALS = (400, 401, 403, 404, 503)
_TOO_WIDE = "report-needs-every-tenant"
_JSON = "application/json"

Text = Annotated[str | None, QueryParameter(max_length=MAX_AUDIT_TEXT)]
Number = Annotated[int | None, QueryParameter(ge=0, lt=2**53)]


def asked_question(
    tenant: Text = None,
    actor: Text = None,
    model: Text = None,
    purpose: Text = None,
    from_us: Number = None,
    to_us: Number = None,
    at_us: Number = None,
    first: Number = None,
    last: Number = None,
    shard: Text = None,
) -> Question:
    """The parameters of a report; which of them it knows is checked once the caller is."""
    return Question(
        tenant=tenant,
        actor=actor,
        model=model,
        purpose=purpose,
        from_us=from_us,
        to_us=to_us,
        at_us=at_us,
        first=first,
        last=last,
        shard=shard,
    )


@get(
    "/audit/v1/reports/{name:str}",
    dependencies={"asked": Provide(asked_question, sync_to_thread=False)},
    responses=answers("application/json", *_REFUSALS),
    summary="A report",
)
async def report(
    request: Asking,
    gate: NamedDependency[Gate],
    name: FromPath[str],
    asked: NamedDependency[Question],
    log: Log = None,
) -> Response[bytes]:
    """access, denials, budget, usage, in-force, reconcile, completeness, break-glass or review. The answer is the
    database's word; over an evidence bundle the same report is proven (`sealgate audit report NAME --bundle FILE`)."""
    known = REPORTS.get(name)
    said = {"name": name, **asked.given()}
    too_wide = "" if known is None or known.of_one_tenant else _TOO_WIDE
    may = await authorise_reading(request, gate, "report", kind="audit.query", said=said, too_wide=too_wide, log=log)
    if known is None:
        raise Problem("not-found", detail=f"There are the reports {', '.join(REPORTS)}.")

    def read(reader: AuditReader, permit: Permit) -> bytes:
        return msgspec.json.encode(reader.report(name, own_question(asked, permit)))

    content = await read_log(gate, may, read)
    return Response(content=content, media_type="application/json", headers=may.headers)


@post(
    "/audit/v1/reviews",
    status_code=200,
    operation_class=ReviewOperation,
    responses=answers("text/plain", 400, 401, 403, 413, 503),
    summary="State that records were looked at",
)
async def review(request: Asking, gate: NamedDependency[Gate]) -> Response[bytes]:
    """The body is JSON: first, last, size, root, finding, and optionally note, report and report_digest. It becomes a
    record under the caller's pseudonym; the answer is that record's receipt."""

    async def state() -> dict[str, str]:
        _require_json(request)
        with gate.reading.slot() as slot:
            declared = request.headers.get("content-length")
            raw = await slot.read_body(request.receive, declared=declared, limit=MAX_REVIEW)
        return _statement(raw).detail()

    may = await authorise_reading(
        request, gate, "review", kind="audit.review", said={}, too_wide=_TOO_WIDE, state=state
    )
    return Response(content=may.receipt, media_type="text/plain", headers=may.headers)


ROUTES = (report, review)


def _require_json(request: Asking) -> None:
    """No form of another site's page can be of this type, so no browser states a review that its user did not."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise Problem("malformed-request", detail=f"The body is JSON: Content-Type is {_JSON}.")


def _statement(raw: bytes) -> ReviewStatement:
    try:
        statement = msgspec.json.decode(raw, type=ReviewStatement)
        statement.require_range()
    except (msgspec.DecodeError, DecodeError, RecursionError, UnicodeError):
        raise Problem("malformed-request", detail="The body is no statement of a review.") from None
    return statement
