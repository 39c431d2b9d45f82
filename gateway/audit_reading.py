"""The one way to the log for whoever reads it: authenticate, ask the policy, put the reading on record, then read.

The auditor's API and the console both come through here, so neither can read what the other could not, or unrecorded.
Trusts: the gate. Never: reads before the record of the reading is durable; holds up inference: reads have their own,
few, places.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from audit.errors import LogUnavailable, QueryRefused
from audit.query import AuditReader, RecordFilter
from gateway.errors import Problem
from gateway.gate import Asked, Asking, Gate, audit_headers, caller_of
from gateway.other_logs import ReadableLog
from policy.decide import Permit
from policy.entities import Action, Principal
from sealgate.errors import DecodeError, SealgateError
from sealgate.limits import MAX_NAME
from sealgate.protocol.frames import AuditKind, AuditRead
from sealgate.transparency.reports.question import Question

_T = TypeVar("_T")
_ASKED = {
    "audit.query": Action.QUERY_AUDIT,
    "audit.export": Action.EXPORT_AUDIT,
    "audit.review": Action.QUERY_AUDIT,  # who may look may say that they did
}
_NOT_FOUND = frozenset({"not-found", "range"})
_TOO_WIDE = "export-needs-every-tenant"
_OTHER_LOG = "log-needs-every-tenant"
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_ELSEWHERE = frozenset({"cross-site", "same-site"})  # Fetch Metadata: another site's page had the browser ask


@dataclass(frozen=True, kw_only=True)
class MayRead:
    """Holding one proves: `principal` may read `log` now, within `permit`, and that it does so is on record.

    `headers` say where that record stands.
    """

    principal: Principal
    permit: Permit
    log: ReadableLog
    headers: dict[str, str]
    receipt: bytes = b""


async def authorise_reading(
    request: Asking,
    gate: Gate,
    question: str,
    *,
    kind: AuditKind,
    said: Mapping[str, str],
    too_wide: str = "",
    log: str | None = None,
    state: Callable[[], Awaitable[dict[str, str]]] | None = None,
) -> MayRead:
    """The right to read. `question` and `said` (what was asked, by name) go into the record, which is in the own log
    whichever one is read: `log` names it, or is None for the own one.

    With `too_wide`, who may read one tenant's records only is refused for that reason. `state` gives, once the caller
    is known, a detail that stands in the record as it is.
    """
    principal = await gate.authenticate(request)
    _require_own(request)
    _require_said_once(request)
    which = gate.logs.of(log)
    said = dict(said) | ({"log": which.origin} if not which.own else {})
    asked = Asked(action=_ASKED[kind], model="", purpose="")
    detail = {"question": question} | {name: _UNPRINTABLE.sub("?", value)[:MAX_NAME] for name, value in said.items()}
    if state is not None:
        detail = await state()
    too_wide = _TOO_WIDE if kind == "audit.export" else too_wide
    # Callers without any right to read get this far: they may not fill the way to the host.
    with gate.asking.slot((principal.tenant, principal.subject)):

        async def put_on_record(principal: Principal) -> MayRead:
            permit = await gate.authorise(request, principal, asked)
            reason = too_wide if permit.records_of is not None else ""
            reason = reason or ("" if which.may_be_read(permit) else _OTHER_LOG)
            if reason:
                await gate.refuse(request, msgspec.structs.replace(permit.decision, reason=reason), principal, asked)
            frame = AuditRead(caller=caller_of(principal), decision=permit.decision, kind=kind, detail=detail)
            recorded = await gate.record_read(request, frame)
            headers = audit_headers(recorded) | {"Cache-Control": "no-store"}  # kept, it would be read unrecorded
            return MayRead(principal=principal, permit=permit, log=which, headers=headers, receipt=recorded.receipt)

        return await gate.under_one_policy(request, principal, put_on_record)


async def read_log(gate: Gate, may: MayRead, read: Callable[[AuditReader, Permit], _T]) -> _T:
    """What `read` gives, in a thread, within the places that readers have."""
    with gate.reading.slot():
        return await answerable(asyncio.to_thread(read, may.log.reader, may.permit))


async def answerable(work: Awaitable[_T]) -> _T:
    """The result of a read; what the log cannot answer becomes a problem."""
    try:
        return await work
    except QueryRefused as error:
        raise Problem(
            "not-found" if error.code in _NOT_FOUND else "malformed-request", detail=_sentence(error)
        ) from None
    except DecodeError as error:
        raise Problem("malformed-request", detail=_sentence(error)) from None
    except LogUnavailable as error:
        raise Problem("unavailable", retry_after_s=error.retry_after_s) from None


def own_records(wanted: RecordFilter, permit: Permit) -> RecordFilter | None:
    """The filter with the tenant that the permit is for; None if it asks for another tenant's records."""
    if permit.records_of is None:
        return wanted
    if wanted.tenant not in (None, permit.records_of):
        return None
    return msgspec.structs.replace(wanted, tenant=permit.records_of)


def own_question(asked: Question, permit: Permit) -> Question:
    """The question about the tenant that the permit is for."""
    if permit.records_of is None:
        return asked
    if asked.tenant not in (None, permit.records_of):
        raise Problem("not-found", detail="This caller may ask about one tenant only.")
    return msgspec.structs.replace(asked, tenant=permit.records_of)


def _require_own(request: Asking) -> None:
    """A browser shows a client certificate to whatever page asks it to: such a page must not put an export, or a
    review, on record under the name of the auditor who has it open."""
    if request.headers.get("sec-fetch-site", "") in _ELSEWHERE:
        raise Problem("malformed-request", detail="Another site's page began this request.")


def _require_said_once(request: Asking) -> None:
    """A repeated parameter is refused: the first might be recorded and the last be read."""
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) != len(names):
        raise Problem("malformed-request", detail="A parameter may be given once only.")


def _sentence(error: SealgateError) -> str:
    """The public text of a refusal, as a sentence."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
