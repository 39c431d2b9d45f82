"""CONFIG.toml: exact numbers, and one line that says what to mend for everything else."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError
from tests.training.conftest import configuration_text
from training.configuration import load_configuration

EXAMPLE = Path(__file__).parents[2] / "sealgate" / "demo" / "breast_cancer.toml"


def load(tmp_path: Path, text: str):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_configuration(path)


def test_numbers_are_exact(tmp_path):
    found = load(tmp_path, configuration_text("data.csv", delta="delta = 1e-5", rate='rate = "1/3"'))
    assert found.delta == "0.00001"
    assert found.rate == Fraction(1, 3)
    assert found.divisor_micro == 66_666_666
    assert [str(n) for n in found.columns["age"]] == ["20", "80"]


def test_the_example_is_a_valid_configuration_of_the_data_that_it_names():
    found = load_configuration(EXAMPLE)
    assert len(found.columns) == 30
    assert found.data.source == "sklearn:breast_cancer"


WRONG = [
    ("name", 'name = "Über Model"', "name must be lowercase"),
    ("version", 'version = ""', "version"),
    ("sensitivity", 'sensitivity = "low"', "sensitivity must be one of"),
    ("purposes", "purposes = []", "purposes"),
    ("version", 'version = "1"\nhidden = [3]', "hidden"),
    ("version", 'version = "1"\nactivation = "exec"', "activation"),
    ("classes", 'classes = { no = "healthy" }', "at least two"),
    ("classes", 'classes = { no = "x", yes = "x" }', "same name"),
    ("classes", "target_range = [0, 1]", "needs classes"),
    ("held_out", "held_out = 1", "held_out"),
    ("public_population", "public_population = 0", "public_population"),
    ("rate", 'rate = "0"', "rate"),
    ("rate", 'rate = "5/4"', "rate"),
    ("rate", 'rate = "1/0"', "fraction"),
    ("rate", 'rate = "often"', "fraction"),
    ("sigma", "epsilon = 0", "epsilon"),
    ("sigma", "epsilon = 3\nsigma = 1", "not both"),
    ("sigma", "epsilon = 0.0000001", "six decimals"),
    ("sigma", "epsilon = nan", "epsilon"),
    ("sigma", "epsilon = inf", "epsilon"),
    ("delta", "delta = 0.01", "delta must be"),
    ("delta", "delta = 0", "delta must be"),
    ("delta", "delta = nan", "delta"),
    ("steps", "steps = 0", "steps"),
    ("clip_norm", "clip_norm = -1", "clip_norm"),
    ("learning_rate", "learning_rate = 0", "learning_rate"),
    ("learning_rate", "learning_rate = nan", "learning_rate"),
    ("momentum", "momentum = 1", "momentum"),
    ("momentum", "average_steps = 41", "average_steps"),
    ("how", 'how = "grid-search"', "costs privacy"),
    ("age", "age = [80, 20]", "low must be below high"),
    ("age", "age = [20]", "must be"),
    ("age", "age = [20, 80, 50, 0]", "scale above zero"),
    ("age", "age = [20, inf]", "not finite"),
    ("age", "ill = [0, 1]", "is the target"),
    ("clip_norm", "clip_nrom = 1", "clip_nrom"),
]


@pytest.mark.parametrize(("key", "line", "says"), WRONG, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(WRONG)])
def test_a_wrong_line_is_named_in_one_line(tmp_path, key, line, says):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, configuration_text("data.csv", **{key: line}))
    assert says in str(caught.value)
    assert "config.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_family(tmp_path):
    text = configuration_text("data.csv").replace('"logistic-regression"', '"forest"')
    with pytest.raises(ConfigurationError, match="family must be one of"):
        load(tmp_path, text)


def test_regression_needs_its_range(tmp_path):
    text = configuration_text("data.csv", family="linear-regression", target_range='classes = { a = "x", b = "y" }')
    with pytest.raises(ConfigurationError, match="target_range"):
        load(tmp_path, text)


def test_a_missing_or_huge_or_binary_file(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_configuration(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError):
        load_configuration(tmp_path / "binary.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigurationError, match="larger"):
        load_configuration(tmp_path / "huge.toml")


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_garbage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("garbage") / "c.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError):
        load_configuration(path)
