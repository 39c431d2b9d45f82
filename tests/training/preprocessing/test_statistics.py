"""Private statistics from the configuration to a certificate that recomputes, and to a model that serves with them."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.ambient import random_bytes
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.inputs import TextContent, Words
from sealgate.certificate.publishers import publishers_of
from sealgate.errors import ConfigurationError
from secure_runtime.models.bundle import load_bundle
from tests.training.conftest import configuration_text, tiny, write_data
from training.columns import read_columns
from training.configuration import load_configuration
from training.experiment import run_experiment
from training.preprocessing.counting import UNITS
from training.preprocessing.sections import with_placeholders
from training.preprocessing.statistics import Standardise, spending_of

PRIVATE = """
[preprocessing.standardise]
epsilon = 0.5
delta = 1e-6
columns = ["age", "dose"]

[preprocessing.categories]
ward = { epsilon = 0.5, delta = 1e-6, most = 4 }

[masking]
quasi_identifiers = ["ward"]
[masking.columns]
note = { action = "redact" }
"""


def rows(count: int = 4000):
    columns = tiny(count)
    columns["ward"] = np.array([("north", "south", "south")[row % 3] for row in range(count)])
    columns["ward"][5] = "a ward that one patient brings"
    columns["note"] = np.array([f"call 555-123-{row:04d}" for row in range(count)])
    return columns


def configured(folder, more=PRIVATE, **changes):
    write_data(folder / "data.csv", rows())
    text = configuration_text("data.csv").replace("public_population = 200", "public_population = 4000")
    for old, new in changes.items():
        text = text.replace(old, new)
    path = folder / "config.toml"
    path.write_text(text.replace("delta = 1e-4", "delta = 1e-5") + more)
    return path


def test_a_run_with_private_statistics(tmp_path, key):
    published = run_experiment(configured(tmp_path), models_dir=tmp_path / "models", key=key, audit=False)
    publishers = publishers_of({"hospital": key.public_key()})
    bundle = verify_bundle(published.bundle.directory, publishers)
    preprocessing = bundle.certificate.preprocessing
    found = {part.what: part for part in preprocessing.parts}
    assert set(found) == {"center and scale of 2 columns", "categories of 'ward'"}
    assert preprocessing.epsilon_micro <= 1_000_000
    assert preprocessing.delta == "0.000002"
    assert bundle.certificate.epsilon_micro > preprocessing.epsilon_micro
    assert [one.action for one in preprocessing.masked] == ["redact"]
    card = (published.bundle.directory / "card.md").read_text()
    assert "Masked before anything else: note, redact" in card
    assert "555-123" not in card
    columns = {column.name: column for column in bundle.manifest.inputs[0].columns}
    assert list(columns)[3:] == ["ward=south", "ward=north", "ward=(unused 3)", "ward=(unused 4)", "ward=*"]
    # Uniform on [20, 80] and [0, 10]; noise of a few rows' worth moves 4000 rows by little.
    assert float(columns["age"].center) == pytest.approx(50, abs=1.5)
    assert float(columns["age"].scale) == pytest.approx(60 / 12**0.5, rel=0.1)
    assert columns["age"].center not in ("50", repr(float(np.mean(rows()["age"]))))
    assert columns["score"].center == "0"
    model = load_bundle(published.bundle.directory, publishers)
    answered = model.predict({"features": torch.zeros(2, 8, dtype=torch.float32)})
    assert answered["scores"].shape == (2, 2)
    assert published.quality.value > 0.8


def test_statistics_are_drawn_anew_and_never_exact(tmp_path):
    configuration = load_configuration(configured(tmp_path))
    columns = read_columns("data.csv", tmp_path)
    filled = [spending_of(configuration).fill(configuration, columns, entropy=random_bytes) for _ in range(2)]
    assert filled[0].columns["age"] != filled[1].columns["age"]
    assert filled[0].categories["ward"] == filled[1].categories["ward"]
    assert len(with_placeholders(configuration).categories["ward"]) == len(filled[0].categories["ward"]) == 5


@given(row=st.tuples(*[st.floats(-1e9, 1e9)] * 2), units=st.sampled_from([0.1, 1.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_no_row_adds_more_than_its_bound(tmp_path_factory, row, units):
    path = tmp_path_factory.getbasetemp() / "bounds.toml"
    path.write_text(configuration_text("data.csv") + PRIVATE)
    configuration = load_configuration(path)
    step = spending_of(configuration).steps[0]
    assert isinstance(step, Standardise)
    generator = np.random.default_rng(1)
    many = {"age": generator.uniform(0, 100, 50) * units, "dose": generator.uniform(0, 10, 50) * units}
    more = {name: np.append(many[name], value) for name, value in zip(("age", "dose"), row, strict=True)}
    added = (step.sums(configuration, more) - step.sums(configuration, many)) / UNITS
    assert np.linalg.norm(added) <= step.release.norm_l2
    assert np.abs(added).sum() <= step.release.norm_l1


def test_a_spread_below_the_noise_is_not_blown_up(tmp_path):
    configuration = load_configuration(configured(tmp_path))
    wide = {**configuration.columns, "dose": (Decimal(-(10**6)), Decimal(10**6))}
    configuration = msgspec.structs.replace(configuration, columns=wide)
    filled = spending_of(configuration).fill(configuration, read_columns("data.csv", tmp_path), entropy=random_bytes)
    assert Decimal(30_000) < filled.columns["dose"][3] < Decimal(300_000)  # the data spread by 3


def test_ranges_of_many_digits(tmp_path):
    configuration = load_configuration(configured(tmp_path))
    for low, high, fine in (("0.123456789012345", "80.5", False), ("0", "0.00000000000000001", True)):
        odd = {**configuration.columns, "age": (Decimal(low), Decimal(high))}
        changed = msgspec.structs.replace(configuration, columns=odd)
        columns = read_columns("data.csv", tmp_path)
        if fine:
            with pytest.raises(ConfigurationError, match="too fine"):
                spending_of(changed).fill(changed, columns, entropy=random_bytes)
        else:
            center = spending_of(changed).fill(changed, columns, entropy=random_bytes).columns["age"][2]
            assert len(str(center)) <= 14


def test_what_is_left_for_the_mechanism(tmp_path):
    configuration = load_configuration(configured(tmp_path))
    spending = spending_of(configuration)
    assert spending.left(configuration).privacy.delta == Decimal("0.000008")
    epsilon = msgspec.structs.replace(configuration.privacy, epsilon=Decimal(3), sigma=None)
    left = spending.left(msgspec.structs.replace(configuration, privacy=epsilon)).privacy.epsilon
    assert left is not None
    assert Decimal(2) <= left < Decimal("2.01")
    poor = msgspec.structs.replace(configuration.privacy, delta=Decimal("0.000002"))
    with pytest.raises(ConfigurationError, match="spend all"):
        spending.left(msgspec.structs.replace(configuration, privacy=poor))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[preprocessing.standardise]\nepsilon = 0\n", "epsilon must be above zero"),
        ("[preprocessing.standardise]\nepsilon = 1\ndelta = 2\n", r"delta must lie in \[0, 1\)"),
        ('[preprocessing.standardise]\nepsilon = 1\ncolumns = ["ward"]\n', "not in \\[columns\\]"),
        ("[preprocessing.categories]\nward = { epsilon = 1, delta = 0 }\n", "delta above zero"),
        ("[preprocessing.categories]\nward = { epsilon = 1, delta = 1e-6, most = 0 }\n", "most and words"),
        ("[preprocessing.vocabulary]\nepsilon = 1\ndelta = 1e-6\n", 'tokenizer = "words"'),
        (
            '[categories]\nward = ["a"]\n[preprocessing.categories]\nward = { epsilon = 1, delta = 1e-6 }\n',
            "stands in",
        ),
        ("[preprocessing.colour]\nepsilon = 1\n", "colour"),
        ("[engine]\ncheckpoint_every = 5\n[preprocessing.standardise]\nepsilon = 1\n", "resumed"),
    ],
)
def test_sections_that_are_wrong(tmp_path, more, words):
    with pytest.raises(ConfigurationError, match=words):
        spending_of(load_configuration(configured(tmp_path, more)))


TEXTS = """
[model]
name = "mails"
version = "1.0.0"
description = "a tiny model"
family = "embedding-bag"
sensitivity = "personal"
purposes = ["research"]
[architecture]
width = 4
[data]
kind = "text"
source = "mails.csv"
target = "kind"
classes = { ham = "ham", spam = "spam" }
public_population = 3000
[text]
tokenizer = "words"
length = 8
[privacy]
sigma = 1
delta = 1e-5
rate = "1/5"
steps = 30
clip_norm = 1
[optimizer]
learning_rate = 4
momentum = 0.9
[selection]
how = "fixed"
note = "round values"
[preprocessing.vocabulary]
epsilon = 1
delta = 1e-6
most = 12
words_per_text = 4
"""


def test_a_vocabulary_of_private_texts(tmp_path, key):
    generator = np.random.default_rng(3)
    kinds = np.array(["ham", "spam"])[generator.integers(0, 2, 3000)]
    own = [("meeting", "tomorrow") if kind == "ham" else ("cheap", "pills") for kind in kinds]
    others = [[f"word{number}" for number in generator.integers(0, 40, 4)] for _ in own]
    texts = [f"{' '.join(words)} {' '.join(others[row])} secret{row}" for row, words in enumerate(own)]
    write_data(tmp_path / "mails.csv", {"text": np.array(texts), "kind": kinds})
    (tmp_path / "config.toml").write_text(TEXTS)
    published = run_experiment(tmp_path / "config.toml", models_dir=tmp_path / "models", key=key, audit=False)
    publishers = publishers_of({"hospital": key.public_key()})
    bundle = verify_bundle(published.bundle.directory, publishers)
    content = bundle.manifest.inputs[0].content
    assert isinstance(content, TextContent)
    assert isinstance(content.tokenizer, Words)
    vocabulary = content.tokenizer.vocabulary
    assert set(vocabulary[:4]) == {"meeting", "tomorrow", "cheap", "pills"}
    assert len(vocabulary) == 12
    assert not any(word.startswith("secret") for word in vocabulary)
    (part,) = bundle.certificate.preprocessing.parts
    assert (part.mechanism, part.contributions) == ("gaussian-threshold", 4)
    assert published.quality.value > 0.9
