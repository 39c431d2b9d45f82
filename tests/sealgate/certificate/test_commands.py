"""`sealgate models`: what a person sees."""

from __future__ import annotations

import argparse
import base64

import pytest

from sealgate.certificate.commands import MODELS
from sealgate.errors import CertificateError, ConfigurationError


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    MODELS.configure(parser)
    return MODELS.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def state(forge, tmp_path):
    """A state directory with one good bundle and the publisher's key."""
    forge.write(tmp_path / "state" / "models" / "toy")
    key = base64.b64encode(forge.key.public_key().public_bytes_raw()).decode()
    (tmp_path / "state" / "publishers.toml").write_text(f'[[publisher]]\nname = "hospital"\nkey = "{key}"\n')
    return tmp_path / "state"


def test_verify_prints_the_recomputation_line_by_line(state, forge, capsys):
    assert run("verify", state / "models" / "toy") == 0
    text = capsys.readouterr().out
    assert "sigma 4, rate 1/4, 60 steps, delta 0.0001" in text
    assert text.count("  ok  ") == 11
    assert "recomputed" in text
    assert "verified: toy 1.0.0" in text


def test_verify_raises_what_is_wrong(state):
    (state / "models" / "toy" / "x.pkl").write_bytes(b"")
    with pytest.raises(CertificateError) as caught:
        run("verify", state / "models" / "toy")
    assert caught.value.code == "pickle-in-bundle"


def test_show_describes_model_and_training(state, capsys):
    assert run("show", state / "models" / "toy", "--publishers", state / "publishers.toml") == 0
    text = capsys.readouterr().out
    for part in (
        "logistic-regression",
        "epsilon",
        "if one row is replaced",
        "does not protect",
        "NOT covered by epsilon",
    ):
        assert part in text


def test_list_shows_good_and_refused_bundles(state, forge, capsys):
    assert run("list", state) == 0
    assert "toy" in capsys.readouterr().out
    forge.claim(epsilon_micro=1)
    forge.write(state / "models" / "worse")
    assert run("list", state / "models") == 1
    text = capsys.readouterr().out
    assert "worse" in text
    assert "REFUSED" in text
    assert "accountants-disagree" in text


def test_list_of_nothing_says_how_to_go_on(tmp_path, capsys):
    assert run("list", tmp_path) == 0
    assert "sealgate train" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="nowhere"):
        run("list", tmp_path / "nowhere")


def test_without_publishers_the_error_says_how_to_name_them(forge, tmp_path):
    directory = forge.write(tmp_path / "a" / "b" / "c" / "d" / "toy")
    with pytest.raises(ConfigurationError, match="--publishers"):
        run("verify", directory)


def test_a_bundle_is_encrypted_looked_at_and_put_under_another_key(state, forge, tmp_path, capsys):
    bundle, first, second = state / "models" / "toy", f"file:{tmp_path}/first.key", f"file:{tmp_path}/second.key"
    assert run("new-key", tmp_path / "first.key") == run("new-key", tmp_path / "second.key") == 0
    secret = (tmp_path / "first.key").read_text().strip()
    with pytest.raises(ConfigurationError, match="once"):
        run("encrypt", bundle)
    assert run("encrypt", bundle, "--key", first) == 0
    capsys.readouterr()
    assert run("list", state) == run("show", bundle) == 0
    assert capsys.readouterr().out.count("NOT opened") == 2
    with pytest.raises(CertificateError) as caught:
        run("verify", bundle)
    assert caught.value.code == "weights-locked"
    said = capsys.readouterr().out
    assert "verified: " not in said
    assert run("verify", bundle, "--key", first) == run("list", state, "--key", first) == 0
    said = capsys.readouterr().out
    assert "verified: toy" in said
    assert "opened and verified" in said
    assert run("rewrap", bundle, "--key", first, "--to", second) == 0
    assert run("verify", bundle, "--key", first, "--key", second) == 0
    assert run("decrypt", bundle, "--key", second) == 0
    assert run("verify", bundle) == 0
    assert secret not in capsys.readouterr().out
