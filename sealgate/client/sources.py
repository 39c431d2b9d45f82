"""What a command asks about: rows of a CSV file, pictures, texts, arrays, or any tensors as a JSON request.

Trusts: the model's sealed metadata. Never: shows what is in a file in an error; it is private.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.client.errors import UsageError
from sealgate.client.rows import RowTable, read_rows, select_columns
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_INFERENCE_JSON, MAX_INNER_MESSAGE

if TYPE_CHECKING:
    from sealgate.client.arrays import Array
    from sealgate.client.inputs import Inputs
    from sealgate.client.metadata import ModelMetadata

_PICTURE_ROW = re.compile(r"input '[^']{1,128}', row ([0-9]{1,9})\b")


@dataclass(frozen=True)
class Source:
    """One of these, read before anything is asked: asking costs budget."""

    table: RowTable | None = None
    pictures: tuple[bytes, ...] = field(default=(), repr=False)
    files: tuple[Path, ...] = ()  # of the pictures
    arrays: tuple[Array, ...] = ()
    texts: tuple[str, ...] = field(default=(), repr=False)
    document: Any = field(default=None, repr=False)

    def inputs(self, metadata: ModelMetadata) -> Inputs:
        """What the model takes of it; raises UsageError that says what it takes."""
        if self.table is not None:
            return {metadata.inputs[0].name: select_columns(self.table, metadata)}
        if self.document is not None:
            return self.document
        if self.arrays:
            from sealgate.client.arrays import tensors_of

            return tensors_of(self.arrays, metadata)
        kind, given = ("image", list(self.pictures)) if self.pictures else ("text", list(self.texts))
        of_kind = [spec.name for spec in metadata.inputs if metadata.parameters.contents.get(spec.name) == kind]
        if len(of_kind) != 1 or len(metadata.inputs) != 1:
            raise UsageError(f"model {metadata.name} does not take {kind}s; give {metadata.option()}")
        if kind == "image" and not metadata.parameters.encodings.get(of_kind[0]):
            raise UsageError(
                f"model {metadata.name} takes no encoded pictures; give --arrays or --inputs with its pixels"
            )
        return {of_kind[0]: given}

    def in_files(self, words: str) -> str:
        """An error of the runtime's about a row, in terms of the file that the row came from."""

        def file_of(match: re.Match[str]) -> str:
            row = int(match[1])
            return str(self.files[row - 1]) if 0 < row <= len(self.files) else match[0]

        return _PICTURE_ROW.sub(file_of, words)


def add_source(parser: argparse.ArgumentParser) -> None:
    """The options: one of them is required."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--rows", metavar="CSV", help="rows to ask about; - reads standard input")
    group.add_argument("--images", metavar="FILE", type=Path, nargs="+", help="PNG or JPEG files, one for each row")
    group.add_argument("--texts", metavar="FILE", help="texts, one on each line; - reads standard input")
    group.add_argument(
        "--arrays",
        metavar="[INPUT=]FILE.npy",
        nargs="+",
        help="numbers as numpy.save writes them, rows first: volumes, signals",
    )
    group.add_argument(
        "--inputs", metavar="JSON", type=Path, help="any tensors: a request of the Open Inference Protocol, as JSON"
    )


def read_source(arguments: argparse.Namespace) -> Source:
    """What the options name; raises ConfigurationError or UsageError."""
    if arguments.rows is not None:
        return Source(table=read_rows(arguments.rows))
    if arguments.images is not None:
        pictures = tuple(_bytes_of(path, limit=MAX_INNER_MESSAGE) for path in arguments.images)
        return Source(pictures=pictures, files=tuple(arguments.images))
    if arguments.arrays is not None:
        from sealgate.client.arrays import read_array

        return Source(arrays=tuple(map(read_array, arguments.arrays)))
    if arguments.texts is not None:
        texts = tuple(_text_of(arguments.texts).splitlines())
        if not texts:
            raise UsageError("there are no texts; give one on each line")
        return Source(texts=texts)
    return Source(document=_tensors_of(_bytes_of(arguments.inputs)))


def _bytes_of(path: Path, *, limit: int = MAX_INFERENCE_JSON) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise UsageError(f"{path} is more than one request can hold")
    return data


def _text_of(source: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_INFERENCE_JSON + 1) if source == "-" else _bytes_of(Path(source))
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("the texts are not UTF-8") from error


def _tensors_of(data: bytes) -> Any:
    """The inputs of a JSON request. Pictures stand in it as base64, and their `content_type` says so."""
    from sealgate.errors import DecodeError
    from sealgate.protocol.inference import decode_infer_request
    from sealgate.protocol.tensors import Tensor, tensor_from_list, tensor_to_list

    try:
        request, _ = decode_infer_request((), data)
        found: list[Tensor] = []
        for tensor in request.inputs:
            if tensor.datatype == "BYTES" and tensor.parameters.get("content_type") == "base64":
                values = [base64.b64decode(one, validate=True) for one in tensor_to_list(tensor)]
                tensor = tensor_from_list(tensor.name, "BYTES", tensor.shape, values)
            found.append(tensor)
    except (DecodeError, binascii.Error, ValueError) as error:
        raise UsageError(f"--inputs: {error}") from error
    return tuple(found)
