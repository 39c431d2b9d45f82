"""The way of a sealed request past the framework: `POST /sealed/{model}` goes straight to the steps of its life.

The route stands in the application all the same, where OpenAPI finds it and every other method is refused; both ways
run the same steps, give the same answers to the byte, and leave the same line in the access log. What is left out is
the framework's own work on each request, which costs several times what the steps cost here.

Trusts: the gate, the server's ASGI. Never: answers anything else than that one route; lets an exception out without a
problem document.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.authentication.possession import tell_nonce
from gateway.errors import MEDIA_PROBLEM, CallerGone
from gateway.exchange import WHOLE
from gateway.gate import Gate, audit_headers, note
from gateway.limits import PIECE
from gateway.patience import Receive
from gateway.routes.problems import as_problem
from gateway.routes.sealed import PATH, forwarded

_PREFIX = PATH[: PATH.index("{")]
_TEMPLATE = f"{_PREFIX}{{model}}"  # as the framework's router says it


class _Sent(msgspec.Struct, frozen=True):
    """See gateway.gate.Sent."""

    scope: Any
    receive: Receive


class SealedDoor:
    """Stands before the application."""

    def __init__(self, app: Any, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        model = _model_of(scope)
        if not model:
            await self._app(scope, receive, send)
            return
        scope["path_template"] = _TEMPLATE
        status, media_type, headers, body = await self._answer(_Sent(scope, receive), model)
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [
                *[(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
                (b"content-type", media_type.encode()),
                (b"content-length", b"%d" % len(body)),
            ],
        }
        await tell_nonce(start, scope)
        whole = len(body) <= PIECE and "Connection" not in headers  # what ends the connection is the server's to see
        if whole and WHOLE in scope.get("extensions", ()):
            await send(start | {"type": WHOLE, "body": body})
            return
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, sent: _Sent, model: str) -> tuple[int, str, dict[str, str], bytes]:
        try:
            answer, body = await forwarded(sent, self._gate, model)
        except CallerGone as error:  # nobody reads this; the server drops it because the connection is closed
            note(sent, problem=error.code)
            return 400, "text/plain", {}, b""
        except Exception as error:
            problem = as_problem(error, self._gate.telemetry)
            note(sent, problem=problem.code)
            return problem.status, MEDIA_PROBLEM, problem.headers, msgspec.json.encode(problem.document())
        return 200, answer.media_type, audit_headers(answer), body


def _model_of(scope: Any) -> str:
    """The model that a request for this route names; "" for every other request."""
    if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(_PREFIX):
        return ""
    model = scope["path"][len(_PREFIX) :]
    return "" if "/" in model else model
