"""The log as a directory of C2SP tiles, judged by aics-tlog, a verifier in Python that shares no line with ours.

It needs Python 3.12 or newer, which the rest does not; `tests/peers/install.sh` puts it beside the other peers where
one is to be had.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.transparency.notes import parse_checkpoint_text, split_note
from tests.peers.components import require_aics_tlog

Judge = Callable[..., bool]
MANY = 300


@pytest.fixture(scope="module")
def program() -> str:
    return require_aics_tlog()


@pytest.fixture
def tiles(make_sqlite_bench: Any, tmp_path: Path) -> Path:
    """A log of more than a tile, as `/audit/v1/tile/` and `/audit/v1/checkpoint` serve it; its leaves lie beside it."""
    bench = make_sqlite_bench(tmp_path)
    log = bench.open()
    older = log.append(bench.draft(reason="first")).result()
    waiting = [log.append(bench.draft(reason=str(number))) for number in range(MANY)]
    newest = [one.result() for one in waiting][-1]
    log.close()
    root = tmp_path / "tiles"
    reader = bench.reader()
    note = reader.checkpoint()
    size = parse_checkpoint_text(split_note(note)[0]).size
    wanted = {f"tile/0/{index:03d}": (0, index, 256) for index in range(size // 256)}
    wanted[f"tile/0/{size // 256:03d}.p/{size % 256}"] = (0, size // 256, size % 256)
    wanted[f"tile/1/000.p/{size // 256}"] = (1, 0, size // 256)
    for name, (level, index, width) in wanted.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(reader.tile(level, index, width))
    reader.close()
    (root / "checkpoint").write_bytes(note)
    (tmp_path / "older").write_bytes(older.receipt.partition(b"\n\n")[2])
    (tmp_path / "leaf").write_bytes(newest.leaf)
    (tmp_path / "index").write_text(str(newest.index))
    (tmp_path / "vkey").write_text(bench.verifier.vkey + "\n")
    return root


@pytest.fixture
def judge(program: str, tiles: Path) -> Judge:
    def ask(action: str, *words: object) -> bool:
        fixed = ("--tiles", tiles, "--vkey-file", tiles.parent / "vkey")
        command = [program, action, *map(str, (*words, *fixed))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode == 0

    return ask


def spoil(path: Path, at: int = 0) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_it_accepts_the_checkpoint_and_refuses_a_changed_one(judge: Judge, tiles: Path) -> None:
    assert judge("verify-checkpoint")
    spoil(tiles / "checkpoint", (tiles / "checkpoint").read_bytes().index(b"\n") + 1)
    assert not judge("verify-checkpoint")


def test_it_finds_a_record_in_the_tiles_and_no_other(judge: Judge, tiles: Path) -> None:
    leaf, index = tiles.parent / "leaf", int((tiles.parent / "index").read_text())
    assert judge("verify-inclusion", "--leaf", leaf, "--index", index)
    assert not judge("verify-inclusion", "--leaf", leaf, "--index", index - 1)
    spoil(leaf)
    assert not judge("verify-inclusion", "--leaf", leaf, "--index", index)


def test_it_sees_the_log_grow_and_refuses_changed_tiles(judge: Judge, tiles: Path) -> None:
    older = tiles.parent / "older"
    assert judge("verify-consistency", "--old-checkpoint", older)
    spoil(tiles / "tile/0/000")
    assert not judge("verify-consistency", "--old-checkpoint", older)
