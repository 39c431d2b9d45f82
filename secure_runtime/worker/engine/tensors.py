"""Open Inference Protocol tensors to torch and back, strictly as the manifest declares them.

Trusts: the decoded request's shapes and sizes (sealgate.protocol.inference checked them against each other). Never:
converts silently: a wrong name, datatype or shape is an error that names the input and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sealgate.certificate.inputs import InputTensor, TextContent
from sealgate.limits import MAX_TENSOR_ELEMENTS
from sealgate.protocol.inference import Tensor, tensor_to_list
from secure_runtime.errors import BadInput
from secure_runtime.models.tokenizers import tokens_of

_FROM_WIRE: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}


def shape_text(shape: Sequence[int]) -> str:
    """`[-1, 30]` as people read it: -1 is any number of rows."""
    return "[" + ", ".join("rows" if size == -1 else str(size) for size in shape) + "]"


def to_torch(tensor: Tensor, *, datatype: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor as torch holds it (a copy); raises BadInput unless it is what the manifest declares."""
    if tensor.datatype != datatype:
        raise BadInput(f"input '{tensor.name}' is {tensor.datatype}, expected {datatype}")
    fits = len(tensor.shape) == len(shape) and all(
        want in (-1, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise BadInput(f"input '{tensor.name}' has shape {list(tensor.shape)}, expected {shape_text(shape)}")
    if tensor.shape and tensor.shape[0] == 0:
        raise BadInput(f"input '{tensor.name}' has no rows")
    values = torch.frombuffer(bytearray(tensor.data), dtype=_FROM_WIRE[datatype]).reshape(tensor.shape)
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise BadInput(f"input '{tensor.name}' contains NaN or infinity")
    return values


def _go_on() -> None:
    """Nobody waits."""


def to_model(tensor: Tensor, spec: InputTensor, *, go_on: Callable[[], None] = _go_on) -> torch.Tensor:
    """The tensor as a model's input takes it: numbers as they are, texts as tokens. Raises BadInput.

    Tokens are many more numbers than empty texts are bytes, and cost time: their number is bounded before they are
    made, and `go_on` is called before each text, to raise when nobody waits any more.
    """
    if not isinstance(spec.content, TextContent):
        return to_torch(tensor, datatype=spec.datatype, shape=spec.shape)
    if tensor.datatype != "BYTES" or len(tensor.shape) != 1:
        raise BadInput(f"input '{tensor.name}' is {tensor.datatype} {list(tensor.shape)}, expected BYTES [rows]")
    if not tensor.shape[0]:
        raise BadInput(f"input '{tensor.name}' has no rows")
    if tensor.shape[0] * spec.content.tokenizer.length > MAX_TENSOR_ELEMENTS:
        raise BadInput(f"input '{tensor.name}' has too many texts; send fewer at once", status=413)
    try:
        texts = [value.decode() for value in tensor_to_list(tensor)]
    except UnicodeDecodeError:
        raise BadInput(f"input '{tensor.name}' has a text that is not UTF-8") from None
    return tokens_of(texts, spec.content.tokenizer, go_on=go_on)


def from_torch(name: str, values: torch.Tensor, datatype: str) -> Tensor:
    """A dense torch tensor as the protocol carries it, converted to the declared datatype."""
    dense = values.to(dtype=_FROM_WIRE[datatype], device="cpu").contiguous()
    data = dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    return Tensor(name=name, datatype=datatype, shape=tuple(dense.shape), data=data)
