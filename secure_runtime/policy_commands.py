"""`sealgate policy`: what `policy.commands` offers, and `apply`, `history` and `show`, which need the host and its log.

Light at import. Trusts: the state directory. Never: applies what does not validate, or what a scenario fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from policy import commands
from sealgate.command import Command
from secure_runtime.policy_versions import list_history, show_version

if TYPE_CHECKING:
    from policy.history import PolicyHistory
    from sealgate.deployment import Deployment
    from sealgate.protocol.administration import ApplyPolicy

_SHORT = 16  # characters of a digest that people are shown


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = commands.configure(parser)
    apply = actions.add_parser(
        "apply",
        help="put a policy in force, now and without a restart",
        description="Validates the working copy (or DIR), runs its scenarios, keeps it in STATE/policy-history and has "
        "the runtime host put it in force and on record. If no host runs, it is in force from the next start on.",
    )
    history = actions.add_parser(
        "history",
        help="which policies were in force, and since when",
        description="Lists the changes of policy that the audit log has on record, and whether their content is kept.",
    )
    show = actions.add_parser(
        "show",
        help="show the policy that was in force at some time",
        description="Shows what the policy in force (or the one at TIME, or the version DIGEST) is called and which "
        "files it has; or one of them.",
    )
    for sub in (apply, history, show):
        sub.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")
    apply.add_argument("directory", metavar="DIR", nargs="?", type=Path, help="apply this policy directory instead")
    apply.add_argument("--note", default="", help="one line for the record: why")
    history.add_argument("--all", action="store_true", help="every start too, though nothing changed")
    history.add_argument("--json", action="store_true", help="print JSON instead of a table")
    show.add_argument("--at", metavar="TIME|DIGEST", help="2030-01-31T12:00, an age as 12h or 7d, or a digest's start")
    show.add_argument("file", metavar="FILE", nargs="?", help="print this file of it")


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.deployment import open_deployment

    run = {"apply": _apply, "history": list_history, "show": show_version}.get(arguments.policy_command)
    if run is None:
        return commands.run(arguments)
    return run(open_deployment(arguments.state), arguments)


# apply ---------------------------------------------------------------------------------------------------------------


def _apply(deployment: Deployment, arguments: argparse.Namespace) -> int:
    from policy.decide import load_policy
    from policy.history import PolicyHistory
    from policy.manifest import FILE, NAMELESS
    from policy.places import working_copy
    from policy.scenarios import load_scenarios, run_scenarios
    from sealgate.errors import ConfigurationError
    from sealgate.protocol.administration import ApplyPolicy

    place = working_copy(arguments.state, arguments.directory)
    policy_set = load_policy(place.path)
    if policy_set.manifest is NAMELESS:
        raise ConfigurationError(f"{place.path / FILE} is missing; it says what the policy is called: name and version")
    scenarios = load_scenarios(place.path, bundles=place.bundles)
    results = run_scenarios(policy_set, scenarios.questions)
    if any(result.differences for result in results):
        print(commands.results_table(results, failed_only=True), file=sys.stderr)
        raise ConfigurationError(
            "not applied: the policy does not answer its own scenarios as it should; change the policy, or in "
            "scenarios/ those that do not say any more what you want"
        )
    history = PolicyHistory(deployment.policy_history)
    kept = history.store(place.path)
    tested = not scenarios.digest or history.scenarios_path(scenarios.digest).is_dir()
    if kept != policy_set.digest or not tested:
        raise ConfigurationError(f"not applied: {place.path} was changed in the meantime; try again")
    frame = ApplyPolicy(digest=kept, note=arguments.note, scenarios=len(results), scenarios_digest=scenarios.digest)
    manifest = policy_set.manifest
    _put_in_force(deployment, history, frame, called=f"{manifest.name} {manifest.version} ({kept[:_SHORT]}...)")
    passed = f"All {len(results)} scenarios passed" if results else "It has no scenarios, so none was run"
    print(f"{passed}.")
    return 0


def _put_in_force(deployment: Deployment, history: PolicyHistory, frame: ApplyPolicy, *, called: str) -> None:
    from policy.history import InForce
    from sealgate.administration import HostAway, tell_host

    try:
        recorded = tell_host(deployment, frame)
    except HostAway as error:
        if error.code != HostAway.code:  # it runs, and this user may not tell it
            raise
        with history.change_offline():
            history.replace_current(InForce.applied(frame))
        print(f"No runtime host runs. {called} will be in force, and on record, from the next start on.")
    else:
        print(f"{called} is in force, as record {recorded.record} says.")


POLICY = Command(
    summary="check, question, test, compare and apply the policy of a deployment",
    description="Is the policy sound, does it answer its scenarios, would it allow something and why, what would "
    "change, and which policies were in force when?",
    configure=_configure,
    run=_run,
    extra="server",
)
