"""Texts: one column of a CSV or Parquet file, turned into tokens by public rules, the same as when the model serves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from sealgate.certificate.inputs import HashedWords, InputTensor, TextContent, Tokenizer, Utf8Bytes, WordPiece, Words
from sealgate.errors import ConfigurationError
from secure_runtime.models.tokenizers import tokens_of
from training.columns import people_of, require_columns, target_of
from training.configuration import Configuration
from training.examples import Examples
from training.forms.sections import section, write_rows
from training.masking.columns import read_masked
from training.preprocessing.sections import with_placeholders
from training.pretrained import vocabulary_of

_TOKENIZERS = ("hashed-words", "utf8-bytes", "wordpiece", "words")


class TextSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[text]`: the column, and how many tokens of a text count. `buckets` belongs to hashed words, `words` to a list
    of words, where `[preprocessing.vocabulary]` does not find them."""

    tokenizer: str
    length: int
    column: str = "text"
    buckets: int = 0
    words: tuple[str, ...] = ()


def _section(configuration: Configuration) -> TextSection:
    found = section(TextSection, configuration.text, name="text")
    if found.tokenizer not in _TOKENIZERS:
        raise ConfigurationError(f"[text] tokenizer must be one of: {', '.join(_TOKENIZERS)}")
    if bool(found.buckets) != (found.tokenizer == "hashed-words"):
        raise ConfigurationError("[text] buckets belongs to hashed-words, and only there")
    if bool(found.words) != (found.tokenizer == "words"):
        raise ConfigurationError('[text] tokenizer = "words" needs a list of words, or [preprocessing.vocabulary]')
    if found.column == configuration.data.target:
        raise ConfigurationError(f"[text] column '{found.column}' is the target")
    return found


def _tokenizer(configuration: Configuration) -> Tokenizer:
    found = _section(with_placeholders(configuration))
    if found.tokenizer == "hashed-words":
        return HashedWords(buckets=found.buckets, length=found.length)
    if found.tokenizer == "utf8-bytes":
        return Utf8Bytes(length=found.length)
    if found.tokenizer == "words":
        return Words(vocabulary=found.words, length=found.length)
    return WordPiece(vocabulary=vocabulary_of(configuration), length=found.length)


def declared_inputs(configuration: Configuration) -> tuple[InputTensor, ...]:
    content = TextContent(tokenizer=_tokenizer(configuration))
    return (InputTensor(name="text", datatype="BYTES", shape=(-1,), content=content),)


def read_examples(configuration: Configuration, *, folder: Path) -> Examples:
    found, data = _section(with_placeholders(configuration)), configuration.data
    columns = read_masked(configuration, folder=folder).columns
    require_columns(columns, [found.column, data.target, *([data.person] if data.person else [])])
    texts = np.empty(len(columns[found.column]), dtype=np.object_)
    for row, value in enumerate(columns[found.column].tolist()):
        if not isinstance(value, str):
            raise ConfigurationError(f"column '{found.column}', row {row + 1}: holds no text; mend or remove the row")
        texts[row] = value
    tokens = tokens_of(texts.tolist(), _tokenizer(configuration)).numpy()
    return Examples((tokens,), target_of(configuration, columns), people_of(configuration, columns), texts=texts)


def write_heldout(path: Path, examples: Examples, configuration: Configuration) -> None:
    """As CSV: the text as it was."""
    assert examples.texts is not None
    header = [_section(with_placeholders(configuration)).column]
    write_rows(path, header, ([text] for text in examples.texts.tolist()), examples, configuration)
