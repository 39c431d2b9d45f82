"""Sequences, tokens, texts and graphs become examples; what is wrong is said with column, row or place."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealgate.certificate.inputs import HashedWords
from sealgate.errors import ConfigurationError
from secure_runtime.models.tokenizers import tokens_of
from training.configuration import Configuration, load_configuration
from training.examples import Examples
from training.forms import form_of
from training.manifests import manifest_of

CONFIG = """
[model]
name = "tiny"
version = "1.0.0"
description = "a tiny model"
family = "{family}"
sensitivity = "personal"
purposes = ["research"]

[data]
kind = "{kind}"
source = "{source}"
target = "y"
classes = {{ 0 = "no", 1 = "yes" }}
public_population = 100
held_out = 0.5

[privacy]
sigma = 5
delta = 1e-4
rate = "1/2"
steps = 4
clip_norm = 1

[optimizer]
learning_rate = 1

[selection]
how = "fixed"
note = "round values"
"""
RECURRENT = '[architecture]\ncell = "gru"\nhidden = [2]\n'
COLUMNS = '[columns]\n"up" = [-1, 1]\n"down" = [0, 4, 1, 2]\n'
SEQUENCE = f"{RECURRENT}{COLUMNS}[sequence]\nsteps = 3\n"
TOKENS = "[architecture]\nwidth = 2\n[tokens]\nlength = 3\nvocabulary = 9\n"
TEXT = '[architecture]\nwidth = 2\n[text]\ntokenizer = "hashed-words"\nbuckets = 50\nlength = 4\n'
GRAPH = f'[architecture]\nlayer = "convolution"\nhidden = [2]\n{COLUMNS}[graph]\nnodes = 3\n'
KINDS = {
    "sequence": ("recurrent", SEQUENCE, "data.npz"),
    "tokens": ("embedding-bag", TOKENS, "data.npz"),
    "text": ("embedding-bag", TEXT, "data.csv"),
    "graph": ("graph", GRAPH, "data.npz"),
}


def configured(folder: Path, kind: str, *changes: tuple[str, str], source: str = "") -> Configuration:
    family, sections, usual = KINDS[kind]
    for old, new in changes:
        assert old in sections
        sections = sections.replace(old, new)
    head = CONFIG.format(family=family, kind=kind, source=source or usual)
    (folder / "config.toml").write_text(head + sections)
    return load_configuration(folder / "config.toml")


def arrays(count: int = 6) -> dict[str, Any]:
    """Good data for every form."""
    draw = np.random.default_rng(1)
    upper = np.triu(draw.random((count, 3, 3)) < 0.5, 1)
    return {
        "X": draw.normal(size=(count, 3, 2)),
        "tokens": draw.integers(0, 9, size=(count, 3)),
        "nodes": draw.random((count, 3, 2)),
        "edges": (upper | upper.transpose(0, 2, 1) | np.eye(3, dtype=bool)).astype(float),
        "y": np.arange(count) % 2,
    }


def read(folder: Path, configuration: Configuration) -> Examples:
    return form_of(configuration).read_examples(configuration, folder=folder)


@pytest.mark.parametrize(
    ("kind", "names", "shapes"),
    [
        ("sequence", ("X",), ((3, 2),)),
        ("tokens", ("tokens",), ((3,),)),
        ("graph", ("nodes", "edges"), ((3, 2), (3, 3))),
    ],
)
def test_arrays_become_examples_and_held_out_rows_their_numbers(
    tmp_path: Path, kind: str, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> None:
    given = arrays()
    np.savez(tmp_path / "data.npz", **given)
    configuration = configured(tmp_path, kind)
    manifest = manifest_of(configuration)
    assert tuple(tensor.model_shape for tensor in manifest.inputs) == shapes == manifest.architecture.input_shapes()
    examples = read(tmp_path, configuration)
    for name, found in zip(names, examples.inputs, strict=True):
        np.testing.assert_allclose(found, given[name].astype(found.dtype))
    assert examples.target.tolist() == given["y"].tolist()
    form_of(configuration).write_heldout(tmp_path / "held.csv", examples, configuration)
    with (tmp_path / "held.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header[-1] == "y"
    assert [row[-1] for row in rows] == ["no", "yes"] * 3
    flat = np.concatenate([found.reshape(6, -1) for found in examples.inputs], axis=1)
    np.testing.assert_array_equal(np.array([[float(cell) for cell in row[:-1]] for row in rows]), flat)


def test_a_wide_table_is_a_sequence_by_its_columns_names(tmp_path: Path) -> None:
    given = arrays()
    names = [f"t{step} {channel}" for step in range(3) for channel in ("up", "down")]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*reversed(names), "y"])
        for steps, target in zip(given["X"].reshape(6, -1).tolist(), given["y"].tolist(), strict=True):
            writer.writerow([*reversed(steps), target])
    change = ("steps = 3", 'steps = 3\npattern = "t{step} {channel}"')
    configuration = configured(tmp_path, "sequence", change, source="data.csv")
    examples = read(tmp_path, configuration)
    np.testing.assert_allclose(examples.inputs[0], given["X"].astype(np.float32))
    form_of(configuration).write_heldout(tmp_path / "held.csv", examples, configuration)
    assert (tmp_path / "held.csv").read_text().splitlines()[0] == ",".join([*names, "y"])


def test_texts_become_tokens_and_are_held_out_as_they_were(tmp_path: Path) -> None:
    texts = ["two words", 'a "quoted"\nline, and more', "", "x" * 3_000_000, "grüße", "six"]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "y"), *zip(texts, [0, 1] * 3, strict=True)])
    configuration = configured(tmp_path, "text")
    examples = read(tmp_path, configuration)
    tokens = tokens_of(texts, HashedWords(buckets=50, length=4)).numpy()
    np.testing.assert_array_equal(examples.inputs[0], tokens)
    half = examples.take(np.array([True, False] * 3))
    form_of(configuration).write_heldout(tmp_path / "held.csv", half, configuration)
    csv.field_size_limit(4_000_000)
    with (tmp_path / "held.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == texts[::2]


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("sequence", {"X": None}, r"no array 'X'; it has: edges"),
        ("sequence", {"X": np.zeros((6, 3, 3))}, r"shape \[3, 3\], the configuration says \[3, 2\]"),
        ("sequence", {"X": np.where(np.arange(36).reshape(6, 3, 2) == 15, np.nan, 0.0)}, r"example 3, place \[1, 1\]"),
        ("sequence", {"X": np.full((6, 3, 2), 1e60)}, "not a finite number"),
        ("sequence", {"X": np.full((6, 3, 2), "a")}, "needs numbers"),
        ("sequence", {"y": np.arange(5)}, "different numbers of examples"),
        ("sequence", {"y": np.array(3)}, "single value"),
        ("sequence", {"y": np.zeros(6)}, "never holds the class"),
        ("tokens", {"tokens": np.full((6, 3), 9)}, "example 1: holds a number outside 0 to 8"),
        ("tokens", {"tokens": np.full((6, 3), -1)}, "outside 0 to 8"),
        ("tokens", {"tokens": np.ones((6, 3))}, "needs whole numbers"),
        ("graph", {"edges": np.full((6, 3, 3), 0.5)}, "example 1: an edge is neither zero nor one"),
        ("graph", {"edges": np.tile(np.triu(np.ones((3, 3))), (6, 1, 1))}, "goes one way only"),
        ("graph", {"edges": np.tile(1 - np.eye(3), (6, 1, 1))}, "set its diagonal edge"),
        ("graph", {"nodes": np.zeros((6, 4, 2))}, r"says \[3, 2\]"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, kind: str, change: dict[str, Any], why: str) -> None:
    given = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "data.npz", **given)
    with pytest.raises(ConfigurationError, match=why):
        read(tmp_path, configured(tmp_path, kind))


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("sequence", ("steps = 3", "steps = 0"), "above zero"),
        ("sequence", ("steps = 3", "steps = 3\nstride = 2"), r"\[sequence\] has no setting .stride"),
        ("sequence", ("steps = 3", 'steps = 3\npattern = "{step}"'), "must hold"),
        ("sequence", (COLUMNS, ""), r"\[columns\] must name"),
        ("sequence", ("hidden = [2]", "hidden = [0]"), "width is out of range"),
        ("tokens", ("vocabulary = 9", "vocabulary = 1"), "width of a step"),
        ("text", ("buckets = 50\n", ""), "buckets belongs to hashed-words"),
        ("text", ('"hashed-words"', '"letters"'), "tokenizer must be one of"),
        ("text", ("length = 4", 'length = 4\ncolumn = "y"'), "is the target"),
        ("text", ('"hashed-words"\nbuckets = 50', '"wordpiece"'), r"\[pretrained\] must name"),
        ("graph", ("nodes = 3", "nodes = -3"), "above zero"),
        ("graph", ("hidden = [2]", "hidden = [2]\nnodes = 3"), "follows from the data"),
    ],
)
def test_sections_that_are_wrong_are_refused(tmp_path: Path, kind: str, change: tuple[str, str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        manifest_of(configured(tmp_path, kind, change))


def test_arrays_come_from_plain_npz_files_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **{**arrays(), "X": np.array([{}] * 6, dtype=object)})
    for content, why in ((None, "pickled"), (b"PK\x03\x04 no", "damaged"), (b"", "damaged|plain arrays")):
        if content is not None:
            (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(ConfigurationError, match=why):
            read(tmp_path, configured(tmp_path, "sequence"))
    with pytest.raises(ConfigurationError, match=r"must be a \.npz file"):
        read(tmp_path, configured(tmp_path, "sequence", source="data.csv"))
