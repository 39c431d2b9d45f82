"""The history of policies: whole versions, named by what they say, and one of them in force."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from policy.errors import PolicyFileError
from policy.history import InForce, PolicyHistory
from policy.manifest import NAMELESS, parse_manifest
from policy.store import LISTING_FILE, digest_of_scenarios, load_files, read_contents, read_scenarios

SCENARIO = '[[scenario]]\nname = "s"\nexpect = "deny"\naction = "query-audit"\ncaller = { tenant = "clinic" }\n'


@pytest.fixture
def history(tmp_path: Path) -> PolicyHistory:
    (tmp_path / "history").mkdir()
    return PolicyHistory(tmp_path / "history")


@pytest.fixture
def source(policy_dir: Path) -> Path:
    (policy_dir / "manifest.toml").write_text('name = "own"\nversion = "3"\nowner = "security"\n')
    (policy_dir / "scenarios").mkdir()
    (policy_dir / "scenarios" / "a.toml").write_text(SCENARIO)
    (policy_dir / "examples").mkdir()
    (policy_dir / "examples" / "unread.cedar").write_text("permit (")
    return policy_dir


def test_a_stored_version_is_the_directory_to_the_byte(history: PolicyHistory, source: Path) -> None:
    digest = history.store(source)
    assert digest == load_files(source).digest
    version = history.require_whole(digest)
    assert read_contents(version, stored=True) == read_contents(source)
    assert msgspec.json.decode((version / LISTING_FILE).read_bytes())["files"].keys() == read_contents(source).keys()
    loaded = history.load_files(digest)
    assert (loaded.digest, loaded.manifest.version) == (digest, "3")
    scenarios = digest_of_scenarios(read_scenarios(source))
    assert history.scenarios(scenarios) == {"a.toml": SCENARIO.encode()}
    assert history.versions() == [digest]
    for path in version.iterdir():
        assert path.stat().st_mode & 0o777 == 0o444
    assert not [path for path in history.folder.iterdir() if path.name.startswith(".new-")]


def test_storing_again_changes_nothing_and_scenarios_are_not_part_of_the_digest(
    history: PolicyHistory, source: Path
) -> None:
    digest = history.store(source)
    stamp = history.path(digest).stat().st_ino
    (source / "scenarios" / "b.toml").write_text(SCENARIO.replace('"s"', '"t"'))
    assert history.store(source) == digest
    assert history.path(digest).stat().st_ino == stamp
    assert len(list(history.folder.iterdir())) == 3
    (source / "manifest.toml").write_text('name = "own"\nversion = "4"\n')
    assert history.store(source) != digest


@pytest.mark.parametrize("fault", ["changed", "added", "removed", "renamed", "listing", "no-listing", "swapped"])
def test_a_version_that_is_not_what_its_name_says_does_not_load(
    history: PolicyHistory, source: Path, fault: str
) -> None:
    digest = history.store(source)
    version = history.path(digest)
    if fault == "changed":
        (version / "tenants.toml").chmod(0o644)
        (version / "tenants.toml").write_bytes((version / "tenants.toml").read_bytes() + b"\n")
    elif fault == "added":
        (version / "more.cedar").write_text("")
    elif fault == "removed":
        (version / "20-separation.cedar").unlink()
    elif fault == "renamed":
        (version / "20-separation.cedar").rename(version / "21-separation.cedar")
    elif fault == "listing":
        (version / LISTING_FILE).chmod(0o644)
        (version / LISTING_FILE).write_bytes(b'{"files":{}}')
    elif fault == "no-listing":
        (version / LISTING_FILE).unlink()
    else:  # another whole version under this one's name
        (source / "own.cedar").write_text('@id("own") forbid (principal, action, resource);')
        other = history.store(source)
        shutil.rmtree(version)
        history.path(other).rename(version)
    with pytest.raises(PolicyFileError) as caught:
        history.require_whole(digest)
    assert "\n" not in str(caught.value)
    with pytest.raises(PolicyFileError):
        history.load_files(digest)
    if fault != "swapped":
        with pytest.raises(PolicyFileError):
            history.store(source)  # it is not quietly made whole either


@pytest.mark.parametrize("place", ["own.cedar", "tenants.toml", "scenarios/b.toml"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_only_plain_files_of_the_directory_itself_are_read(
    history: PolicyHistory, source: Path, tmp_path: Path, place: str, kind: str
) -> None:
    path, outside = source / place, tmp_path / "outside"
    outside.write_bytes((source / "tenants.toml").read_bytes())
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "link": lambda at: at.symlink_to(outside), "folder": Path.mkdir}[kind](path)
    reader = threading.Thread(target=_refused, args=(history, source), daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive(), "a pipe that nobody writes to holds up whoever reads the policy"
    assert history.versions() == []


def _refused(history: PolicyHistory, source: Path) -> None:
    with pytest.raises(PolicyFileError, match=r"symbolic link|not a plain file|Is a directory"):
        history.store(source)


def test_a_folder_of_scenarios_elsewhere_is_not_read(history: PolicyHistory, source: Path, tmp_path: Path) -> None:
    shutil.move(source / "scenarios", tmp_path / "elsewhere")
    (source / "scenarios").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyFileError, match="symbolic link"):
        history.store(source)


def test_scenarios_that_are_kept_and_were_changed_are_not_kept_again(history: PolicyHistory, source: Path) -> None:
    history.store(source)
    kept = history.scenarios_path(digest_of_scenarios(read_scenarios(source))) / "a.toml"
    kept.chmod(0o644)
    kept.write_text(SCENARIO.replace("deny", "permit"))
    with pytest.raises(PolicyFileError, match="has been changed"):
        history.store(source)


def test_scenarios_that_were_changed_are_not_given_out(history: PolicyHistory, source: Path) -> None:
    history.store(source)
    digest = digest_of_scenarios(read_scenarios(source))
    path = history.scenarios_path(digest) / "a.toml"
    path.chmod(0o644)
    path.write_text(SCENARIO + "\n")
    with pytest.raises(PolicyFileError, match="has been changed"):
        history.scenarios(digest)


def test_what_is_in_force_is_replaced_in_one_step(history: PolicyHistory) -> None:
    assert history.current() is None
    values = [InForce(digest=f"{number:064x}", note="é" * 300, scenarios=number) for number in range(40)]
    seen: list[InForce | None] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(history.current())

    history.replace_current(values[0])
    watcher = threading.Thread(target=watch)
    watcher.start()
    for value in values[1:]:
        history.replace_current(value)
    stop.set()
    watcher.join()
    assert history.current() == values[-1]
    assert set(seen) <= set(values), "never missing, never half"
    assert history.current_writer() == os.getuid()


@pytest.mark.parametrize(
    "text", ["", "{", '{"digest":"short"}', '{"digest":"' + "a" * 64 + '","more":1}', "[]", '{"digest":1}', "\xff"]
)
def test_a_broken_current_stops_everything(history: PolicyHistory, text: str) -> None:
    history.current_file.write_bytes(text.encode("latin-1"))
    with pytest.raises(PolicyFileError, match="does not say which policy is in force"):
        history.current()


def test_while_a_host_holds_it_nobody_else_changes_it(history: PolicyHistory) -> None:
    refused = pytest.raises(PolicyFileError, match="starting or stopping")
    with history.hold(), history.hold(), refused, history.change_offline():  # the log's lock refuses a second host
        raise AssertionError("entered")
    with history.change_offline():
        begun = threading.Event()
        held = threading.Event()

        def start() -> None:
            begun.set()
            with history.hold():
                held.set()

        host = threading.Thread(target=start)
        host.start()
        assert begun.wait(60)
        assert not held.wait(0.05), "a start waits for the change"
    host.join(60)
    assert held.is_set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users; run the tests as root to see this")
def test_a_gateway_that_may_read_the_history_cannot_hold_its_lock(tmp_path: Path) -> None:
    """It could keep the host from ever starting again: a lock is held by whoever can open its file for reading."""
    runtime, gateway = 61_001, 61_002
    folder = tmp_path / "history"
    folder.mkdir()
    os.chown(folder, runtime, gateway)  # group-readable, as deploy/split-users.sh leaves it
    folder.chmod(0o750)
    with PolicyHistory(folder).change_offline():  # by root, before the first start
        pass
    assert _opens_lock(gateway, folder) == "refused"
    assert _opens_lock(runtime, folder) == "opened"


def _opens_lock(uid: int, folder: Path) -> str:
    """Whether that user (of the group of the same number) can open it; what is above the folder is not asked."""
    descriptor = os.open(folder, os.O_PATH)
    code = (
        f"import os; os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})\n"
        f"try:\n    os.open('lock', os.O_RDONLY, dir_fd={descriptor}); print('opened')\n"
        "except PermissionError:\n    print('refused')"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, pass_fds=[descriptor]
        )
    finally:
        os.close(descriptor)
    return done.stdout.strip()


def test_a_digest_is_found_by_its_beginning(history: PolicyHistory, source: Path) -> None:
    digest = history.store(source)
    assert history.find(digest[:8]) == digest == history.find(digest)
    for wrong in ("0" * 8 if digest[0] != "0" else "1" * 8, "..", digest[:7], "", "x" * 9):
        with pytest.raises(PolicyFileError, match="no version"):
            history.find(wrong)
    twin = history.path(digest[:63] + ("0" if digest[63] != "0" else "1"))
    shutil.copytree(history.path(digest), twin)
    with pytest.raises(PolicyFileError, match="more than one"):
        history.find(digest[:8])


@pytest.mark.parametrize("digest", ["", "..", "../" + "a" * 61, "A" * 64, "a" * 65])
def test_a_digest_is_never_a_path(history: PolicyHistory, digest: str) -> None:
    with pytest.raises(PolicyFileError):
        history.path(digest)
    with pytest.raises(PolicyFileError):
        history.scenarios_path(digest)


def test_a_history_that_cannot_be_written_is_one_line(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = PolicyHistory(tmp_path / "file")
    for deed in (lambda: broken.store(source), lambda: broken.replace_current(InForce(digest="a" * 64))):
        with pytest.raises(PolicyFileError, match="cannot be written") as caught:
            deed()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must set 'name'"),
        ('name = "a"', "must set 'version'"),
        ('name = "a b"\nversion = "1"', "'name' must be text in quotes: a name of letters"),
        ('name = "a"\nversion = 1', "'version' must be text in quotes, not a whole number"),
        ('name = "a"\nversion = "1"\nauthor = "x"', "no setting 'author'; there are: name"),
        ('name = "a"\nversion = "1"\nowner = "two\\nlines"', "'owner' must be .* one line of at most 300 characters"),
        ('name = "a"\nversion = "1"\ndescription = "' + "d" * 301 + '"', "'description' must be .* at most 300"),
    ],
)
def test_manifests_refused(text: str, says: str) -> None:
    with pytest.raises(PolicyFileError, match=says) as caught:
        parse_manifest(text.encode())
    assert str(caught.value).startswith("manifest.toml: ")
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_manifest_loads_and_a_listing_in_a_working_copy_does_not(policy_dir: Path) -> None:
    assert load_files(policy_dir).manifest is NAMELESS
    (policy_dir / LISTING_FILE).write_text("{}")
    with pytest.raises(PolicyFileError, match="not a file of a policy directory"):
        load_files(policy_dir)
    (policy_dir / "scenarios").mkdir()
    (policy_dir / "scenarios" / "a.tml").write_text("")
    with pytest.raises(PolicyFileError, match="scenarios are named"):
        read_scenarios(policy_dir)
