"""Why a CSV file could not be read, said with line and column: what a person needs to mend it.

A fast reader says only that something is wrong. This one reads the file again, line by line, until it finds
what: another encoding than UTF-8, mixed encodings, names that stand twice, rows of another length, cells separated by
something else.

Trusts: nothing in the file. Never: shows a cell, or reads on after the first fault.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path

from training.limits import MAX_CSV_ROW

_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_LE: "UTF-32"}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def fault_of(path: Path) -> str:
    """What is wrong with the file, beginning with its name; raises OSError."""
    with path.open("rb") as file:
        head = file.read(4096)
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return f"{path} is {name}; save it as UTF-8"
    if b"\0" in head:
        return f"{path} is not text: it has zero bytes, as UTF-16 without a mark or a spreadsheet file has"
    return f"{path}{_first_fault(path) or ' is not a CSV file with one header line and rows of equal length'}"


def repeated_name(names: list[str]) -> str | None:
    """The first column name that stands twice."""
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


class _UndecodableError(Exception):
    """A line that is not UTF-8; its text says where."""


def _lines(path: Path) -> Iterator[str]:
    foreign = False
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_CSV_ROW):
            number += 1
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                column = line[: error.start].decode("latin-1").count(",") + 1
                mixed = "; lines before are UTF-8, so encodings are mixed" if foreign else ""
                raise _UndecodableError(
                    f", line {number}, column {column}: byte 0x{line[error.start]:02X} is not UTF-8 (Latin-1 or "
                    f"Windows-1252?){mixed}; save the whole file as UTF-8"
                ) from error
            foreign = foreign or not text.isascii()
            yield text


def _first_fault(path: Path) -> str | None:
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, [])
        if len(header) == 1:
            for separator, name in _SEPARATORS.items():
                if separator in header[0]:
                    return f" has its cells separated by {name}; separate them by commas, and write 3.5, not 3,5"
        if twice := repeated_name(header):
            return f" has two columns named '{twice[:40]}'"
        for row, cells in enumerate(reader, start=1):
            if len(cells) != len(header) and cells:
                return (
                    f", row {row} (line {reader.line_num}): {len(cells)} cells, but the header names {len(header)} "
                    "columns; a comma inside a cell needs quotes around it"
                )
    except _UndecodableError as error:
        return str(error)
    except csv.Error as error:
        return f", line {reader.line_num}: {error}"
    return None
