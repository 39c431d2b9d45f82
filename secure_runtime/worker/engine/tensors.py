"""Open Inference Protocol tensors to torch and back, strictly as the manifest declares them.

A tensor has the datatype that the manifest declares, or is what the declared content also comes in: texts as BYTES,
images as PNG or JPEG (`pictures.py`), the columns of a table one by one (`columns.py`).

Trusts: the decoded request's shapes and sizes (sealgate.protocol.inference checked them against each other). Never:
converts silently: a wrong name, datatype or shape is an error that names the input and what was expected.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import torch

from sealgate.certificate.inputs import ImageContent, InputTensor, TextContent
from sealgate.limits import DEFAULT_MESSAGE, MAX_TENSOR_ELEMENTS
from sealgate.protocol.inference import Tensor, tensor_to_list
from secure_runtime.errors import BadInput
from secure_runtime.models.tokenizers import tokens_of
from secure_runtime.models.wire import HELD_AS, READ_AS
from secure_runtime.worker.engine.pictures import pixels_of

_BEYOND_INT64 = 1 << 63
_LENGTH = struct.Struct("<I")  # before each text of BYTES


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
    if 0 in tensor.shape:
        raise BadInput(f"input '{tensor.name}' has no rows")
    return numbers_of(tensor)


def numbers_of(tensor: Tensor) -> torch.Tensor:
    """The numbers of a tensor that has some, in the type of `HELD_AS`; raises BadInput for those no model takes."""
    held = HELD_AS[tensor.datatype]
    values = torch.frombuffer(bytearray(tensor.data), dtype=READ_AS[tensor.datatype]).reshape(tensor.shape)
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise BadInput(f"input '{tensor.name}' contains NaN or infinity")
    if values.dtype == held:
        return values
    values = values.to(held)
    if tensor.datatype == "UINT64" and bool((values < 0).any()):
        raise BadInput(f"input '{tensor.name}' has a number of {_BEYOND_INT64} or more", code="input-range")
    return values


def _go_on() -> None:
    """Nobody waits."""


def to_model(tensor: Tensor, spec: InputTensor, *, go_on: Callable[[], None] = _go_on) -> torch.Tensor:
    """The tensor as a model's input takes it: numbers, texts as tokens, pictures as pixels. Raises BadInput.

    Tokens and pixels are many more numbers than texts and pictures are bytes, and cost time: their number is bounded
    before they are made, and `go_on` is called before each, to raise when nobody waits any more.
    """
    match spec.content:
        case TextContent():
            return tokens_of(texts_of(tensor, spec), spec.content.tokenizer, go_on=go_on)
        case ImageContent() if tensor.datatype == "BYTES":
            return pixels_of(tensor, spec, go_on=go_on)
        case _:
            return to_torch(tensor, datatype=spec.datatype, shape=spec.shape)


def texts_of(tensor: Tensor, spec: InputTensor) -> list[str]:
    """The texts of a BYTES tensor, no more than tokens fit into memory; raises BadInput."""
    assert isinstance(spec.content, TextContent)
    if tensor.datatype != "BYTES" or len(tensor.shape) != 1:
        raise BadInput(f"input '{tensor.name}' is {tensor.datatype} {list(tensor.shape)}, expected BYTES [rows]")
    if not tensor.shape[0]:
        raise BadInput(f"input '{tensor.name}' has no rows")
    if tensor.shape[0] * spec.content.tokenizer.length > MAX_TENSOR_ELEMENTS:
        raise BadInput(f"input '{tensor.name}' has too many texts; send fewer at once", status=413)
    try:
        return [value.decode() for value in tensor_to_list(tensor)]
    except UnicodeDecodeError:
        raise BadInput(f"input '{tensor.name}' has a text that is not UTF-8") from None


def from_torch(
    name: str, values: torch.Tensor, datatype: str, *, labels: Sequence[str] = (), room: int = DEFAULT_MESSAGE
) -> Tensor:
    """A dense torch tensor as the protocol carries it, converted to the declared datatype: numbers rounded to nearest,
    indices [n] as BYTES to the `labels` that they stand for. Raises BadInput for names of more than `room` bytes."""
    if datatype == "BYTES":
        texts = [text.encode() for text in labels]
        size = torch.tensor([_LENGTH.size + len(text) for text in texts])[values.cpu()].sum()
        if int(size) > room:  # before it is written: of a name, a request may ask for millions
            raise BadInput("the answer would be larger than a message may be; send fewer rows at once", status=413)
        framed = [_LENGTH.pack(len(text)) + text for text in texts]
        data = b"".join([framed[index] for index in values.tolist()])
        return Tensor(name=name, datatype=datatype, shape=tuple(values.shape), data=data)
    dense = values.to(dtype=HELD_AS[datatype], device="cpu").to(READ_AS[datatype]).contiguous()
    data = dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    return Tensor(name=name, datatype=datatype, shape=tuple(dense.shape), data=data)
