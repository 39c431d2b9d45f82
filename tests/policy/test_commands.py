"""`sealgate policy` over a real deployment: plain words, and never a decision of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gateway.provisioning import provision
from policy.store import load_files
from sealgate.errors import ConfigurationError
from secure_runtime.policy_commands import POLICY


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("p") / "state"
    return provision(root, audience="localhost:8443", origin="localhost/log", profile="dev").root


@pytest.fixture
def run(state: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> str:
        parser = argparse.ArgumentParser()
        POLICY.configure(parser)
        parsed = parser.parse_args([arguments[0], str(state), *arguments[1:]])
        assert POLICY.run(parsed) == 0
        return capsys.readouterr().out

    return call


def test_digest(run, state):
    assert run("digest") == load_files(state / "policy").digest + "\n"


def test_check_lists_every_policy(run, state):
    out = run("check")
    assert "is sound" in out
    assert load_files(state / "policy").digest in out
    for words in ("clients-infer", "evidence-floor", "numbers rounded to 6 decimal places", "clinic-day", "oversight"):
        assert words in out


def test_check_refuses_with_one_line(tmp_path):
    root = provision(tmp_path / "s", audience="localhost:8443", origin="localhost/log", profile="dev").root
    (root / "policy" / "own.cedar").write_text("permit (")
    parser = argparse.ArgumentParser()
    POLICY.configure(parser)
    with pytest.raises(ConfigurationError, match=r"own\.cedar"):
        POLICY.run(parser.parse_args(["check", str(root)]))


def test_explain_audit_reads(run):
    out = run("explain", "--tenant", "oversight", "--role", "auditor", "--action", "query-audit")
    assert out.startswith("Yes: the auditor 'somebody' of tenant 'oversight' may read audit records.")
    assert "oversight-reads-every-record in 10-callers.cedar" in out
    assert "of every tenant" in out
    out = run("explain", "--tenant", "clinic", "--role", "auditor", "--action", "export-audit")
    assert "of tenant clinic only" in out


def test_explain_denials(run):
    out = run("explain", "--tenant", "operations", "--role", "operator", "--action", "query-audit")
    assert out.startswith("No: ")
    assert "operators-never-read-payload-derived-data in 20-separation.cedar" in out
    assert "(policy-forbids)" in out
    assert "(unknown-tenant)" in run("explain", "--tenant", "x", "--role", "auditor", "--action", "query-audit")
    assert "(no-policy-permits)" in run("explain", "--tenant", "clinic", "--role", "client", "--action", "query-audit")


def test_explain_models(run, monkeypatch, model):
    """The model's facts come from its verified bundle; here they are handed over, the bundle has tests of its own."""
    monkeypatch.setattr("policy.places.Bundles.require", lambda *_: model())
    ask = ("explain", "--tenant", "clinic", "--role", "client", "--model", "tumour")
    out = run(*ask, "--purpose", "treatment", "--subject", "trial-app")
    assert out.startswith("Yes: the client 'trial-app' of tenant 'clinic' may get an answer of the model 'tumour'")
    assert "numbers rounded to 6 decimal places" in out
    assert "trial-app-day: 5 requests a day" in out
    assert "trial-app-day" not in run(*ask, "--purpose", "treatment")
    out = run(*ask, "--purpose", "marketing")
    assert "may not" in out
    assert "purpose-allowed-for-tenant" in out
    assert "purpose-granted-to-caller" in run(*ask, "--purpose", "treatment", "--carries", "other")
    assert "sealed-always" in run(*ask, "--purpose", "treatment", "--not-sealed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--role", "god"), "there is no role 'god'; it is one of: client, auditor, operator"),
        (("--role", "client", "--action", "fly"), "there is no action 'fly'"),
        (("--role", "client"), "say which model"),
        (("--role", "client", "--model", "none"), "has no model 'none'"),
        (("--role", "client", "--model", "../policy"), "has no model"),
    ],
)
def test_explain_refuses_nonsense(run, arguments, says):
    with pytest.raises(ConfigurationError, match=says):
        run("explain", "--tenant", "clinic", *arguments)
