"""Models of every family with weights that are not special, and their manifests."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from sealgate.certificate.architectures import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec
from sealgate.certificate.inputs import Column, InputTensor, TableContent
from sealgate.certificate.manifest import Manifest, OutputTensor, ValueRange
from tests.sealgate.certificate.conftest import Forge, a_manifest

SPECS = {
    "linear": LinearRegressionSpec(inputs=5),
    "logistic-2": LogisticRegressionSpec(inputs=5, classes=2),
    "logistic-4": LogisticRegressionSpec(inputs=5, classes=4),
    "mlp-value": MlpSpec(inputs=5, hidden=(16,), activation="tanh", classes=0),
    "mlp-2": MlpSpec(inputs=5, hidden=(16, 8), activation="relu", classes=2),
    "mlp-3-gelu": MlpSpec(inputs=5, hidden=(33,), activation="gelu", classes=3),
    "mlp-3-silu": MlpSpec(inputs=5, hidden=(7, 7, 7), activation="silu", classes=3),
}


def manifest_for(spec) -> Manifest:
    classes = spec.classes
    labels = tuple(f"class {index}" for index in range(classes))
    columns = tuple(
        Column(name=f"c{index}", low="-2", high=str(3 + index), center="0.5", scale="2.5")
        for index in range(spec.inputs)
    )
    if classes:
        outputs = (
            OutputTensor(name="decision", datatype="INT64", shape=(-1,), role="label", labels=labels),
            OutputTensor(name="chances", datatype="FP32", shape=(-1, classes), role="scores", labels=labels),
        )
    else:
        outputs = (OutputTensor(name="amount", datatype="FP32", shape=(-1,), role="value"),)
    return msgspec.structs.replace(
        a_manifest(),
        architecture=spec,
        inputs=(
            InputTensor(name="rows", datatype="FP32", shape=(-1, spec.inputs), content=TableContent(columns=columns)),
        ),
        outputs=outputs,
        value_range=None if classes else ValueRange(low="10", high="30"),
    )


def weights_for(spec, seed: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in spec.tensors().items()}


@pytest.fixture(params=SPECS, ids=list(SPECS))
def spec(request):
    return SPECS[request.param]


@pytest.fixture
def forged(spec, tmp_path):
    """A forge and a signed bundle of the family under test."""
    forge = Forge(manifest=manifest_for(spec), weights=bytes(save(weights_for(spec))))
    return forge, forge.write(tmp_path / "models" / "toy")


def write_publishers(path: Path, forge: Forge) -> Path:
    key = base64.b64encode(forge.key.public_key().public_bytes_raw()).decode()
    path.write_text(f'[[publisher]]\nname = "hospital"\nkey = "{key}"\n')
    return path
