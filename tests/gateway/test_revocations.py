"""A revoked token is refused from the next request on, whatever was remembered; a file in doubt refuses everybody."""

from __future__ import annotations

import datetime
import os
import stat
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.authentication.claims import VerifiedToken
from gateway.authentication.revocation_file import change_revocations, read_revocations, render_revocations
from gateway.authentication.revocations import Revocation, Revocations, parse_revocations
from gateway.errors import Unauthenticated
from gateway.limits import MAX_REVOCATIONS, MAX_REVOKED_FILE
from sealgate.errors import ConfigurationError

NOW = 1_800_000_000


def at(seconds):
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)


def token(**changes):
    fields = {
        "issuer": "https://i",
        "tenant": "clinic",
        "subject": "alice",
        "roles": (),
        "purposes": (),
        "jti": "one",
        "client_id": "app",
        "iat": NOW - 10,
        "exp": NOW + 600,
        "not_before_us": 0,
        "expires_us": (NOW + 600) * 1_000_000,
        "confirmation": None,
    }
    return VerifiedToken(**fields | changes)


class Clock:
    seconds = NOW

    def __call__(self):
        return self.seconds * 1_000_000


@pytest.fixture
def path(tmp_path):
    (tmp_path / "issuers.toml").write_text("")
    return tmp_path / "revoked.toml"


def refused(revocations, **changes):
    with pytest.raises(Unauthenticated) as caught:
        revocations.require_accepted(token(**changes))
    return caught.value.code


# What an entry means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "hit", "missed"),
    [
        ('jti = "one"', [{}, {"tenant": "lab"}], [{"jti": "two"}, {"jti": ""}]),
        ('jti = "one"\nissuer = "https://i"', [{}], [{"issuer": "https://j"}]),
        ('subject = "alice"\ntenant = "clinic"', [{}, {"jti": "two"}], [{"subject": "bob"}, {"tenant": "lab"}]),
        ("issued_before = 2027-01-15T08:00:00Z", [{}], [{"iat": NOW}, {"iat": NOW + 1}]),
        ("issued_before = 2027-01-15T09:00:00+01:00", [{}], [{"iat": NOW}]),
        ('issued_before = 2027-01-15T08:00:00Z\ntenant = "clinic"', [{}], [{"tenant": "lab"}, {"iat": NOW}]),
        ('jti = "one"\nissued_before = 2027-01-15T08:00:00Z', [{}], [{"iat": NOW}, {"jti": "two"}]),
    ],
)
def test_an_entry_refuses_what_all_of_it_is_true_of(path, entry, hit, missed):
    assert at(NOW).isoformat() == "2027-01-15T08:00:00+00:00"
    revocations = Revocations(path, clock=Clock())
    for changes in hit:
        revocations.require_accepted(token(**changes))
    path.write_text(f"[[revoked]]\n{entry}\n")
    for changes in hit:
        assert refused(revocations, **changes) == "token-revoked"
    for changes in missed:
        revocations.require_accepted(token(**changes))


def test_an_entry_ends_at_its_time(path):
    clock = Clock()
    revocations = Revocations(path, clock=clock)
    path.write_text('[[revoked]]\njti = "one"\nuntil = 2027-01-15T08:01:00Z\n')
    clock.seconds = NOW + 59
    assert refused(revocations) == "token-revoked"
    clock.seconds = NOW + 60
    revocations.require_accepted(token())


def test_what_passed_is_judged_again_after_a_change_only(path, monkeypatch):
    revocations = Revocations(path, clock=Clock())
    searched = []
    search = Revocations._search
    monkeypatch.setattr(Revocations, "_search", lambda self, token: searched.append(1) or search(self, token))
    passed = revocations.require_accepted(token())
    for _ in range(5):
        passed = revocations.require_accepted(token(), accepted_by=passed)
    assert len(searched) == 1
    path.write_text('[[revoked]]\njti = "other"\n')
    passed = revocations.require_accepted(token(), accepted_by=passed)
    assert len(searched) == 2
    path.write_text('[[revoked]]\njti = "one" # now this\n')
    with pytest.raises(Unauthenticated):
        revocations.require_accepted(token(), accepted_by=passed)
    path.write_text("# nothing\n")
    revocations.require_accepted(token(), accepted_by=passed)


texts = st.sampled_from(["one", "two", "x y", 'q"\\', "é"])
entries = st.builds(
    lambda **fields: {name: value for name, value in fields.items() if value is not None},
    jti=st.none() | st.sampled_from(["one", "two", "x y", 'q"\\']),
    issuer=st.none() | st.sampled_from(["https://i", "https://j", 'é"\\']),
    tenant=st.none() | st.sampled_from(["clinic", "lab"]),
    subject=st.none() | st.sampled_from(["alice", "bob"]),
    issued_before=st.none() | st.integers(NOW - 12, NOW + 2).map(at),
    until=st.none() | st.integers(NOW - 2, NOW + 2).map(at),
    reason=st.sampled_from(["", "lost \U0001f4bb", 'a "b" \\ c']),
).filter(lambda e: ({"jti", "issued_before"} & set(e) or "subject" in e) and ("subject" not in e or "tenant" in e))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(entries, max_size=6),
    st.builds(
        token,
        jti=st.sampled_from(["", "one", "two", "x y"]),
        tenant=st.sampled_from(["clinic", "lab"]),
        subject=st.sampled_from(["alice", "bob"]),
        iat=st.integers(NOW - 12, NOW + 2),
    ),
)
def test_the_index_agrees_with_reading_every_entry_and_the_file_says_what_it_was_given(tmp_path_factory, listed, asked):
    made = tuple(msgspec.convert(entry, Revocation) for entry in listed)
    path = tmp_path_factory.mktemp("r") / "revoked.toml"
    path.write_text(render_revocations(made))
    assert parse_revocations(path.read_bytes(), name="x") == made
    fields = ("jti", "issuer", "tenant", "subject")
    hit = any(
        all(entry.get(name, getattr(asked, name)) == getattr(asked, name) for name in fields)
        and asked.iat < entry.get("issued_before", at(2**33)).timestamp()
        and entry.get("until", at(2**33)).timestamp() > NOW
        for entry in listed
    )
    revocations = Revocations(path, clock=Clock())
    if hit:
        with pytest.raises(Unauthenticated, match="could not be authenticated"):
            revocations.require_accepted(asked)
    else:
        revocations.require_accepted(asked)


# A file in doubt -----------------------------------------------------------------------------------------------------

WRONG = [
    "[[revoked",
    "[[revoked]]\n",
    "[[revoked]]\njti = 5\n",
    '[[revoked]]\njti = ""\n',
    '[[revoked]]\nsubject = "alice"\n',
    '[[revoked]]\ntenant = "clinic"\n',
    '[[revoked]]\njti = "a"\nuntil = 2027-01-15T08:00:00\n',
    '[[revoked]]\njti = "a"\nuntil = "soon"\n',
    '[[revoked]]\njti = "a"\nid = "b"\n',
    '[revoked]\njti = "a"\n',
    '[[revoke]]\njti = "a"\n',
    "\x00",
    "# " + "x" * MAX_REVOKED_FILE,
    '[[revoked]]\njti="a"\n' * (MAX_REVOCATIONS + 1),
]


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:40]))
def test_a_file_that_is_wrong_refuses_everybody_until_it_is_mended(path, text):
    path.write_text('[[revoked]]\njti = "two"\n')
    revocations = Revocations(path, clock=Clock())
    passed = revocations.require_accepted(token())
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            revocations.require_accepted(token(), accepted_by=passed)
        assert caught.value.code == "revocations-unreadable"
    path.write_text('[[revoked]]\njti = "two"\n# mended\n')
    revocations.require_accepted(token(), accepted_by=passed)
    assert refused(revocations, jti="two") == "token-revoked"


def test_a_file_that_is_gone_refuses_everybody_and_one_that_never_was_nobody(path):
    revocations = Revocations(path, clock=Clock())
    revocations.require_accepted(token())
    path.write_text("")
    revocations.require_accepted(token())
    path.unlink()
    assert refused(revocations) == "revocations-unreadable"


def test_an_emptied_file_is_no_amnesty(path):
    """An editor that writes in place empties the file first, and whoever holds a revoked token may ask then."""
    path.write_text('[[revoked]]\njti = "one"\n')
    revocations = Revocations(path, clock=Clock())
    assert refused(revocations) == "token-revoked"
    path.write_text("")
    assert refused(revocations) == "revocations-unreadable"
    path.write_text('[[revoked]]\njti = "two"\n')
    revocations.require_accepted(token())
    path.write_text("")
    assert refused(revocations) == "revocations-unreadable"
    path.write_text("# nothing is revoked\n")
    revocations.require_accepted(token())
    path.write_text("")
    revocations.require_accepted(token())


def test_a_change_that_keeps_size_and_time_is_seen(path):
    """As `cp -p` and tools that install files with their times do, over the file that is there."""
    path.write_text('[[revoked]]\njti = "two"\n')
    os.utime(path, (NOW, NOW))
    revocations = Revocations(path, clock=Clock())
    revocations.require_accepted(token())
    path.write_text('[[revoked]]\njti = "one"\n')
    os.utime(path, (NOW, NOW))
    assert refused(revocations) == "token-revoked"


def test_two_changes_between_two_ticks_of_the_file_systems_clock_are_seen(path, monkeypatch):
    path.write_text('[[revoked]]\njti = "two"\n')
    frozen = path.stat()
    stat_of = os.stat
    name = os.fspath(path)
    monkeypatch.setattr(os, "stat", lambda place, **more: frozen if place == name else stat_of(place, **more))
    revocations = Revocations(path, clock=lambda: frozen.st_ctime_ns // 1000)
    revocations.require_accepted(token())
    with path.open("r+") as file:
        file.write('[[revoked]]\njti = "one"\n')
    assert refused(revocations) == "token-revoked"


def test_a_file_that_is_wrong_is_read_once(path, monkeypatch):
    """Reading it takes a while on the event loop: callers must not make every request wait for it."""
    parsed = []
    monkeypatch.setattr(
        "gateway.authentication.revocations.parse_revocations",
        lambda data, name: parsed.append(name) or parse_revocations(data, name=name),
    )
    path.write_text("[[revoked")
    revocations = Revocations(path, clock=Clock())
    for _ in range(5):
        assert refused(revocations) == "revocations-unreadable"
    assert len(parsed) == 1


def test_a_folder_in_its_place_refuses_everybody(path):
    path.mkdir()
    assert refused(Revocations(path, clock=Clock())) == "revocations-unreadable"


# Changes -------------------------------------------------------------------------------------------------------------


def entry(jti, **more):
    return Revocation(jti=jti, **more)


def test_a_change_is_in_force_at_once_and_drops_what_is_over(path):
    revocations = Revocations(path, clock=Clock())
    over, lasting = entry("a", until=at(NOW)), entry("one", until=at(NOW + 1))
    kept = change_revocations(path.parent, lambda old: (*old, over, lasting), now=NOW * 1_000_000)
    assert kept == (lasting,) == read_revocations(path.parent)
    assert refused(revocations) == "token-revoked"
    change_revocations(path.parent, lambda old: (), now=NOW * 1_000_000)
    revocations.require_accepted(token())


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_who_may_read_the_file_stays_as_it_was(path, mode):
    (path.parent / "issuers.toml").chmod(mode)
    change_revocations(path.parent, lambda old: (entry("a"),), now=0)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65533)
    before = path.stat()
    change_revocations(path.parent, lambda old: (*old, entry("b")), now=0)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert sorted(item.name for item in path.parent.iterdir()) == ["issuers.toml", "revoked.toml"]


def test_a_file_that_its_reader_would_lose_is_not_replaced(path, monkeypatch):
    def denied(*_):
        raise PermissionError(1, "Operation not permitted")

    def of_somebody_else(descriptor, own=os.fstat):
        status = own(descriptor)
        return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))

    issuers = path.parent / "issuers.toml"
    monkeypatch.setattr(os, "fchown", denied)
    monkeypatch.setattr(os, "fstat", of_somebody_else)
    issuers.chmod(0o640)
    with pytest.raises(ConfigurationError, match="must be written by its owner"):
        change_revocations(path.parent, lambda old: (entry("b"),), now=0)
    assert [item.name for item in path.parent.iterdir()] == ["issuers.toml"]
    issuers.chmod(0o644)
    change_revocations(path.parent, lambda old: (entry("a"),), now=0)
    assert read_revocations(path.parent) == (entry("a"),)


def test_a_broken_file_is_not_written_over(path):
    path.write_text("[[revoked")
    with pytest.raises(ConfigurationError, match=r"revoked\.toml"):
        change_revocations(path.parent, lambda old: (entry("a"),), now=0)
    assert path.read_text() == "[[revoked"


def test_a_full_file_says_so_and_stays(path):
    change_revocations(path.parent, lambda old: (entry("a"),), now=0)
    with pytest.raises(ConfigurationError, match="is full"):
        change_revocations(
            path.parent, lambda old: tuple(entry(str(number)) for number in range(MAX_REVOCATIONS + 1)), now=0
        )
    assert read_revocations(path.parent) == (entry("a"),)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(path, monkeypatch):
    change_revocations(path.parent, lambda old: (entry("a"),), now=0)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        change_revocations(path.parent, lambda old: (*old, entry("b")), now=0)
    assert read_revocations(path.parent) == (entry("a"),)
    assert sorted(item.name for item in path.parent.iterdir()) == ["issuers.toml", "revoked.toml"]


def test_writers_at_once_lose_nothing(path):
    def write(writer):
        for number in range(10):
            added = entry(f"{writer}-{number}")
            change_revocations(path.parent, lambda old, added=added: (*old, added), now=0)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {item.jti for item in read_revocations(path.parent)} == {f"{w}-{n}" for w in range(6) for n in range(10)}
