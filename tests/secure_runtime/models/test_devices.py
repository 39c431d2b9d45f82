"""The same models on every device of this machine, against the processor's answers. A GPU that is not there is said."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from sealgate.certificate.compressing import compress_weights
from sealgate.certificate.compression import Compression
from secure_runtime.errors import BadInput
from secure_runtime.limits import GRAPH_ROWS, LANES
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
        one, two = lane.fetching(there * 2), lane.fetching(there + 1)
    assert torch.equal(one(), rows * 2)
    assert torch.equal(two(), rows + 1)
    assert one().device.type == two().device.type == "cpu"
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


def predictor(device, name="mlp-3-gelu"):
    spec = SPECS[name]
    return Predictor(manifest_for(spec), module_from_weights(spec, bytes(save(weights_for(spec)))), device=str(device))


def batch(rows, seed=1):
    return {"rows": torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32))}


def test_batches_under_way_together_come_back_in_order(device):
    model = predictor(device)
    asked = [batch(rows, seed=rows) for rows in (3, 1, 7, 2, 5)]
    taken = []

    def given():
        for number, one in enumerate(asked):
            taken.append(number)
            yield one

    found = []
    for answer in model.predict_each(given()):
        found.append(answer)
        assert len(taken) <= len(found) - 1 + LANES, "no more are begun than there are lanes"
    for wanted, answer in zip(map(model.predict, asked), found, strict=True):
        for output, values in wanted.items():
            assert torch.equal(answer[output], values)


def test_a_batch_that_is_refused_does_not_keep_the_lanes(device):
    model = predictor(device)
    with pytest.raises(BadInput):
        list(model.predict_each([batch(2), {"rows": torch.full((1, 5), float("nan"))}, batch(2)]))
    assert len(list(model.predict_each([batch(2)] * 3))) == 3


@pytest.mark.parametrize("name", ["mlp-3-gelu", "mlp-value", "logistic-2"])
def test_captured_graphs_answer_as_the_model_does(device, name):
    plain, captured = predictor(device, name), predictor(device, name)
    assert captured.capture_graphs() == GRAPH_ROWS
    for rows in (1, 2, 4, 5, 64, 256, 257, 3):  # between the sizes, at them, and above the last
        wanted, found = plain.predict(batch(rows, seed=rows)), captured.predict(batch(rows, seed=rows))
        for output, values in wanted.items():
            np.testing.assert_allclose(found[output].numpy(), values.numpy(), rtol=1e-6, atol=1e-7)


def test_nothing_of_a_batch_stays_in_a_graphs_buffers(device):
    model = predictor(device)
    model.capture_graphs()
    answer = model.predict(batch(3))
    assert all(bool(values.any()) for values in answer.values())
    for fixed in model._graphs._fixed:
        for held in (*fixed.buffers.values(), fixed.output):
            assert not bool(held.any())


def test_a_model_that_cannot_be_captured_goes_on_as_before(device, monkeypatch):
    model = predictor(device)
    wanted = model.predict(batch(4))
    computed = model._computed

    def strange(inputs):  # an answer that depends on its neighbours: padding would change it
        return computed(inputs) + inputs["rows"].shape[0]

    monkeypatch.setattr(model, "_computed", strange)
    with pytest.raises(RuntimeError, match="padded answers are not its own"):
        model.capture_graphs()
    monkeypatch.undo()
    for output, values in wanted.items():
        assert torch.equal(model.predict(batch(4))[output], values)


def test_whole_numbers_are_exact_on_the_device(device):
    rows, whole = (
        torch.randint(-127, 128, (5, 19), dtype=torch.int8),
        torch.randint(-127, 128, (3, 19), dtype=torch.int8),
    )
    found = integer_product(rows.to(device), whole.to(device)).cpu()
    assert torch.equal(found, exact_product(rows, whole))
