"""The messages of one exchange, before sealing and around it: what enters the seal, what stays outside.

The inner request is the program's, with our date, purpose and credential binding. Outside stand only what the gateway
needs to decide: model, operation, purpose, credential. Trusts: the caller. Never: a token inside, content outside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote, unquote

from sealgate.client.credentials import Credential
from sealgate.client.errors import UsageError
from sealgate.limits import MAX_NAME, MAX_SEALED_MESSAGE
from sealgate.transparency.cose_receipt import MEDIA_TYPE as MEDIA_COSE

_TARGET = re.compile(r"/v2/models/([^/?#]+)(?:/versions/[^/?#]+)?(/infer|/explain|/ready|/stats)?\Z")
_VERSION = re.compile(r"/v2/models/[^/?#]+/versions/([^/?#]+)")
_SERVER = frozenset({"/v2", "/v2/health/live", "/v2/health/ready"})
_POSTED = ("/infer", "/explain")
_FIELD_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z")
_OURS = frozenset({"date", "purpose", "credential-binding"})
_OUTSIDE = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "dpop",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "sealed-model",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
"""Fields that never enter the seal: they belong to a connection, or name the caller."""


@dataclass(frozen=True, kw_only=True)
class OuterRequest:
    """What to send to the gateway. `path` follows the trust file's url. A larger answer than `limit` is an error."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    limit: int


@dataclass(frozen=True, kw_only=True)
class OuterResponse:
    """What the gateway answered. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


@dataclass(frozen=True, kw_only=True)
class InnerRequest:
    """An ordinary HTTP request for the inference API. `fields` in any case; those that stay outside are left out."""

    method: str
    path: str
    fields: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    purpose: str


@dataclass(frozen=True)
class Target:
    """Which operation on which model an inner request means: `infer`, `explain` or `read-model`."""

    model: str
    operation: str
    version: str = ""


def read_target(request: InnerRequest) -> Target:
    """What the request asks for; raises UsageError for anything that cannot be sealed.

    A question about the server names no model; the policy decides about models, so the field Sealed-Model names one.
    """
    match = _TARGET.match(request.path)
    action = (match[2] or "") if match is not None else ""
    if (match is None and request.path not in _SERVER) or request.method != ("POST" if action in _POSTED else "GET"):
        raise UsageError(
            f"{request.method} {request.path[:80]} cannot be sealed; use POST /v2/models/MODEL/infer or explain, "
            "GET /v2/models/MODEL, GET /v2/models/MODEL/ready or stats, GET /v2, or GET /v2/health/live or ready"
        )
    named = [value for name, value in request.fields if name.lower() == "sealed-model"]
    if match is None and len(named) != 1:
        raise UsageError(f"{request.path} names no model; name one that you may read in one field Sealed-Model")
    model = unquote(match[1]) if match is not None else named[0]
    if not model or len(model) > MAX_NAME or not _FIELD_VALUE.match(model):
        raise UsageError("the model's name is not one that a service can have")
    check_purpose(request.purpose)
    version = _VERSION.match(request.path) if match is not None else None
    return Target(model, action[1:] if action in _POSTED else "read-model", unquote(version[1]) if version else "")


def check_purpose(purpose: str) -> None:
    """Raises UsageError unless it can be a purpose."""
    if not purpose or len(purpose) > MAX_NAME or not _FIELD_VALUE.match(purpose):
        raise UsageError("say for which purpose you ask, in plain ASCII (purpose=..., --purpose or a Purpose header)")


def inner_fields(request: InnerRequest, credential: Credential, sent_us: int) -> tuple[tuple[str, str], ...]:
    """Header fields inside the seal."""
    kept = ((name.lower(), value) for name, value in request.fields)
    date = format_datetime(datetime.fromtimestamp(sent_us // 1_000_000, UTC), usegmt=True)
    ours = (("date", date), ("purpose", request.purpose), ("credential-binding", credential.binding))
    return ours + tuple((name, value) for name, value in kept if name not in _OURS and name not in _OUTSIDE)


def seal_headers(
    request: InnerRequest, target: Target, *, media_type: str, accept: str, cose: bool = False
) -> tuple[tuple[str, str], ...]:
    """The outer header fields of a sealed request, but for the credential's: those are made each time it is sent."""
    trace = [value for name, value in request.fields if name.lower() == "traceparent" and _FIELD_VALUE.match(value)]
    return (
        ("content-type", media_type),
        ("accept", accept),
        ("purpose", request.purpose),
        ("sealed-operation", target.operation),
        *((("accept-receipt", MEDIA_COSE),) if cose else ()),
        *(("traceparent", value) for value in trace[:1]),
    )


def seal_envelope(
    target: Target, sealed: bytes, headers: tuple[tuple[str, str], ...], *, limit: int = MAX_SEALED_MESSAGE
) -> OuterRequest:
    """The sealed request on its way to the gateway; of the answer no more than `limit` is read."""
    path = f"/sealed/{quote(target.model, safe='')}"
    return OuterRequest(method="POST", path=path, headers=headers, body=sealed, limit=limit)
