"""Images of one size: `[image]` gives their shape and the public range of a pixel.

They come from IDX files (images as `source`, classes in the file that `labels` names), from an NPZ array, or from a
table with one column for each pixel, whose names follow a pattern such as "pixel_{row}_{column}" or "pixel{index}".
A pixel is clamped to [low, high], then (pixel - center) / scale enters the model: [0, 1] unless the section says else.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sealgate.certificate.decimals import decimal_text
from sealgate.certificate.inputs import ImageContent, InputTensor
from sealgate.errors import ConfigurationError, DecodeError
from training.arrays import finite_numbers, read_arrays
from training.columns import numbers_of, people_of, read_columns, require_columns, target_of
from training.configuration import Configuration
from training.examples import Examples
from training.forms.sections import number_cells, section, write_rows
from training.idx import is_idx, read_idx

_INPUT = "images"
_LAYOUTS = ("channels-first", "channels-last")
_DATATYPES = ("UINT8", "FP32")


class ImageSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[image]`: sizes in pixels; the pixel's datatype, range and scaling; where the pixels and their classes are."""

    height: int
    width: int
    channels: int = 1
    datatype: str = "UINT8"
    low: Decimal = Decimal(0)
    high: Decimal = Decimal(255)
    center: Decimal | None = None  # low
    scale: Decimal | None = None  # high - low
    array: str = "images"
    layout: str = "channels-first"
    pattern: str = ""
    labels: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, to the model."""
        return self.channels, self.height, self.width

    def column(self, channel: int, row: int, column: int) -> str:
        """A table's column for one pixel."""
        pattern = self.pattern or "pixel_{channel}_{row}_{column}"
        index = (channel * self.height + row) * self.width + column
        for name, value in (("channel", channel), ("row", row), ("column", column), ("index", index)):
            pattern = pattern.replace("{" + name + "}", str(value))
        return pattern

    def columns(self) -> list[str]:
        """Every pixel's column, in the order of the image."""
        return [self.column(*place) for place in np.ndindex(self.shape)]


def _section(configuration: Configuration) -> ImageSection:
    found = section(ImageSection, configuration.image, name="image")
    many = found.channels > 1 and "{channel}" not in found.pattern
    placed = "{index}" in found.pattern or ("{row}" in found.pattern and "{column}" in found.pattern and not many)
    for holds, what in (
        (min(found.shape) > 0, "height, width and channels must be above zero"),
        (found.datatype in _DATATYPES, f"datatype must be one of: {', '.join(_DATATYPES)}"),
        (found.layout in _LAYOUTS, f"layout must be one of: {', '.join(_LAYOUTS)}"),
        (found.low < found.high, "low must be below high"),
        (found.scale is None or found.scale > 0, "scale must be above zero"),
        (not found.pattern or placed, "pattern must hold {index}, or {row} and {column} (and {channel}, if several)"),
        (bool(found.labels) == is_idx(configuration.data.source), "labels names the classes' file of an IDX source"),
    ):
        if not holds:
            raise ConfigurationError(f"[image] {what}")
    return found


def declared_inputs(configuration: Configuration) -> tuple[InputTensor, ...]:
    found = _section(configuration)
    center = found.low if found.center is None else found.center
    scale = found.high - found.low if found.scale is None else found.scale
    try:
        content = ImageContent(
            low=decimal_text(found.low),
            high=decimal_text(found.high),
            center=decimal_text(center),
            scale=decimal_text(scale),
        )
    except DecodeError as error:
        raise ConfigurationError("[image] low, high, center or scale has too many digits or is not finite") from error
    return (InputTensor(name=_INPUT, datatype=found.datatype, shape=(-1, *found.shape), content=content),)


def read_examples(configuration: Configuration, *, folder: Path) -> Examples:
    found, data = _section(configuration), configuration.data
    person = [data.person] if data.person else []
    columns: dict[str, NDArray[Any]]
    pixels: NDArray[Any]
    if found.labels:
        if person:
            raise ConfigurationError("[data] person: IDX files say of nobody whose image it is")
        pixels = read_idx(folder / data.source)
        columns = {data.target: read_idx(folder / found.labels)}
        if columns[data.target].shape != (len(pixels),) or not len(pixels):
            raise ConfigurationError(
                f"{found.labels} must hold one class for each of the {len(pixels)} images, one or more"
            )
        name = data.source
    elif found.pattern:
        columns = read_columns(data.source, folder)
        names = found.columns()
        count = require_columns(columns, [*names, data.target, *person])
        pixels = np.stack([numbers_of(name, columns[name]) for name in names], axis=1).reshape(count, *found.shape)
        name = _INPUT
    else:
        columns = read_arrays(data.source, folder, [found.array, data.target, *person])
        pixels, name = columns[found.array], found.array
    images = _typed(name, _placed(pixels, found), found)
    return Examples((images,), target_of(configuration, columns), people_of(configuration, columns))


def _placed(pixels: NDArray[Any], found: ImageSection) -> NDArray[Any]:
    """[n, height, width] and channels last become [n, channels, height, width]."""
    if pixels.ndim == 3 and found.channels == 1:
        return pixels[:, None]
    if pixels.ndim == 4 and found.layout == "channels-last" and not found.pattern:
        return np.moveaxis(pixels, 3, 1)
    return pixels


def _typed(name: str, pixels: NDArray[Any], found: ImageSection) -> NDArray[Any]:
    """As they cross the wire: finite FP32, or whole bytes; raises ConfigurationError naming the first wrong pixel."""
    if pixels.dtype == np.uint8 and pixels.shape[1:] == found.shape:
        return np.ascontiguousarray(pixels if found.datatype == "UINT8" else pixels.astype(np.float32))
    numbers = finite_numbers(name, pixels, shape=found.shape)
    if found.datatype == "FP32":
        return numbers
    wrong = np.argwhere((numbers < 0) | (numbers > 255) | (numbers != np.floor(numbers)))
    if len(wrong):
        place = ", ".join(map(str, wrong[0][1:].tolist()))
        raise ConfigurationError(
            f"array '{name}', example {wrong[0][0] + 1}, place [{place}]: no whole number from 0 to 255 "
            f'({len(wrong)} such); mend it, or say datatype = "FP32"'
        )
    return numbers.astype(np.uint8)


def write_heldout(path: Path, examples: Examples, configuration: Configuration) -> None:
    """As CSV, one column for each pixel."""
    write_rows(path, _section(configuration).columns(), number_cells(examples.inputs[0]), examples, configuration)
