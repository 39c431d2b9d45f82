"""Changing files that a running gateway looks at: one writer at a time, each file whole or as it was.

Trusts: whoever may write the folder. Never: leaves a file open to more readers than before, or half of one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sealgate.ambient import Entropy, random_bytes


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other command changes what is in the folder; hold it until the end of the block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, new_mode: int, entropy: Entropy = random_bytes) -> None:
    """Put `data` in the place of the file, durably. A file that was there keeps its mode and owner; a new one gets
    `new_mode` and the owner of its folder."""
    status = path.stat() if path.exists() else None
    mode = new_mode if status is None else status.st_mode & 0o666
    draft = path.with_name(f".{path.name}.{entropy(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _give(file.fileno(), path.parent.stat() if status is None else status)
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Make the folder if it is not there, with the mode and owner of the one that it is in."""
    if path.is_dir():
        return
    status = path.parent.stat()
    path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _give(descriptor, status)
        os.fchmod(descriptor, status.st_mode & 0o777)
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


def _give(descriptor: int, status: os.stat_result) -> None:
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        with suppress(PermissionError):  # not root: the writer is the owner
            os.fchown(descriptor, status.st_uid, status.st_gid)
