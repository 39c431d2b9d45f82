"""What a client needs before it can seal: the key configuration, and the evidence that binds it. Open to all.

Trusts: the runtime, for both; clients trust neither before they verified the evidence. Never: makes or changes a key.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from gateway.errors import Problem
from gateway.gate import Gate, source_network
from gateway.limits import MAX_NONCE
from gateway.routes.openapi import answers
from sealgate.limits import MAX_NAME
from sealgate.protocol.hpke import Kem
from sealgate.protocol.ohttp import MEDIA_KEYS, decode_key_configs
from sealgate.protocol.sizes import LIMIT_FIELD, tell_limit

MEDIA_EVIDENCE = "application/eat+cwt"

Format = Annotated[
    str | None,
    QueryParameter(name="format", description="`single`: one bare configuration (X25519) instead of the list"),
]
Model = Annotated[
    str | None, QueryParameter(name="model", description="of a worker that serves this model; else of any worker")
]
Nonce = Annotated[
    str | None, QueryParameter(name="nonce", description="base64url, at most 64 bytes; the evidence repeats it")
]


@get(
    "/.well-known/ohttp-gateway",
    responses=answers(MEDIA_KEYS, 400, 503),
    summary="The key configurations to seal to",
)
async def key_configurations(gate: NamedDependency[Gate], form: Format = None, model: Model = None) -> Response[bytes]:
    """`application/ohttp-keys` (RFC 9458 section 3), each worker's newest first. Verify the evidence before sealing to
    any. The field Upload-Limit says how many bytes a sealed request may have (max-size)."""
    state = gate.link.state
    configs = state.key_configs
    if model is not None and state.workers:
        configs = b"".join(one.key_configs for one in state.workers if model in one.models)
    if form not in (None, "list", "single"):
        raise Problem("malformed-request", detail="The parameter 'format' is 'list' or 'single'.")
    if not configs:
        raise Problem("unavailable")
    if form == "single":
        usable = decode_key_configs(configs)
        # Clients that want a single bare configuration know no post-quantum key exchange.
        configs = next((one for one in usable if one.kem is Kem.X25519), usable[0]).encode()
    told = {"Cache-Control": "no-cache", LIMIT_FIELD: tell_limit(gate.sealed.body_max)}
    return Response(content=configs, media_type=MEDIA_KEYS, headers=told)


@get(
    "/.well-known/attestation",
    responses=answers(MEDIA_EVIDENCE, 400, 429, 503, 504),
    summary="Evidence about the runtime and its keys",
)
async def attestation(
    request: Request[Any, Any, Any], gate: NamedDependency[Gate], nonce: Nonce = None, model: Model = None
) -> Response[bytes]:
    """A signed, self-contained token (RFC 9711) that names the keys, the models and the isolation of one worker."""
    raw, wanted = _nonce(nonce or ""), (model or "")[:MAX_NAME]
    with gate.evidence.slot(source_network(request.scope.get("client"))):
        evidence = await gate.awaited(request, gate.link.evidence(raw, model=wanted))
    return Response(content=evidence, media_type=MEDIA_EVIDENCE, headers={"Cache-Control": "no-store"})


def _nonce(text: str) -> bytes:
    try:
        if not text.isascii() or len(text) > MAX_NONCE * 2:
            raise ValueError
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Problem("malformed-request", detail="The parameter 'nonce' is base64url without padding.") from None
    if len(raw) > MAX_NONCE:
        raise Problem("malformed-request", detail=f"The parameter 'nonce' is at most {MAX_NONCE} bytes.")
    return raw
