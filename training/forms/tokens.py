"""Rows of tokens that were numbered before: an NPZ array of whole numbers [n, length]. Token 0 is padding."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sealgate.certificate.inputs import InputTensor, TokensContent
from training.arrays import read_arrays, whole_numbers
from training.columns import people_of, target_of
from training.configuration import Configuration
from training.examples import Examples
from training.forms.sections import number_cells, section, write_rows


class TokensSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[tokens]`: how long a row is, and how many different tokens there are, padding included."""

    length: int
    vocabulary: int
    array: str = "tokens"


def _section(configuration: Configuration) -> TokensSection:
    return section(TokensSection, configuration.tokens, name="tokens")


def declared_inputs(configuration: Configuration) -> tuple[InputTensor, ...]:
    found = _section(configuration)
    content = TokensContent(size=found.vocabulary)
    return (InputTensor(name="tokens", datatype="INT64", shape=(-1, found.length), content=content),)


def read_examples(configuration: Configuration, *, folder: Path) -> Examples:
    found, data = _section(configuration), configuration.data
    arrays = read_arrays(data.source, folder, [found.array, data.target, *([data.person] if data.person else [])])
    tokens = whole_numbers(found.array, arrays[found.array], shape=(found.length,), below=found.vocabulary)
    return Examples((tokens,), target_of(configuration, arrays), people_of(configuration, arrays))


def write_heldout(path: Path, examples: Examples, configuration: Configuration) -> None:
    """As CSV, one column for each place."""
    header = [f"token_{place}" for place in range(examples.inputs[0].shape[1])]
    write_rows(path, header, number_cells(examples.inputs[0]), examples, configuration)
