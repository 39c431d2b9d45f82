"""Which list of unloaded bundles is in force at a start: the one that the log states, whatever else is in the file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError
from sealgate.transparency.record import Record
from secure_runtime.errors import SwitchRefused
from secure_runtime.host import withheld as module
from secure_runtime.host.withheld import keep_withheld, list_digest, settle_withheld
from secure_runtime.limits import MAX_KEPT_LISTS, MAX_WITHHELD_BYTES

OWN = f"uid:{os.getuid()}"


def change(*names: str, **detail: str) -> Record:
    """A `model.change` from which on these are unloaded."""
    stated = {"withheld": " ".join(names), "withheld_digest": list_digest(names)} if names else {}
    return Record(kind="model.change", outcome="done", detail=stated | detail)


NONE = change(withheld_digest=list_digest(()))
BEFORE = Record(kind="model.change", outcome="done", detail={"what": "unload"})  # of a release without digests


def test_a_digest_is_of_canonical_json_of_the_sorted_names() -> None:
    assert list_digest({"m/2", "a"}) == hashlib.sha256(b'["a","m/2"]').hexdigest()


Step = tuple[frozenset[str], bool]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.frozensets(st.sampled_from(["a", "m/1", "m/2", "name with blank"]), max_size=3), st.booleans()),
        max_size=12,
    )
)
def test_what_a_record_states_is_in_force_and_what_none_came_to_state_never_was(
    tmp_path: Path, steps: list[Step]
) -> None:
    path = tmp_path / "withheld.json"
    path.unlink(missing_ok=True)
    record, before = NONE, [NONE]
    in_force: frozenset[str] = frozenset()
    for wanted, recorded in steps:
        keep_withheld(path, wanted, in_force=in_force)
        assert settle_withheld(path, record).withheld == in_force, "a crash before the record"
        if recorded:
            in_force = wanted
            record = change(withheld="x", withheld_digest=list_digest(wanted))
            before.append(record)
        settled = settle_withheld(path, record)
        assert (settled.withheld, settled.by) == (in_force, "")
    for older in before:  # a log restored from a backup
        assert list_digest(settle_withheld(path, older).withheld) == older.detail["withheld_digest"]
    assert not list(tmp_path.glob("*.new"))


def test_each_step_is_on_the_disk_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, steps = tmp_path / "withheld.json", []
    sync, rename = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        sync(handle)

    def renamed(old: Any, new: Any) -> None:
        steps.append(f"rename {Path(old).name} {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    keep_withheld(path, {"a"}, in_force=())
    assert steps == ["sync withheld.new", "rename withheld.new withheld.json", f"sync {tmp_path.name}"]


def test_what_a_killed_host_left_is_written_anew_and_no_link_is_followed(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "withheld.json", tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / "withheld.new").symlink_to(elsewhere)
    keep_withheld(path, {"a"}, in_force=())
    assert elsewhere.read_text() == "kept"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_file_nothing_is_unloaded_unless_the_log_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "withheld.json"
    for newest in (None, NONE, BEFORE):
        assert settle_withheld(path, newest) == module.Settled(frozenset())
    with pytest.raises(ConfigurationError, match=r"does not hold the list .* the log states \(m/1 m/2\); put the file"):
        settle_withheld(path, change("m/1", "m/2"))


@pytest.mark.parametrize("newest", [None, BEFORE])
def test_lists_of_which_the_log_states_none_are_for_a_person_to_look_at(tmp_path: Path, newest: Record | None) -> None:
    path = tmp_path / "withheld.json"
    keep_withheld(path, {"a"}, in_force=())
    with pytest.raises(ConfigurationError, match="the log does not state which is in force"):
        settle_withheld(path, newest)


@pytest.mark.parametrize("newest", [None, BEFORE, NONE, change("m/1")])
def test_a_plain_list_counts_and_whose_it_was_is_told(tmp_path: Path, newest: Record | None) -> None:
    """The file of a release before, and a person's way out where the list that the log states is lost."""
    path = tmp_path / "withheld.json"
    path.write_text('["m/2"]')
    assert settle_withheld(path, newest) == module.Settled(frozenset({"m/2"}), by=OWN)
    keep_withheld(path, {"m/2", "m/3"}, in_force={"m/2"})
    assert settle_withheld(path, change("m/2")).withheld == {"m/2"}, "a change that came to no record"


def test_a_plain_list_that_the_log_states_is_nobodys_word_but_its(tmp_path: Path) -> None:
    path = tmp_path / "withheld.json"
    path.write_text('["m/2"]')
    assert settle_withheld(path, change("m/2")) == module.Settled(frozenset({"m/2"}))
    path.write_text("[]")
    assert settle_withheld(path, change("m/2")) == module.Settled(frozenset(), by=OWN)
    assert settle_withheld(path, NONE) == module.Settled(frozenset())


def test_who_writes_lists_into_the_file_changes_nothing_and_who_takes_one_out_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "withheld.json"
    keep_withheld(path, {"m/2"}, in_force=())
    path.write_text(json.dumps([[], ["m/1"], *json.loads(path.read_text())]))
    assert settle_withheld(path, change("m/2")).withheld == {"m/2"}
    path.write_text(json.dumps([[], ["m/1"]]))
    with pytest.raises(ConfigurationError, match="does not hold"):
        settle_withheld(path, change("m/2"))


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"a": 1}',
        b"[1]",
        b"\xff",
        b'["a", ["b"]]',
        b'[[["a"]]]',
        b"[" * 100_000,
        b'["\\ud800"]',
        b"",
        b"[]" + b" " * MAX_WITHHELD_BYTES,
    ],
)
def test_a_file_that_nobody_wrote_like_that_stops_the_start_and_no_change(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "withheld.json"
    path.write_bytes(content)
    for newest in (None, NONE):
        with pytest.raises(ConfigurationError, match=r"withheld\.json (is unreadable|mixes)"):
            settle_withheld(path, newest)
    keep_withheld(path, {"b"}, in_force={"a"})
    assert settle_withheld(path, change("a")).withheld == {"a"}
    assert settle_withheld(path, change("b")).withheld == {"b"}


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_refuses_the_change_and_what_is_in_force_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "withheld.json"
    keep_withheld(path, {"a"}, in_force=())

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(SwitchRefused, match="No space left") as refused:
        keep_withheld(path, {"b"}, in_force={"a"})
    assert refused.value.code == "choice-not-kept"
    assert settle_withheld(path, change("a")).withheld == {"a"}


def test_a_folder_that_is_away_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(SwitchRefused) as refused:
        keep_withheld(tmp_path / "nowhere" / "withheld.json", {"a"}, in_force=())
    assert refused.value.code == "choice-not-kept"


def test_lists_of_long_ago_make_room_and_the_one_in_force_never_does(tmp_path: Path) -> None:
    path = tmp_path / "withheld.json"
    before: set[str] = set()
    for number in range(MAX_KEPT_LISTS + 5):
        wanted = {f"m/{number}"}
        keep_withheld(path, wanted, in_force=before)
        before = wanted
    assert len(json.loads(path.read_text())) == MAX_KEPT_LISTS
    large = {f"{number:0100d}" for number in range(1200)}
    for wanted in (large, large | {"m/1"}, large | {"m/1", "m/2"}):
        keep_withheld(path, wanted, in_force=before)
        before = wanted
    assert [len(one) for one in json.loads(path.read_text())] == [1202, 1201], "others have made room"
    with pytest.raises(SwitchRefused, match="no room") as refused:
        keep_withheld(path, {f"{number:0100d}" for number in range(1500)}, in_force=before)
    assert refused.value.code == "choice-not-kept"
    assert settle_withheld(path, change(withheld="many", withheld_digest=list_digest(before))).withheld == before
