"""Sequences: a fixed number of steps of named channels. `[columns]` gives each channel's public range.

The numbers come from an NPZ array [n, steps, channels], or from a table with one column for each step and channel,
whose names follow a pattern such as "pixel_{step}_{channel}".
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from sealgate.certificate.inputs import InputTensor, SequenceContent
from sealgate.errors import ConfigurationError
from training.arrays import finite_numbers, read_arrays
from training.columns import numbers_of, people_of, read_columns, require_columns, target_of
from training.configuration import Configuration
from training.examples import Examples
from training.forms.sections import number_cells, section, write_rows
from training.forms.table import declared_columns

_INPUT = "steps"


class SequenceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[sequence]`: how many steps, and where they are: an NPZ `array`, or a table's columns named by a `pattern`."""

    steps: int
    array: str = "X"
    pattern: str = ""


def _section(configuration: Configuration) -> SequenceSection:
    found = section(SequenceSection, configuration.sequence, name="sequence")
    if found.steps <= 0:
        raise ConfigurationError("[sequence] steps must be above zero")
    if found.pattern and ("{step}" not in found.pattern or "{channel}" not in found.pattern):
        raise ConfigurationError("[sequence] pattern must hold {step} and {channel}")
    return found


def _names(found: SequenceSection, configuration: Configuration) -> list[str]:
    """A table's columns, step by step."""
    pattern = found.pattern or "{channel}_{step}"
    return [
        pattern.replace("{step}", str(step)).replace("{channel}", channel)
        for step in range(found.steps)
        for channel in configuration.columns
    ]


def declared_inputs(configuration: Configuration) -> tuple[InputTensor, ...]:
    found, channels = _section(configuration), declared_columns(configuration)
    shape = (-1, found.steps, len(channels))
    return (InputTensor(name=_INPUT, datatype="FP32", shape=shape, content=SequenceContent(channels=channels)),)


def read_examples(configuration: Configuration, *, folder: Path) -> Examples:
    found, data = _section(configuration), configuration.data
    shape = (found.steps, len(configuration.columns))
    more = [data.target, *([data.person] if data.person else [])]
    if not found.pattern:
        columns = read_arrays(data.source, folder, [found.array, *more])
        steps = finite_numbers(found.array, columns[found.array], shape=shape)
    else:
        columns, names = read_columns(data.source, folder), _names(found, configuration)
        count = require_columns(columns, [*names, *more])
        cells = np.stack([numbers_of(name, columns[name]) for name in names], axis=1)
        steps = finite_numbers(_INPUT, cells.reshape(count, *shape), shape=shape)
    return Examples((steps,), target_of(configuration, columns), people_of(configuration, columns))


def write_heldout(path: Path, examples: Examples, configuration: Configuration) -> None:
    """As CSV, one column for each step and channel."""
    header = _names(_section(configuration), configuration)
    write_rows(path, header, number_cells(examples.inputs[0]), examples, configuration)
