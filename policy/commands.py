"""`sealgate policy`: look at the policy of a deployment before it decides anything.

Light at import; the engine is loaded inside the commands. Trusts: the state directory. Never: changes anything.
"""

from __future__ import annotations

import argparse
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sealgate.command import Command
from sealgate.errors import ConfigurationError

if TYPE_CHECKING:
    from policy.decide import Deny, Permit, PolicySet
    from policy.entities import Action
    from sealgate.protocol.frames import ModelFacts, Obligations

_Choice = TypeVar("_Choice", bound=Enum)


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="policy_command", metavar="ACTION", required=True)
    check = commands.add_parser("check", help="is the policy fit to start with?")
    explain = commands.add_parser(
        "explain",
        help="would this be allowed, and which policies say so?",
        description="Asks the policy of STATE a question and answers in plain words. Nothing is recorded or counted.",
    )
    digest = commands.add_parser("digest", help="print the digest that audit records name the policy by")
    for sub in (check, explain, digest):
        sub.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")
    explain.add_argument("--tenant", required=True, help="the caller's tenant")
    explain.add_argument("--role", required=True, action="append", help="client, auditor or operator; may be repeated")
    explain.add_argument("--action", default="infer", help="infer (default), read-model, query-audit or export-audit")
    explain.add_argument("--model", help="a model in STATE/models")
    explain.add_argument("--purpose", default="", help="the purpose that is asked for")
    explain.add_argument("--subject", default="somebody", help="what the credential calls the caller")
    explain.add_argument(
        "--carries", metavar="PURPOSE", action="append", help="purposes in the credential (default: the one asked for)"
    )
    explain.add_argument("--mtls", action="store_true", help="the caller shows a client certificate")
    explain.add_argument("--not-sealed", action="store_true", help="the request is not encrypted for the runtime")
    explain.add_argument("--assurance", choices=("software", "hardware"), default="software", help="of the evidence")


def _run(arguments: argparse.Namespace) -> int:
    from policy.store import load_files
    from sealgate.deployment import open_deployment

    deployment = open_deployment(arguments.state)
    if arguments.policy_command == "digest":
        print(load_files(deployment.policy).digest)
        return 0

    from policy.decide import load_policy

    policy_set = load_policy(deployment.policy)
    if arguments.policy_command == "check":
        _print_check(policy_set, deployment.policy)
    else:
        model = _load_model(deployment.models, deployment.publishers, arguments.model) if arguments.model else None
        _explain(policy_set, arguments, model)
    return 0


def _print_check(policy_set: PolicySet, path: Path) -> None:
    tenants = policy_set.tenants
    print(f"The policy in {path} is sound.")
    print(f"  digest    {policy_set.digest}")
    print(f"  policies  {len(policy_set.rules)}")
    width = max(len(name) for name in policy_set.rules)
    for rule in policy_set.rules.values():
        effect = "forbids" if rule.forbids else "permits"
        print(f"            {effect}  {rule.id:{width}}  {rule.says}{_reduction(rule.obligations, '; ')}")
    print(f"  tenants   {', '.join(tenants.tenants)}")
    print(f"  mappings  {len(tenants.clients)} client certificates, {len(tenants.revoked_certificates)} revoked")
    print(f"  budgets   {', '.join(budget.name for budget in policy_set.budgets) or 'none: nothing is limited'}")


def _explain(policy_set: PolicySet, arguments: argparse.Namespace, model: ModelFacts | None) -> None:
    from policy.decide import MODEL_ACTIONS, Permit
    from policy.entities import Action, Context, Principal, Role
    from sealgate.ambient import now_us

    roles = frozenset(_one_of(Role, role, "role") for role in arguments.role)
    action = _one_of(Action, arguments.action, "action")
    if action in MODEL_ACTIONS and model is None:
        raise ConfigurationError(f"say which model to {action.value}: --model NAME")
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
        "read-model": f"read what the model '{arguments.model}' states of itself",
        "query-audit": "read audit records",
        "export-audit": "export audit records",
    }[action.value]
    purpose = f" for the purpose '{arguments.purpose}'" if arguments.purpose else ""
    return f"the {roles} '{arguments.subject}' of tenant '{arguments.tenant}' {verb} {deed}{purpose}"


def _print_reasons(policy_set: PolicySet, answer: Permit | Deny) -> None:
    from policy.decide import REASONS

    if answer.decision.reason:
        print(f"  because    {REASONS[answer.decision.reason]} ({answer.decision.reason})")
    for name in answer.decision.policy_ids:
        rule = policy_set.rules.get(name)
        print(f"  decided by {name}{f' in {rule.file}: {rule.says}' if rule else ''}")


def _print_permit(policy_set: PolicySet, answer: Permit, arguments: argparse.Namespace, action: Action) -> None:
    from policy.decide import MODEL_ACTIONS

    if action not in MODEL_ACTIONS:
        print(f"  records    {f'of tenant {answer.records_of} only' if answer.records_of else 'of every tenant'}")
        return
    print(f"  reduced    {_reduction(answer.decision.obligations) or 'not at all'}")
    for budget in policy_set.budgets:
        if budget.applies(tenant=arguments.tenant, subject=arguments.subject, model=arguments.model):
            limits = [
                f"{amount:,} {name}"
                for name, amount in (("requests", budget.requests), ("units", budget.units))
                if amount is not None
            ]
            print(f"  budget     {budget.name}: {' and '.join(limits)} a {budget.window.value}")


def _reduction(obligations: Obligations, before: str = "") -> str:
    parts = []
    if obligations.hide_scores:
        parts.append("labels only")
    if obligations.top_k is not None:
        parts.append(f"only the {obligations.top_k} largest scores")
    if obligations.round_digits is not None:
        parts.append(f"numbers rounded to {obligations.round_digits} decimal places")
    return before + ", ".join(parts) if parts else ""


def _load_model(models: Path, publishers_file: Path, name: str) -> ModelFacts:
    from sealgate.certificate.bundle import verify_bundle
    from sealgate.certificate.publishers import load_publishers

    if Path(name).name != name or not (models / name).is_dir():
        known = ", ".join(sorted(item.name for item in models.iterdir() if item.is_dir())) if models.is_dir() else ""
        raise ConfigurationError(f"{models} has no model {name!r}; it has: {known or 'none'}")
    return verify_bundle(models / name, load_publishers(publishers_file)).facts


def _one_of(kind: type[_Choice], value: str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(item.value) for item in kind)
        raise ConfigurationError(f"there is no {what} {value!r}; it is one of: {known}") from None


POLICY = Command(
    summary="check and question the policy of a deployment",
    description="Is the policy sound, would it allow something and why, and what digest do audit records name it by?",
    configure=_configure,
    run=_run,
    extra="server",
)
