"""Files that are on disk when a function returns: new ones, and those that take the place of others, which programs
may be looking at. One writer at a time, where writers hold `locked`.

Trusts: whoever may write the folder. Never: leaves a file open to more readers than before, or half of one in the place
of another.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sealgate.ambient import Entropy, random_bytes
from sealgate.errors import ConfigurationError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other command changes what is in the folder; hold it until the end of the block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Create `path` with `mode`, never wider for a moment. Raises FileExistsError."""
    descriptor = _create(path)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def replace_file(
    path: Path, data: bytes, *, new_mode: int, like: Path | None = None, entropy: Entropy = random_bytes
) -> None:
    """Put `data` in the place of the file. One that was there keeps its mode and owner; a new one gets those of the
    file `like`, or else `new_mode` and the owner of its folder.

    Raises ConfigurationError where whoever reads the file now would not be able to any more.
    """
    model = next((one for one in (path, like) if one is not None and one.exists()), None)
    owner = (path.parent if model is None else model).stat()
    mode = new_mode if model is None else owner.st_mode & 0o666
    draft = path.with_name(f".{path.name}.{entropy(8).hex()}")
    descriptor = _create(draft)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _give(descriptor, owner, mode=mode, path=path)
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Make the folder if it is not there, with the mode and owner of the one that it is in. Raises ConfigurationError
    where whoever reads that one could not read this."""
    if path.is_dir():
        return
    owner = path.parent.stat()
    mode = owner.st_mode & 0o777
    path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _give(descriptor, owner, mode=mode, path=path)
        os.fchmod(descriptor, mode)
    except BaseException:
        path.rmdir()
        raise
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names of files in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _give(descriptor: int, owner: os.stat_result, *, mode: int, path: Path) -> None:
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) == (owner.st_uid, owner.st_gid):
        return
    try:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except PermissionError as error:
        lost = mine.st_uid != owner.st_uid or mode & stat.S_IRGRP
        if lost and not mode & stat.S_IROTH:
            raise ConfigurationError(f"{path} must be written by its owner, user {owner.st_uid}, or by root") from error
