"""The model that every peer serves, from the weights file that `benchmarks.serving.models` writes: numpy and torch
only.

    CNN   uint8 [n, 1, 28, 28] -> convolution 16x8x8 /2, ReLU, pool 2, convolution 32x4x4 /2, ReLU, 512-32-10
    MLP   float32 [n, 30] -> 30-64-ReLU-1 (two classes by a sigmoid)

One torch thread and float32, as our worker has. Imports nothing of the project: peers run in environments of their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

torch.set_num_threads(1)


def _filled(layer: nn.Module, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))  # type: ignore[operator, arg-type]
        layer.bias.copy_(torch.from_numpy(bias))  # type: ignore[operator, arg-type]
    return layer


class Served:
    """A loaded model. `name`, `input`, `datatype` and `shape` (of one item) are as the requests say."""

    def __init__(self, path: Path | None = None) -> None:
        arrays = dict(np.load(path or os.environ["PEER_WEIGHTS"]))
        self.name = str(arrays.pop("name"))
        self.input = str(arrays.pop("input"))
        self.shape: tuple[int, ...] = tuple(int(size) for size in arrays.pop("shape"))
        self.dtype = np.uint8 if self.name == "cnn" else np.float32
        self.datatype = "UINT8" if self.name == "cnn" else "FP32"
        self._low, self._high, self._center, self._scale = (
            torch.from_numpy(arrays.pop(key).astype(np.float32)) for key in ("low", "high", "center", "scale")
        )
        self._module = (_cnn if self.name == "cnn" else _mlp)(arrays).eval().requires_grad_(False)
        self.classes = 10 if self.name == "cnn" else 2
        self.run(np.zeros((1, *self.shape), self.dtype))

    @torch.inference_mode()
    def run(self, items: NDArray[np.generic]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels int64 [n] and scores float32 [n, classes] of items [n, *shape]."""
        values = torch.from_numpy(np.ascontiguousarray(items)).to(torch.float32)
        values = (values.clamp(self._low, self._high) - self._center) / self._scale
        logits = self._module(values)
        if self.classes == 2:
            scores = torch.cat((torch.sigmoid(-logits), torch.sigmoid(logits)), dim=1)
        else:
            scores = torch.softmax(logits, dim=1)
        return scores.argmax(dim=1).numpy(), scores.numpy()

    def items(self, flat: object) -> NDArray[np.generic]:
        """Values of one input, flat or nested, as the array that `run` takes."""
        return np.asarray(flat, self.dtype).reshape(-1, *self.shape)

    def from_bytes(self, body: bytes) -> NDArray[np.generic]:
        """A raw little-endian tensor as the array that `run` takes."""
        return np.frombuffer(body, self.dtype).reshape(-1, *self.shape)

    def outputs(self, labels: NDArray[np.int64], scores: NDArray[np.float32]) -> list[dict[str, object]]:
        """The outputs as the Open Inference Protocol writes them."""
        return [
            {"name": "scores", "datatype": "FP32", "shape": list(scores.shape), "data": scores.ravel().tolist()},
            {"name": "label", "datatype": "INT64", "shape": list(labels.shape), "data": labels.tolist()},
        ]


def _cnn(arrays: dict[str, NDArray[np.float32]]) -> nn.Module:
    stages = [nn.Conv2d(1, 16, 8, stride=2, padding=4), nn.Conv2d(16, 32, 4, stride=2, padding=2)]
    layers = [nn.Linear(512, 32), nn.Linear(32, 10)]
    for index, stage in enumerate(stages):
        prefix = f"stages.{index}.convolution."
        _filled(stage, arrays[prefix + "weight"], arrays[prefix + "bias"])
    for index, layer in enumerate(layers):
        _filled(layer, arrays[f"layers.{index}.weight"], arrays[f"layers.{index}.bias"])
    return nn.Sequential(
        stages[0], nn.ReLU(), nn.MaxPool2d(2), stages[1], nn.ReLU(), nn.Flatten(), layers[0], nn.ReLU(), layers[1]
    )


def _mlp(arrays: dict[str, NDArray[np.float32]]) -> nn.Module:
    layers = [nn.Linear(30, 64), nn.Linear(64, 1)]
    for index, layer in enumerate(layers):
        _filled(layer, arrays[f"layers.{index}.weight"], arrays[f"layers.{index}.bias"])
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])
