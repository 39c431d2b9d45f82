"""Composition of the console: its parts, its routes, its pages for what goes wrong.

Trusts: the deployment's settings and the gate. Never: starts with a provider that it could not use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar import Router
from litestar.di import Provide

from gateway.authentication.issuers import load_issuers
from gateway.console import pages, report_pages, sign_in
from gateway.console.assets import Assets
from gateway.console.frame import Console, exception_handlers, make_templates
from gateway.console.provider import open_provider
from gateway.console.sessions import KEY_PURPOSE, Sessions
from gateway.gate import Gate
from gateway.intake import Intake
from gateway.limits import AUDIT_ASKING, MAX_FORM, SIGN_INS_IN_FLIGHT
from gateway.routes.problems import exception_handlers as problem_handlers
from sealgate.deployment import Deployment


@dataclass(frozen=True)
class ConsoleRoutes:
    """What the application takes in. `routes` is empty where the console is not enabled."""

    routes: tuple[Router, ...] = ()
    console: Console | None = None

    async def close(self) -> None:
        """End connections to the provider."""
        if self.console is not None and self.console.provider is not None:
            await self.console.provider.close()


def open_console(deployment: Deployment, gate: Gate) -> ConsoleRoutes:
    """The console of one gateway process. Raises ConfigurationError that says what to mend."""
    if not deployment.settings.console.enabled:
        return ConsoleRoutes()
    issuers = load_issuers(deployment.tokens)
    console = Console(
        gate=gate,
        sessions=Sessions(gate.authenticator.key_for(KEY_PURPOSE), clock=gate.clock),
        provider=open_provider(deployment, issuers, telemetry=gate.telemetry, clock=gate.clock),
        templates=make_templates(),
        assets=Assets(),
        forms=Intake(requests_max=AUDIT_ASKING),
        signing_in=Intake(requests_max=SIGN_INS_IN_FLIGHT),
        log_url=deployment.log_url,
        clock=gate.clock,
    )
    handlers: tuple[Any, ...] = (*pages.ROUTES, *report_pages.ROUTES, *sign_in.ROUTES)
    router = Router(
        path="/",
        route_handlers=handlers,
        dependencies={"console": Provide(lambda: console, sync_to_thread=False)},
        exception_handlers=exception_handlers(console, problem_handlers(gate.telemetry)),
        request_max_body_size=MAX_FORM,
    )
    return ConsoleRoutes((router,), console)
