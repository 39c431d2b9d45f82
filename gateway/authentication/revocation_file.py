"""Changes to `tokens/revoked.toml`, by the operator's commands.

Writers take turns by a lock on the folder. The new file is complete and on disk before it takes the old one's place,
with the old one's owner and mode (the first one: those of issuers.toml), so that a gateway that runs as another user
can go on reading it. Entries that are over are left out. Trusts: whoever may write the folder. Never: leaves half a
file, widens who may read it, or goes on from a file that it cannot read.
"""

from __future__ import annotations

import datetime
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.authentication.issuers import FILE as ISSUERS_FILE
from gateway.authentication.revocations import FILE, Revocation, parse_revocations
from gateway.file_changes import locked, sync_folder
from gateway.limits import MAX_REVOCATIONS, MAX_REVOKED_FILE
from sealgate.ambient import Entropy, random_bytes
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
            _replace(path, data, entropy=entropy)
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


def _replace(path: Path, data: bytes, *, entropy: Entropy) -> None:
    status = _model_status(path)
    draft = path.with_name(f".{path.name}.{entropy(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _keep_owner(file.fileno(), status, path)
            os.fchmod(file.fileno(), status.st_mode & 0o666)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _model_status(path: Path) -> os.stat_result:
    """Whose owner and mode the new file takes: the old one's, or those of the file beside it that gateways read."""
    return (path if path.exists() else path.with_name(ISSUERS_FILE)).stat()


def _keep_owner(descriptor: int, status: os.stat_result, path: Path) -> None:
    """Whoever read the file must go on reading it: a gateway that cannot refuses every token."""
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) == (status.st_uid, status.st_gid):
        return
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except PermissionError as error:
        if not status.st_mode & stat.S_IROTH:
            raise ConfigurationError(
                f"{path} must be written by its owner, user {status.st_uid}, or by root"
            ) from error
