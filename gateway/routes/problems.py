"""Every exception becomes a problem document (RFC 9457), those of the framework included.

Trusts: `gateway.errors.PROBLEMS` for every word. Never: passes on the text of an exception or of a library.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from gateway.errors import MEDIA_PROBLEM, CallerGone, PolicyChanged, Problem, RuntimeAway, RuntimeBusy
from gateway.gate import note
from gateway.telemetry import Telemetry

_BY_STATUS = {
    400: "malformed-request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
    429: "too-many-requests",
    503: "unavailable",
}


def problem_response(problem: Problem) -> Response[bytes]:
    """The response that says `problem`."""
    return Response(
        content=msgspec.json.encode(problem.document()),
        status_code=problem.status,
        media_type=MEDIA_PROBLEM,
        headers=problem.headers,
    )


def as_problem(error: Exception, telemetry: Telemetry) -> Problem:
    """What a caller is told of an exception. Unexpected ones are logged by class and place."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RuntimeAway | PolicyChanged):
        return Problem("unavailable")
    if isinstance(error, RuntimeBusy):
        return Problem("busy")
    if isinstance(error, HTTPException) and error.status_code in _BY_STATUS:
        allow = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
        return Problem(_BY_STATUS[error.status_code], headers=allow)
    telemetry.failure("unexpected", error)
    return Problem("internal")


def exception_handlers(telemetry: Telemetry) -> ExceptionHandlersMap:
    """For the application."""

    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        problem = as_problem(error, telemetry)
        note(request, problem=problem.code)
        return problem_response(problem)

    def gone(request: Request[Any, Any, Any], error: CallerGone) -> Response[bytes]:
        # Nobody reads this; the server drops it because the connection is closed.
        note(request, problem=error.code)
        return Response(content=b"", status_code=400)

    return {CallerGone: gone, Problem: handle, HTTPException: handle, Exception: handle}
