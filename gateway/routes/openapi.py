"""What the OpenAPI document says of the routes: answers, problem documents, and the sealed request's body and fields.

Served at /schema/openapi.json (and at /schema), as JSON only: a page that draws it would load scripts from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Parameter,
    RequestBody,
    Schema,
    SecurityScheme,
)

from gateway.errors import MEDIA_PROBLEM, PROBLEMS
from sealgate.limits import MAX_ADMIN_NOTE, MAX_NAME
from sealgate.protocol.ohttp import MEDIA_CHUNKED_REQUEST, MEDIA_REQUEST
from sealgate.transparency.cose_receipt import MEDIA_TYPE as MEDIA_COSE

_OPERATIONS = ["infer", "explain", "read-model"]


class ProblemDocument(msgspec.Struct, frozen=True):
    """RFC 9457. `type` is `urn:sealgate:problem:CODE`, or the registered URI for a key that is not held."""

    type: str
    title: str
    status: int
    detail: str


def answers(media_type: str, *refusals: int) -> dict[int, ResponseSpec]:
    """The 200 of a route and the problem documents that it may answer with instead."""
    specs = {
        status: ResponseSpec(
            data_container=ProblemDocument,
            generate_examples=False,
            description=" or ".join(sorted(kind.title for kind in PROBLEMS.values() if kind.status == status)),
            media_type=MEDIA_PROBLEM,
        )
        for status in refusals
    }
    specs[200] = ResponseSpec(data_container=bytes, generate_examples=False, description="Done", media_type=media_type)
    return specs


def _text_field(name: str, description: str, *, required: bool, **more: Any) -> Parameter:
    schema = Schema(type=OpenAPIType.STRING, max_length=MAX_NAME, **more)
    return Parameter(name=name, param_in="header", description=description, required=required, schema=schema)


@dataclass
class ReviewOperation(Operation):
    """An auditor's statement of a review: see sealgate.transparency.reports.reviewing."""

    def __post_init__(self) -> None:
        number = Schema(type=OpenAPIType.INTEGER, minimum=0)
        digest = Schema(type=OpenAPIType.STRING, pattern="^[0-9a-f]{64}$")
        schema = Schema(
            type=OpenAPIType.OBJECT,
            properties={
                **dict.fromkeys(("first", "last", "size"), number),
                **dict.fromkeys(("root", "report_digest"), digest),
                "finding": Schema(type=OpenAPIType.STRING, enum=["nothing", "questions", "problems"]),
                "note": Schema(type=OpenAPIType.STRING, max_length=MAX_ADMIN_NOTE),
                "report": Schema(type=OpenAPIType.STRING, max_length=MAX_NAME),
            },
            required=["first", "last", "size", "root", "finding"],
        )
        self.request_body = RequestBody(
            content={"application/json": OpenAPIMediaType(schema=schema)},
            description="Records first to last, of the tree of `size` records with this root, were looked at.",
            required=True,
        )


@dataclass
class SealedOperation(Operation):
    """A sealed request: its opaque body, and the fields that say in clear what is asked for."""

    def __post_init__(self) -> None:
        opaque = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
        self.request_body = RequestBody(
            content={MEDIA_REQUEST: opaque, MEDIA_CHUNKED_REQUEST: opaque},
            description="An encapsulated request (RFC 9458), whole or in chunks.",
            required=True,
        )
        fields = [_text_field("Purpose", "What the answer is used for; must equal the one inside", required=True)]
        fields.append(_text_field("Sealed-Operation", "Must fit the request inside", required=False, enum=_OPERATIONS))
        cose = "Ask for the receipt as COSE Receipt (RFC 9942) too: it comes in Audit-Cose-Receipt, base64url"
        fields.append(_text_field("Accept-Receipt", cose, required=False, enum=[MEDIA_COSE]))
        if not self.parameters:
            fields.append(_text_field("Sealed-Model", "The model; must equal the one inside", required=True))
        self.parameters = [*(self.parameters or []), *fields]
        self.security = [{"token": []}, {"bound-token": []}, {"certificate": []}]


def openapi_config(version: str) -> OpenAPIConfig:
    """The document's frame."""
    return OpenAPIConfig(
        title="Sealgate gateway",
        version=version,
        description="Takes sealed requests that it cannot read, decides who may ask, and answers with receipts.",
        path="/schema",
        render_plugins=[JsonRenderPlugin()],
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                "token": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT (RFC 9068, at+jwt)"),
                "bound-token": SecurityScheme(
                    type="http",
                    scheme="dpop",
                    description="A token whose cnf names a key, with a proof by that key in the field DPoP (RFC 9449)",
                ),
                "certificate": SecurityScheme(type="mutualTLS", description="A client certificate of the deployment"),
            }
        ),
    )
