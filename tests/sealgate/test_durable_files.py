"""Files that are written for good: who may read them, and what is left when writing fails."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from sealgate import durable_files
from sealgate.durable_files import make_folder, replace_file, write_new
from sealgate.errors import ConfigurationError


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def somebody_elses(monkeypatch):
    """What stands in a folder is another user's, and nothing can be given to him."""

    def denied(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def of_mine(descriptor, own=os.fstat):
        status = own(descriptor)
        return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))

    monkeypatch.setattr(os, "fchown", denied)
    monkeypatch.setattr(os, "fstat", of_mine)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644])
def test_a_new_file_has_its_mode_and_takes_no_place(tmp_path, mode):
    write_new(tmp_path / "file", b"one", mode=mode)
    assert mode_of(tmp_path / "file") == mode
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "file", b"two", mode=mode)
    assert (tmp_path / "file").read_bytes() == b"one"


def test_a_replaced_file_keeps_its_mode_whatever_a_new_one_would_get(tmp_path):
    path, beside = tmp_path / "file", tmp_path / "beside"
    write_new(beside, b"", mode=0o640)
    replace_file(path, b"one", new_mode=0o600, like=beside)
    assert mode_of(path) == 0o640
    path.chmod(0o604)
    replace_file(path, b"two", new_mode=0o600, like=beside)
    assert (mode_of(path), path.read_bytes()) == (0o604, b"two")
    replace_file(tmp_path / "other", b"", new_mode=0o644, like=tmp_path / "none")
    assert mode_of(tmp_path / "other") == 0o644


@pytest.mark.usefixtures("somebody_elses")
def test_what_its_owner_could_not_read_any_more_is_not_written(tmp_path):
    with pytest.raises(ConfigurationError, match="must be written by its owner"):
        replace_file(tmp_path / "file", b"", new_mode=0o600)
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigurationError, match="must be written by its owner"):
        make_folder(tmp_path / "folder")
    assert not any(tmp_path.iterdir())
    replace_file(tmp_path / "file", b"", new_mode=0o644)
    tmp_path.chmod(0o755)
    make_folder(tmp_path / "folder")
    assert mode_of(tmp_path / "folder") == 0o755


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"one", new_mode=0o600)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"two", new_mode=0o600)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
