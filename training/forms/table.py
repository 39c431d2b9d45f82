"""Rows of named columns: `[columns]` gives each number's public range; `[dates]` and `[categories]` become numbers."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from pathlib import Path

import numpy as np

from sealgate.certificate.decimals import decimal_text
from sealgate.certificate.inputs import Column, InputTensor, TableContent
from sealgate.errors import ConfigurationError
from training.columns import Faults, numbers_of, people_of, require_columns, target_of, varying
from training.configuration import Configuration
from training.examples import Examples
from training.masking.columns import read_masked
from training.preprocessing.encoding import encoded, encoded_columns
from training.preprocessing.sections import with_placeholders
from training.split import write_private


def declared_columns(configuration: Configuration) -> tuple[Column, ...]:
    """The columns of `[columns]` with their constants; raises ConfigurationError if there are none."""
    if not configuration.columns:
        raise ConfigurationError("[columns] must name the features, each with its public range")
    return tuple(_column(name, numbers) for name, numbers in configuration.columns.items())


def _column(name: str, numbers: tuple[Decimal, ...]) -> Column:
    low, high = numbers[0], numbers[1]
    center, scale = numbers[2:] if len(numbers) == 4 else ((low + high) / 2, (high - low) / 2)
    return Column(
        name=name,
        low=decimal_text(low),
        high=decimal_text(high),
        center=decimal_text(center),
        scale=decimal_text(scale),
    )


def declared_inputs(configuration: Configuration) -> tuple[InputTensor, ...]:
    columns = _all_columns(configuration)
    shape = (-1, len(columns))
    return (InputTensor(name="features", datatype="FP32", shape=shape, content=TableContent(columns=columns)),)


def _all_columns(configuration: Configuration) -> tuple[Column, ...]:
    """Numbers, dates, categories: one of them at least."""
    more = encoded_columns(with_placeholders(configuration))
    return (*(declared_columns(configuration) if configuration.columns or not more else ()), *more)


def read_examples(configuration: Configuration, *, folder: Path) -> Examples:
    columns = read_masked(configuration, folder=folder).columns
    person = [configuration.data.person] if configuration.data.person else []
    names = (*configuration.columns, *configuration.dates, *configuration.categories)
    count = require_columns(columns, [*names, configuration.data.target, *person])
    features = np.empty((count, len(_all_columns(configuration))))
    faults = Faults()
    for index, (name, numbers) in enumerate(configuration.columns.items()):
        with faults.gathered():
            values = numbers_of(name, columns[name])
            features[:, index] = varying(name, values, low=float(numbers[0]), high=float(numbers[1]))
    with faults.gathered():
        for index, values in enumerate(encoded(configuration, columns), start=len(configuration.columns)):
            features[:, index] = values
    faults.require_none()
    return Examples((features,), target_of(configuration, columns), people_of(configuration, columns))


def write_heldout(path: Path, examples: Examples, configuration: Configuration) -> None:
    """As CSV: features as they were, then the class name or value."""
    names = list(configuration.data.classes.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(column.name for column in _all_columns(configuration)), configuration.data.target])
    for features, target in zip(examples.inputs[0].tolist(), examples.target.tolist(), strict=True):
        writer.writerow([*map(repr, features), names[int(target)] if names else repr(target)])
    write_private(path, text.getvalue())
