"""A small made-up network whose ties tell the group, and configurations for both units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from training.configuration import Configuration, load_configuration

HEAD = """
[model]
name = "tied"
version = "1.0.0"
description = "a small network"
family = "embedding-bag"
sensitivity = "personal"
purposes = ["research"]

[architecture]
hidden = [8]

[data]
kind = "network"
source = "network.npz"
target = "group"
classes = { 0 = "left", 1 = "right" }
public_population = 1000
held_out = 0.5

[selection]
how = "fixed"
note = "round values"
"""
COLUMNS = '[columns]\n"up" = [-4, 4]\n"down" = [-4, 4]\n'
EDGE = '[network]\nnodes = 120\nwidth = 3\n[privacy]\nmechanism = "gap-aggregation"\nepsilon = 8\ndelta = 1e-4\n'
NODE = """[network]
nodes = 120
unit = "node"
hops = 1
width = 2
max_degree = 40
sum_norm = 5
[privacy]
mechanism = "gap-aggregation"
epsilon = 8
delta = 1e-4
rate = "1/4"
steps = 10
clip_norm = 1
[optimizer]
learning_rate = 1
"""
SECTIONS = {"edge": EDGE + COLUMNS, "node": NODE + COLUMNS, "codes": EDGE}


def made_up(seed: int = 3) -> dict[str, Any]:
    """110 nodes of two groups, tied within their group nine times out of ten."""
    draw = np.random.default_rng(seed)
    group = np.arange(110) % 2
    alike = group[:, None] == group[None, :]
    edges = np.argwhere(np.triu(draw.random(alike.shape) < np.where(alike, 0.27, 0.03), k=1)) + 1
    features = draw.normal(size=(110, 2)) + 0.4 * (2 * group[:, None] - 1)
    return {"features": features, "edges": edges, "group": group}


def configured(folder: Path, unit: str, *changes: tuple[str, str]) -> Configuration:
    """The configuration in a file, and the network beside it."""
    text = HEAD + SECTIONS[unit]
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "config.toml").write_text(text)
    if not (folder / "network.npz").exists():
        np.savez(folder / "network.npz", **made_up())
    return load_configuration(folder / "config.toml")


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()
