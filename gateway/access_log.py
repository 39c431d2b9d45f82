"""The outermost ASGI layer: one log line for each request, and answers handed to the connection in pieces.

Pieces, because a connection pushes back only between writes: a large answer written at once would lie in buffers for
as long as its reader likes. The line says method, route template, status, sizes, time.
Trusts: the router for the route template. Never: logs a path, a query string or a header, each of which callers fill.
"""

from __future__ import annotations

from typing import Any

from gateway.exchange import WHOLE
from gateway.gate import CALLER, source_class
from gateway.intake import Intake
from gateway.limits import PIECE
from gateway.telemetry import Telemetry
from gateway.watching import Watch
from sealgate.ambient import monotonic_ns

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CALLER_GONE = 499


class AccessLog:
    """Wraps the application. `health` routes are not logged: their callers ask every second."""

    def __init__(self, app: Any, telemetry: Telemetry, watch: Watch | None = None, *, intake: Intake) -> None:
        """`intake` counts the bytes of large answers to known callers, while they are sent."""
        self._app = app
        self._intake = intake
        self._telemetry = telemetry
        self._watch = watch

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_ns = monotonic_ns()
        journey = self._watch.begin(scope, began_ns) if self._watch is not None else None
        seen = {"status": _CALLER_GONE, "received": 0, "sent": 0}

        async def counted_receive() -> Any:
            message = await receive()
            seen["received"] += len(message.get("body", b""))
            return message

        async def counted_send(message: Any) -> None:
            kind = message["type"]
            if kind == WHOLE:  # no larger than a piece
                seen["status"], seen["sent"] = message["status"], len(message["body"])
            if kind == "http.response.start":
                seen["status"] = message["status"]
            if kind != "http.response.body":
                await send(message)
                return
            body = message.get("body", b"")
            caller = scope.get(CALLER)
            with self._intake.answering(len(body) if len(body) > PIECE and caller else 0, caller):
                for start in range(0, max(len(body), 1), PIECE):
                    more = start + PIECE < len(body) or message.get("more_body", False)
                    await send({"type": "http.response.body", "body": body[start : start + PIECE], "more_body": more})
            seen["sent"] += len(body)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            route = scope.get("path_template") or "unmatched"
            if journey is not None and self._watch is not None:
                self._watch.end(journey, scope, route=route, status=seen["status"])
            if not route.startswith("/health/"):
                fields = {
                    "method": scope["method"] if scope["method"] in _METHODS else "other",
                    "route": route,
                    "source": source_class(scope.get("client")),
                    "duration_us": (monotonic_ns() - began_ns) // 1000,
                }
                self._telemetry.event("request", **fields, **seen, **scope.get("gateway.log", {}))
