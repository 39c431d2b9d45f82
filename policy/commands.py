"""`sealgate policy check | test | explain | diff | digest`: look at a policy before it decides anything.

Light at import; the engine is loaded inside the commands. `apply`, `history` and `show` need the runtime host and its
log: `secure_runtime.policy_commands` adds them. Trusts: the state directory. Never: changes anything.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.diff import Changed, Difference
    from policy.places import Place
    from policy.scenarios import Result

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_SHOWN_VALUES = 3  # of an axis on which answers change


def configure(parser: argparse.ArgumentParser) -> Commands:
    """Add these actions; the caller may add more."""
    commands = parser.add_subparsers(dest="policy_command", metavar="ACTION", required=True)
    check = commands.add_parser("check", help="is the policy fit to start with?")
    test = commands.add_parser(
        "test",
        help="run the scenarios of the policy",
        description="Asks the policy every question in its folder `scenarios` and compares the answers with those "
        "that its writers expect. Exit code 1 if one differs, or if there are none.",
    )
    explain = commands.add_parser(
        "explain",
        help="would this be allowed, and which policies say so?",
        description="Asks the policy in force in STATE (or the one in DIR) a question and answers in plain words. "
        "Nothing is recorded or counted.",
    )
    diff = commands.add_parser(
        "diff",
        help="what would change if this policy were applied?",
        description="Compares the policy in force with the working copy (or with DIR): which files, policies, tenants "
        "and budgets differ, and which questions get another answer.",
    )
    digest = commands.add_parser("digest", help="print the digest that audit records name the policy by")
    for sub in (check, test, explain, diff, digest):
        meaning = "the deployment's folder" + ("" if sub in (explain, diff) else ", or a policy directory")
        sub.add_argument("state", metavar="STATE", type=Path, help=meaning)
        sub.add_argument("directory", metavar="DIR", nargs="?", type=Path, help="another policy directory")
    for sub in (test, diff):
        sub.add_argument("--json", action="store_true", help="print JSON instead of tables")
    _configure_explain(explain)
    return commands


def _configure_explain(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("--tenant", required=True, help="the caller's tenant")
    explain.add_argument("--role", required=True, action="append", help="client, auditor or operator; may be repeated")
    actions = "infer (default), explain, read-model, query-audit or export-audit"
    explain.add_argument("--action", default="infer", help=actions)
    explain.add_argument("--model", help="a model in STATE/models")
    explain.add_argument("--purpose", default="", help="the purpose that is asked for")
    explain.add_argument("--subject", default="somebody", help="what the credential calls the caller")
    explain.add_argument(
        "--carries", metavar="PURPOSE", action="append", help="purposes in the credential (default: the one asked for)"
    )
    explain.add_argument("--mtls", action="store_true", help="the caller shows a client certificate, and no token")
    explain.add_argument(
        "--token-binding",
        choices=("none", "mtls", "dpop", "mtls+dpop"),
        default="none",
        help="what the caller's token is bound to (default: none)",
    )
    explain.add_argument("--not-sealed", action="store_true", help="the request is not encrypted for the runtime")
    explain.add_argument(
        "--assurance", choices=("software", "tpm", "hardware"), default="software", help="of the evidence"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one of these actions; returns the exit code."""
    from policy.places import working_copy

    if arguments.policy_command == "explain":
        return _explain(arguments)
    place = working_copy(arguments.state, arguments.directory)
    if arguments.policy_command == "digest":
        from policy.store import load_files

        print(load_files(place.path).digest)
        return 0
    if arguments.policy_command == "check":
        return _check(place)
    if arguments.policy_command == "test":
        return _test(place, as_json=arguments.json)
    return _diff(place, as_json=arguments.json)


def _check(place: Place) -> int:
    from policy.decide import load_policy
    from policy.explanation import reduction
    from policy.scenarios import load_scenarios
    from sealgate.terminal import printable

    policy_set = load_policy(place.path)
    scenarios = load_scenarios(place.path, bundles=place.bundles)
    tenants, manifest = policy_set.tenants, policy_set.manifest
    print(f"The policy in {place.path} is sound.")
    said = f": {printable(manifest.description)}" if manifest.description else ""
    print(f"  name      {manifest.name}, version {manifest.version}{said}")
    print(f"  digest    {policy_set.digest}")
    print(f"  policies  {len(policy_set.rules)}")
    width = max(len(name) for name in policy_set.rules)
    for rule in policy_set.rules.values():
        effect = "forbids" if rule.forbids else "permits"
        print(f"            {effect}  {rule.id:{width}}  {printable(rule.says)}{reduction(rule.obligations, '; ')}")
    print(f"  tenants   {', '.join(tenants.tenants)}")
    print(f"  mappings  {len(tenants.clients)} client certificates, {len(tenants.revoked_certificates)} revoked")
    budgets = [budget.name for budget in policy_set.budgets] + [budget.name for budget in policy_set.privacy_budgets]
    print(f"  budgets   {', '.join(budgets) or 'none: nothing is limited'}")
    print(f"  scenarios {len(scenarios.questions) or 'none: nobody says what this policy should answer'}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from policy.decide import load_policy
    from policy.explanation import explain
    from policy.places import in_force, working_copy

    place = working_copy(arguments.state, arguments.directory)
    if arguments.directory is None and place.deployment is not None:
        place = in_force(place.deployment) or place
    policy_set = load_policy(place.path, digest=place.digest)
    explain(policy_set, arguments, place.bundles)
    manifest = policy_set.manifest
    print(f"  policy     {manifest.name} {manifest.version} ({place.called}, {policy_set.digest[:16]}...)")
    return 0


# test ----------------------------------------------------------------------------------------------------------------


def _test(place: Place, *, as_json: bool) -> int:
    from policy.decide import load_policy
    from policy.scenarios import load_scenarios, run_scenarios
    from sealgate.errors import ConfigurationError

    policy_set = load_policy(place.path)
    scenarios = load_scenarios(place.path, bundles=place.bundles)
    if not scenarios.questions:
        raise ConfigurationError(
            f"{place.path} has no scenarios, so nothing was tested; write some: scenarios/NAME.toml"
        )
    results = run_scenarios(policy_set, scenarios.questions)
    failed = sum(bool(result.differences) for result in results)
    if as_json:
        head = {"digest": policy_set.digest, "scenarios_digest": scenarios.digest}
        print(json.dumps({**head, "failed": failed, "results": [_result(one) for one in results]}, indent=2))
    else:
        print(results_table(results))
    return 1 if failed else 0


def results_table(results: list[Result], *, failed_only: bool = False) -> str:
    """A row for each scenario, and below in which words answers differ."""
    from policy.scenarios import demanded
    from sealgate.terminal import printable, render_table

    rows = []
    for result in results:
        if failed_only and not result.differences:
            continue
        asked, decision = result.question.scenario, result.answer.decision
        by = ", ".join(decision.policy_ids) or decision.reason
        answer = "permit" if not decision.reason else "deny"
        rows.append(("FAILED" if result.differences else "ok", asked.name, answer, by, demanded(decision.obligations)))
    parts = [render_table(("", "scenario", "answer", "by", "demands"), rows)]
    parts += [
        f"{printable(result.question.file)}: {result.question.scenario.name}: {printable(text)}"
        for result in results
        for text in result.differences
    ]
    failed = sum(bool(result.differences) for result in results)
    parts.append(f"{len(results)} scenarios, {failed or 'none'} failed")
    return "\n".join(parts)


def _result(result: Result) -> dict[str, Any]:
    from policy.scenarios import demanded

    decision = result.answer.decision
    return {
        "file": result.question.file,
        "name": result.question.scenario.name,
        "passed": not result.differences,
        "expected": result.question.scenario.expect,
        "answer": "deny" if decision.reason else "permit",
        "by": list(decision.policy_ids),
        "reason": decision.reason,
        "demands": demanded(decision.obligations),
        "differences": list(result.differences),
    }


# diff ----------------------------------------------------------------------------------------------------------------


def _diff(place: Place, *, as_json: bool) -> int:
    from policy.diff import compare, load_side
    from policy.history import PolicyHistory
    from policy.places import in_force
    from policy.scenarios import parse_scenarios
    from sealgate.errors import ConfigurationError

    before = in_force(place.deployment) if place.deployment is not None else None
    if place.deployment is None or before is None or before.digest is None:
        raise ConfigurationError("no policy is in force yet: the first start takes the working copy; then there is one")
    history, bundles = PolicyHistory(place.deployment.policy_history), place.bundles
    stated = history.current()
    digest = stated.scenarios_digest if stated is not None else ""
    contents = history.scenarios(digest) if digest else {}
    old = parse_scenarios(contents, where=history.folder, bundles=bundles)
    difference = compare(
        load_side(before.path, digest=before.digest, scenarios=old),
        load_side(place.path, bundles=bundles),
        models=bundles.sound(),
    )
    print(_difference_document(difference) if as_json else _difference_text(difference, place))
    return 0


def _difference_document(difference: Difference) -> str:
    from dataclasses import asdict

    return json.dumps(asdict(difference), indent=2)


def _difference_text(difference: Difference, place: Place) -> str:
    from sealgate.terminal import render_table

    if difference.nothing:
        return f"Nothing differs between the policy in force and the {place.called}."
    parts = []
    if difference.changes:
        rows = [(change.what, change.name, change.how) for change in difference.changes]
        parts.append(render_table(("what", "name", "how"), rows))
    if difference.answers:
        rows_of_answers = [
            (one.who, one.action, one.before, one.after, ", ".join(one.by), f"{one.cases} of {one.of}", _which(one))
            for one in difference.answers
        ]
        headings = ("who", "action", "in force", "then", "denied by", "cases", "where")
        parts.append(render_table(headings, rows_of_answers))
    elif not difference.asked:
        parts.append("No answer can differ: what decides (policies, schema, tenants) is the same.")
        return "\n\n".join(parts)
    else:
        parts.append("No answer to the questions asked differs.")
    left_out = f"; {difference.left_out} more were left out" if difference.left_out else ""
    parts.append(f"{difference.asked} questions were asked of both policies{left_out}.")
    return "\n\n".join(parts)


def _which(one: Changed) -> str:
    """The axes on which only some values are concerned."""
    parts = []
    for values in one.which.values():
        more = f" and {len(values) - _SHOWN_VALUES} more" if len(values) > _SHOWN_VALUES else ""
        parts.append(", ".join(values[:_SHOWN_VALUES]) + more)
    return "; ".join(parts) or ("everywhere" if one.cases == one.of else "")
