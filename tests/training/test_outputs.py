"""A run that would write over something, or nowhere, is refused before it spends time and privacy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from safetensors import safe_open

from sealgate.errors import ConfigurationError
from training import experiment, outputs
from training.experiment import run_experiment
from training.outputs import Outputs, check_outputs


def refuse(config: Path, words: str, *, models: Path | None = None, replace: bool = False, **paths: Path) -> None:
    check_outputs(
        Outputs(heldout_csv=paths.get("heldout_csv"), commitment_key=paths.get("commitment_key")),
        models_dir=models or config.parent / "models",
        inputs=(config, config.parent / "data.csv"),
        replace=replace,
    )
    pytest.fail(f"not refused: {words}")


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("option", ["heldout_csv", "commitment_key"])
@pytest.mark.parametrize("name", ["data.csv", "config.toml", "../{}/data.csv", "link"])
def test_what_a_run_reads_is_never_written_over(config, key, name, option, replace):
    folder = config.parent
    (folder / "link").symlink_to("data.csv")
    before = (folder / "data.csv").read_bytes(), config.read_bytes()
    path = folder / name.format(folder.name)
    with pytest.raises(ConfigurationError, match="reads from"):
        run_experiment(config, models_dir=folder / "models", key=key, replace=replace, **{option: path})
    assert ((folder / "data.csv").read_bytes(), config.read_bytes()) == before
    assert not (folder / "models").exists()


def test_rows_named_as_their_own_held_out_file_in_the_configuration_survive(config, key):
    config.write_text(config.read_text().replace("[privacy]", 'heldout_csv = "data.csv"\n[privacy]'))
    before = (config.parent / "data.csv").read_bytes()
    with pytest.raises(ConfigurationError, match="reads from"):
        run_experiment(config, models_dir=config.parent / "models", key=key, replace=True)
    assert (config.parent / "data.csv").read_bytes() == before


@pytest.mark.parametrize("option", ["heldout_csv", "commitment_key"])
def test_a_private_file_that_is_there_is_replaced_only_when_told(config, key, option):
    path = config.parent / "kept"
    path.write_text("of an earlier run")
    with pytest.raises(ConfigurationError, match="--replace"):
        run_experiment(config, models_dir=config.parent / "models", key=key, **{option: path})
    assert path.read_text() == "of an earlier run"
    assert not (config.parent / "models").exists()
    run_experiment(config, models_dir=config.parent / "models", key=key, replace=True, **{option: path})
    assert path.read_text() != "of an earlier run"


def test_a_place_that_cannot_be_written_is_said_before_training(config, key):
    folder = config.parent
    with pytest.raises(ConfigurationError, match="is not a folder"):
        refuse(config, "models under a file", models=config / "models")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        refuse(config, "held out under a file", heldout_csv=config / "a" / "b.csv")
    with pytest.raises(ConfigurationError, match="is a folder; name a file"):
        refuse(config, "a folder", commitment_key=folder)
    with pytest.raises(ConfigurationError, match="named for two files"):
        refuse(config, "one for two", heldout_csv=folder / "x", commitment_key=folder / "x")
    check_outputs(
        Outputs(heldout_csv=folder / "new" / "deep" / "held.csv", commitment_key=None),
        models_dir=folder / "also" / "new",
        inputs=(),
        replace=False,
    )


def test_a_reader_that_goes_away_does_not_cost_the_run(config, key):
    """`sealgate train ... | head -1`: the bundle is there all the same, and the exit code says so."""
    (config.parent / "publisher.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    command = [sys.executable, "-m", "sealgate", "train", "config.toml", "--out", "models"]
    with subprocess.Popen(command, cwd=config.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(120), errors) == (0, b"")
    assert (config.parent / "models" / "tiny" / "bundle.sig").exists()


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_disk_without_room_for_the_bundle_is_said_before_the_noise_is_computed(config, key, monkeypatch, checkpoints):
    """What is asked for is never more than what the bundle takes: a run that would fit is not refused."""
    models, bundle = config.parent / "models", config.parent / "elsewhere" / "tiny"
    if checkpoints:
        config.write_text(config.read_text() + "[engine]\ncheckpoint_every = 10\n")
    run_experiment(config, models_dir=bundle.parent, key=key)
    with safe_open(bundle / "model.safetensors", framework="np") as weights:
        numbers = sum(weights.get_tensor(name).nbytes for name in weights.keys())  # noqa: SIM118 - it is no mapping
    needed = (bundle / "manifest.json").stat().st_size + numbers * (2 if checkpoints else 1)
    free = [needed - 1]
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "planned", lambda *_: pytest.fail("the noise was computed"))
        with pytest.raises(
            ConfigurationError,
            match=f"at least {needed} bytes, and {needed - 1} are free where .*models is; make room, or",
        ):
            run_experiment(config, models_dir=models, key=key)
    assert not models.exists()
    free[0] = needed
    run_experiment(config, models_dir=models, key=key)


def test_a_disk_that_is_really_full_is_said_before_training(config, key, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("NEEDS ROOT: mounts a small file system to fill it up; nothing was tested")
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"CANNOT MOUNT tmpfs here, so the full disk was not tested: {mounted.stderr.decode()}")
    try:
        with contextlib.suppress(OSError), (place / "others").open("wb") as others:
            while True:
                others.write(bytes(4096))
                others.flush()
        with pytest.raises(ConfigurationError, match="and 0 are free"):
            run_experiment(config, models_dir=place / "models", key=key)
    finally:
        subprocess.run(["umount", "-l", place], check=True)
