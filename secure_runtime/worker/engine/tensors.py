"""Open Inference Protocol tensors to torch and back, strictly as the manifest declares them.

A tensor has the datatype that the manifest declares, or is what the declared content also comes in: texts as BYTES,
images as PNG or JPEG (`pictures.py`), the columns of a table one by one (`columns.py`).

Trusts: the decoded request's shapes and sizes (sealgate.protocol.inference checked them against each other). Never:
converts silently: a wrong name, datatype or shape is an error that names the input and what was expected.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import torch

from sealgate.certificate.inputs import ImageContent, InputTensor, TextContent
from sealgate.limits import MAX_TENSOR_ELEMENTS
from sealgate.protocol.inference import Tensor, tensor_to_list
from secure_runtime.errors import BadInput
from secure_runtime.models.tokenizers import tokens_of
from secure_runtime.models.wire import HELD_AS, READ_AS, all_finite
from secure_runtime.worker.engine.pictures import pixels_of

Rows: TypeAlias = torch.Tensor | Tensor
"""Of one request: what is to be computed with, or numbers as they came, which the whole batch reads in one go."""

_BEYOND_INT64 = 1 << 63
_LENGTH = struct.Struct("<I")  # before each text of BYTES


def shape_text(shape: Sequence[int]) -> str:
    """`[-1, 30]` as people read it: -1 is any number of rows."""
    return "[" + ", ".join("rows" if size == -1 else str(size) for size in shape) + "]"


def require_declared(tensor: Tensor, spec: InputTensor) -> None:
    """Raise BadInput unless the tensor is what the manifest declares, with at least one row."""
    if tensor.datatype != spec.datatype:
        raise BadInput(f"input '{tensor.name}' is {tensor.datatype}, expected {spec.datatype}")
    if len(tensor.shape) != len(spec.shape) or tensor.shape[1:] != spec.shape[1:]:
        raise BadInput(f"input '{tensor.name}' has shape {list(tensor.shape)}, expected {shape_text(spec.shape)}")
    if not tensor.shape[0]:
        raise BadInput(f"input '{tensor.name}' has no rows")


def numbers_of(*tensors: Tensor) -> torch.Tensor:
    """The numbers of tensors of one datatype and row, all rows below each other, in the type of `HELD_AS` (a copy);
    raises BadInput for those no model takes."""
    name, datatype = tensors[0].name, tensors[0].datatype
    values = torch.frombuffer(bytearray().join([one.data for one in tensors]), dtype=READ_AS[datatype])
    values = values.reshape(-1, *tensors[0].shape[1:])
    if values.is_floating_point() and not all_finite(values):
        raise BadInput(f"input '{name}' contains NaN or infinity")
    if values.dtype == HELD_AS[datatype]:
        return values
    values = values.to(HELD_AS[datatype])
    if datatype == "UINT64" and bool((values < 0).any()):
        raise BadInput(f"input '{name}' has a number of {_BEYOND_INT64} or more", code="input-range")
    return values


def together(parts: Sequence[Rows]) -> torch.Tensor:
    """The rows of a batch in one tensor; raises BadInput as `numbers_of`. A large request is a batch of its own, and
    is not copied again."""
    if all(isinstance(part, Tensor) for part in parts):
        return numbers_of(*cast(Sequence[Tensor], parts))
    made = [numbers_of(part) if isinstance(part, Tensor) else part for part in parts]
    return made[0] if len(made) == 1 else torch.cat(made)


def _go_on() -> None:
    """Nobody waits."""


def to_model(tensor: Tensor, spec: InputTensor, *, go_on: Callable[[], None] = _go_on) -> Rows:
    """What `together` makes a model's input of: numbers as they came, texts as tokens, pictures as pixels. Raises
    BadInput.

    Tokens and pixels are many more numbers than texts and pictures are bytes, and cost time: their number is bounded
    before they are made, and `go_on` is called before each, to raise when nobody waits any more.
    """
    match spec.content:
        case TextContent():
            return tokens_of(texts_of(tensor, spec), spec.content.tokenizer, go_on=go_on)
        case ImageContent() if tensor.datatype == "BYTES":
            return pixels_of(tensor, spec, go_on=go_on)
        case _:
            require_declared(tensor, spec)
            return tensor


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


class OutputRows:
    """One output of a batch as the protocol carries it, converted to the declared datatype once: numbers rounded to
    nearest, indices [n] as BYTES to the `labels` that they stand for. Each request has some of the rows."""

    def __init__(self, name: str, values: torch.Tensor, datatype: str, *, labels: Sequence[str] = ()) -> None:
        self.name, self._datatype, self._row = name, datatype, tuple(values.shape[1:])
        self.numbers = math.prod(self._row)  # in a row
        if datatype == "BYTES":
            texts = [text.encode() for text in labels]
            framed = [_LENGTH.pack(len(text)) + text for text in texts]
            self._texts = [framed[index] for index in values.tolist()]
            self.row_bytes = _LENGTH.size
            return
        dense = values.to(dtype=HELD_AS[datatype], device="cpu").to(READ_AS[datatype]).contiguous()
        self._data = dense.reshape(-1).view(torch.uint8).numpy().data if dense.numel() else memoryview(b"")
        self.row_bytes = self.numbers * dense.element_size()

    def part(self, start: int, end: int, *, room: int) -> Tensor:
        """Some of the rows; a view. Raises BadInput for names of more than `room` bytes, before they are written."""
        data: bytes | memoryview
        if self._datatype == "BYTES":  # of a name, a request may ask for millions
            if sum(map(len, self._texts[start:end])) > room:
                raise BadInput("the answer would be larger than a message may be; send fewer rows at once", status=413)
            data = b"".join(self._texts[start:end])
        else:
            data = self._data[start * self.row_bytes : end * self.row_bytes]
        return Tensor(self.name, self._datatype, (end - start, *self._row), data)


def from_torch(name: str, values: torch.Tensor, datatype: str) -> Tensor:
    """All rows of a dense torch tensor as the protocol carries them."""
    return OutputRows(name, values, datatype).part(0, len(values), room=0)
