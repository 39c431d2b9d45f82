"""The memory of used proofs: one use in all processes, bounded, closed when it cannot remember, new after every end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.authentication.nonces import Nonces
from gateway.authentication.proofs import _LOCK, DATABASE, ProofStore
from gateway.errors import Unauthenticated
from sealgate.ambient import now_us
from sealgate.errors import ConfigurationError

LATER_US = 60_000_000


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., ProofStore]]:
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> ProofStore:
            store = ProofStore(tmp_path / "gateway", **settings)
            stack.callback(store.close)
            return store

        yield make


def use(store: ProofStore, jti: str, *, jkt: str = "key", expires_us: int | None = None) -> str:
    """What became of it: "" or the reason."""
    try:
        until = now_us() + LATER_US if expires_us is None else expires_us
        asyncio.run(store.remember(jkt=jkt, jti=jti, expires_us=until))
    except Unauthenticated as error:
        return error.code
    return ""


def test_a_proof_counts_once(open_store: Callable[..., ProofStore]) -> None:
    store = open_store()
    assert use(store, "a") == ""
    assert use(store, "a") == "proof-replayed"
    assert use(store, "a", jkt="another key") == ""
    assert use(store, "b") == ""


def test_a_proof_counts_once_in_all_stores_that_are_open(open_store: Callable[..., ProofStore]) -> None:
    one, other = open_store(), open_store()
    assert one.nonce_key == other.nonce_key
    assert use(one, "a") == ""
    assert use(other, "a") == "proof-replayed"


def _race(folder: str, names: list[str], go: Any, won: Any) -> None:
    store = ProofStore(Path(folder))
    go.wait()
    won.put([name for name in names if use(store, name) == ""])
    store.close()


def test_each_proof_counts_once_when_processes_race(open_store: Callable[..., ProofStore], tmp_path: Path) -> None:
    open_store()
    context = multiprocessing.get_context("spawn")
    go, won = context.Event(), context.Queue()
    names = [f"proof {number}" for number in range(300)]
    racers = [context.Process(target=_race, args=(str(tmp_path / "gateway"), names, go, won)) for _ in range(3)]
    for racer in racers:
        racer.start()
    go.set()
    lists = [won.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
    assert sorted(name for winners in lists for name in winners) == sorted(names)


def test_who_must_wait_for_another_process_waits_and_then_knows(
    open_store: Callable[..., ProofStore], tmp_path: Path
) -> None:
    store = open_store()
    writer = sqlite3.connect(tmp_path / "gateway" / DATABASE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")

    async def both() -> None:
        asked = asyncio.ensure_future(store.remember(jkt="key", jti="a", expires_us=now_us() + LATER_US))
        for _ in range(3):  # the loop goes on meanwhile
            await asyncio.sleep(0)
        assert not asked.done()
        writer.execute("COMMIT")
        await asked

    asyncio.run(both())
    assert use(store, "a") == "proof-replayed"
    writer.close()


def test_who_waits_too_long_is_refused(open_store: Callable[..., ProofStore], tmp_path: Path) -> None:
    store = open_store(wait_s=0.05)
    writer = sqlite3.connect(tmp_path / "gateway" / DATABASE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert use(store, "a") == "proof-store-unavailable"
    writer.execute("ROLLBACK")
    writer.close()
    assert use(store, "a") == ""


def test_expired_proofs_make_room(open_store: Callable[..., ProofStore], tmp_path: Path) -> None:
    now = [now_us()]
    store = open_store(clock=lambda: now[0])
    for number in range(50):
        assert use(store, str(number), expires_us=now[0] + 1_000_000) == ""
    now[0] += 2_000_000
    for number in range(50):
        assert use(store, f"later {number}", expires_us=now[0] + 1_000_000) == ""
    reader = sqlite3.connect(tmp_path / "gateway" / DATABASE)
    assert reader.execute("SELECT count(*) FROM used").fetchone() == (50,)
    reader.close()


def test_a_full_store_refuses_and_recovers(open_store: Callable[..., ProofStore], tmp_path: Path) -> None:
    now = [now_us()]
    store = open_store(clock=lambda: now[0], pages_max=16)
    number = 0
    while (outcome := use(store, str(number), expires_us=now[0] + 1_000_000)) == "":
        number += 1
        assert number < 5000, "it never fills up"
    assert outcome == "proof-store-full"
    assert number > 100
    assert use(store, "0") == "proof-replayed"  # it forgot none
    assert (tmp_path / "gateway" / DATABASE).stat().st_size <= 16 * 4096
    now[0] += 2_000_000
    assert use(store, "new") in ("", "proof-store-full")  # what it forgets first makes the room
    assert use(store, "newer") == ""
    assert use(store, "newer") == "proof-replayed"


def test_a_store_that_nobody_had_open_begins_anew(open_store: Callable[..., ProofStore], tmp_path: Path) -> None:
    """After a power failure the newest uses may be lost: they cannot be repeated, because their nonces are void."""
    store = open_store()
    assert use(store, "a") == ""
    nonce = Nonces(store.nonce_key).current()
    store.close()
    again = open_store()
    assert again.nonce_key != store.nonce_key
    assert not Nonces(again.nonce_key).counts(nonce)
    assert use(again, "a") == ""


def test_a_process_that_ends_takes_nothing_along(open_store: Callable[..., ProofStore]) -> None:
    first, second = open_store(), open_store()
    assert use(first, "a") == ""
    first.close()
    third = open_store()
    assert third.nonce_key == second.nonce_key
    assert use(third, "a") == "proof-replayed"


def _die(folder: str) -> None:
    store = ProofStore(Path(folder))
    assert use(store, "killed") == ""
    os.kill(os.getpid(), 9)


def test_a_killed_process_forgets_nothing(open_store: Callable[..., ProofStore], tmp_path: Path) -> None:
    store = open_store()
    child = multiprocessing.get_context("spawn").Process(target=_die, args=(str(tmp_path / "gateway"),))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert use(store, "killed") == "proof-replayed"


@pytest.mark.parametrize("remains", [b"", b"no database at all" * 500])
def test_what_a_crash_left_is_not_read(open_store: Callable[..., ProofStore], tmp_path: Path, remains: bytes) -> None:
    folder = tmp_path / "gateway"
    folder.mkdir()
    (folder / DATABASE).write_bytes(remains)
    (folder / f"{DATABASE}-wal").write_bytes(remains)
    assert use(open_store(), "a") == ""


def test_a_file_that_is_taken_away_lets_no_proof_count_twice(
    open_store: Callable[..., ProofStore], tmp_path: Path
) -> None:
    """Who has it open goes on with it; who opens a new one hands out other nonces: no proof counts in both."""
    store = open_store()
    assert use(store, "a") == ""
    for path in (tmp_path / "gateway").iterdir():
        path.unlink()
    assert use(store, "a") == "proof-replayed"
    other = open_store()
    assert other.nonce_key != store.nonce_key


def test_a_closed_store_refuses(open_store: Callable[..., ProofStore]) -> None:
    store = open_store()
    store.close()
    store.close()
    assert use(store, "a") == "proof-store-unavailable"


def test_nobody_else_can_read_it(open_store: Callable[..., ProofStore], tmp_path: Path) -> None:
    assert use(open_store(), "a") == ""
    assert (tmp_path / "gateway").stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "gateway").iterdir()} == {0}


def test_a_folder_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gateway").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"cannot be used .* must own it") as caught:
        ProofStore(tmp_path / "gateway")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["no key", "no database"])
def test_a_store_that_cannot_be_used_is_refused_and_left_closed(
    open_store: Callable[..., ProofStore], tmp_path: Path, how: str
) -> None:
    open_store().close()
    path = tmp_path / "gateway" / DATABASE
    held = os.open(path.with_name(_LOCK), os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_SH)  # as another process of the gateway does: the store is not begun anew
    if how == "no key":
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("DELETE FROM nonce_key")
    else:
        path.write_bytes(b"this is no database, and long enough to be looked at as one" * 200)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigurationError, match="cannot be used") as refused:
        ProofStore(tmp_path / "gateway")
    assert refused.tb, "and all that it had opened is still there"
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(held)
