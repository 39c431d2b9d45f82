"""Files that operators change under a running gateway: read whole, and again whenever they may have changed.

A question costs one stat for each file and folder, and nothing where the same turn of an event loop asked before: what
a turn works on was all read from the network before its first question, so each request is judged by the files as they
are after it arrived. A file that was changed within the last moments is read again by the next turn too: two changes
may fall between two ticks of the file system's clock.
Trusts: the file system's times and numbers. Never: reads more than its bounds, or half of what it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

from gateway.limits import FRESH_FILE_US
from sealgate.ambient import Clock, now_us

Contents = dict[Path, bytes]
_Stamp = tuple[tuple[int, ...] | None, ...]


class WatchedFiles:
    """Some files by name, where they are there, and the files of one folder by suffix."""

    def __init__(
        self,
        *files: Path,
        folder: Path | None = None,
        suffixes: tuple[str, ...] = (),
        files_max: int,
        bytes_max: int,
        clock: Clock = now_us,
    ) -> None:
        self._files = files
        self._folder = folder
        self._suffixes = suffixes
        self._files_max = files_max
        self._bytes_max = bytes_max
        self._clock = clock
        self._known: tuple[Path, ...] = ()
        self._watched = self._paths()
        self._stamp: _Stamp | None = None  # None: the next question reads
        self._fresh = False
        self._digest = b""
        self._refused = ""  # why what is there is beyond the bounds
        self._looked = False  # in this turn of the event loop, and nothing had changed

    def changed(self) -> Contents | None:
        """Everything, if anything is not as it was at the last question; else None. Raises OSError, and then the next
        question reads again, or ValueError for what is too much, and then it is not read again before it changes."""
        if self._looked:
            return None
        stamp = self._look()
        if stamp == self._stamp and not self._fresh:
            if self._refused:
                raise ValueError(self._refused)
            self._keep_for_this_turn()
            return None
        before, self._stamp, self._digest, self._refused = self._digest, None, b"", ""
        contents: Contents = {}
        try:
            known = self._list()
            if known != self._known:
                self._known = known
                self._watched = self._paths()
                stamp = self._look()
            contents = {path: self._read(path) for path in known}
        except ValueError as error:
            self._refused = str(error)
        now = self._clock() * 1000
        self._fresh = any(
            abs(now - moment) < FRESH_FILE_US * 1000 for mark in stamp if mark is not None for moment in mark[:2]
        )
        self._stamp = stamp
        if self._refused:
            raise ValueError(self._refused)
        self._digest = _digest(contents)
        return None if self._digest == before else contents

    def _keep_for_this_turn(self) -> None:
        """What is read from the network from now on is worked on behind what is put in the loop's queue here."""
        with contextlib.suppress(RuntimeError):  # commands ask without a loop: they look each time
            asyncio.get_running_loop().call_soon(self._next_turn)
            self._looked = True

    def _next_turn(self) -> None:
        self._looked = False

    def _paths(self) -> tuple[str, ...]:
        folder = () if self._folder is None else (self._folder,)
        return tuple(dict.fromkeys(os.fspath(path) for path in (*self._files, *folder, *self._known)))

    def _look(self) -> _Stamp:
        return tuple([_mark(path) for path in self._watched])

    def _list(self) -> tuple[Path, ...]:
        found = [path for path in self._files if _mark(os.fspath(path)) is not None]
        if self._folder is not None and _mark(os.fspath(self._folder)) is not None:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(self._suffixes) and not entry.name.startswith("."):
                        found.append(Path(entry.path))
                    if len(found) > self._files_max:
                        raise ValueError(f"{self._folder} has more than {self._files_max} files")
        return tuple(sorted(found))

    def _read(self, path: Path) -> bytes:
        with path.open("rb") as file:
            data = file.read(self._bytes_max + 1)
        if len(data) > self._bytes_max:
            raise ValueError(f"{path} is larger than {self._bytes_max} bytes")
        return data


def _mark(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _digest(contents: Contents) -> bytes:
    digest = hashlib.sha256(b"files")  # never the digest of nothing: the first reading is always news
    for path, data in contents.items():
        name = os.fsencode(path)
        digest.update(len(name).to_bytes(4, "big") + name + len(data).to_bytes(8, "big") + data)
    return digest.digest()
