"""What the handlers stand on: who is calling, whether the policy allows it, and the way to the runtime.

Each method is one step of the life of a request and either succeeds or raises the refusal as the caller sees it. A
refusal by the policy is on record before the caller hears of it. Trusts: its parts. Never: forwards anything that has
not been authenticated and permitted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec
from litestar import Request

from audit.query import AuditReader
from gateway.authentication.authenticate import Authenticator
from gateway.errors import PROBLEMS, PolicyChanged, Problem, Unauthenticated
from gateway.intake import Intake
from gateway.limits import POLICY_ATTEMPTS, SOURCES_KNOWN
from gateway.other_logs import ReadableLogs
from gateway.patience import Patience, Receive
from gateway.policy_in_force import PolicyInForce
from gateway.runtime_link import RuntimeLink
from gateway.telemetry import Telemetry, quoted
from gateway.watching import JOURNEY, Journey, stepped
from policy.decide import Deny, Permit, PolicySet
from policy.entities import Action, Context, Principal
from sealgate.ambient import Clock, monotonic_ns
from sealgate.client.times import rfc3339
from sealgate.protocol import frames
from sealgate.protocol.dpop import to_base64url

Asking = Request[Any, Any, Any]
_T = TypeVar("_T")


class Sent(Protocol):
    """What steps 3 to 11 need of a request: its ASGI scope, and the way to its body. The framework's, or our own."""

    @property
    def scope(self) -> Any: ...

    @property
    def receive(self) -> Receive: ...


_POLICY = "gateway.policy"  # in a scope: the policy under which its caller was authenticated
CALLER = "gateway.caller"
"""In a scope: tenant and subject of who was authenticated."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says in clear that it wants. The worker compares it with what is inside the seal."""

    action: Action
    model: str
    purpose: str
    cose: bool = False  # the receipt is wanted as COSE Receipt too


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One per process; made by `gateway.app`."""

    authenticator: Authenticator
    policies: PolicyInForce
    link: RuntimeLink
    logs: ReadableLogs
    sealed: Intake
    evidence: Intake
    asking: Intake
    reading: Intake
    request_timeout_s: float
    telemetry: Telemetry
    clock: Clock
    patience: Patience = field(default_factory=Patience)

    @property
    def audit(self) -> AuditReader:
        """The own host's log."""
        return self.logs.own.reader

    @property
    def policy(self) -> PolicySet:
        """The newest policy that was loaded."""
        return self.policies.loaded

    async def authenticate(self, request: Sent) -> Principal:
        """Step 3. A failure is counted in the log by reason and source; the caller gets the one uniform 401.

        Whom a certificate stands for is part of the policy, so the principal belongs to the policy in force now.
        """
        began_ns = monotonic_ns()
        request.scope[_POLICY] = await self.policies.now()
        try:
            principal = await self.authenticator.authenticate(request.scope)
        except Unauthenticated as error:
            raise self.turn_away(request, error) from None
        note(request, authn=principal.authn, tenant=quoted(principal.tenant))
        request.scope[CALLER] = (principal.tenant, principal.subject)
        stepped(request.scope, "authenticate", began_ns)
        return principal

    def turn_away(self, request: Sent, error: Unauthenticated) -> Problem:
        """Count the failure, and give what its caller is told."""
        source = source_class(request.scope.get("client"))
        self.link.auth_failed(frames.AuthFailed(reason=error.code, source=source))
        note(request, reason=error.code)
        return error.problem()

    async def under_one_policy(
        self, request: Sent, principal: Principal, deed: Callable[[Principal], Awaitable[_T]]
    ) -> _T:
        """What `deed` does: one decision, and putting it on record. If another policy comes into force before that,
        nothing was done: the caller is authenticated again and the deed begins anew, under the new policy alone."""
        for _ in range(POLICY_ATTEMPTS):
            try:
                return await deed(principal)
            except PolicyChanged:
                principal = await self.authenticate(request)
        raise Problem("unavailable")

    async def authorise(self, request: Sent, principal: Principal, asked: Asked) -> Permit:
        """Step 5. A denial is a durable record before the caller gets its 403, or its 503 when no worker is live.

        Raises PolicyChanged if the principal was made under another policy than the one in force.
        """
        began_ns = monotonic_ns()
        policy: PolicySet = request.scope[_POLICY]
        if not self.policies.still(policy):
            raise PolicyChanged
        if asked.model and not self.link.state.key_configs:
            decision = frames.Decision(policy_digest=policy.digest, reason="worker-not-ready")
            await self.refuse(request, decision, principal, asked, problem="unavailable")
        answer = policy.decide_every(principal, asked.action, self.versions(asked.model), self._context(asked))
        stepped(request.scope, "decide", began_ns)
        if isinstance(answer, Deny):
            for text in answer.errors:
                self.telemetry.event("policy-error", detail=quoted(text))
            await self.refuse(request, answer.decision, principal, asked)
        return answer

    async def submit(self, request: Sent, frame: frames.Submit, body: bytes) -> tuple[frames.Answer, bytes]:
        """Steps 6 to 10, on the other side of the socket."""
        began_ns = monotonic_ns()
        journey: Journey | None = request.scope.get(JOURNEY)
        if journey is not None:
            frame = journey.handed_over(frame)
        reply, sealed = await self.awaited(request, self.link.submit(frame, body))
        if journey is not None:
            journey.came_back(reply, began_ns)
        if isinstance(reply, frames.Refused):
            raise _refusal(reply)
        note(request, log=reply.log, record=reply.record)
        return reply, sealed

    async def record_read(self, request: Sent, frame: frames.AuditRead) -> frames.Recorded:
        """An auditor's read becomes a durable record before anything is read."""
        reply = await self.awaited(request, self.link.record_audit_read(frame))
        if isinstance(reply, frames.Refused):
            raise _refusal(reply)
        note(request, log=reply.log, record=reply.record)
        return reply

    async def refuse(
        self,
        request: Sent,
        decision: frames.Decision,
        principal: Principal,
        asked: Asked,
        *,
        problem: str = "forbidden",
    ) -> NoReturn:
        """Put a denial on record, then tell the caller."""
        frame = frames.Deny(
            model=asked.model,
            operation=asked.action.value,
            purpose=asked.purpose,
            caller=caller_of(principal),
            decision=decision,
            cose=asked.cose,
        )
        reply = await self.awaited(request, self.link.deny(frame))
        if isinstance(reply, frames.Refused):
            raise _refusal(reply)
        note(request, reason=decision.reason, log=reply.log, record=reply.record)
        raise Problem(problem, headers=audit_headers(reply))

    async def awaited(self, request: Sent, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, which is cancelled when the caller goes away (CallerGone) or time is up (Problem)."""
        limit = self.patience.limit(self.request_timeout_s, receive=request.receive)
        try:
            with limit:
                return await work
        except TimeoutError:
            if not limit.ran_out:
                raise
            raise Problem("timed-out") from None

    def versions(self, model: str) -> tuple[frames.ModelFacts, ...]:
        """Every version of a model that may answer now."""
        return self.link.versions(model)

    def _context(self, asked: Asked) -> Context:
        assurance = self.link.state.assurance
        return Context(purpose=asked.purpose, sealed=bool(asked.model), assurance=assurance, now_us=self.clock())


def caller_of(principal: Principal) -> frames.Caller:
    """The principal as the runtime host is told of it."""
    return frames.Caller(
        tenant=principal.tenant,
        subject=principal.subject,
        authn=principal.authn,
        credential_binding=principal.credential_binding,
    )


def _refusal(reply: frames.Refused) -> Problem | PolicyChanged:
    """A refusal by the runtime, with its record where there is one. A code that is not public is an internal error."""
    if reply.code == "policy-changed":
        return PolicyChanged()
    code = reply.code if reply.code in PROBLEMS else "internal"
    headers = audit_headers(reply) if reply.record >= 0 else {}
    return Problem(code, headers=headers, retry_after_s=reply.retry_after_s, members=budget_members(reply))


def budget_members(reply: frames.Refused) -> dict[str, object]:
    """Which budget was exhausted, and when it renews (RFC 3339); null for never."""
    if not reply.budget:
        return {}
    return {"budget": reply.budget, "renews": rfc3339(reply.renews_us) if reply.renews_us else None}


def audit_headers(reply: frames.Answer | frames.Refused | frames.Recorded) -> dict[str, str]:
    """Where the record of this request stands, and the proof that it does."""
    headers = {"Audit-Receipt": to_base64url(reply.receipt), "Audit-Record": f"{reply.log} {reply.record}"}
    return headers | ({"Audit-Cose-Receipt": to_base64url(reply.cose_receipt)} if reply.cose_receipt else {})


def source_class(client: Any) -> str:
    """Where a connection came from, as coarsely as the log needs it."""
    try:
        return _class_of(client[0])
    except (TypeError, IndexError):
        return "unix"


@lru_cache(maxsize=SOURCES_KNOWN)
def _class_of(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address  # as an IPv6 socket names IPv4 callers
    except ValueError:
        return "unix"
    if address.is_loopback:
        return "loopback"
    return "private" if address.is_private else "public"


def source_network(client: Any) -> str | None:
    """Whom a request that needs no credential counts for: an IPv4 address, or the /64 of an IPv6 one, which is what one
    subscriber has (RFC 6177). None on a UNIX socket. Behind a proxy, all its callers are one."""
    try:
        address = ipaddress.ip_address(client[0])
    except (TypeError, IndexError, ValueError):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def note(request: Sent, **fields: str | int | bool | None) -> None:
    """Add fields to the line that the access log writes about this request."""
    request.scope.setdefault("gateway.log", {}).update(fields)
