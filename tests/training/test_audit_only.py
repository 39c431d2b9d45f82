"""The command that attacks a configuration's trainer and says what it found; and the audit as part of every run."""

from __future__ import annotations

import argparse

import pytest

from sealgate.certificate.audits import PROBES
from tests.training.conftest import configuration_text
from training import audit_only as command
from training.auditing import black_box, membership, plans
from training.auditing.gate import Findings
from training.auditing.probes import Probe
from training.commands import TRAIN
from training.errors import TrainingError
from training.experiment import run_experiment


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(membership, "AUDIT_LANES", 1000)
    monkeypatch.setattr(black_box, "AUDIT_BLACK_BOX_CANARIES", 100)
    monkeypatch.setattr(black_box, "AUDIT_GUESSED", 40)
    monkeypatch.setattr(black_box, "AUDIT_SHADOWS", 4)


def test_every_probe_is_said_and_no_data_is_read(tmp_path, capsys, few):
    config = tmp_path / "config.toml"
    config.write_text(configuration_text("there-is-no-such-file.csv"))
    parser = argparse.ArgumentParser()
    TRAIN.configure(parser)
    assert TRAIN.run(parser.parse_args([str(config), "--audit-only"])) == 0
    said = capsys.readouterr().out
    for name in PROBES["lanes-and-replay"]:
        assert f"  ok  {name}: " in said
    assert "an epsilon of at least" in said
    assert "an outsider, one run: " in said
    assert "false accusations" in said
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def contradiction(*_given, **_named) -> Findings:
    probe = Probe(name="noise", held=False, found="deviation 0.1 of the declared one")
    return Findings(method="lanes-and-replay", probes=(probe,), epsilon_lower_micro=0, canaries=1, steps=1)


def test_what_contradicts_the_claim_is_not_signed_and_the_rows_are_not_read(config, key, monkeypatch):
    from training import experiment

    monkeypatch.setattr(experiment, "audit_plan", contradiction)
    (config.parent / "data.csv").write_text("no rows of anything")  # who read it would say so
    with pytest.raises(TrainingError, match="nothing is signed: noise: deviation") as caught:
        run_experiment(config, models_dir=config.parent / "models", key=key)
    assert caught.value.code == "audit-contradicts"
    assert not (config.parent / "models").exists() or not any((config.parent / "models").iterdir())


def test_the_certificate_says_whether_there_was_an_audit(config, key, few):
    audited = run_experiment(config, models_dir=config.parent / "a", key=key).bundle
    without = run_experiment(config, models_dir=config.parent / "b", key=key, audit=False).bundle
    assert audited.facts.audited
    assert not without.facts.audited
    assert without.certificate.audit is None
    audit = audited.certificate.audit
    assert tuple(probe.name for probe in audit.probes) == PROBES["lanes-and-replay"]
    assert audit.code_digest == audited.certificate.environment.code_digest
    assert 0 <= audit.epsilon_lower_micro < audited.certificate.epsilon_micro


def test_a_contradiction_is_said_in_full_before_it_is_raised(config, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(command, "audit_plan", contradiction)
    monkeypatch.setattr(command, "_attack", lambda *_given, **_named: None)
    with pytest.raises(TrainingError):
        command.audit_only(config, say=said.append)
    assert any("is to be claimed" in line for line in said)
    assert plans.audit_plan is not contradiction
