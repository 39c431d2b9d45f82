"""`sealgate policy` test, diff, apply, history and show without a running host; with one: tests/stories."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
from pathlib import Path

import pytest

from gateway.provisioning import provision
from policy.history import InForce, PolicyHistory
from sealgate.client.errors import UsageError
from sealgate.errors import ConfigurationError, HostAway, HostRefused
from secure_runtime.policy_commands import POLICY

FORBID = '@id("nobody") @says("closed") forbid (principal, action, resource);'


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("p") / "state"
    return provision(root, audience="localhost:8443", origin="localhost/log", profile="dev").root


@pytest.fixture
def state(provisioned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(provisioned, tmp_path / "state"))


@pytest.fixture
def history(state: Path) -> PolicyHistory:
    return PolicyHistory(state / "policy-history")


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    POLICY.configure(parser)
    return POLICY.run(parser.parse_args([str(argument) for argument in arguments]))


def bump(state: Path, version: str) -> None:
    manifest = state / "policy" / "manifest.toml"
    manifest.write_text(f'name = "own"\nversion = "{version}"\n')


# test ----------------------------------------------------------------------------------------------------------------


def test_scenarios_of_a_deployment_and_of_any_directory(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", state) == 0
    table = capsys.readouterr().out
    assert "19 scenarios, none failed" in table
    assert "FAILED" not in table
    assert run("test", state / "policy") == 0
    assert capsys.readouterr().out == table
    (state / "policy" / "own.cedar").write_text(FORBID)
    assert run("test", state, state / "policy") == 1
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert "an application of the clinic asks for a treatment: answered deny, not permit" in said
    assert run("test", "--json", state) == 1
    document = json.loads(capsys.readouterr().out)
    failed = [result for result in document["results"] if not result["passed"]]
    assert document["failed"] == len(failed) > 0
    assert all(result["differences"] and result["by"] for result in failed)


def test_nothing_tested_is_not_a_pass(state: Path) -> None:
    shutil.rmtree(state / "policy" / "scenarios")
    with pytest.raises(ConfigurationError, match="nothing was tested"):
        run("test", state)


def test_a_directory_that_is_nothing_is_said(tmp_path: Path, state: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist; make a deployment"):
        run("check", tmp_path)
    with pytest.raises(ConfigurationError, match="is a policy directory"):
        run("check", state / "policy", state / "policy")
    with pytest.raises(ConfigurationError):
        run("apply", state / "policy")


# apply ---------------------------------------------------------------------------------------------------------------


def test_an_apply_without_a_host_is_kept_for_the_next_start(
    state: Path, history: PolicyHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    bump(state, "2")
    assert run("apply", state, "--note", "why") == 0
    said = capsys.readouterr().out
    assert "own 2" in said
    assert "from the next start on" in said
    stated = history.current()
    assert isinstance(stated, InForce)
    assert (stated.note, stated.scenarios) == ("why", 19)
    assert history.scenarios(stated.scenarios_digest).keys() == {"requests.toml", "oversight.toml"}
    assert run("history", state) == 0
    assert f"{stated.digest[:16]} is in force from the next start on." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("own.cedar", "permit ("), r"own\.cedar"),
        (("own.cedar", FORBID), "does not answer its own scenarios"),
        (("scenarios/requests.toml", "x"), r"requests\.toml"),
        (("tenants.toml", ""), r"tenants\.toml"),
        (("manifest.toml", 'name = "a"'), r"manifest\.toml"),
        (("manifest.toml", None), "manifest.toml is missing"),
    ],
)
def test_what_is_not_fit_is_not_applied(
    state: Path, history: PolicyHistory, change: tuple[str, str | None], says: str
) -> None:
    path = state / "policy" / change[0]
    path.unlink() if change[1] is None else path.write_text(change[1])
    with pytest.raises(ConfigurationError, match=says):
        run("apply", state)
    assert history.current() is None
    assert history.versions() == []


@pytest.mark.parametrize("note", ["x" * 301, "two\nlines"])
def test_a_note_that_no_record_takes_is_refused(state: Path, history: PolicyHistory, note: str) -> None:
    with pytest.raises(ConfigurationError, match="a note is one line"):
        run("apply", state, "--note", note)
    assert history.current() is None


def test_a_policy_that_changes_while_it_is_applied_is_not(
    state: Path, history: PolicyHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PolicyHistory.store

    def late(self: PolicyHistory, source: Path) -> str:
        (source / "own.cedar").write_text(FORBID)
        return store(self, source)

    monkeypatch.setattr(PolicyHistory, "store", late)
    with pytest.raises(ConfigurationError, match="changed in the meantime"):
        run("apply", state)
    assert history.current() is None


def test_scenarios_that_change_while_a_policy_is_applied_are_not_those_that_passed(
    state: Path, history: PolicyHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PolicyHistory.store

    def late(self: PolicyHistory, source: Path) -> str:
        path = source / "scenarios" / "oversight.toml"
        path.write_text(path.read_text().replace('"deny"', '"permit"'))
        return store(self, source)

    monkeypatch.setattr(PolicyHistory, "store", late)
    with pytest.raises(ConfigurationError, match="changed in the meantime"):
        run("apply", state)
    assert history.current() is None


def test_a_policy_from_elsewhere_says_nothing_to_the_terminal(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd, forbid = '@id("odd") @says("\\u{1b}[2J\\u{202e}")', FORBID.partition("forbid")[2]
    (state / "policy" / "own.cedar").write_text(f"{odd} forbid{forbid}")
    (state / "policy" / "manifest.toml").write_text('name = "own"\nversion = "2"\ndescription = "\u202edetsurt"\n')
    assert run("check", state) == 0
    asking = ("explain", state, "--tenant", "clinic", "--role", "client", "--action", "query-audit")
    assert run(*asking) == 0
    said = capsys.readouterr().out
    assert "odd" in said
    assert all(char == "\n" or char.isprintable() for char in said)


def test_a_host_that_is_starting_or_another_users_is_not_taken_for_none(
    state: Path, history: PolicyHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with history.hold(), pytest.raises(ConfigurationError, match="starting or stopping"):
        run("apply", state)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    with pytest.raises(HostAway, match="belongs to another user"):
        run("apply", state)
    assert history.current() is None


def test_what_a_host_refuses_is_not_applied(
    state: Path, history: PolicyHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise HostRefused("the runtime host refused", code="unavailable")

    monkeypatch.setattr("sealgate.administration.tell_host", refuse)
    with pytest.raises(HostRefused):
        run("apply", state)
    assert history.current() is None


# diff, history, show -------------------------------------------------------------------------------------------------


def test_diff_shows_files_and_answers(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="no policy is in force yet"):
        run("diff", state)
    assert run("apply", state) == 0
    capsys.readouterr()
    assert run("diff", state) == 0
    assert "Nothing differs between the policy in force and the working copy." in capsys.readouterr().out
    other = Path(shutil.copytree(state / "policy", state.parent / "other"))
    (other / "own.cedar").write_text(FORBID)
    (other / "scenarios" / "requests.toml").unlink()
    assert run("diff", state, other) == 0
    said = capsys.readouterr().out
    for words in ("own.cedar", "nobody", "client of clinic", "permit: round_digits=6", "questions were asked"):
        assert words in said
    assert "scenario: an application of the clinic asks for a treatment" in said, "as it was when it was applied"
    assert run("diff", "--json", state, other) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"what": "policy", "name": "nobody", "how": "added"} in document["changes"]
    assert all(answer["cases"] <= answer["of"] for answer in document["answers"])


def test_versions_are_shown_by_digest(state: Path, history: PolicyHistory, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="no policy is in force yet"):
        run("show", state)
    assert run("apply", state) == 0
    first = history.current()
    bump(state, "2")
    harmless = '@id("own") forbid (principal, action, resource) when { context.hour > 23 };'
    (state / "policy" / "own.cedar").write_text(f"// \x1b[2J\n{harmless}")
    assert run("apply", state) == 0
    capsys.readouterr()
    assert run("show", state) == 0
    assert "own.cedar" in capsys.readouterr().out
    assert isinstance(first, InForce)
    assert run("show", state, "--at", first.digest[:12]) == 0
    shown = capsys.readouterr().out
    assert first.digest in shown
    assert "own.cedar" not in shown
    assert run("show", state, "own.cedar") == 0
    assert capsys.readouterr().out == f"// ?[2J\n{harmless}\n"
    with pytest.raises(ConfigurationError, match="has no file"):
        run("show", state, "../policy/own.cedar")
    for at, error in (("0" * 8, ConfigurationError), ("2031-01-01T00:00", ConfigurationError), ("when", UsageError)):
        with pytest.raises(error):
            run("show", state, "--at", at)


def test_an_older_version_is_put_in_force_again(
    state: Path, history: PolicyHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("apply", state) == 0
    first = history.current()
    assert isinstance(first, InForce)
    bump(state, "2")
    assert run("apply", state) == 0
    assert history.current() != first
    older = state / "policy-history" / first.digest
    capsys.readouterr()
    assert run("apply", state, older, "--note", "back") == 0
    again = history.current()
    assert again is not None
    assert (again.digest, again.note) == (first.digest, "back")
    older.chmod(0o700)
    (older / "more.txt").write_text("")
    with pytest.raises(ConfigurationError, match="not a file of a policy directory"):
        run("apply", state, older)


def test_explain_asks_what_is_in_force_or_the_directory_that_is_named(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("--tenant", "oversight", "--role", "auditor", "--action", "query-audit")
    assert run("apply", state) == 0
    (state / "policy" / "own.cedar").write_text(FORBID)
    capsys.readouterr()
    assert run("explain", state, *ask) == 0
    said = capsys.readouterr().out
    assert said.startswith("Yes: ")
    assert "(policy in force, " in said
    assert run("explain", state, state / "policy", *ask) == 0
    assert capsys.readouterr().out.startswith("No: ")


def test_a_deployment_without_a_log_has_no_history(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("history", state, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"versions": [], "pending": ""}
    (state / "log" / "audit.sqlite").write_bytes(b"")  # as deploy/split-users.sh leaves it before the first start
    assert run("history", state) == 0
    assert "nothing was started yet" in capsys.readouterr().out
