"""Rows of a CSV file as the numbers that a model takes.

A first row that is not numbers names the columns: they are then picked and ordered by the model's own column names, and
others are left out. Without names, every row must have exactly the model's columns, in its order. A row of another
length than the first line is refused: a decimal comma or a lost cell would shift its numbers into other columns.

Trusts: the model's sealed metadata. Never: shows a cell's content in an error; they are private.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sealgate.client.errors import UsageError
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_INFERENCE_JSON, MAX_TENSOR_ELEMENTS

if TYPE_CHECKING:
    from sealgate.client.metadata import ModelMetadata

Number = int | float


@dataclass(frozen=True)
class RowTable:
    """A CSV file: its column names, if it has any, and its cells with the line that each row stands on."""

    names: tuple[str, ...] | None
    rows: tuple[tuple[int, tuple[str, ...]], ...]


def read_rows(source: str) -> RowTable:
    """The rows of a file, or of standard input for `-`; raises ConfigurationError."""
    if source == "-":
        return parse_rows(sys.stdin)
    try:
        with Path(source).open(encoding="utf-8-sig", newline="") as file:
            return parse_rows(file)
    except OSError as error:
        raise ConfigurationError(f"rows {source} cannot be read: {error.strerror}") from error


def parse_rows(file: TextIO) -> RowTable:
    """Parse CSV text; raises UsageError."""
    rows: list[tuple[int, tuple[str, ...]]] = []
    size = 0
    reader = csv.reader(file, strict=True)
    try:
        for cells in reader:
            if not cells:
                continue
            size += sum(map(len, cells)) + len(cells)
            if size > 2 * MAX_INFERENCE_JSON:
                raise UsageError("the rows are more than one request can hold; split the file")
            rows.append((reader.line_num, tuple(cell.strip() for cell in cells)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError("the rows are not CSV text in UTF-8") from error
    names = None
    if rows and not all(_is_number(cell) for cell in rows[0][1]):
        names = rows.pop(0)[1]
    if not rows:
        raise UsageError("there are no rows; give at least one line of numbers")
    return RowTable(names, tuple(rows))


def select_columns(table: RowTable, metadata: ModelMetadata) -> list[list[Number]]:
    """The numbers for the model's only input; raises UsageError naming line and column."""
    spec = metadata.inputs[0]
    if len(metadata.inputs) != 1 or len(spec.shape) != 2:
        raise UsageError(f"model {metadata.name} does not take rows of numbers; give {metadata.option()}")
    wanted = metadata.parameters.columns or tuple(f"column {at + 1}" for at in range(max(spec.shape[1], 0)))
    places = _places(table, wanted, named=bool(metadata.parameters.columns))
    if len(table.rows) * len(places) > MAX_TENSOR_ELEMENTS:
        raise UsageError("the rows are more than one request can hold; split the file")
    whole = spec.datatype.lstrip("U").startswith("INT")
    return [
        [_number(line, cells, at, name, whole) for at, name in zip(places, wanted, strict=True)]
        for line, cells in table.rows
    ]


def _places(table: RowTable, wanted: Sequence[str], *, named: bool) -> list[int]:
    if table.names is None or not named:
        for line, cells in table.rows:
            if len(cells) != len(wanted):
                raise UsageError(f"line {line} has {len(cells)} values, the model takes {len(wanted)}")
        return list(range(len(wanted)))
    if len(table.names) == 1 < len(wanted) and any(mark in table.names[0] for mark in ";\t|"):
        raise UsageError("the columns must be separated by commas")
    missing = [name for name in wanted if table.names.count(name) != 1]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(f"the first line must name the column '{missing[0]}'{more} exactly once")
    for line, cells in table.rows:
        if len(cells) != len(table.names):
            raise UsageError(f"line {line} has {len(cells)} values, the first line names {len(table.names)} columns")
    return [table.names.index(name) for name in wanted]


def _number(line: int, cells: tuple[str, ...], at: int, name: str, whole: bool) -> Number:
    try:
        value: Number = int(cells[at]) if whole else float(cells[at])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in cells[at]:  # Python reads 1_000 as a number, other programs do not
        raise UsageError(f"line {line}: column '{name}' is not a {'whole ' if whole else ''}number")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == ""
    return True
