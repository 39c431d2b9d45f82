"""The answer of `sealgate policy explain` in plain words: yes or no, by which policies, what is reduced and spent.

Prints. Trusts: the policy set. Never: records or counts anything.
"""

from __future__ import annotations

import argparse
from enum import Enum
from typing import TypeVar

from policy.budgets import Budget, PrivacyBudget
from policy.decide import MODEL_ACTIONS, REASONS, Deny, Permit, PolicySet
from policy.entities import Action, Context, Principal, Role
from policy.places import Bundles
from sealgate.ambient import now_us
from sealgate.errors import ConfigurationError
from sealgate.protocol.frames import Obligations
from sealgate.terminal import printable

_Choice = TypeVar("_Choice", bound=Enum)


def explain(policy_set: PolicySet, arguments: argparse.Namespace, bundles: Bundles) -> None:
    """Ask what the arguments say, and print the answer."""
    roles = frozenset(_one_of(Role, role, "role") for role in arguments.role)
    action = _one_of(Action, arguments.action, "action")
    if action in MODEL_ACTIONS and arguments.model is None:
        raise ConfigurationError(f"say which model to {action.value}: --model NAME")
    model = bundles.require(arguments.model) if arguments.model else None
    carried = arguments.carries if arguments.carries is not None else [arguments.purpose]
    principal = Principal(
        tenant=arguments.tenant,
        subject=arguments.subject,
        roles=roles,
        purposes=frozenset(purpose for purpose in carried if purpose),
        authn="mtls" if arguments.mtls else "jwt",
        mtls=arguments.mtls,
        credential_binding="",
        expires_us=0,
        token_binding="certificate" if arguments.mtls else arguments.token_binding,
    )
    context = Context(
        purpose=arguments.purpose,
        sealed=not arguments.not_sealed,
        assurance=arguments.assurance,
        now_us=now_us(),
    )
    answer = policy_set.decide(principal, action, model, context)
    verb = "may" if isinstance(answer, Permit) else "may not"
    print(f"{'Yes' if isinstance(answer, Permit) else 'No'}: {_question(arguments, action, verb)}.")
    _print_reasons(policy_set, answer)
    if isinstance(answer, Permit):
        _print_permit(policy_set, answer, arguments, action)


def _question(arguments: argparse.Namespace, action: Action, verb: str) -> str:
    roles = " and ".join(arguments.role)
    deed = {
        "infer": f"get an answer of the model '{arguments.model}'",
        "explain": f"get an explanation of answers of the model '{arguments.model}'",
        "read-model": f"read what the model '{arguments.model}' states of itself",
        "query-audit": "read audit records",
        "export-audit": "export audit records",
    }[action.value]
    purpose = f" for the purpose '{arguments.purpose}'" if arguments.purpose else ""
    return f"the {roles} '{arguments.subject}' of tenant '{arguments.tenant}' {verb} {deed}{purpose}"


def _print_reasons(policy_set: PolicySet, answer: Permit | Deny) -> None:
    if answer.decision.reason:
        print(f"  because    {REASONS[answer.decision.reason]} ({answer.decision.reason})")
    for name in answer.decision.policy_ids:
        rule = policy_set.rules.get(name)
        print(f"  decided by {name}{f' in {rule.file}: {printable(rule.says)}' if rule else ''}")


def _print_permit(policy_set: PolicySet, answer: Permit, arguments: argparse.Namespace, action: Action) -> None:
    if action not in MODEL_ACTIONS:
        print(f"  records    {f'of tenant {answer.records_of} only' if answer.records_of else 'of every tenant'}")
        return
    print(f"  reduced    {reduction(answer.decision.obligations) or 'not at all'}")
    budgets: tuple[Budget | PrivacyBudget, ...] = policy_set.budgets
    if answer.decision.obligations.noise_epsilon_micro:
        budgets += policy_set.privacy_budgets
    for budget in budgets:
        if budget.applies(tenant=arguments.tenant, subject=arguments.subject, model=arguments.model):
            print(f"  budget     {budget.name}: {_limits(budget)}")


def _limits(budget: Budget | PrivacyBudget) -> str:
    if isinstance(budget, PrivacyBudget):
        window = "in all" if budget.window.value == "forever" else f"a {budget.window.value}"
        return f"an epsilon of {budget.epsilon} {window}, about {budget.population}"
    limits = [
        f"{amount:,} {name}"
        for name, amount in (("requests", budget.requests), ("units", budget.units))
        if amount is not None
    ]
    return f"{' and '.join(limits)} a {budget.window.value}"


def reduction(obligations: Obligations, before: str = "") -> str:
    """What a permit obliges to, in words, with `before` in front; "" for nothing."""
    parts = []
    if obligations.noise_epsilon_micro:
        epsilon = f"{obligations.noise_epsilon_micro / 1_000_000:g}"
        parts.append(f"noised with an epsilon of {epsilon} a row, at most {obligations.noise_rows} rows")
    if obligations.hide_scores:
        parts.append("labels only")
    if obligations.top_k is not None:
        parts.append(f"only the {obligations.top_k} largest scores")
    if obligations.round_digits is not None:
        parts.append(f"numbers rounded to {obligations.round_digits} decimal places")
    if obligations.receipt_required:
        parts.append("of use only with a receipt")
    if obligations.single_use:
        parts.append("made in a worker process of its own")
    return before + ", ".join(parts) if parts else ""


def _one_of(kind: type[_Choice], value: str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(item.value) for item in kind)
        raise ConfigurationError(f"there is no {what} {value!r}; it is one of: {known}") from None
