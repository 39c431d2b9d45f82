"""Sealed requests: the part of the life of a request that happens here.

    3  who is calling                                  gate.authenticate
    4  bytes become a SealedRequest: header readable, body opaque
    5  may they                                        gate.authorise
    6-10  reserve, record, open, run, seal, record     gate.submit (behind the socket)
    11 the sealed answer and its receipt go out

Trusts: the gate. Never: sees what is inside the seal, neither on the way in nor on the way out.
"""

from __future__ import annotations

import re
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from gateway.errors import Problem
from gateway.fields import values_of
from gateway.gate import Asked, Gate, Sent, audit_headers, caller_of
from gateway.routes.openapi import SealedOperation, answers
from gateway.watching import stepped
from policy.decide import Permit
from policy.entities import Action, Principal
from sealgate.ambient import monotonic_ns
from sealgate.errors import DecodeError
from sealgate.limits import MAX_NAME
from sealgate.protocol.frames import Answer, Submit
from sealgate.protocol.ohttp import MEDIA_RESPONSE, SealedRequest
from sealgate.transparency.cose_receipt import MEDIA_TYPE as MEDIA_COSE

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_OPERATIONS = {"infer": Action.INFER, "explain": Action.EXPLAIN, "read-model": Action.READ_MODEL}
PATH = "/sealed/{model:str}"
_PROBLEM_OF = {
    "unsupported-media-type": "unsupported-media-type",
    "too-large": "too-large",
    "unsupported-suite": "unknown-key",
}


@post(
    PATH,
    status_code=200,
    operation_class=SealedOperation,
    responses=answers(MEDIA_RESPONSE, 400, 401, 403, 408, 413, 415, 429, 503, 504),
    summary="Send a sealed request to a model",
)
async def send_sealed(
    request: Request[Any, Any, Any], gate: NamedDependency[Gate], model: FromPath[str]
) -> Response[bytes]:
    """An encapsulated request (RFC 9458) for the model in the path. The answer is sealed for the sender alone."""
    return _released(*await forwarded(request, gate, model))


@post(
    "/.well-known/ohttp-gateway",
    status_code=200,
    operation_class=SealedOperation,
    responses=answers(MEDIA_RESPONSE, 400, 401, 403, 408, 413, 415, 429, 503, 504),
    summary="Send a sealed request, the model named in a header",
)
async def send_sealed_generic(request: Request[Any, Any, Any], gate: NamedDependency[Gate]) -> Response[bytes]:
    """The same for generic Oblivious HTTP clients (RFC 9540): the field Sealed-Model names the model."""
    return _released(*await forwarded(request, gate, None))


async def forwarded(request: Sent, gate: Gate, model: str | None) -> tuple[Answer, bytes]:
    """Steps 3 to 10; None for a model that a field names. Raises what becomes a problem document."""
    principal = await gate.authenticate(request)  # 3
    asked = _asked(request, _field(request, b"sealed-model") if model is None else model)
    media_type = _field(request, b"content-type").partition(";")[0].strip().lower()
    with gate.sealed.slot((principal.tenant, principal.subject)) as slot:
        began_ns = monotonic_ns()
        raw = await slot.read_body(request.receive, declared=_field(request, b"content-length") or None)
        sealed = _sealed(raw, media_type)  # 4
        stepped(request.scope, "parse", began_ns)

        async def ask(principal: Principal) -> tuple[Answer, bytes]:
            permit = await gate.authorise(request, principal, asked)  # 5
            return await gate.submit(request, _submission(principal, asked, permit, sealed), sealed.raw)  # 6-10

        answer, body = await gate.under_one_policy(request, principal, ask)
        try:
            slot.require_room(len(body))
        except Problem as error:
            raise Problem(error.code, headers=audit_headers(answer)) from None
        return answer, body


def _asked(request: Sent, model: str) -> Asked:
    """What the request says in clear that it wants; raises Problem if it does not say it plainly."""
    purpose, operation = _field(request, b"purpose"), _field(request, b"sealed-operation", "infer")
    if not _NAME.fullmatch(model) or not _NAME.fullmatch(purpose) or operation not in _OPERATIONS:
        raise Problem(
            "malformed-request",
            detail="Name the model in the path or in Sealed-Model, and the purpose in Purpose, both of ASCII letters, "
            "digits, '.', '_' and '-', first a letter or digit; Sealed-Operation is infer, explain or read-model.",
        )
    receipt = _field(request, b"accept-receipt")
    if receipt not in ("", MEDIA_COSE):
        raise Problem("malformed-request", detail=f"Accept-Receipt, if it is given, is {MEDIA_COSE}.")
    return Asked(action=_OPERATIONS[operation], model=model, purpose=purpose, cose=bool(receipt))


def _field(request: Sent, name: bytes, otherwise: str = "") -> str:
    """The one value of a header field. Said twice, each reader on the way might take another."""
    values = values_of(request.scope, name)
    if len(values) > 1:
        raise Problem("malformed-request", detail=f"The field {name.decode().title()} may be given once only.")
    return values[0].decode("latin-1") if values else otherwise


def _sealed(raw: bytes, media_type: str) -> SealedRequest:
    try:
        return SealedRequest.parse(raw, media_type)
    except DecodeError as error:
        raise Problem(_PROBLEM_OF.get(error.code, "malformed-request")) from None


def _submission(principal: Principal, asked: Asked, permit: Permit, sealed: SealedRequest) -> Submit:
    return Submit(
        model=asked.model,
        operation=asked.action.value,
        purpose=asked.purpose,
        media_type=sealed.media_type,
        caller=caller_of(principal),
        decision=permit.decision,
        cose=asked.cose,
        judged=permit.judged,
    )


def _released(answer: Answer, body: bytes) -> Response[bytes]:
    """Step 11."""
    return Response(content=body, media_type=answer.media_type, headers=audit_headers(answer))
