"""May this caller do this, now? `PolicySet.decide` answers `Permit` or `Deny`; nothing else in the project decides.

Read in this order: `load_policy` (refuses to start with a policy directory that is not sound), `decide`, `_decide`.

Trusts: the Principal (made by authentication), the ModelFacts (from a verified bundle), the Context (made by the
gateway), the policy directory. Never: answers Permit when anything erred, and never lets a cached answer outlive the
policies that gave it: a PolicySet never changes, its cache dies with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policy import facts
from policy.budgets import Budget, PrivacyBudget
from policy.cedar import Engine, Entity, Rule, Verdict, read_policies
from policy.entities import Action, Context, Principal, Role
from policy.errors import PolicyFileError
from policy.limits import MAX_CACHED_DECISIONS, MAX_NAMED_POLICIES
from policy.manifest import NAMELESS, Manifest
from policy.obligations import merge
from policy.store import SCHEMA_FILE, load_files
from policy.tenants import Tenants
from sealgate.protocol.frames import Decision, ModelFacts

MODEL_ACTIONS = frozenset({Action.INFER, Action.EXPLAIN, Action.READ_MODEL})
LATER_ACTIONS = frozenset({Action.EXPLAIN})  # an older schema may lack them: it loads, and they are denied

REASONS: dict[str, str] = {
    "policy-forbids": "the policies named in policy_ids forbid it",
    "no-policy-permits": "no policy permits it",
    "policy-error": "a policy or a fact could not be evaluated, so the answer is no",
    "unknown-tenant": "the credential names a tenant that tenants.toml does not have",
    "no-role": "the credential carries no role",
    "unknown-model": "no such model is loaded",
}
"""Every `Decision.reason` of a denial, with what it means."""


@dataclass(frozen=True, kw_only=True)
class Permit:
    """Holding one proves: the policies with `decision.policy_digest` allowed this principal this action on this model
    in these circumstances, without any error. It does not prove that budget is left: the host reserves that.

    `records_of` is for the audit actions: the only tenant whose records may be read, or None for every tenant's.
    `judged` are the certificate digests of the versions of the model that it is about.
    """

    decision: Decision
    records_of: str | None = None
    judged: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Deny:
    """A refusal. `decision.reason` is one of REASONS; `errors` is for the operator's log, never for the caller."""

    decision: Decision
    errors: tuple[str, ...] = ()


def load_policy(path: Path, *, digest: str | None = None) -> PolicySet:
    """Read, validate and try out a policy directory. Raises PolicyFileError: then nothing may start with it.

    With `digest`, the directory must be the one of that digest, to the byte.
    """
    files = load_files(path, digest=digest)
    policies, rules = read_policies(files)
    try:
        engine = Engine(schema=files.schema, policies=policies, entities=facts.standing_entities(files.tenants))
    except ValueError as error:
        raise PolicyFileError(
            f"{path / SCHEMA_FILE}: does not fit tenants.toml: {' '.join(str(error).split())}"
        ) from error
    policy_set = PolicySet(
        digest=files.digest,
        manifest=files.manifest,
        rules=rules,
        tenants=files.tenants,
        budgets=files.budgets,
        privacy_budgets=files.privacy_budgets,
        engine=engine,
    )
    policy_set.try_out(path)
    return policy_set


class PolicySet:
    """A policy directory in force. Safe to share between threads; the cache is the only state, guarded by its lock."""

    def __init__(
        self,
        *,
        digest: str,
        manifest: Manifest = NAMELESS,
        rules: dict[str, Rule],
        tenants: Tenants,
        budgets: tuple[Budget, ...],
        privacy_budgets: tuple[PrivacyBudget, ...] = (),
        engine: Engine,
    ) -> None:
        """Made by `load_policy`."""
        self.digest = digest
        self.manifest = manifest
        self.rules = rules
        self.tenants = tenants
        self.budgets = budgets
        self.privacy_budgets = privacy_budgets
        self._engine = engine
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[Any, ...], Permit | Deny] = OrderedDict()  # guarded by _lock

    def decide(self, principal: Principal, action: Action, model: ModelFacts | None, context: Context) -> Permit | Deny:
        """May `principal` do `action` (on `model`, for the actions that have one) in `context`? Never raises."""
        try:
            return self._remembered(principal, action, model, context)
        except Exception as error:  # facts of a wrong type, a bug of ours: whatever it is, the answer is no
            return self._deny("policy-error", errors=(f"{type(error).__name__}: {error}",))

    def decide_every(
        self, principal: Principal, action: Action, models: Sequence[ModelFacts], context: Context
    ) -> Permit | Deny:
        """May `principal` do `action` on whichever of these versions of a model answers? The gateway cannot see which
        one is asked for: every one must be permitted, and the strictest duties of all hold."""
        if len(models) < 2:
            return self.decide(principal, action, models[0] if models else None, context)
        permits: list[Permit] = []
        for model in models:
            answer = self.decide(principal, action, model, context)
            if isinstance(answer, Deny):
                return answer
            permits.append(answer)
        decisions = [permit.decision for permit in permits]
        ids = tuple(sorted({name for one in decisions for name in one.policy_ids}))
        obligations = merge(one.obligations for one in decisions)
        return Permit(
            decision=Decision(policy_digest=self.digest, policy_ids=_bounded(ids), obligations=obligations),
            judged=tuple(digest for permit in permits for digest in permit.judged),
        )

    def _remembered(
        self, principal: Principal, action: Action, model: ModelFacts | None, context: Context
    ) -> Permit | Deny:
        # Everything that `_decide` reads, and nothing that it does not: the answer depends on this key alone.
        subject = (principal.tenant, principal.subject, principal.roles, principal.purposes, principal.authn)
        shown = (principal.mtls, principal.token_binding)
        circumstances = (context.purpose, context.sealed, context.assurance, *shown)
        hour = facts.hour_of(context.now_us)
        key = (subject, action, model if action in MODEL_ACTIONS else None, circumstances, hour)
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return known
        answer = self._decide(principal, action, model, context)
        if not (isinstance(answer, Deny) and answer.errors):  # an error may pass: it is not remembered
            with self._lock:
                self._cache[key] = answer
                if len(self._cache) > MAX_CACHED_DECISIONS:
                    self._cache.popitem(last=False)
        return answer

    def _decide(
        self, principal: Principal, action: Action, model: ModelFacts | None, context: Context
    ) -> Permit | Deny:
        if principal.tenant not in self.tenants.tenants:
            return self._deny("unknown-tenant")
        if not principal.roles:
            return self._deny("no-role")
        if action in MODEL_ACTIONS:
            if model is None:
                return self._deny("unknown-model")
            answer = self._ask(principal, action, ("Model", model.name), context, [facts.model_entity(model)], None)
            return replace(answer, judged=(model.certificate_digest,)) if isinstance(answer, Permit) else answer
        everything = self._ask(principal, action, ("Log", "all"), context, [], None)
        if isinstance(everything, Permit) or everything.errors:
            return everything
        own = ("Log", f"tenant:{principal.tenant}")
        return self._ask(principal, action, own, context, [], principal.tenant)

    def _ask(
        self,
        principal: Principal,
        action: Action,
        resource: tuple[str, str],
        context: Context,
        entities: Sequence[Entity],
        records_of: str | None,
    ) -> Permit | Deny:
        """Ask once for each role: one permit is enough, a forbid for any role forbids, an error for any role denies."""
        roles = sorted(principal.roles, key=lambda role: role.value)
        requests = [
            {
                "principal": {"type": facts.TYPES[role], "id": facts.caller_id(principal)},
                "action": {"type": "Action", "id": action.value},
                "resource": {"type": resource[0], "id": resource[1]},
                "context": facts.circumstances(principal, context),
            }
            for role in roles
        ]
        callers = [facts.caller_entity(principal, role) for role in roles]
        verdicts = self._engine.ask(requests, [*callers, *entities])
        failed = [verdict for verdict in verdicts if verdict.errors]
        if failed:
            return self._deny("policy-error", failed, errors=tuple(text for item in failed for text in item.errors))
        forbidden = [verdict for verdict in verdicts if not verdict.allowed and verdict.ids]
        if forbidden:
            return self._deny("policy-forbids", forbidden)
        permitted = [verdict for verdict in verdicts if verdict.allowed]
        ids = _ids(permitted)
        if not ids:
            return self._deny("no-policy-permits")
        obligations = merge(self.rules[name].obligations for name in ids)
        decision = Decision(policy_digest=self.digest, policy_ids=_bounded(ids), obligations=obligations)
        return Permit(decision=decision, records_of=records_of)

    def _deny(self, reason: str, verdicts: Sequence[Verdict] = (), *, errors: tuple[str, ...] = ()) -> Deny:
        decision = Decision(policy_digest=self.digest, policy_ids=_bounded(_ids(verdicts)), reason=reason)
        return Deny(decision=decision, errors=errors)

    def try_out(self, path: Path) -> None:
        """Ask every question once, so that a schema that does not fit our requests stops the start, not a request."""
        model = ModelFacts(
            name="m",
            version="1",
            model_digest="",
            certificate_digest="",
            epsilon_micro=1,
            delta="0.00001",
            privacy_unit="example",
            sensitivity="personal",
            purposes=("p",),
        )
        principal = Principal(
            tenant=next(iter(self.tenants.tenants)),
            subject="s",
            roles=frozenset(Role),
            purposes=frozenset({"p"}),
            authn="jwt",
            mtls=False,
            credential_binding="",
            expires_us=0,
        )
        for action in Action:
            for role in Role:
                caller = Principal(**{**vars(principal), "roles": frozenset({role})})
                context = Context(purpose="p", sealed=True, assurance="software", now_us=0)
                answer = self._decide(caller, action, model, context)
                if isinstance(answer, Deny) and answer.errors and action not in LATER_ACTIONS:
                    text = " ".join(answer.errors[0].split())[:300]
                    raise PolicyFileError(f"{path}: asking whether a {role.value} may {action.value} fails: {text}")


def _ids(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    return tuple(sorted({name for verdict in verdicts for name in verdict.ids}))


def _bounded(ids: tuple[str, ...]) -> tuple[str, ...]:
    """No more than a record has room for; the last entry then says that there were more."""
    return ids if len(ids) <= MAX_NAMED_POLICIES else (*ids[: MAX_NAMED_POLICIES - 1], "and-more")
