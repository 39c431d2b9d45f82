"""Pseudonyms: stable, random, durable with the next append, sealed, deletable."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit import subjects as subjects_module
from audit.errors import LogDamaged, LogUnavailable, QueryRefused
from audit.subjects import Subjects
from sealgate.errors import LogError


def stored(bench: Any) -> list[tuple[str, bytes, bytes]]:
    return bench.sql("SELECT ref, lookup, sealed FROM subject")


def test_stable_within_a_run_and_across_runs(bench, log) -> None:
    first = log.actor("clinic", "alice")
    assert log.actor("clinic", "alice") == first
    assert len({first, log.actor("clinic", "bob"), log.actor("lab", "alice")}) == 3
    log.append(bench.draft(actor=first)).result()
    assert log.actor("clinic", "alice") == first
    log.close()
    again = bench.open()
    assert again.actor("clinic", "alice") == first


def test_durable_no_later_than_the_next_append(bench, log) -> None:
    ref = log.actor("clinic", "alice")
    assert stored(bench) == []
    log.append(bench.draft(actor=ref)).result()
    assert [row[0] for row in stored(bench)] == [ref]


def test_even_when_that_append_is_refused(bench, log) -> None:
    ref = log.actor("clinic", "alice")
    with pytest.raises(Exception, match="leaf"):
        log.append(bench.draft("made.up")).result()
    log.append(bench.draft()).result()
    assert [row[0] for row in stored(bench)] == [ref]


def test_names_of_which_nothing_is_recorded_are_bounded(bench, log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that was taken over says any number of names, of requests that the log refuses: each would stay in
    memory, and fill the disk below its reserve with the next record that is taken."""
    monkeypatch.setattr(subjects_module, "MAX_NEW_SUBJECTS", 3)
    first = [log.actor("clinic", f"nobody-{number}") for number in range(3)]
    with pytest.raises(LogUnavailable) as refused:
        log.actor("clinic", "nobody-3")
    assert refused.value.code == "queue-full"
    assert log.actor("clinic", "nobody-0") == first[0]  # who waits is known
    log.append(bench.draft()).result()
    assert len(log.actor("clinic", "nobody-3")) == 32
    assert sorted(row[0] for row in stored(bench)) == sorted(first)


def test_nothing_of_the_person_is_readable(sqlite_bench) -> None:
    bench, log = sqlite_bench, sqlite_bench.open()
    log.append(bench.draft(actor=log.actor("clinic-of-hope", "alice@example.org"))).result()
    log.close()
    for path in bench.path.parent.iterdir():
        content = path.read_bytes()
        assert b"alice" not in content
        assert b"clinic-of-hope" not in content


def test_nothing_in_the_database_follows_from_the_person(bench, log, tmp_path, make_bench) -> None:
    """Else a guess could be tested with a copy of the database, long after the person was erased."""
    log.append(bench.draft(actor=log.actor("t", "alice"))).result()
    (tmp_path / "other").mkdir()
    other = make_bench(tmp_path / "other")
    twin = other.open()
    twin.append(other.draft(actor=twin.actor("t", "alice"))).result()
    (mine,), (theirs,) = stored(bench), stored(other)
    assert mine[0] != theirs[0]
    assert mine[1] is theirs[1] is None
    assert mine[2] != theirs[2]
    other.close()


def test_identities_resolve_until_deleted(bench, log) -> None:
    ref = log.actor("clinic", "alice")
    log.append(bench.draft(actor=ref)).result()
    subjects: Subjects = log._subjects
    engine = log._hold.engine
    with engine.begin() as connection:
        assert subjects.resolve(connection, ref).subject == "alice"
        subjects.delete(connection, ref)
        with pytest.raises(QueryRefused):
            subjects.resolve(connection, ref)
    subjects.written([])
    assert stored(bench) == []
    assert log.actor("clinic", "alice") != ref


def test_an_altered_or_exchanged_row_does_not_resolve(bench, log) -> None:
    alice, bob = log.actor("clinic", "alice"), log.actor("clinic", "bob")
    log.append(bench.draft()).result()
    rows = {ref: sealed for ref, _, sealed in stored(bench)}
    bench.sql("UPDATE subject SET sealed = ? WHERE ref = ?", rows[bob], alice)
    bench.sql("UPDATE subject SET sealed = ? WHERE ref = ?", rows[bob][:-1] + b"x", bob)
    with log._hold.engine.begin() as connection:
        for ref in (alice, bob):
            with pytest.raises(LogError):
                log._subjects.resolve(connection, ref)


def test_nobodys_doings_are_recorded_under_another_persons_pseudonym(bench, log) -> None:
    alice, bob = log.actor("clinic", "alice"), log.actor("clinic", "bob")
    log.append(bench.draft()).result()
    log.close()
    rows = {ref: sealed for ref, _, sealed in stored(bench)}
    bench.sql("UPDATE subject SET sealed = ? WHERE ref = ?", rows[bob], alice)
    bench.sql("UPDATE subject SET sealed = ? WHERE ref = ?", rows[alice], bob)
    again = bench.open()
    for name in ("alice", "bob"):
        with pytest.raises(LogDamaged, match="does not open"):
            again.actor("clinic", name)
    again.append(bench.draft(actor=again.actor("clinic", "carol"))).result()  # others are not concerned


def test_many_threads_get_one_pseudonym(bench, log) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        for _ in range(20):
            found.append(log.actor("clinic", "alice"))
            log.append(bench.draft(actor=found[-1])).result()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(stored(bench)) == 1


def test_the_cache_is_bounded_and_the_table_remembers(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(subjects_module, "MAX_CACHED_SUBJECTS", 3)
    refs = [log.actor("clinic", f"person {number}") for number in range(20)]
    log.append(bench.draft()).result()
    assert [log.actor("clinic", f"person {number}") for number in range(20)] == refs
    assert len(log._subjects._cache) == 3


def test_few_names_are_held_and_none_beyond_an_erasure(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(subjects_module, "MAX_NAMED_SUBJECTS", 3)
    subjects: Subjects = log._subjects
    refs = [log.actor("clinic", f"person {number}") for number in range(5)]
    assert 0 < len(subjects._names) <= 3
    log.append(bench.draft()).result()
    assert [log.actor("clinic", f"person {number}") for number in range(5)] == refs
    with log._hold.engine.begin() as connection:
        subjects.delete(connection, refs[4])
    subjects.written([])
    assert not subjects._names
    assert log.actor("clinic", "person 4") not in refs


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.tuples(st.text(max_size=20), st.text(min_size=1, max_size=20)), unique=True, max_size=10))
def test_no_two_subjects_share_a_pseudonym(log, names: list[tuple[str, str]]) -> None:
    assert len({log.actor(tenant, subject) for tenant, subject in names}) == len(names)


def test_names_are_bounded(log) -> None:
    for tenant, subject in (("t", ""), ("t", "x" * 1025), ("x" * 1025, "s")):
        with pytest.raises(LogError):
            log.actor(tenant, subject)


def test_who_is_being_deleted_is_waited_for_and_gets_a_new_name(bench, log, until: Any) -> None:
    old = log.actor("clinic", "alice")
    log.append(bench.draft(actor=old)).result()
    subjects: Subjects = log._subjects
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(log.actor("clinic", "alice")))
    with log._hold.engine.begin() as connection:
        assert subjects.find(connection, "clinic", "alice") == subjects.known("clinic", "alice") == old
        subjects.delete(connection, old)
        assert subjects.find(connection, "clinic", "alice") is None
        asking.start()
        until(lambda: bool(subjects._settled._waiters))  # type: ignore[attr-defined]
        assert log.actor("clinic", "bob") != old  # nobody else waits
        assert not found
    subjects.written([])
    asking.join()
    assert found
    assert old not in found
    assert subjects.known("clinic", "alice") is None  # not on disk yet
    log.append(bench.draft(actor=found[0])).result()
    assert subjects.known("clinic", "alice") == found[0]


def test_a_deletion_that_never_ends_is_not_waited_for(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(subjects_module, "SUBJECT_DELETION_WAIT_S", 0.01)
    ref = log.actor("clinic", "alice")
    log.append(bench.draft(actor=ref)).result()
    with log._hold.engine.begin() as connection:
        log._subjects.delete(connection, ref)
    with pytest.raises(LogUnavailable):
        log.actor("clinic", "alice")


def test_pseudonyms_that_no_record_carries_are_found_page_by_page(bench, log) -> None:
    kept = log.actor("clinic", "kept")
    refs = [log.actor("clinic", f"person {number}") for number in range(5)]
    log.append(bench.draft(actor=kept)).result()
    log.close()
    again = bench.open()
    used = again.actor("clinic", "person 0")  # somebody is using it: a record may be on its way
    found: list[str] = []
    after: str | None = ""
    with again._hold.engine.begin() as connection:
        young, _ = again._subjects.unused(connection, after="", before_us=0, limit=100)
        while after is not None:
            some, after = again._subjects.unused(connection, after=after, before_us=2**53, limit=2)
            found += some
    assert sorted(found) == sorted(set(refs) - {used})
    assert young == []
