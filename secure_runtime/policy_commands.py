"""`sealgate policy`: what `policy.commands` offers, and `apply`, `history` and `show`, which need the host and its log.

Light at import. What is in force is said by the log's `policy.change` records; what it was, by `policy-history/`.
Trusts: the state directory and the log's database. Never: applies what does not validate, or what a scenario fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from policy import commands
from sealgate.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audit.query import Entry
    from policy.history import PolicyHistory
    from sealgate.deployment import Deployment
    from sealgate.protocol.administration import ApplyPolicy

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_PAGE = 500
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

    run = {"apply": _apply, "history": _history, "show": _show}.get(arguments.policy_command)
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
        raise ConfigurationError("not applied: the policy does not answer its own scenarios as it should")
    history = PolicyHistory(deployment.policy_history)
    kept = history.store(place.path)
    if kept != policy_set.digest:
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


# history -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Version:
    """One `policy.change`, for people and machines. `content` is "kept", "missing" or "changed"."""

    record: int
    time: str
    digest: str
    name: str
    version: str
    reason: str
    by: str
    scenarios: str
    note: str
    content: str
    in_force: bool


def _history(deployment: Deployment, arguments: argparse.Namespace) -> int:
    from policy.history import PolicyHistory
    from sealgate.terminal import render_table

    history = PolicyHistory(deployment.policy_history)
    versions = list(_versions(deployment, history, every_start=arguments.all))
    stated = history.current()
    pending = stated.digest if stated is not None and (not versions or versions[-1].digest != stated.digest) else ""
    if arguments.json:
        print(json.dumps({"versions": [asdict(version) for version in versions], "pending": pending}, indent=2))
        return 0
    rows = [
        (
            one.record,
            one.time,
            one.name,
            one.version,
            one.digest[:_SHORT],
            one.reason,
            one.by,
            one.scenarios,
            one.content,
            "in force" if one.in_force else "",
            one.note,
        )
        for one in versions
    ]
    headings = ("record", "since (UTC)", "name", "version", "digest", "how", "by", "scenarios", "content", "", "note")
    print(render_table(headings, rows) if rows else "No policy was ever in force here: nothing was started yet.")
    if pending:
        print(f"{pending[:_SHORT]} is in force from the next start on.")
    return 0


def _versions(deployment: Deployment, history: PolicyHistory, *, every_start: bool) -> Iterator[_Version]:
    from sealgate.client.times import utc_text

    entries = list(_changes(deployment))
    contents: dict[str, str] = {}
    before = ""
    for place, entry in enumerate(entries):
        record, newest = entry.record, place == len(entries) - 1
        digest, detail = record.policy_digest, record.detail
        repeated, before = digest == before and record.reason == "start", digest
        if repeated and not every_start and not newest:
            continue
        if digest not in contents:
            contents[digest] = _content(history, digest)
        yield _Version(
            record=entry.index,
            time=utc_text(record.ts_us),
            digest=digest,
            name=detail.get("name", ""),
            version=detail.get("version", ""),
            reason=record.reason,
            by=detail.get("by", ""),
            scenarios=detail.get("scenarios", ""),
            note=detail.get("note", ""),
            content=contents[digest],
            in_force=newest,
        )


def _content(history: PolicyHistory, digest: str) -> str:
    from policy.errors import PolicyFileError

    try:
        history.require_whole(digest)
    except PolicyFileError:
        return "changed" if history.path(digest).is_dir() else "missing"
    return "kept"


def _changes(deployment: Deployment) -> Iterator[Entry]:
    """Every `policy.change` on record, oldest first."""
    from contextlib import closing

    from audit.query import AuditReader, RecordFilter

    if not _has_log(deployment):
        return
    wanted = RecordFilter(kind="policy.change", oldest_first=True)
    with closing(AuditReader(deployment.log_url, origin=deployment.settings.deployment.origin)) as reader:
        cursor: str | None = None
        while True:
            page = reader.records(wanted, cursor, _PAGE)
            yield from page.records
            cursor = page.cursor
            if cursor is None:
                return


def _has_log(deployment: Deployment) -> bool:
    """Whether there may be one: a deployment that was never started has no file, or (under two users) an empty one."""
    if not deployment.log_url.startswith("sqlite:"):
        return True
    return deployment.database.exists() and deployment.database.stat().st_size > 0


# show ----------------------------------------------------------------------------------------------------------------


def _show(deployment: Deployment, arguments: argparse.Namespace) -> int:
    from policy.history import PolicyHistory
    from policy.store import read_contents
    from sealgate.errors import ConfigurationError
    from sealgate.terminal import render_pairs, render_table

    history = PolicyHistory(deployment.policy_history)
    digest = _digest_at(deployment, history, arguments.at)
    path = history.require_whole(digest)
    contents = read_contents(path, stored=True)
    if arguments.file is not None:
        if arguments.file not in contents:
            raise ConfigurationError(f"that policy has no file {arguments.file!r}; it has: {', '.join(contents)}")
        sys.stdout.write(_printable_lines(contents[arguments.file]))
        return 0
    manifest = history.load_files(digest).manifest
    print(
        render_pairs(
            [
                ("name", manifest.name),
                ("version", manifest.version),
                ("description", manifest.description),
                ("owner", manifest.owner),
                ("digest", digest),
                ("where", path),
            ]
        )
    )
    print()
    print(render_table(("file", "bytes"), [(name, len(data)) for name, data in contents.items()]))
    return 0


def _digest_at(deployment: Deployment, history: PolicyHistory, at: str | None) -> str:
    """The digest that is meant: of a version, of a time, or of now."""
    from policy.errors import PolicyFileError
    from sealgate.ambient import now_us
    from sealgate.client.times import parse_moment

    if at is None:
        stated = history.current()
        if stated is None:
            raise PolicyFileError("no policy is in force yet: the first start takes the working copy")
        return stated.digest
    if _DIGEST.fullmatch(at):
        return history.find(at)
    moment = parse_moment(at, now_us=now_us())
    found = [entry.record.policy_digest for entry in _changes(deployment) if entry.record.ts_us <= moment]
    if not found:
        raise PolicyFileError(f"the log has no policy in force at {at}")
    return found[-1]


def _printable_lines(data: bytes) -> str:
    from sealgate.terminal import printable

    text = data.decode("utf-8", "replace")
    return "".join(
        "\t".join(printable(part) for part in line.split("\t")) + "\n" for line in text.removesuffix("\n").split("\n")
    )


POLICY = Command(
    summary="check, question, test, compare and apply the policy of a deployment",
    description="Is the policy sound, does it answer its scenarios, would it allow something and why, what would "
    "change, and which policies were in force when?",
    configure=_configure,
    run=_run,
    extra="server",
)
