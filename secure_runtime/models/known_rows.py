"""Rows whose truth is known, from a CSV file as `sealgate train --heldout-csv` writes it.

The last column is the truth: a class name, or a value. Before it stand the numbers of the model's inputs, one after the
other, a row's own order each (pixels, steps, nodes and edges), or the text. Columns of a table are found by name.

Trusts: the person who names the file; the checked manifest. Never: shows a cell in an error.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sealgate.certificate.inputs import TableContent, TextContent
from sealgate.certificate.manifest import Manifest
from sealgate.errors import ConfigurationError
from secure_runtime.limits import MAX_TEST_BYTES
from secure_runtime.models.tokenizers import tokens_of
from secure_runtime.models.wire import HELD_AS


@dataclass(frozen=True)
class KnownRows:
    """Inputs by the manifest's names, [n, ...] each as they would arrive, and the truth [n]."""

    inputs: dict[str, torch.Tensor]
    target: NDArray[np.float64]  # class numbers, or values


def read_known_rows(path: Path, manifest: Manifest) -> KnownRows:
    """The rows of the file, for this model; raises ConfigurationError that says what to mend."""
    header, rows = _read(path)
    labels = next((output.labels for output in manifest.outputs if output.labels), ())
    target = np.array([_truth(path, line, cells[-1], labels) for line, cells in enumerate(rows, 2)], dtype=np.float64)
    inputs: dict[str, torch.Tensor] = {}
    at = 0
    for spec in manifest.inputs:
        if isinstance(spec.content, TextContent):
            inputs[spec.name] = tokens_of([cells[at] for cells in rows], spec.content.tokenizer)
            at += 1
            continue
        width = math.prod(spec.model_shape)
        places = list(range(at, at + width))
        if isinstance(spec.content, TableContent):
            places = _named(path, header, [column.name for column in spec.content.columns])
        if max(places) >= len(header) - 1:
            raise ConfigurationError(f"{path}: the model takes more numbers than a row has before its truth")
        try:
            numbers = np.array([[float(cells[place]) for place in places] for cells in rows])
        except ValueError:
            raise ConfigurationError(f"{path}: a cell of input '{spec.name}' is not a number") from None
        inputs[spec.name] = torch.from_numpy(numbers).reshape(-1, *spec.model_shape).to(HELD_AS[spec.datatype])
        at += width
    return KnownRows(inputs, target)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        if path.stat().st_size > MAX_TEST_BYTES:
            raise ConfigurationError(f"{path} is larger than {MAX_TEST_BYTES} bytes")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [cells for cells in csv.reader(file, strict=True) if cells]
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not CSV text in UTF-8") from error
    if len(rows) < 2:
        raise ConfigurationError(f"{path} needs a line of names and at least one row")
    header, rows = rows[0], rows[1:]
    if any(len(cells) != len(header) for cells in rows):
        raise ConfigurationError(f"{path} has rows that are longer or shorter than the first line")
    return header, rows


def _named(path: Path, header: list[str], names: list[str]) -> list[int]:
    for name in names:
        if header[:-1].count(name) != 1:
            raise ConfigurationError(f"{path}: its first line must name the column '{name}' once, the truth last")
    return [header.index(name) for name in names]


def _truth(path: Path, line: int, cell: str, labels: tuple[str, ...]) -> float:
    if labels:
        if cell not in labels:
            raise ConfigurationError(f"{path}: row {line} does not end with one of the model's class names")
        return float(labels.index(cell))
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigurationError(f"{path}: row {line} does not end with the value that is true")
    return value
