"""Composition: a deployment becomes the application. The only place where parts are put together.

Trusts: the state directory. Never: starts with a policy, an issuer file or a certificate that it cannot read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from litestar import Litestar
from litestar.di import Provide

from gateway.access_log import AccessLog
from gateway.authentication.authenticate import Authenticator
from gateway.authentication.certificates import make_certificate_reader
from gateway.authentication.issuers import load_issuers
from gateway.authentication.key_sets import KeySets
from gateway.authentication.possession import open_possession, tell_nonce
from gateway.authentication.revocations import Revocations
from gateway.authentication.tokens import TokenVerifier
from gateway.console.router import open_console
from gateway.gate import Gate
from gateway.intake import Intake
from gateway.limits import AUDIT_ASKING, AUDIT_IN_FLIGHT, EVIDENCE_IN_FLIGHT
from gateway.metrics import look_at_self, open_metrics
from gateway.other_logs import open_logs
from gateway.policy_in_force import open_policy_in_force
from gateway.routes import audit, audit_exports, audit_holds, audit_reports, health, keys, sealed
from gateway.routes.openapi import openapi_config
from gateway.routes.problems import exception_handlers
from gateway.runtime_link import RuntimeLink
from gateway.sealed_door import SealedDoor
from gateway.telemetry import Telemetry, quoted
from gateway.tracing import open_traces
from gateway.watching import Watch
from sealgate.ambient import Clock, now_us
from sealgate.deployment import Deployment
from sealgate.protocol.figures import Figures
from sealgate.protocol.sizes import sealed_size

ROUTES = (
    sealed.send_sealed,
    sealed.send_sealed_generic,
    keys.key_configurations,
    keys.attestation,
    health.live,
    health.ready,
    *audit.ROUTES,
    *audit_holds.ROUTES,
    *audit_exports.ROUTES,
    *audit_reports.ROUTES,
)


def make_gate(deployment: Deployment, *, telemetry: Telemetry, clock: Clock = now_us) -> Gate:
    """Read the deployment's files and make every part. Raises ConfigurationError that says what to mend."""
    settings = deployment.settings.gateway
    policies = open_policy_in_force(deployment, telemetry=telemetry)
    issuers = load_issuers(deployment.tokens)
    tokens = TokenVerifier(
        issuers,
        key_sets=KeySets(issuers, clock=clock, report=lambda line: telemetry.event("issuer-keys", detail=quoted(line))),
        revocations=Revocations(deployment.tokens / "revoked.toml", clock=clock),
        audience=deployment.token_audience,
        clock=clock,
    )
    certificates = make_certificate_reader(deployment, lambda: policies.tenants, telemetry=telemetry, clock=clock)
    return Gate(
        authenticator=Authenticator(tokens, certificates, open_possession(deployment, clock=clock)),
        policies=policies,
        link=RuntimeLink(
            deployment.socket, telemetry=telemetry, on_state=lambda state: policies.follow(state.policy_digest)
        ),
        logs=open_logs(deployment),
        sealed=Intake(
            requests_max=settings.max_concurrent,
            body_timeout_s=settings.body_timeout_s,
            body_max=sealed_size(deployment.max_message),
        ),
        evidence=Intake(requests_max=EVIDENCE_IN_FLIGHT),
        asking=Intake(requests_max=AUDIT_ASKING),
        reading=Intake(requests_max=AUDIT_IN_FLIGHT),
        request_timeout_s=settings.request_timeout_s,
        telemetry=telemetry,
        clock=clock,
    )


def _application(deployment: Deployment, gate: Gate, watch: Watch | None) -> Litestar:
    metrics = open_metrics(deployment, watch.figures if watch else None, gate.link, lambda own: _look(own, gate))
    console = open_console(deployment, gate)

    @asynccontextmanager
    async def linked(_: Litestar) -> AsyncIterator[None]:
        gate.link.start()
        gate.authenticator.start()
        if metrics is not None:
            await metrics.start()
        try:
            yield
        finally:
            await console.close()
            await gate.authenticator.close()
            if metrics is not None:
                await metrics.close()
            await gate.link.close()
            await gate.policies.close()
            gate.logs.close()
            if watch is not None:
                await asyncio.to_thread(watch.close)

    return Litestar(
        route_handlers=(*ROUTES, *console.routes),
        dependencies={"gate": Provide(lambda: gate, sync_to_thread=False)},
        exception_handlers=exception_handlers(gate.telemetry),
        lifespan=[linked],
        before_send=[tell_nonce],
        openapi_config=openapi_config(version("sealgate")),
        request_max_body_size=gate.sealed.body_max,
        logging_config=None,
        debug=False,
    )


def build_server(deployment: Deployment, *, telemetry: Telemetry, clock: Clock = now_us) -> AccessLog:
    """What the server runs: the application, before it the door for sealed requests, and around both the access log."""
    watch = open_watch(deployment, clock=clock)
    gate = make_gate(deployment, telemetry=telemetry, clock=clock)
    door = SealedDoor(_application(deployment, gate, watch), gate)
    return AccessLog(door, telemetry, watch, intake=gate.sealed)


def open_watch(deployment: Deployment, *, clock: Clock = now_us) -> Watch | None:
    """Who watches requests, if metrics or traces are on."""
    settings = deployment.settings.telemetry
    figures, traces = Figures() if settings.metrics else None, open_traces(deployment)
    if figures is None and traces is None:
        return None
    return Watch(figures, traces, ratio=settings.trace_ratio, go_on=settings.traceparent, clock=clock)


def _look(own: Figures, gate: Gate) -> None:
    """How this process stands now."""
    own.put("sealgate_gateway_requests_in_flight", (), gate.sealed.requests)
    own.put("sealgate_gateway_body_bytes", (), gate.sealed.bytes)
    look_at_self(own)
