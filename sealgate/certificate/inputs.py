"""What goes into a model: Open Inference Protocol tensors, each with the public constants that prepare it.

`content` says what the numbers are. A tensor's shape on the wire begins with -1, the rows of a request; `model_shape`
is what one row is to the model, which differs where the worker turns a text into tokens. Every constant is public: it
was written down before anybody saw the data, or was released privately at a cost that the certificate counts.
Trusts: nothing. Never: holds other statistics of private data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from sealgate.certificate.decimals import parse_decimal
from sealgate.errors import DecodeError
from sealgate.limits import MAX_COLUMNS, MAX_EXAMPLE_NUMBERS, MAX_NAME, MAX_TOKENS, MAX_VOCABULARY

_LEAST_PIECES = 3
_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
NUMBERS = ("BOOL", *_INTEGERS, "FP16", "BF16", "FP32", "FP64")
"""Datatypes that a number may come in. It becomes one of the model's arithmetic, rounded to nearest where it must."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts: immutable, no unknown fields, keywords only."""


class Column(_Part, frozen=True):
    """One feature. Its value is clamped to [low, high], then (value - center) / scale enters the model.

    All four are public constants, written as decimal texts.
    """

    name: str
    low: str
    high: str
    center: str
    scale: str


def _scaling_refusals(low: str, high: str, center: str, scale: str) -> Iterator[str]:
    try:
        parse_decimal(center)
        if not (parse_decimal(low) < parse_decimal(high) and parse_decimal(scale) > 0):
            raise DecodeError("empty range")
    except DecodeError:
        yield "its bounds are malformed"


def _column_refusals(columns: tuple[Column, ...], width: int) -> Iterator[str]:
    names = [column.name for column in columns]
    if not 0 < len(columns) <= MAX_COLUMNS or len(columns) != width:
        yield "its columns do not fit its shape"
    if len(set(names)) != len(names) or not all(0 < len(name) <= MAX_NAME for name in names):
        yield "its column names must be unique and not empty"
    for column in columns:
        yield from _scaling_refusals(column.low, column.high, column.center, column.scale)


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    """Base of what a tensor may hold."""

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are; 0 for numbers."""
        return 0

    @property
    def takes_pictures(self) -> bool:
        """Whether its rows are pictures, which may come encoded too."""
        return False

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What one row of a wire tensor of this shape is to the model."""
        return shape[1:]

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        """What is wrong with such a tensor, in words that end "input ... is refused: ..."."""
        raise NotImplementedError


class TableContent(_Content, frozen=True, tag="table"):
    """Rows of named columns: numbers [-1, columns]."""

    columns: tuple[Column, ...]

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        if datatype not in NUMBERS or len(shape) != 2:
            yield "a table is numbers [-1, columns]"
        else:
            yield from _column_refusals(self.columns, shape[1])


class SequenceContent(_Content, frozen=True, tag="sequence"):
    """Steps of named channels: numbers [-1, steps, channels]. Each channel is clamped and scaled like a column."""

    channels: tuple[Column, ...]

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        if datatype not in NUMBERS or len(shape) != 3:
            yield "a sequence is numbers [-1, steps, channels]"
        else:
            yield from _column_refusals(self.channels, shape[2])


class ImageContent(_Content, frozen=True, tag="image"):
    """Images: numbers [-1, channels, height, width], those of UINT8 also as PNG and JPEG. Every pixel is clamped and
    scaled by the same constants."""

    low: str
    high: str
    center: str
    scale: str

    @property
    def takes_pictures(self) -> bool:
        return True

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        if datatype not in NUMBERS or len(shape) != 4:
            yield "images are numbers [-1, channels, height, width]"
        yield from _scaling_refusals(self.low, self.high, self.center, self.scale)


class TokensContent(_Content, frozen=True, tag="tokens"):
    """Numbers of tokens: integers [-1, length], each in [0, size). Token 0 is padding."""

    size: int

    @property
    def vocabulary(self) -> int:
        return self.size

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        if datatype not in _INTEGERS or len(shape) != 2 or shape[1] > MAX_TOKENS:
            yield f"tokens are integers [-1, length], at most {MAX_TOKENS} of them"
        if not 1 < self.size <= MAX_VOCABULARY:
            yield "its vocabulary is out of range"


class HashedWords(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="tokenizer", tag="hashed-words", kw_only=True
):
    """Lower-cased words, each numbered by a public hash: needs no vocabulary, so none can leak."""

    buckets: int
    length: int

    @property
    def size(self) -> int:
        """Padding and the buckets."""
        return self.buckets + 1


class Utf8Bytes(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="tokenizer", tag="utf8-bytes", kw_only=True
):
    """The text's UTF-8 bytes, each plus one."""

    length: int

    @property
    def size(self) -> int:
        """Padding and the 256 bytes."""
        return 257


class WordPiece(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="tokenizer", tag="wordpiece", kw_only=True
):
    """The pieces of words that BERT's uncased models read. The vocabulary is public, from the pretraining, in order."""

    vocabulary: tuple[str, ...]
    length: int

    @property
    def size(self) -> int:
        """The pieces, of which the first is padding."""
        return len(self.vocabulary)

    def refusals(self) -> Iterator[str]:
        """What is wrong with the vocabulary."""
        pieces = set(self.vocabulary)
        if self.vocabulary[:1] != ("[PAD]",) or not pieces >= {"[UNK]", "[CLS]", "[SEP]"}:
            yield "its vocabulary must begin with [PAD] and hold [UNK], [CLS] and [SEP]"
        if len(pieces) != len(self.vocabulary) or not all(0 < len(piece) <= MAX_NAME for piece in pieces):
            yield "a piece of its vocabulary stands twice, is empty or too long"
        if self.length < _LEAST_PIECES:
            yield "its texts have no room for [CLS], a piece and [SEP]"


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="tokenizer", tag="words", kw_only=True):
    """Lower-cased words of a list that is public, or that was a private release of its own; all others are one."""

    vocabulary: tuple[str, ...]
    length: int

    @property
    def size(self) -> int:
        """Padding, the unknown word, and the list."""
        return len(self.vocabulary) + 2

    def refusals(self) -> Iterator[str]:
        """What is wrong with the list."""
        if len(set(self.vocabulary)) != len(self.vocabulary) or not all(
            0 < len(word) <= MAX_NAME for word in self.vocabulary
        ):
            yield "a word of its vocabulary stands twice, is empty or too long"


Tokenizer: TypeAlias = HashedWords | Utf8Bytes | WordPiece | Words


class TextContent(_Content, frozen=True, tag="text"):
    """Texts: BYTES [-1], UTF-8. The worker turns each into `length` tokens; longer ones are cut."""

    tokenizer: Tokenizer

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.size

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.tokenizer.length,)

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        if datatype != "BYTES" or shape != (-1,):
            yield "texts are BYTES [-1]"
        if not 0 < self.tokenizer.length <= MAX_TOKENS or not 1 < self.tokenizer.size <= MAX_VOCABULARY:
            yield "its tokenizer's sizes are out of range"
        elif isinstance(self.tokenizer, WordPiece | Words):
            yield from self.tokenizer.refusals()


class GraphNodesContent(_Content, frozen=True, tag="graph-nodes"):
    """Node features of padded graphs: numbers [-1, nodes, features]; a padding node is a row of zeros after scaling."""

    columns: tuple[Column, ...]

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        if datatype not in NUMBERS or len(shape) != 3:
            yield "node features are numbers [-1, nodes, features]"
        else:
            yield from _column_refusals(self.columns, shape[2])


class GraphEdgesContent(_Content, frozen=True, tag="graph-edges"):
    """Adjacency of padded graphs: numbers [-1, nodes, nodes], symmetric, ones and zeros."""

    def refusals(self, datatype: str, shape: tuple[int, ...]) -> Iterator[str]:
        if datatype not in NUMBERS or len(shape) != 3 or shape[1] != shape[2]:
            yield "edges are numbers [-1, nodes, nodes]"


Content: TypeAlias = (
    TableContent | SequenceContent | ImageContent | TokensContent | TextContent | GraphNodesContent | GraphEdgesContent
)


class InputTensor(_Part, frozen=True):
    """One input: its name and form on the wire, and what it holds. -1 in the shape stands for the request's rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Content

    @property
    def model_shape(self) -> tuple[int, ...]:
        """What one row of it is to the model."""
        return self.content.model_shape(self.shape)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The named columns of a table, the channels of a sequence, a node's features; none for other contents."""
        match self.content:
            case TableContent(columns=columns) | GraphNodesContent(columns=columns):
                return columns
            case SequenceContent(channels=channels):
                return channels
            case _:
                return ()

    def refusals(self) -> Iterator[str]:
        """What is wrong with this input, in words; nothing if it is consistent."""
        if not 0 < len(self.name) <= MAX_NAME:
            yield "it has no proper name"
        if not self.shape or self.shape[0] != -1 or not all(side > 0 for side in self.shape[1:]):
            yield "its shape must be -1 and then sizes above zero"
        elif math.prod(self.shape[1:]) > MAX_EXAMPLE_NUMBERS:
            yield "one row of it is too large"
        else:
            yield from self.content.refusals(self.datatype, self.shape)
