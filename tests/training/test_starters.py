"""Configurations to begin from: every one is complete, is the example that it links to, and every family has one."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sealgate.certificate.architectures import FAMILIES
from sealgate.errors import ConfigurationError
from training.commands import TRAIN
from training.configuration import load_configuration
from training.starters import starters, summary_of

ROOT = Path(__file__).parents[2]


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    TRAIN.configure(parser)
    return TRAIN.run(parser.parse_args([str(word) for word in words]))


def test_every_family_has_one(tmp_path):
    families = set()
    for name, text in starters().items():
        path = tmp_path / f"{name}.toml"
        assert run("--example", name, path) == 0
        configuration = load_configuration(path)
        families.add(configuration.model.family)
        assert summary_of(text).endswith((".", "?", ":"))
        assert f"sealgate train {path}" in path.read_text()
        if "/prepare.py " in path.read_text() and "    python " in path.read_text():  # what makes the rows
            assert f" {path.parent / configuration.data.source}\n" in path.read_text()
    assert families == set(FAMILIES)


def test_each_is_an_example_of_the_project():
    folder = ROOT / "training" / "starters"
    links = list(folder.glob("*.toml"))
    assert {link.stem for link in links} == set(starters())
    for link in links:
        assert link.is_symlink()
        assert link.resolve().is_relative_to(ROOT)


def test_nothing_is_written_over_and_names_are_told(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="exists"):
        run("--example", "mlp", path)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigurationError, match="adassp"):
        run("--example", "nothing", tmp_path / "x.toml")
    assert run("--example", "list") == 0
    assert "transformer" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="--example list"):
        run()
