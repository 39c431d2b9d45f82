"""A tiny, learnable data set in every file format, and the configuration that goes with it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

COLUMNS = ("age", "dose", "score")


def tiny(rows: int = 240, seed: int = 7) -> dict[str, np.ndarray]:
    """Three features; a class and a value that follow from them, with a little noise."""
    generator = np.random.default_rng(seed)
    columns = {
        "age": generator.uniform(20, 80, rows),
        "dose": generator.uniform(0, 10, rows),
        "score": generator.uniform(-1, 1, rows),
    }
    signal = (columns["age"] - 50) / 30 - (columns["dose"] - 5) / 5 + columns["score"]
    noisy = signal + generator.normal(0, 0.1, rows)
    columns["ill"] = np.where(noisy > 0, "yes", "no")
    columns["group"] = np.digitize(noisy, [-0.6, 0.6])
    columns["cost"] = 100 + 20 * noisy
    return columns


def write_data(path: Path, columns: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({name: values.tolist() for name, values in columns.items()}), path)
    else:
        np.savez(path, **columns)
    return path


def configuration_text(source: str, *, family: str = "logistic-regression", **changes: str) -> str:
    """A complete CONFIG.toml; `changes` replace whole lines by their key."""
    target = {
        "logistic-regression": 'target = "ill"\nclasses = { no = "healthy", yes = "ill" }',
        "linear-regression": 'target = "cost"\ntarget_range = [40, 160]',
        "mlp": 'target = "group"\nclasses = { 0 = "low", 1 = "middle", 2 = "high" }',
    }[family]
    text = f"""
[model]
name = "tiny"
version = "1.0.0"
description = "a tiny model"
family = "{family}"
sensitivity = "personal"
purposes = ["research"]
{"[architecture]" if family == "mlp" else ""}
{"hidden = [8]" if family == "mlp" else ""}

[data]
source = "{source}"
{target}
public_population = 200
held_out = 0.25

[privacy]
sigma = 5
delta = 1e-4
rate = "1/2"
steps = 40
clip_norm = 1

[optimizer]
learning_rate = {"0.1" if family == "linear-regression" else "0.5"}
momentum = 0.9

[selection]
how = "fixed"
note = "round values"

[columns]
age = [20, 80]
dose = [0, 10]
score = [-1, 1]
"""
    for key, line in changes.items():
        lines = text.split("\n")
        (place,) = [index for index, old in enumerate(lines) if old.split(" = ")[0] == key]
        lines[place] = line
        text = "\n".join(lines)
    return text


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The logistic regression on CSV."""
    write_data(tmp_path / "data.csv", tiny())
    path = tmp_path / "config.toml"
    path.write_text(configuration_text("data.csv"))
    return path
