"""Whole runs: every family on every format becomes a bundle that verifies, loads, answers, and tells the truth."""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import os
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from rich.console import Console
from safetensors import safe_open

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.publishers import publishers_of
from sealgate.cli import main
from sealgate.errors import ConfigurationError
from secure_runtime.models.bundle import load_bundle
from tests.training.conftest import COLUMNS, configuration_text, tiny, write_data
from training import experiment
from training.commands import TRAIN
from training.configuration import load_configuration
from training.errors import TrainingError
from training.experiment import run_experiment
from training.forms import form_of
from training.report import Terminal
from training.split import commit, hold_out

EXAMPLE = Path(__file__).parents[2] / "sealgate" / "demo" / "breast_cancer.toml"


@pytest.mark.parametrize(
    ("family", "source"),
    [("logistic-regression", "data.csv"), ("linear-regression", "data.parquet"), ("mlp", "data.npz")],
)
def test_from_rows_to_answers(tmp_path, key, family, source):
    write_data(tmp_path / source, tiny(400))
    config = tmp_path / "config.toml"
    config.write_text(configuration_text(source, family=family))
    published = run_experiment(config, models_dir=tmp_path / "models", key=key, heldout_csv=tmp_path / "held.csv")
    publishers = publishers_of({"hospital": key.public_key()})
    model = load_bundle(tmp_path / "models" / "tiny", publishers)
    assert model.facts == published.bundle.facts
    assert model.manifest.family == family
    with (tmp_path / "held.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == published.rows_held_out
    features = torch.tensor([[float(row[name]) for name in COLUMNS] for row in rows], dtype=torch.float32)
    found = model.predict({"features": features})
    if family == "linear-regression":
        wanted = np.array([float(row["cost"]) for row in rows])
        residual = ((found["value"].numpy() - wanted) ** 2).sum()
        quality = 1 - residual / ((wanted - wanted.mean()) ** 2).sum()
        assert published.quality.measure == "R2"
    else:
        target = "ill" if family == "logistic-regression" else "group"
        labels = next(output.labels for output in model.manifest.outputs if output.role == "label")
        quality = np.mean([labels[i] == row[target] for i, row in zip(found["label"].tolist(), rows, strict=True)])
    assert quality == pytest.approx(published.quality.value, abs=1e-9)
    assert quality > {"logistic-regression": 0.85, "linear-regression": 0.6, "mlp": 0.6}[family]
    assert published.quality_without_privacy.value > 0.8


def test_the_bundle_on_disk(config, key):
    published = run_experiment(config, models_dir=config.parent / "models", key=key)
    directory = published.bundle.directory
    assert directory == config.parent / "models" / "tiny"
    assert sorted(path.name for path in directory.parent.iterdir()) == ["tiny"]  # nothing half-made beside it
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o644}
    with safe_open(directory / "model.safetensors", framework="np") as tensors:
        assert sorted(tensors.keys()) == ["layers.0.bias", "layers.0.weight"]
        assert tensors.metadata() in (None, {})
    card = (directory / "card.md").read_text()
    assert str(published.quality) in card
    assert "epsilon" in card


def test_the_certificate_says_what_was_done(config, key):
    published = run_experiment(
        config, models_dir=config.parent / "models", key=key, clock=lambda: 1_767_225_600_000_000
    )
    certificate = published.bundle.certificate
    assert certificate.issued == "2026-01-01"
    assert (certificate.mechanism.sampling.rate.numerator, certificate.mechanism.sampling.rate.denominator) == (1, 2)
    assert certificate.mechanism.sampling.steps_executed == certificate.mechanism.sampling.steps_declared == 40
    assert certificate.mechanism.sampling.divisor_micro == 100_000_000  # of the public 200, whatever the file holds
    assert certificate.dataset.public_population == 200
    assert certificate.mechanism.noise.seed == "fresh"
    assert any("without privacy" in release.what and not release.covered for release in certificate.releases)
    assert certificate.environment.packages["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert certificate.not_protected


def test_the_commitment_can_be_opened_with_its_key_only(config, key):
    kept_key = config.parent / "commitment.key"
    published = run_experiment(config, models_dir=config.parent / "models", key=key, commitment_key=kept_key)
    assert stat.S_IMODE(kept_key.stat().st_mode) == 0o600
    configuration = load_configuration(config)
    table = form_of(configuration).read_examples(configuration, folder=config.parent)
    from fractions import Fraction

    rows, _ = hold_out(table, fraction=Fraction(1, 4), word="1")
    root = published.bundle.certificate.dataset.commitment
    assert commit(rows, key=bytes.fromhex(kept_key.read_text())) == root
    assert commit(rows, key=bytes(32)) != root


def test_a_run_with_chosen_entropy_cannot_be_published(config, key):
    counter = itertools.count()

    def chosen(count: int) -> bytes:
        return bytes([next(counter) % 256]) * count

    with pytest.raises(TrainingError, match="fresh") as caught:
        run_experiment(config, models_dir=config.parent / "models", key=key, entropy=chosen)
    assert caught.value.code == "not-publishable"
    assert list((config.parent / "models").iterdir()) == []


def test_two_runs_under_the_same_seeds_differ(config, key):
    digests = set()
    for name in ("a", "b"):
        torch.manual_seed(0)
        np.random.seed(0)
        digests.add(run_experiment(config, models_dir=config.parent / name, key=key).bundle.weights_digest)
    assert len(digests) == 2


def test_an_existing_bundle_is_kept_unless_told_otherwise(config, key):
    models = config.parent / "models"
    first = run_experiment(config, models_dir=models, key=key).bundle
    with pytest.raises(ConfigurationError, match="--replace"):
        run_experiment(config, models_dir=models, key=key)
    publishers = publishers_of({"us": key.public_key()})
    assert verify_bundle(models / "tiny", publishers).weights_digest == first.weights_digest
    second = run_experiment(config, models_dir=models, key=key, replace=True).bundle
    assert verify_bundle(models / "tiny", publishers).weights_digest == second.weights_digest != first.weights_digest
    assert sorted(path.name for path in models.iterdir()) == ["tiny"]


def test_a_failure_while_writing_leaves_the_old_bundle_and_no_debris(config, key, monkeypatch):
    models = config.parent / "models"
    first = run_experiment(config, models_dir=models, key=key).bundle
    fsync, calls = os.fsync, itertools.count()

    def failing(descriptor: int) -> None:
        if next(calls) == 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(ConfigurationError, match="No space left"):
        run_experiment(config, models_dir=models, key=key, replace=True)
    monkeypatch.undo()
    assert sorted(path.name for path in models.iterdir()) == ["tiny"]
    found = verify_bundle(models / "tiny", publishers_of({"us": key.public_key()}))
    assert found.weights_digest == first.weights_digest


def test_bad_data_leaves_nothing_behind(tmp_path, key):
    columns = tiny()
    columns["age"][0] = np.nan
    write_data(tmp_path / "data.csv", columns)
    (tmp_path / "config.toml").write_text(configuration_text("data.csv"))
    with pytest.raises(ConfigurationError, match="row 1"):
        run_experiment(tmp_path / "config.toml", models_dir=tmp_path / "models", key=key)
    assert not (tmp_path / "models").exists()


@contextlib.contextmanager
def rows_computed():
    """How many rows linear layers were given meanwhile, in training, the audit and all else, and in how many calls."""
    found = Counter()

    def count(_module, inputs):
        if isinstance(_module, torch.nn.Linear):
            found["rows"] += inputs[0].shape[0]
            found["calls"] += 1

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield found
    finally:
        hook.remove()


def test_the_example_is_accurate_and_quick(tmp_path, key):
    with rows_computed() as computed, (tmp_path / "shown.txt").open("w") as shown:
        published = run_experiment(
            EXAMPLE,
            models_dir=tmp_path / "models",
            key=key,
            narrator=Terminal(Console(file=shown, width=120)),
        )
    # Half a minute's work, most of it the audit's, twice over; a machine that has other work takes longer for it.
    assert 100_000 < computed["rows"] < 1_500_000
    assert computed["calls"] < 10_000
    assert published.quality.value > 0.88  # five standard errors below what it usually is
    assert published.quality_without_privacy.value > 0.9
    assert published.bundle.certificate.epsilon_micro <= 3_000_000
    text = (tmp_path / "shown.txt").read_text()
    for part in ("epsilon 2.99", "150/150", "with privacy", "thrown away", "held out"):
        assert part in text
    assert "loss" not in text


def test_a_configuration_that_is_not_there_is_what_is_missed_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nowhere.toml"]) == 1
    said = capsys.readouterr().err
    assert "nowhere.toml cannot be read" in said
    assert "key" not in said


def test_rows_that_are_not_there_are_missed_before_the_audit(tmp_path, key, monkeypatch):
    (tmp_path / "config.toml").write_text(configuration_text("rows.csv"))
    monkeypatch.setattr(experiment, "audit_plan", lambda *_args, **_options: pytest.fail("audited first"))
    with pytest.raises(ConfigurationError, match=r"there is no file .*rows\.csv; name one relative to config\.toml"):
        run_experiment(tmp_path / "config.toml", models_dir=tmp_path / "models", key=key)


def test_who_has_no_key_is_told_how_to_make_one(tmp_path, capsys):
    (tmp_path / "config.toml").write_text(configuration_text("rows.csv"))
    assert main(["train", str(tmp_path / "config.toml"), "--key", str(tmp_path / "publisher.key")]) == 1
    assert "`sealgate init STATE` makes one" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_seconds_says_what_it_is_on_a_terminal_only(tmp_path, terminal):
    with (tmp_path / "shown.txt").open("w") as shown:
        narrator = Terminal(Console(file=shown, width=120, force_terminal=terminal))
        with narrator.busy("attacking the trainer"):
            pass
    assert ("attacking the trainer ..." in (tmp_path / "shown.txt").read_text()) is terminal


@pytest.fixture
def key_file(tmp_path, key):
    path = tmp_path / "publisher.key"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def run_command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    TRAIN.configure(parser)
    return TRAIN.run(parser.parse_args([str(word) for word in words]))


def test_the_command(config, key, key_file, capsys):
    threads = torch.get_num_threads()
    assert run_command(config, "--key", key_file, "--out", config.parent / "out", "--threads", threads) == 0
    assert "certificate SHA-256" in capsys.readouterr().out
    verify_bundle(config.parent / "out" / "tiny", publishers_of({"us": key.public_key()}))


@pytest.mark.parametrize("content", [None, b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_key_that_cannot_sign(config, tmp_path, content):
    path = tmp_path / "bad.key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"bad\.key"):
        run_command(config, "--key", path, "--out", tmp_path / "out")


def test_a_key_of_another_kind(config, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec

    path = tmp_path / "ec.key"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ConfigurationError, match="Ed25519"):
        run_command(config, "--key", path, "--out", tmp_path / "out")
