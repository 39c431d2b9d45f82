"""A key for each person: what no copy of the database can give back, and what a crash, a loss or a stranger changes."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from audit.erasure import erasing
from audit.errors import AppendRefused, LogDamaged, LogUnavailable, QueryRefused
from audit.log import AuditLog
from audit.person_keys import PersonKey, PersonKeys
from audit.subjects import Identity, Subjects
from sealgate.ambient import random_bytes
from sealgate.errors import ConfigurationError
from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.record import Record
from tests.audit.conftest import ORIGIN, SIGNER, SUBJECTS_KEY, open_files

PEOPLE = ("alice", "bob")


def seen(bench: Any, log: Any, *names: str) -> list[str]:
    refs = [log.actor("clinic", name) for name in names]
    for ref in refs:
        log.append(bench.draft(actor=ref)).result()
    return refs


def erase(log: Any, subject: str = "alice") -> Any:
    effect = erasing(log.subjects, tenant="clinic", subject=subject, ground="objection")
    return log.append(Record(kind="erasure.completed"), effect).result()


def rows(bench: Any) -> dict[str, tuple[bytes, bytes, int]]:
    with contextlib.closing(sqlite3.connect(bench.people)) as raw:
        return {ref: tuple(rest) for ref, *rest in raw.execute("SELECT ref, handle, wrapped, leaving FROM person")}


def key_of(log: Any, ref: str) -> PersonKey:
    found = log.subjects._keys.by_ref(ref)
    assert found is not None
    return found


def sealed_of(bench: Any, ref: str) -> bytes:
    return bytes(bench.sql("SELECT sealed FROM subject WHERE ref = ?", ref)[0][0])


def count(folder: Path, values: list[bytes]) -> int:
    return sum(path.read_bytes().count(value) for path in folder.rglob("*") if path.is_file() for value in values)


# What is left of somebody who was erased ------------------------------------------------------------------------------


def test_each_person_has_a_key_and_it_alone_opens_the_name(bench, log) -> None:
    alice, bob = seen(bench, log, *PEOPLE)
    keys = [key_of(log, ref) for ref in (alice, bob)]
    assert keys[0].key != keys[1].key
    sealed = sealed_of(bench, alice)
    opened = AESGCM(keys[0].key).decrypt(sealed[:12], sealed[12:], alice.encode())
    assert opened == canonical_json(Identity(tenant="clinic", subject="alice"))
    with pytest.raises(InvalidTag):
        AESGCM(keys[1].key).decrypt(sealed[:12], sealed[12:], alice.encode())
    assert bench.people.stat().st_mode & 0o777 == 0o600
    assert "key=" not in repr(keys[0])


def test_a_copy_of_the_database_from_before_names_nobody_who_was_erased(bench, log) -> None:
    """With the subjects key and the file of keys as it is now: what a backup, or an old export of it, is worth."""
    alice, bob = seen(bench, log, *PEOPLE)
    log.close()
    copy = bench.save()
    again = bench.open()
    erase(again)
    again.close()
    bench.restore(copy)
    reading = AuditLog.open(
        bench.url, signer=SIGNER, subjects_key=SUBJECTS_KEY, person_keys=bench.people, origin=ORIGIN
    )  # fmt: skip
    with reading, reading.reading() as connection:
        assert reading.subjects.resolve(connection, bob).subject == "bob"
        assert sealed_of(bench, alice)  # it is in the copy
        with pytest.raises(QueryRefused):
            reading.subjects.resolve(connection, alice)
        assert reading.subjects.find(connection, "clinic", "alice") is None
        assert reading.actor("clinic", "alice") != alice


def test_what_a_server_keeps_of_an_erased_person_nobody_can_open(postgres_bench, tmp_path) -> None:
    """Dead rows and the write-ahead log in PostgreSQL's own files, before and after VACUUM."""
    bench, log = postgres_bench, postgres_bench.open()
    alice, bob = seen(bench, log, *PEOPLE)
    data = bench.store.server.folder / "data"
    key, sealed = key_of(log, alice), sealed_of(bench, alice)
    handle, wrapped, _ = rows(bench)[alice]
    secrets = [key.key, handle, wrapped, b"alice", hmac.digest(SUBJECTS_KEY, b"alice", hashlib.sha256)]
    for end in ("CHECKPOINT", "VACUUM subject", "CHECKPOINT"):
        bench.sql(end)
    assert count(data, [sealed]) > 0
    assert count(tmp_path, [wrapped, handle]) > 0
    erase(log)
    assert log.subjects.scrub()
    bench.sql("CHECKPOINT")
    assert count(data, [sealed]) > 0, "a server's files keep the ciphertext: that is what the key is for"
    assert count(data, secrets) == 0
    assert count(tmp_path, [wrapped, handle, key.key]) == 0
    for end in ("VACUUM subject", "CHECKPOINT"):
        bench.sql(end)
    assert count(data, secrets) == 0
    assert count(tmp_path, [rows(bench)[bob][1]]) == 1


def test_the_files_of_sqlite_hold_neither_name_nor_key(sqlite_bench) -> None:
    bench, log = sqlite_bench, sqlite_bench.open()
    (alice,) = seen(bench, log, "alice")
    key, sealed = key_of(log, alice), sealed_of(bench, alice)
    handle, wrapped, _ = rows(bench)[alice]
    folder = bench.path.parent
    assert count(folder, [sealed]) > 0
    assert count(folder, [wrapped]) > 0
    assert count(folder, [key.key, b"alice"]) == 0
    erase(log)
    assert log.subjects.scrub()
    log._hold.engine.connect().close()
    log.close()  # what the writer's own checkpoint does to the write-ahead log, too
    assert count(folder, [sealed, handle, wrapped, key.key, b"alice"]) == 0


# Crashes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deleted", [True, False])
def test_a_deletion_that_a_crash_cut_off_is_ended_by_the_next_start(bench, log, deleted: bool) -> None:
    """The mark is there; the transaction was durable, or it was not."""
    alice, bob = seen(bench, log, *PEOPLE)
    log.subjects._keys.mark([alice], leaving=True)
    log.close()
    if deleted:
        bench.sql("DELETE FROM subject WHERE ref = ?", alice)
    again = bench.open()
    assert set(rows(bench)) == ({bob} if deleted else {alice, bob})
    assert all(not leaving for _, _, leaving in rows(bench).values())
    assert (again.actor("clinic", "alice") == alice) is not deleted


def test_a_key_whose_row_never_came_to_be_is_replaced(bench, log) -> None:
    seen(bench, log, "bob")
    content, handle = log.subjects._name("clinic", "alice")
    log.subjects._keys.put([PersonKey("f" * 32, handle, b"k" * 32)])
    (alice,) = seen(bench, log, "alice")
    assert alice != "f" * 32
    assert key_of(log, alice).handle == handle
    assert len(rows(bench)) == 2
    assert content not in bench.people.read_bytes()


def test_an_erasure_that_is_refused_after_all_keeps_row_and_key(bench, log) -> None:
    (alice,) = seen(bench, log, "alice")

    def erase_and_fail(connection: Any, draft: Record) -> Record:
        log.subjects.delete(connection, alice)
        raise AppendRefused("no", code="record-malformed")

    with pytest.raises(AppendRefused):
        log.append(Record(kind="erasure.completed"), erase_and_fail).result()
    assert log.actor("clinic", "alice") == alice
    assert rows(bench)[alice][2] == 0
    assert erase(log).record.kind == "erasure.completed"
    assert rows(bench) == {}


# Logs from before, losses, strangers ----------------------------------------------------------------------------------


def old_row(ref: str, subject: str) -> tuple[str, bytes, bytes, int]:
    """As releases wrote it that had one key for all."""
    content = canonical_json(Identity(tenant="clinic", subject=subject))
    lookup = hmac.digest(
        hmac.digest(SUBJECTS_KEY, b"sealgate subject lookup v1\x00", hashlib.sha256), content, hashlib.sha256
    )
    seal = AESGCM(hmac.digest(SUBJECTS_KEY, b"sealgate subject seal v1\x00", hashlib.sha256))
    return ref, lookup, b"n" * 12 + seal.encrypt(b"n" * 12, content, ref.encode()), 7


def test_the_people_of_an_older_log_get_keys_when_it_is_opened(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr("audit.subjects.PRUNE_SUBJECTS", 3)
    log.close()
    bench.people.unlink()
    old = [old_row(f"{number:032x}", f"person {number}") for number in range(8)]
    for row in old:
        bench.sql("INSERT INTO subject VALUES (?, ?, ?, ?)", *row)
    again = bench.open()
    assert [again.actor("clinic", f"person {number}") for number in range(8)] == [ref for ref, *_ in old]
    found = bench.sql("SELECT ref, lookup, sealed, created_us FROM subject ORDER BY ref")
    assert [(ref, lookup, made) for ref, lookup, _, made in found] == [(ref, None, 7) for ref, *_ in old]
    assert not {bytes(sealed) for _, _, sealed, _ in found} & {sealed for _, _, sealed, _ in old}
    erase(again, "person 3")
    assert len(rows(bench)) == 7


def test_an_older_row_under_another_persons_lookup_is_damage(bench, log) -> None:
    log.close()
    bench.people.unlink()
    (ref, _, sealed, made), (_, lookup, _, _) = old_row("a" * 32, "alice"), old_row("b" * 32, "bob")
    bench.sql("INSERT INTO subject VALUES (?, ?, ?, ?)", ref, lookup, sealed, made)
    with pytest.raises(LogDamaged, match="somebody else"):
        bench.open()


def test_without_the_file_the_log_does_not_open_and_nobody_is_forgotten_by_accident(bench, log) -> None:
    (alice,) = seen(bench, log, "alice")
    log.close()
    kept = bench.people.rename(bench.people.with_name("kept"))
    with pytest.raises(ConfigurationError, match="restore its newest copy"):
        bench.open()
    assert not bench.people.exists()
    kept.rename(bench.people)
    assert bench.open().actor("clinic", "alice") == alice


def test_who_lost_it_for_good_says_so_with_an_empty_file(bench, log) -> None:
    (alice,) = seen(bench, log, "alice")
    log.close()
    bench.people.unlink()
    bench.people.touch()
    again = bench.open()
    (new,) = seen(bench, again, "alice")
    assert new != alice
    with again.reading() as connection, pytest.raises(QueryRefused):
        again.subjects.resolve(connection, alice)


def test_a_file_under_another_key_and_one_that_is_none_are_refused(bench, log) -> None:
    seen(bench, log, "alice")
    log.close()
    with pytest.raises(ConfigurationError, match="another subjects key"):
        bench.open(subjects_key=b"\x77" * 32)
    bench.people.write_bytes(b"this is no database, and long enough to be looked at as one" * 20)
    with pytest.raises(ConfigurationError, match="cannot be used") as refused:
        bench.open()
    assert refused.tb, "and all that it had opened is still there"
    assert open_files(bench.people.parent) == []


@pytest.mark.parametrize("column", ["wrapped", "handle"])
def test_who_writes_the_file_exchanges_nobody(bench, log, column: str) -> None:
    """A row that was changed, or was another's, opens nothing and stands for nobody."""
    alice, bob = seen(bench, log, *PEOPLE)
    log.close()
    found = rows(bench)
    place = {"handle": 0, "wrapped": 1}[column]
    with contextlib.closing(sqlite3.connect(bench.people, isolation_level=None)) as raw:
        raw.execute(f"UPDATE person SET {column} = x'00' WHERE ref = ?", (bob,))
        raw.execute(f"UPDATE person SET {column} = ? WHERE ref = ?", (found[bob][place], alice))
    again = bench.open()
    with again.reading() as connection, pytest.raises(LogDamaged, match="not as it was written"):
        again.subjects.resolve(connection, alice)
    with pytest.raises(LogDamaged, match="not as it was written"):
        again.actor("clinic", "bob" if column == "handle" else "alice")


def test_a_file_that_cannot_be_read_refuses_callers_and_fails_no_log(bench, log) -> None:
    (alice,) = seen(bench, log, "alice")
    log.close()
    again = bench.open()
    again.subjects._keys._connection.execute("ALTER TABLE person RENAME TO elsewhere")
    with pytest.raises(LogUnavailable):
        again.actor("clinic", "alice")
    again.append(bench.draft()).result()
    again.subjects._keys._connection.execute("ALTER TABLE elsewhere RENAME TO person")
    assert again.actor("clinic", "alice") == alice


def test_keys_that_cannot_be_written_fail_the_log_before_a_row_uses_them(bench, log) -> None:
    seen(bench, log, "alice")
    log.actor("clinic", "bob")
    log.subjects._keys._connection.execute(
        "CREATE TRIGGER no BEFORE INSERT ON person BEGIN SELECT RAISE(ABORT, 'x'); END"
    )
    with pytest.raises(LogUnavailable):
        log.append(bench.draft()).result()
    assert not log.state.ok
    assert len(bench.sql("SELECT ref FROM subject")) == 1


def test_who_copies_the_file_keeps_a_deleted_key_there_for_a_while(bench, log, monkeypatch: Any) -> None:
    seen(bench, log, *PEOPLE)
    log.subjects._keys._connection.execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(bench.people, isolation_level=None)) as copying:
        copying.execute("BEGIN")
        copying.execute("SELECT count(*) FROM person").fetchone()
        erase(log)
        assert not log.subjects.scrub()
    assert log.subjects.scrub()


def test_a_log_in_no_file_must_be_told_where(postgres_bench) -> None:
    with pytest.raises(ConfigurationError, match="must be told where"):
        postgres_bench.open(person_keys=None)


def test_beside_a_log_in_a_file_it_is_found_by_itself(sqlite_bench) -> None:
    log = sqlite_bench.open(person_keys=None)
    seen(sqlite_bench, log, "alice")
    assert sqlite_bench.path.with_name("audit.sqlite.people").exists()


def test_the_key_is_of_the_right_length(tmp_path: Path) -> None:
    keys = PersonKeys(tmp_path / "people", SUBJECTS_KEY, entropy=random_bytes)
    keys.put([])
    keys.close()
    keys.close()
    with pytest.raises(ConfigurationError, match="32 bytes"):
        Subjects(b"short", keys=tmp_path / "people", reader=None, clock=lambda: 0, entropy=random_bytes)  # type: ignore[arg-type]
