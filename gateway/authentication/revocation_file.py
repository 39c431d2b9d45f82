"""Changes to `tokens/revoked.toml`, by the operator's commands.

Writers take turns by a lock on the folder. The new file is complete and on disk before it takes the old one's place,
with the old one's owner and mode (the first one: those of issuers.toml), so that a gateway that runs as another user
can go on reading it. Entries that are over are left out. Trusts: whoever may write the folder. Never: leaves half a
file, widens who may read it, or goes on from a file that it cannot read.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.authentication.issuers import FILE as ISSUERS_FILE
from gateway.authentication.revocations import FILE, Revocation, parse_revocations
from gateway.limits import MAX_REVOCATIONS, MAX_REVOKED_FILE
from sealgate.ambient import Entropy, random_bytes
from sealgate.durable_files import locked, replace_file
from sealgate.errors import ConfigurationError

Entries = tuple[Revocation, ...]

_HEADER = """\
# Tokens that are refused although nothing else is wrong with them. Written by `sealgate token revoke` and `restore`;
# looked at on every request. Comments do not survive the next change. Every setting: docs/operations.md.
"""


def read_revocations(folder: Path) -> Entries:
    """The entries as they are, those that are over too. Raises ConfigurationError."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_REVOKED_FILE + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    return parse_revocations(data, name=str(path))


def change_revocations(
    folder: Path, change: Callable[[Entries], Entries], *, now: int, entropy: Entropy = random_bytes
) -> Entries:
    """Replace the entries by what `change` makes of them; in force when this returns. Raises ConfigurationError."""
    path = folder / FILE
    try:
        with locked(folder):
            entries = tuple(entry for entry in change(read_revocations(folder)) if not entry.is_over(now))
            data = render_revocations(entries).encode()
            if len(entries) > MAX_REVOCATIONS or len(data) > MAX_REVOKED_FILE:
                raise ConfigurationError(f"{path} is full: {MAX_REVOCATIONS} entries or {MAX_REVOKED_FILE} bytes")
            parse_revocations(data, name=str(path))
            replace_file(path, data, like=path.with_name(ISSUERS_FILE), new_mode=0o600, entropy=entropy)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    return entries


def render_revocations(entries: Entries) -> str:
    """The file's text."""
    return _HEADER + "".join(f"\n[[revoked]]\n{''.join(_lines(entry))}" for entry in entries)


def _lines(entry: Revocation) -> Iterator[str]:
    for name in entry.__struct_fields__:
        value = getattr(entry, name)
        if isinstance(value, datetime.datetime):
            yield f"{name} = {utc_seconds(value)}\n"
        elif value:
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}\n"


def utc_seconds(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
