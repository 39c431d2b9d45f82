"""Categories and dates as numbers, by public lists and ranges: `[categories]` and `[dates]` of a table.

A category is one column of zeros and ones for each of its values, named "column=value"; "*" at the end of a list stands
for every other value. A date is its number of days since 1970-01-01. Requests to the model carry these numbers.

Trusts: nothing in the data. Never: takes a list or a range from the rows.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealgate.certificate.inputs import Column
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME
from training.columns import Faults, and_more
from training.configuration import Configuration
from training.limits import MAX_FAULTS_SHOWN
from training.preprocessing.sections import EVERYTHING_ELSE

_EPOCH = datetime.date(1970, 1, 1)


def check_encodings(configuration: Configuration) -> None:
    """Raise ConfigurationError unless lists and ranges can be used, and every column has one role."""
    taken = {*configuration.columns, configuration.data.target, configuration.data.person}
    for section, names in (("categories", configuration.categories), ("dates", configuration.dates)):
        for name in names:
            if name in taken:
                raise ConfigurationError(f"[{section}] '{name}' has another role: feature, target or person")
            taken.add(name)
    for name, values in configuration.categories.items():
        if not values or len(set(values)) != len(values) or EVERYTHING_ELSE in values[:-1]:
            raise ConfigurationError(
                f"[categories] '{name}' needs a list of different values; \"*\" for all others can only be the last"
            )
        if any(len(_flag(name, value)) > MAX_NAME for value in values):
            raise ConfigurationError(f"[categories] '{name}': 'column=value' must have at most {MAX_NAME} characters")
    for name, (first, last) in configuration.dates.items():
        if not first < last:
            raise ConfigurationError(f"[dates] '{name}': the first day must be before the last")


def encoded_columns(configuration: Configuration) -> tuple[Column, ...]:
    """What `encoded` gives, as the manifest names it: dates, then categories."""
    check_encodings(configuration)
    return (
        *(_day_column(name, *days) for name, days in configuration.dates.items()),
        *(
            Column(name=_flag(name, value), low="0", high="1", center="0", scale="1")
            for name, values in configuration.categories.items()
            for value in values
        ),
    )


def encoded(configuration: Configuration, columns: dict[str, NDArray[Any]]) -> list[NDArray[np.float64]]:
    """One array [n] for each of `encoded_columns`; raises ConfigurationError naming columns and rows."""
    found: list[NDArray[np.float64]] = []
    faults = Faults()
    for name in configuration.dates:
        with faults.gathered():
            found.append(_days(name, texts_of(name, columns[name])))
    for name, values in configuration.categories.items():
        with faults.gathered():
            found += _flags(name, texts_of(name, columns[name]), values)
    faults.require_none()
    return found


def text_columns(configuration: Configuration) -> list[str]:
    """The columns that are read as texts, so that nothing is lost of "007" or "true"."""
    return [*configuration.dates, *configuration.categories]


def texts_of(name: str, values: NDArray[Any]) -> list[str]:
    """The column as texts; raises ConfigurationError for a row without a value."""
    if values.dtype.kind == "M":  # times of a Parquet file, which Python has to the second
        values = values.astype("datetime64[s]")
    texts = [_text(value) for value in values.tolist()]
    empty = [row for row, text in enumerate(texts, start=1) if not text.strip()]
    if empty:
        more = and_more(len(empty) - 1)
        raise ConfigurationError(f"column '{name}', row {empty[0]}: holds nothing; mend or remove the row{more}")
    return texts


def _text(value: object) -> str:
    """A cell of any file as text: whole numbers without a point, truth values and dates as files write them."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case datetime.datetime():
            return value.date().isoformat()
        case _:
            return str(value)


def _flag(name: str, value: str) -> str:
    return f"{name}={value}"


def _flags(name: str, texts: list[str], values: tuple[str, ...]) -> list[NDArray[np.float64]]:
    places = {value: place for place, value in enumerate(values)}
    others = len(values) - 1 if values[-1] == EVERYTHING_ELSE else None
    unlisted = [] if others is not None else list(dict.fromkeys(text for text in texts if text not in places))
    if unlisted:
        more = ", ".join(f"'{text[:40]}'" for text in unlisted[1:MAX_FAULTS_SHOWN])
        also = "" if not more else f", nor {more}{', ...' if len(unlisted) > MAX_FAULTS_SHOWN else ''}"
        raise ConfigurationError(
            f"column '{name}', row {texts.index(unlisted[0]) + 1}: '{unlisted[0][:40]}' is not in [categories]{also}; "
            'add what belongs there, or "*" for all others'
        )
    found = np.zeros((len(values), len(texts)))
    for row, text in enumerate(texts):
        found[places.get(text, others), row] = 1.0
    return list(found)


def _days(name: str, texts: list[str]) -> NDArray[np.float64]:
    found = np.empty(len(texts))
    for row, text in enumerate(texts):
        found[row] = (date_of(name, row + 1, text) - _EPOCH).days
    return found


def date_of(name: str, row: int, text: str) -> datetime.date:
    """The date in a text such as 2026-05-17 or 2026-05-17T08:30; raises ConfigurationError."""
    try:
        return datetime.datetime.fromisoformat(text.strip()).date()
    except ValueError as error:
        raise ConfigurationError(
            f"column '{name}', row {row}: holds no date as 2026-05-17; mend or remove the row"
        ) from error


def _day_column(name: str, first: datetime.date, last: datetime.date) -> Column:
    low, high = (first - _EPOCH).days, (last - _EPOCH).days
    halves = low + high, high - low
    center, scale = (str(one // 2) + (".5" if one % 2 else "") for one in map(abs, halves))
    return Column(
        name=name,
        low=str(low),
        high=str(high),
        center=f"-{center}" if halves[0] < 0 else center,
        scale=scale,
    )
