"""Files under a running gateway: each change is seen, and what did not change costs a look and no more."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import uvloop

from gateway.authentication.watched_files import WatchedFiles

BYTES = 64


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def watched(folder):
    return WatchedFiles(folder=folder, suffixes=(".pem", ".crl"), files_max=3, bytes_max=BYTES, clock=lambda: 0)


@pytest.fixture
def reads(monkeypatch):
    """Paths, as they are read."""
    found = []
    read = WatchedFiles._read
    monkeypatch.setattr(WatchedFiles, "_read", lambda self, path: found.append(path.name) or read(self, path))
    return found


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_one_turn_of_an_event_loop_looks_once_and_the_next_one_again(watched, folder, monkeypatch, runner):
    looks = []
    look = WatchedFiles._look
    monkeypatch.setattr(WatchedFiles, "_look", lambda self: looks.append(1) or look(self))

    async def ask():
        """As a request does: in a task of its own."""
        return watched.changed()

    async def main():
        assert watched.changed() == {}
        before = len(looks)
        tasks = [asyncio.create_task(ask()) for _ in range(5)]
        assert await asyncio.gather(*tasks) == [None] * 5
        assert len(looks) == before + 1
        (folder / "a.pem").write_bytes(b"1")
        later = asyncio.create_task(ask())  # what arrives after a change meets it
        assert await later == {folder / "a.pem": b"1"}

    runner(main())


def test_every_change_is_told_once(watched, folder):
    assert watched.changed() == {}
    (folder / "a.pem").write_bytes(b"1")
    assert watched.changed() == {folder / "a.pem": b"1"}
    assert watched.changed() is None
    (folder / "a.pem").rename(folder / "b.pem")
    assert watched.changed() == {folder / "b.pem": b"1"}
    (folder / "b.pem").unlink()
    assert watched.changed() == {}


@pytest.mark.parametrize("name", [".a.pem", "a.pem.new", "apem"])
def test_files_that_are_being_made_do_not_count(watched, folder, name):
    (folder / name).write_bytes(b"1")
    assert watched.changed() == {}


def test_what_is_too_much_is_read_once_until_it_changes(watched, folder, reads):
    """It may be many megabytes, and somebody may ask on every request."""
    (folder / "a.pem").write_bytes(b"1" * BYTES)
    (folder / "b.pem").write_bytes(b"1" * (BYTES + 1))
    for _ in range(5):
        with pytest.raises(ValueError, match=r"b\.pem is larger than"):
            watched.changed()
    assert reads == ["a.pem", "b.pem"]
    (folder / "b.pem").write_bytes(b"2")
    assert watched.changed() == {folder / "a.pem": b"1" * BYTES, folder / "b.pem": b"2"}
    for number in range(4):
        (folder / f"{number}.crl").write_bytes(b"3")
    for _ in range(2):
        with pytest.raises(ValueError, match="more than 3 files"):
            watched.changed()
    for number in range(4):
        (folder / f"{number}.crl").unlink()
    assert watched.changed() == {folder / "a.pem": b"1" * BYTES, folder / "b.pem": b"2"}


def test_a_fault_is_tried_again(watched, folder, reads, monkeypatch):
    (folder / "a.pem").write_bytes(b"1")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        for _ in range(2):
            with pytest.raises(OSError, match="Too many"):
                watched.changed()
    assert watched.changed() == {folder / "a.pem": b"1"}
    assert reads == ["a.pem"] * 3


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_changed_a_moment_ago_is_read_again(folder, reads, which):
    """Two changes may fall between two ticks of the file system's clock, also where a tool sets the time back."""
    path = folder / "a.pem"
    path.write_bytes(b"1")
    if which:
        os.utime(path, (1, 1))
    moment = path.stat().st_ctime_ns // 1000
    watched = WatchedFiles(path, files_max=1, bytes_max=BYTES, clock=lambda: moment)
    assert watched.changed() == {path: b"1"}
    assert watched.changed() is None
    assert reads == ["a.pem"] * 2
