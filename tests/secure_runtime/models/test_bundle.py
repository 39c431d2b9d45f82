"""Loading and predicting: against a plain numpy oracle, whatever shares the batch, and after everything is sealed."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from scipy.special import erf, expit, softmax

from sealgate.certificate.architectures import MlpSpec
from sealgate.errors import CertificateError
from secure_runtime.errors import BadInput
from secure_runtime.models.architectures import build
from secure_runtime.models.bundle import load_bundle, module_from_weights, warm_up
from tests.sealgate.certificate.conftest import Forge
from tests.secure_runtime.models.conftest import SPECS, manifest_for, weights_for, write_publishers

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "silu": lambda x: x * expit(x),
}


def oracle(spec, manifest, weights, rows: np.ndarray) -> dict[str, np.ndarray]:
    columns = manifest.inputs[0].columns
    low = np.array([float(c.low) for c in columns])
    high = np.array([float(c.high) for c in columns])
    x = (np.clip(rows.astype(np.float64), low, high) - 0.5) / 2.5
    count = len(weights) // 2
    for index in range(count):
        x = x @ weights[f"layers.{index}.weight"].astype(np.float64).T + weights[f"layers.{index}.bias"]
        if index < count - 1:
            x = ACTIVATIONS[spec.activation](x)
    if spec.classes == 0:
        return {"amount": np.clip(x[:, 0] * 10 + 20, 10, 30)}
    chances = np.stack([expit(-x[:, 0]), expit(x[:, 0])], axis=1) if spec.classes == 2 else softmax(x, axis=1)
    return {"chances": chances, "decision": chances.argmax(axis=1)}


def test_predictions_are_those_of_a_plain_calculation(forged, spec):
    forge, directory = forged
    model = load_bundle(directory, forge.publishers)
    rows = np.random.default_rng(3).normal(size=(64, 5)).astype(np.float32) * 3
    found = model.predict({"rows": torch.from_numpy(rows)})
    wanted = oracle(spec, model.manifest, weights_for(spec), rows)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-6, atol=1e-7)
    for output in model.manifest.outputs:
        assert found[output.name].dtype == {"FP32": torch.float32, "INT64": torch.int64}[output.datatype]
        assert found[output.name].shape == tuple(64 if side == -1 else side for side in output.shape)


def test_an_answer_does_not_depend_on_its_company(forged):
    forge, directory = forged
    model = load_bundle(directory, forge.publishers)
    rows = torch.from_numpy(np.random.default_rng(5).normal(size=(200, 5)).astype(np.float32))
    together = model.predict({"rows": rows})
    for size in (1, 3, 64):
        parts = [model.predict({"rows": rows[start : start + size]}) for start in range(0, 200, size)]
        for name, values in together.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), values), (name, size)


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=5, max_size=5), min_size=1)
)
@settings(max_examples=60)
def test_any_finite_row_has_a_finite_answer(rows):
    for spec in SPECS.values():
        manifest = manifest_for(spec)
        from secure_runtime.models.predictor import Predictor

        module = module_from_weights(spec, bytes(save(weights_for(spec))))
        for values in Predictor(manifest, module).predict({"rows": torch.tensor(rows, dtype=torch.float32)}).values():
            assert bool(torch.isfinite(values.to(torch.float64)).all())
            if values.ndim == 2:
                assert torch.allclose(values.sum(dim=1), torch.ones(len(values)), atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (torch.zeros(0, 5), "input-shape"),
        (torch.zeros(5), "input-shape"),
        (torch.zeros(2, 4), "input-shape"),
        (torch.zeros(2, 5, 1), "input-shape"),
        (torch.zeros(2, 5, dtype=torch.float64), "input-datatype"),
        (torch.zeros(2, 5, dtype=torch.int64), "input-datatype"),
        (torch.full((2, 5), float("nan")), "input-not-finite"),
        (torch.full((2, 5), float("inf")), "input-not-finite"),
    ],
)
def test_rows_that_cannot_be_answered(batch, code, tmp_path):
    spec = SPECS["mlp-2"]
    forge = Forge(manifest=manifest_for(spec), weights=bytes(save(weights_for(spec))))
    model = load_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    with pytest.raises(BadInput) as caught:
        model.predict({"rows": batch})
    assert caught.value.code == code


def test_the_module_has_exactly_the_tensors_that_the_manifest_promises(spec):
    module = build(spec)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == spec.tensors()
    assert not dict(module.named_buffers())
    assert all(bool((p == 0).all()) for p in module.parameters())


def test_building_draws_nothing_from_torchs_generator(spec):
    before = torch.get_rng_state()
    build(spec)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    spec = SPECS["linear"]
    weights = weights_for(spec)
    weights["layers.0.bias"][0] = np.nan
    forge = Forge(manifest=manifest_for(spec), weights=bytes(save(weights)))
    with pytest.raises(CertificateError) as caught:
        load_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    assert caught.value.code == "weights-shape"


def test_a_bundle_that_does_not_verify_is_not_loaded(tmp_path, monkeypatch):
    spec = SPECS["linear"]
    forge = Forge(manifest=manifest_for(spec), weights=bytes(save(weights_for(spec))))
    forge.claim(epsilon_micro=forge.certificate.epsilon_micro - 1)
    from secure_runtime.models import bundle as module

    monkeypatch.setattr(module, "load_verified", lambda *_args, **_more: pytest.fail("loaded"))
    with pytest.raises(CertificateError) as caught:
        load_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    assert caught.value.code == "epsilon-mismatch"


def test_a_bundle_is_data_only(tmp_path):
    """An architecture outside the known ones cannot be named."""
    manifest = manifest_for(SPECS["linear"])
    value = msgspec.to_builtins(manifest)
    value["architecture"]["family"] = "os.system"
    forge = Forge(manifest=value, weights=bytes(save(weights_for(SPECS["linear"]))))
    forge.manifest = _Raw(value)
    with pytest.raises(CertificateError) as caught:
        load_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    assert caught.value.code == "manifest-malformed"


class _Raw(dict):
    """A manifest as plain JSON, with the one attribute that the forge asks for."""

    version = "1.0.0"


AFTER_WARM_UP = """
import sys, threading
from pathlib import Path
import torch
torch.set_num_threads(1)
from sealgate.certificate.publishers import load_publishers
from secure_runtime.errors import BadInput
from secure_runtime.models.bundle import load_bundle, warm_up
model = load_bundle(Path(sys.argv[1]), load_publishers(Path(sys.argv[2])))
warm_up(model)
seen, sealed = [], [False]
def watch(event, arguments):
    kind = event.split(".")[0]
    if sealed[0] and kind in {"open", "import", "os", "socket", "subprocess", "ctypes", "exec", "compile"}:
        seen.append((event, str(arguments)[:80]))
sys.addaudithook(watch)
modules, threads = set(sys.modules), threading.active_count()
tasks = len(list(Path("/proc/self/task").iterdir()))
sealed[0] = True
for rows in (1, 2, 5, 64, 256):
    for value in model.predict({"rows": torch.randn(rows, 5)}).values():
        value.numpy().tobytes(), value.tolist()
for wrong in (torch.zeros(0, 5), torch.full((1, 5), float("nan"))):
    try:
        model.predict({"rows": wrong})
    except BadInput as error:
        str(error), error.code
sealed[0] = False
assert not seen, seen
assert set(sys.modules) == modules, set(sys.modules) - modules
assert len(list(Path("/proc/self/task").iterdir())) == tasks
print("sealed")
"""


@pytest.mark.parametrize("name", ["logistic-2", "mlp-3-gelu", "mlp-value"])
def test_after_warm_up_nothing_is_opened_imported_or_started(name, tmp_path):
    spec = SPECS[name]
    forge = Forge(manifest=manifest_for(spec), weights=bytes(save(weights_for(spec))))
    directory = forge.write(tmp_path / "toy")
    publishers = write_publishers(tmp_path / "publishers.toml", forge)
    done = subprocess.run(
        [sys.executable, "-c", AFTER_WARM_UP, str(directory), str(publishers)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "sealed\n", done.stderr[-2000:]


def test_warm_up_accepts_small_batch_limits(tmp_path):
    spec = MlpSpec(inputs=5, hidden=(4,), activation="relu", classes=2)
    forge = Forge(manifest=manifest_for(spec), weights=bytes(save(weights_for(spec))))
    warm_up(load_bundle(forge.write(tmp_path / "toy"), forge.publishers), max_rows=1)
