"""Which policy is in force in the host, and how another comes into force while it serves.

    load the version, re-check its digest -> name it in `current` -> queue its `policy.change` and, in the same moment,
    let it decide -> tell gateways -> answer once the record is durable

From the record on, no record of a decision names the policy before. What a gateway decided by that one goes back to it.
At a start, the version that `current` names is taken; the first start of a deployment takes its working copy.

Trusts: `policy.history` for digests, the log for durability. Never: puts a version in force that does not validate here
and now, or two at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from audit.log import AuditLog, Connection
from policy.budget import BudgetBook
from policy.budgets import Budget, PrivacyBudget
from policy.decide import load_policy
from policy.errors import PolicyFileError
from policy.history import InForce, PolicyHistory
from policy.manifest import Manifest
from policy.store import digest_of, read_contents
from sealgate.deployment import Deployment
from sealgate.limits import MAX_NAME
from sealgate.protocol.administration import ApplyPolicy, HostToAdmin
from sealgate.protocol.frames import Recorded, Refused
from sealgate.terminal import printable
from sealgate.transparency.record import Record
from secure_runtime.limits import MAX_GRANTS, MAX_NEW_BUDGETS

Granted: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""A budget: its tenant, "" for none, and the detail of its record."""


@dataclass(frozen=True, kw_only=True)
class HostPolicy:
    """What the host needs of a policy: what records call it, and its budgets. `ledgers` are the budgets' names and
    windows, by which usage is kept; `grants` say of each what it grants."""

    digest: str
    manifest: Manifest
    budgets: BudgetBook
    ledgers: frozenset[tuple[str, str]] = frozenset()
    grants: frozenset[Granted] = frozenset()


@dataclass(frozen=True, kw_only=True)
class OpenedPolicy:
    """The policy that a start takes, what `current` says of it, and who wrote that."""

    policy: HostPolicy
    stated: InForce
    by: str


class Deciding:
    """The budgets of the policy that decides, and of the one before, whose `policy.change` may still be on its way to
    the log's writer. Read by the writer's thread."""

    def __init__(self, policy: HostPolicy) -> None:
        self._policies: tuple[HostPolicy, ...] = (policy,)

    def put_in_force(self, policy: HostPolicy) -> None:
        """From here on another one decides."""
        self._policies = (policy, *self._policies[:1])

    def balances(self, connection: Connection, digest: str) -> dict[str, tuple[int, int]]:
        """What is left of privacy budgets under the policy of this digest; nothing if that is none of the two."""
        for policy in self._policies:
            if policy.digest == digest:
                return policy.budgets.balances(connection)
        return {}


def open_policy(deployment: Deployment, *, tell: Callable[[str], None]) -> OpenedPolicy:
    """The policy in force; adopts the working copy if none is. Raises PolicyFileError: then nothing starts.

    Call while holding the history.
    """
    history = PolicyHistory(deployment.policy_history)
    stated = history.current()
    if stated is None:
        load_policy(deployment.policy)
        stated = InForce(digest=history.store(deployment.policy))
        history.replace_current(stated)
    policy = _load(history, stated.digest)
    if (difference := _difference(deployment, stated.digest)) != "":
        tell(difference)
    return OpenedPolicy(policy=policy, stated=stated, by=f"uid:{history.current_writer()}")


class PolicyKeeper:
    """Owned by the host's event loop. `put_in_force` is called in the moment in which another policy begins to decide,
    and must not wait."""

    def __init__(
        self, deployment: Deployment, log: AuditLog, opened: OpenedPolicy, *, put_in_force: Callable[[HostPolicy], None]
    ) -> None:
        self._history = PolicyHistory(deployment.policy_history)
        self._profile = deployment.settings.runtime.profile
        self._log = log
        self._opened = opened
        self._in_force = opened.policy
        self._put_in_force = put_in_force
        self._one_at_a_time = asyncio.Lock()

    @property
    def in_force(self) -> HostPolicy:
        """The policy that decides now."""
        return self._in_force

    async def record_start(self, previous: str) -> None:
        """Put on record what this start found in force; `previous` is what the log says was in force before, or ""."""
        opened = self._opened
        changed = previous not in ("", opened.policy.digest)
        detail = {"profile": self._profile} | _detail(opened.policy, opened.stated, previous=previous)
        if changed:
            detail |= await asyncio.to_thread(self._new_since, previous)
        record = Record(
            kind="policy.change",
            policy_digest=opened.policy.digest,
            outcome="in-force",
            reason="applied-while-stopped" if changed else "start",
            detail=detail | ({"by": opened.by} if changed else {}),
        )
        before = await asyncio.to_thread(self._granted_before, previous)
        future = self._log.append(record)
        self._record_grants(opened.policy, before, by=opened.by if changed else "")
        await asyncio.wrap_future(future)

    async def apply(self, frame: ApplyPolicy, *, by: str) -> HostToAdmin:
        """Put a stored version in force. `Recorded` once its `policy.change` is durable; raises LogUnavailable."""
        async with self._one_at_a_time:
            stated = InForce.applied(frame)
            try:
                policy = await asyncio.to_thread(_load, self._history, frame.digest)
            except PolicyFileError:
                missing = frame.digest not in await asyncio.to_thread(self._history.versions)
                return Refused(id=frame.id, status=409, code="policy-missing" if missing else "policy-unsound")
            try:
                before = self._history.current()
                await asyncio.to_thread(self._history.replace_current, stated)
            except PolicyFileError:
                return Refused(id=frame.id, status=503, code="policy-not-kept")
            detail = _detail(policy, stated, previous=self._in_force.digest) | {"by": by}
            detail |= _new_budgets(policy.ledgers - self._in_force.ledgers)
            future = self._log.append(
                Record(
                    kind="policy.change",
                    policy_digest=policy.digest,
                    outcome="in-force",
                    reason="applied",
                    detail=detail,
                )
            )
            if future.done() and future.exception() is not None:  # not even queued
                if before is not None:
                    await asyncio.to_thread(self._history.replace_current, before)
                return Refused(id=frame.id, status=503, code="unavailable")
            before_it, self._in_force = self._in_force, policy
            self._put_in_force(policy)
            self._record_grants(policy, before_it.grants, by=by)
            ended = await asyncio.wrap_future(future)
        return Recorded(id=frame.id, log=ended.record.log, record=ended.index, receipt=ended.receipt)

    def _record_grants(self, policy: HostPolicy, before: frozenset[Granted], *, by: str) -> None:
        """A record for each budget that is new or another than before, behind the `policy.change`. Nobody waits for
        them: that one names the digest under which all of it can be found again."""
        new = sorted(policy.grants - before)
        for tenant, detail in new[:MAX_GRANTS]:
            said = dict(detail) | ({"by": by} if by else {})
            self._log.append(
                Record(kind="budget.grant", tenant=tenant, policy_digest=policy.digest, outcome="granted", detail=said)
            )

    def _granted_before(self, previous: str) -> frozenset[Granted]:
        """What the policy before granted; nothing if there was none, or nobody can tell."""
        if previous == self._opened.policy.digest:
            return self._opened.policy.grants
        try:
            files = self._history.load_files(previous) if previous else None
        except PolicyFileError:
            return frozenset()
        return frozenset() if files is None else grants_of(files.budgets, files.privacy_budgets)

    def _new_since(self, previous: str) -> dict[str, str]:
        try:
            files = self._history.load_files(previous)
        except PolicyFileError:  # it is not kept any more: nobody can tell
            return {}
        return _new_budgets(self._opened.policy.ledgers - _ledgers(files.budgets, files.privacy_budgets))


def _load(history: PolicyHistory, digest: str) -> HostPolicy:
    policy = load_policy(history.require_whole(digest), digest=digest)
    return HostPolicy(
        digest=policy.digest,
        manifest=policy.manifest,
        budgets=BudgetBook(policy.budgets, policy.privacy_budgets),
        ledgers=_ledgers(policy.budgets, policy.privacy_budgets),
        grants=grants_of(policy.budgets, policy.privacy_budgets),
    )


def _ledgers(budgets: Iterable[Budget], privacy: Iterable[PrivacyBudget]) -> frozenset[tuple[str, str]]:
    both: list[Budget | PrivacyBudget] = [*budgets, *privacy]
    return frozenset((budget.name, budget.window.value) for budget in both)


def grants_of(budgets: Iterable[Budget], privacy: Iterable[PrivacyBudget]) -> frozenset[Granted]:
    """What each budget grants, in words for a record. Of a budget of one caller, not which one."""
    found: set[Granted] = set()
    for budget in budgets:
        limits = {"requests": budget.requests, "units": budget.units}
        detail = {"budget": budget.name, "window": budget.window.value, "models": budget.model or ""}
        detail |= {name: str(limit) for name, limit in limits.items() if limit is not None}
        found.add(_granted(budget, detail))
    for share in privacy:
        models = " ".join(share.models)
        detail = {"budget": share.name, "window": share.window.value, "epsilon": share.epsilon}
        detail |= {
            "population": share.population,
            "models": models if len(models) <= MAX_NAME else f"{len(share.models)}",
        }
        found.add(_granted(share, detail))
    return frozenset(found)


def _granted(budget: Budget | PrivacyBudget, detail: dict[str, str]) -> Granted:
    detail |= {"caller": "one"} if budget.subject is not None else {}
    return budget.tenant or "", tuple(sorted((name, value) for name, value in detail.items() if value))


def _new_budgets(ledgers: frozenset[tuple[str, str]]) -> dict[str, str]:
    """For the record: budgets that the policy before did not have. A name given anew is a ledger begun anew, and that
    must not go unseen."""
    names = sorted({name for name, _ in ledgers})
    more = f" and {len(names) - MAX_NEW_BUDGETS} more" if len(names) > MAX_NEW_BUDGETS else ""
    return {"budgets_new": " ".join(names[:MAX_NEW_BUDGETS]) + more} if names else {}


def _detail(policy: HostPolicy, stated: InForce, *, previous: str) -> dict[str, str]:
    detail = {
        "name": policy.manifest.name,
        "version": policy.manifest.version,
        "previous": previous,
        "scenarios": str(stated.scenarios),
        "scenarios_digest": stated.scenarios_digest,
        "note": stated.note,
    }
    return {name: value for name, value in detail.items() if value}


def _difference(deployment: Deployment, digest: str) -> str:
    """What to say if the working copy is not what is in force; "" if it is."""
    try:
        if digest_of(read_contents(deployment.policy)) == digest:
            return ""
    except PolicyFileError as error:
        return f"the policy in force is {digest[:16]}...; the working copy cannot be read: {printable(str(error))}"
    return (
        f"the policy in force is {digest[:16]}...; the working copy in {deployment.policy} differs and is not in force "
        f"(see `sealgate policy diff {deployment.root}`, then `sealgate policy apply {deployment.root}`)"
    )
