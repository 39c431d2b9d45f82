"""The two models of the comparison: trained for a moment by `sealgate train`, and their weights for the peers.

What they answer does not matter here; that all servers answer the same is checked. The images are noise made here, the
table is the one that scikit-learn ships.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.inputs import ImageContent
from sealgate.certificate.publishers import load_publishers
from sealgate.demo.stage import sealgate
from secure_runtime.models.bundle import module_from_weights

_TABLE = Path(__file__).parents[2] / "sealgate" / "demo" / "breast_cancer.toml"
_CNN = """
[model]
name = "cnn"
version = "1.0.0"
description = "A small convolutional network over 28 x 28 pixels, for measuring."
family = "cnn"
sensitivity = "public"
purposes = ["treatment"]
arithmetic = "float32"

[architecture]
activation = "relu"
stages = [{ channels = 16, kernel = 8, stride = 2, pool = 2 }, { channels = 32, kernel = 4, stride = 2 }]
hidden = [32]

[data]
kind = "image"
source = "images-idx3-ubyte"
target = "digit"
classes = { 0 = "0", 1 = "1", 2 = "2", 3 = "3", 4 = "4", 5 = "5", 6 = "6", 7 = "7", 8 = "8", 9 = "9" }
public_population = 400
held_out = 0.1

[image]
height = 28
width = 28
center = 73
scale = 90
labels = "labels-idx1-ubyte"

[privacy]
epsilon = 3
delta = 1e-4
rate = "1/8"
steps = 6
clip_norm = 1

[optimizer]
learning_rate = 0.5
momentum = 0.9
average_steps = 3

[selection]
how = "fixed"
note = "trained for a moment, for measuring"
"""


@dataclass(frozen=True)
class BenchModel:
    """A model with its items. `items` [n, *shape] are requests in turn; `weights` is the peers' file."""

    name: str
    input: str
    datatype: str
    items: NDArray[Any]
    weights: Path


def train_models(names: tuple[str, ...], folder: Path, *, state: Path, items: int = 64) -> dict[str, BenchModel]:
    """Train into the deployment `state` and write the peers' files into `folder`."""
    configs = {"cnn": _images, "mlp": _table}
    made = {}
    for name in names:
        config = configs[name](folder)
        sealgate("train", config, "--out", state / "models", "--key", state / "publisher.key", "--no-audit")
        made[name] = _export(name, folder, state=state, items=items)
    return made


def _images(folder: Path) -> Path:
    """Noise as IDX files of 400 images, and the configuration."""
    drawn = np.random.default_rng(7)
    pixels = drawn.integers(0, 256, (400, 28, 28), dtype=np.uint8)
    labels = np.arange(400, dtype=np.uint8) % 10
    (folder / "images-idx3-ubyte").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes())
    (folder / "labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 400) + labels.tobytes())
    (folder / "cnn.toml").write_text(_CNN)
    return folder / "cnn.toml"


def _table(folder: Path) -> Path:
    """The demo's table with one hidden layer."""
    text = _TABLE.read_text()
    for old, new in (
        ('name = "breast-cancer"', 'name = "mlp"'),
        ('family = "logistic-regression"', 'family = "mlp"\narithmetic = "float32"'),
        ("steps = 150", "steps = 6"),
        ("average_steps = 75", "average_steps = 3"),
        ("[data]", '[architecture]\nhidden = [64]\nactivation = "relu"\n\n[data]'),
    ):
        if old not in text:
            raise RuntimeError(f"{_TABLE} has changed: it has no {old}")
        text = text.replace(old, new, 1)
    (folder / "mlp.toml").write_text(text)
    return folder / "mlp.toml"


def _export(name: str, folder: Path, *, state: Path, items: int) -> BenchModel:
    """The trained weights and public constants as a numpy file, and items that lie inside the model's ranges."""
    bundle = verify_bundle(state / "models" / name, load_publishers(state / "publishers.toml"))
    module = module_from_weights(bundle.manifest.architecture, bundle.weights)
    spec = bundle.manifest.inputs[0]
    scales = [spec.content] if isinstance(spec.content, ImageContent) else spec.columns
    keys = ("low", "high", "center", "scale")
    constants = {key: np.array([float(getattr(one, key)) for one in scales]) for key in keys}
    arrays = {key: value.numpy() for key, value in module.state_dict().items()}
    shape = np.array(spec.shape[1:])
    path = folder / f"{name}.npz"
    np.savez(path, name=np.array(name), input=np.array(spec.name), shape=shape, **constants, **arrays)
    drawn = np.random.default_rng(11)
    if spec.datatype == "UINT8":
        values: NDArray[Any] = drawn.integers(0, 256, (items, *spec.shape[1:]), dtype=np.uint8)
    else:
        share = drawn.random((items, *spec.shape[1:]))
        values = (constants["low"] + share * (constants["high"] - constants["low"])).astype(np.float32)
    return BenchModel(name=name, input=spec.name, datatype=spec.datatype, items=values, weights=path)
