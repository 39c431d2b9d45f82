"""Which bundles stay unloaded, across restarts and crashes: the log decides it, a file holds the names.

    the new list stands in the file, durably, beside the one in force -> `model.change` with the new list's digest is
    durable -> the new workers are published

The record is the commit point. A start serves by the list whose digest the newest `model.change` that was done states:
a list that no record came to state is as if it had never been, and one that a record states is in the file, because it
was there first. So nothing has to be written after the record, and nothing is undone. The file keeps the lists before,
too: a log that was restored from a backup states one of them.

A plain list of names is an operator's own word, or the file of a release before this one: a start takes it as it is,
and the record that it writes says so, and whose file it was.

Trusts: the log, for which list is in force; whoever may write the file, for a plain list only. Never: goes by a list
because it is the newest in the file; guesses where the log states a list that is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from audit.query import AuditReader, RecordFilter
from sealgate.durable_files import sync_folder, write_new
from sealgate.errors import ConfigurationError
from sealgate.protocol.canonical import canonical_json
from sealgate.terminal import printable
from sealgate.transparency.record import Record
from secure_runtime.errors import SwitchRefused
from secure_runtime.limits import MAX_KEPT_LISTS, MAX_WITHHELD_BYTES

NAMES, DIGEST = "withheld", "withheld_digest"
"""In the detail of a `model.change` that was done: what is unloaded from it on, in words, and `list_digest` of it."""

_MEND = (
    'put the file of that time back, or write into it the names that stay unloaded: ["NAME/VERSION"], or [] for none'
)


@dataclass(frozen=True)
class Settled:
    """What is unloaded when a host starts. `by` is who wrote it down, "" if the log states it."""

    withheld: frozenset[str]
    by: str = ""


@dataclass(frozen=True)
class _Kept:
    """What the file holds. `plain`: one list, which no host of this release wrote."""

    lists: tuple[frozenset[str], ...]
    plain: bool


def list_digest(names: Collection[str]) -> str:
    """SHA-256 of the canonical JSON of the names, sorted."""
    return hashlib.sha256(canonical_json(sorted(names))).hexdigest()


def newest_change(reader: AuditReader) -> Record | None:
    """The newest `model.change` that was done, if there ever was one."""
    cursor: str | None = None
    while True:
        page = reader.records(RecordFilter(kind="model.change", outcome="done"), cursor, limit=1)
        if page.records:
            return page.records[0].record
        cursor = page.cursor
        if cursor is None:
            return None


def settle_withheld(path: Path, newest: Record | None) -> Settled:
    """What is unloaded at a start, by the newest change on record. Raises ConfigurationError if that is not to be found
    out: a file that is none, or one without the list that the log states."""
    kept = _read(path)
    stated = newest.detail.get(DIGEST, "") if newest is not None else ""
    if kept is None and not stated:
        return Settled(frozenset())
    if kept is not None and kept.plain:
        (plain,) = kept.lists
        return Settled(plain, by="" if list_digest(plain) == stated else f"uid:{_owner(path)}")
    for names in (*(kept.lists if kept is not None else ()), frozenset[str]()):
        if list_digest(names) == stated:
            return Settled(names)
    named = printable(newest.detail.get(NAMES, "")) if newest is not None else ""
    raise ConfigurationError(
        f"{path} does not hold the list of unloaded models that the log states{f' ({named})' if named else ''}; {_MEND}"
        if stated
        else f"{path} holds lists of unloaded models, and the log does not state which is in force; {_MEND}"
    )


def keep_withheld(path: Path, wanted: Collection[str], *, in_force: Collection[str]) -> None:
    """Put the list that is wanted into the file, beside the one in force and others before, durably. It is in force
    once a record states it, and not before. Raises SwitchRefused; what is in force stays."""
    try:
        kept = _read(path)
    except ConfigurationError:  # somebody wrote into it while the host runs: what is in force is known all the same
        kept = None
    lists = dict.fromkeys((frozenset(wanted), frozenset(in_force), *(kept.lists if kept is not None else ())))
    most = min(len(lists), MAX_KEPT_LISTS)
    needed = len({frozenset(wanted), frozenset(in_force)})
    while len(content := canonical_json([sorted(names) for names in list(lists)[:most]])) > MAX_WITHHELD_BYTES:
        if most == needed:
            raise SwitchRefused(f"{path} has no room for so many names of unloaded models", code="choice-not-kept")
        most -= 1
    try:
        _replace(path, content)
    except OSError as error:
        raise SwitchRefused(f"{path} cannot be written: {error.strerror}", code="choice-not-kept") from error


def _read(path: Path) -> _Kept | None:
    """What the file holds, None if there is none; raises ConfigurationError for one that nobody wrote like that."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_WITHHELD_BYTES + 1)
        if len(data) > MAX_WITHHELD_BYTES:
            raise ValueError("larger than it is ever written")
        said = msgspec.json.decode(data, type=list[str | list[str]])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # msgspec's own errors are ValueErrors too
        raise ConfigurationError(f"{path} is unreadable: it says which models are unloaded; {_MEND}") from error
    plain = frozenset(one for one in said if isinstance(one, str))
    lists = tuple(frozenset(one) for one in said if not isinstance(one, str))
    if plain and lists:
        raise ConfigurationError(f"{path} mixes names and lists of names; write one list of names into it")
    return _Kept(lists or (plain,), plain=not lists)


def _owner(path: Path) -> int:
    try:
        return path.stat().st_uid
    except OSError as error:
        raise ConfigurationError(f"{path} was removed while it was read") from error


def _replace(path: Path, content: bytes) -> None:
    """File, name, folder: each is on the disk before the next. It is the host's own afterwards, whoever wrote it before
    (`replace_file` would leave it to him)."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)  # of a host that was killed
    write_new(fresh, content, mode=0o600)
    fresh.replace(path)
    sync_folder(path.parent)
