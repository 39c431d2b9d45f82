"""What stands between an input and the model: the same numbers whichever way they are made, and nobody's changed."""

from __future__ import annotations

import pytest
import torch

from sealgate.certificate.inputs import ImageContent, InputTensor
from secure_runtime.models.preparation import PreparedInput

_ALL_BYTES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def prepared(dtype: torch.dtype, *, low: str = "0", high: str = "255") -> PreparedInput:
    content = ImageContent(low=low, high=high, center="73", scale="90")
    spec = InputTensor(name="pixels", datatype="UINT8", shape=(-1, 1, 16, 16), content=content)
    return PreparedInput(spec, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-4, 300), (10, 255), (0, 200)])
def test_bytes_are_clamped_centred_and_scaled(dtype: torch.dtype, low: int, high: int) -> None:
    found = prepared(dtype, low=str(low), high=str(high)).scaled(_ALL_BYTES)
    assert found.dtype == dtype
    for byte, value in enumerate(found.flatten().tolist()):
        center, scale = torch.tensor(73, dtype=dtype), torch.tensor(90, dtype=dtype)
        assert value == float((torch.tensor(min(max(byte, low), high), dtype=dtype) - center) / scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_numbers_already_stay_as_they_are(dtype: torch.dtype) -> None:
    rows = _ALL_BYTES.to(dtype) + 40  # as explanations move them: outside, too
    kept = rows.clone()
    found = prepared(dtype).scaled(rows)
    assert torch.equal(rows, kept)
    assert found.max() == (torch.tensor(255, dtype=dtype) - 73) / torch.tensor(90, dtype=dtype)


def test_gradients_pass() -> None:
    rows = _ALL_BYTES.to(torch.float64).requires_grad_()
    prepared(torch.float64).scaled(rows).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.full_like(rows, 1 / 90))
