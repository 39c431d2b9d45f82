"""What several forms share: reading their section of the configuration, and writing held-out examples as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sealgate.errors import ConfigurationError
from sealgate.toml_words import in_words
from training.configuration import Configuration
from training.examples import Examples
from training.split import write_private

_Section = TypeVar("_Section", bound=msgspec.Struct)


def section(kind: type[_Section], values: Mapping[str, Any], *, name: str) -> _Section:
    """A form's own section; raises ConfigurationError that names it."""
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(in_words(error, kind, under=(name,))) from error


def write_rows(
    path: Path,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    examples: Examples,
    configuration: Configuration,
) -> None:
    """One line for each example: its cells, then the class name or value; mode 0600, atomic."""
    names = list(configuration.data.classes.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, configuration.data.target])
    for cells, target in zip(rows, examples.target.tolist(), strict=True):
        writer.writerow([*cells, names[int(target)] if names else repr(target)])
    write_private(path, text.getvalue())


def number_cells(values: Any) -> Iterable[list[str]]:
    """Examples as cells: [n, ...] -> for each, its numbers in order."""
    for one in values.reshape(len(values), -1):
        yield [repr(number) for number in one.tolist()]
