"""Liveness and readiness. Open to all, so they say what a load balancer needs and nothing about callers or models.

An issuer whose keys are missing is named, and does not make the gateway unready: others are served. Nor does a witness
that does not cosign: the log goes on without, and says so.

Trusts: the newest state that the runtime told. Never: says ready while inference would be refused.
"""

from __future__ import annotations

from typing import Any

from litestar import Response, get
from litestar.di import NamedDependency

from gateway.errors import Problem, RuntimeAway
from gateway.gate import Gate
from gateway.routes.openapi import answers
from gateway.routes.problems import problem_response


@get("/health/live", summary="Does this process answer")
async def live() -> dict[str, bool]:
    """Always `{"live": true}`: if it does not come, restart the process."""
    return {"live": True}


@get("/health/ready", responses=answers("application/json", 503), summary="Would a sealed request be served")
async def ready(gate: NamedDependency[Gate]) -> Response[Any]:
    """200 if inference is served, else 503; both with what is known of the runtime and its log."""
    try:
        state = gate.link.state
    except RuntimeAway:
        return _unready("The runtime cannot be reached.", {"ready": False, "runtime": "away"})
    facts: dict[str, object] = {
        "ready": state.ready,
        "runtime": "connected",
        "log": state.log_state,
        "assurance": state.assurance,
        "profile": state.profile,
        "degraded": state.degraded,
    }
    if issuers := gate.authenticator.details():
        facts["issuers"] = issuers
    if state.witnesses:
        facts["witnesses"] = state.witnesses
    if state.policy_digest != gate.policy.digest:
        return _unready("The policy in force is not loaded here.", facts | {"ready": False})
    if not state.ready:
        return _unready(state.detail, facts)
    return Response(content=facts | {"detail": state.detail}, media_type="application/json")


def _unready(detail: str, members: dict[str, object]) -> Response[bytes]:
    return problem_response(Problem("unavailable", detail=detail, members=members))
