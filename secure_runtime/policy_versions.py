"""`sealgate policy history` and `show`: which policies were in force when, and what they said.

When is told by the log's `policy.change` records and by nothing else; what, by `policy-history/`, to the byte or not at
all. Light at import. Trusts: the state directory and the log's database. Never: writes to either.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audit.query import Entry
    from policy.history import PolicyHistory
    from sealgate.deployment import Deployment

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_PAGE = 500
_SHORT = 16  # characters of a digest that people are shown


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


def list_history(deployment: Deployment, arguments: argparse.Namespace) -> int:
    """Print every change of the policy on record; returns the exit code."""
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


def show_version(deployment: Deployment, arguments: argparse.Namespace) -> int:
    """Print what a version is called and has, or one of its files; returns the exit code."""
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
    from sealgate.client.times import parse_moment, utc_text

    if at is None:
        stated = history.current()
        if stated is None:
            raise PolicyFileError("no policy is in force yet: the first start takes the working copy")
        return stated.digest
    if _DIGEST.fullmatch(at):
        return history.find(at)
    moment = parse_moment(at, now_us=now_us())
    changes = list(_changes(deployment))
    found = [entry.record.policy_digest for entry in changes if entry.record.ts_us <= moment]
    if not found:
        first = f"; its first is in force since {utc_text(changes[0].record.ts_us)} UTC" if changes else ""
        raise PolicyFileError(f"the log has no policy in force at {utc_text(moment)} UTC{first}")
    return found[-1]


def _printable_lines(data: bytes) -> str:
    from sealgate.terminal import printable

    text = data.decode("utf-8", "replace")
    return "".join(
        "\t".join(printable(part) for part in line.split("\t")) + "\n" for line in text.removesuffix("\n").split("\n")
    )
