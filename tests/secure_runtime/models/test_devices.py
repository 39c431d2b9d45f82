"""The same models on every device of this machine, against the processor's answers. A GPU that is not there is said."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from sealgate.certificate.compressing import compress_weights
from sealgate.certificate.compression import Compression
from secure_runtime.models.devices import Lane, prepare_device, sent
from secure_runtime.models.int8 import exact_product, integer_product
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.weights import module_from_weights
from tests.secure_runtime.models.conftest import SPECS, manifest_for, weights_for


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("NO GPU HERE: the CUDA paths of secure_runtime.models were not run by this test run")
    found = torch.device(request.param)
    prepare_device(found)
    return found


def test_rows_go_and_answers_come_back_whole(device):
    lane = Lane(device)
    rows = torch.randn(7, 3)
    with lane.entered():
        there = lane.sent(rows)
        assert there.device.type == device.type
        one, two = lane.fetched(there * 2, there + 1)
    assert torch.equal(one, rows * 2)
    assert torch.equal(two, rows + 1)
    assert one.device.type == two.device.type == "cpu"
    assert sent(there, device) is there or torch.equal(sent(there, device), there)


@pytest.mark.parametrize("kind", ["", "int8", "bf16"])
@pytest.mark.parametrize("name", ["mlp-3-gelu", "mlp-value", "logistic-2"])
def test_answers_do_not_depend_on_the_device(device, name, kind):
    spec = SPECS[name]
    plain = bytes(save(weights_for(spec)))
    manifest = manifest_for(spec)
    data, compression = (compress_weights(plain, kind), Compression(kind=kind)) if kind else (plain, None)
    if compression is not None:
        manifest = msgspec.structs.replace(manifest, compression=compression)
    rows = {"rows": torch.from_numpy(np.random.default_rng(1).normal(size=(33, 5)).astype(np.float32))}
    on_cpu, here = (
        Predictor(manifest, module_from_weights(spec, data, compression=compression), device=one)
        for one in ("cpu", str(device))
    )
    wanted, found = on_cpu.predict(rows), here.predict(rows)
    for output, values in wanted.items():
        np.testing.assert_allclose(found[output].numpy(), values.numpy(), rtol=1e-6, atol=1e-7)
        assert found[output].device.type == "cpu"


def test_whole_numbers_are_exact_on_the_device(device):
    rows, whole = (
        torch.randint(-127, 128, (5, 19), dtype=torch.int8),
        torch.randint(-127, 128, (3, 19), dtype=torch.int8),
    )
    found = integer_product(rows.to(device), whole.to(device)).cpu()
    assert torch.equal(found, exact_product(rows, whole))
