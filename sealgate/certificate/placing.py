"""Puts a bundle in its place, all or nothing.

It is written into a hidden directory beside its place, flushed to disk, verified as a worker will verify it, and only
then renamed. A crash leaves a hidden directory, never half a bundle.

Trusts: whoever may write the directory. Never: puts a bundle in place that its `check` refused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from sealgate.ambient import Entropy, random_bytes
from sealgate.durable_files import sync_folder, write_new

Pieces = Mapping[str, Iterable[bytes]]
"""Each file by name, in pieces: what is large need not be in memory at once. A name may have folders before it."""

V = TypeVar("V")


def place_bundle(target: Path, files: Pieces, *, check: Callable[[Path], V]) -> V:
    """Write, check and move; an older bundle there is replaced. Returns what `check` did; raises OSError."""
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=folder))
    try:
        _write(temporary, files)
        checked = check(temporary)
        _move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder)
    return checked


def place_file(directory: Path, name: str, data: bytes, *, entropy: Entropy = random_bytes) -> None:
    """Put one file into a bundle, or a new one in its place; raises OSError.

    The draft stands beside the bundle, not in it: a worker that starts meanwhile finds a whole bundle.
    """
    draft = directory.with_name(f".{directory.name}-{entropy(8).hex()}")
    try:
        write_new(draft, data, mode=0o644)
        draft.replace(directory / name)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(directory)


def _write(directory: Path, files: Pieces) -> None:
    # Readable by the worker, which may run under another user; the directories above decide who gets this far.
    directory.chmod(0o755)
    for name, pieces in files.items():
        path = directory / name
        _make_folders(directory, path.parent)
        with path.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(0o644)
    sync_folder(directory)


def _make_folders(directory: Path, folder: Path) -> None:
    if folder != directory and not folder.exists():
        _make_folders(directory, folder.parent)
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)


def _move(temporary: Path, target: Path) -> None:
    """Put the new bundle where it belongs. An old one is moved aside first and deleted last."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        if target.exists():
            target.rename(aside / "old")
        try:
            temporary.rename(target)
        except OSError:
            if (aside / "old").exists():
                (aside / "old").rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
