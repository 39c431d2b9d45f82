"""Applying the rules of `[masking]`, before anything else sees the rows.

`drop` takes a column away; `hash` replaces each value by a keyed hash (HMAC-SHA-256 over column and value, RFC 2104),
so that equal values stay equal and nobody without the key can try out names; `bin`, `top`, `month`, `year` and `prefix`
make values coarser; `redact` replaces what identifies people in a text. Held-out rows are masked, too.

Trusts: the rules. Never: writes the key anywhere, or lets one row's mask depend on another row.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealgate.errors import ConfigurationError
from training.columns import Columns, numbers_of, read_columns
from training.configuration import Configuration
from training.limits import MAX_MASKING_KEY, MIN_MASKING_KEY
from training.masking.anonymity import crowds
from training.masking.personal import redacted
from training.masking.sections import KEEP, ColumnRule, MaskingSection, masking_section
from training.preprocessing.encoding import date_of, text_columns, texts_of
from training.preprocessing.statistics import columns_wanted

_HASH_BYTES = 16
_AS_TEXT = ("hash", "month", "year", "prefix", "redact")


@dataclass(frozen=True)
class MaskedColumns:
    """What is left of the columns, and lines for the terminal of whoever owns the rows: they are counts of them."""

    columns: Columns
    remarks: tuple[str, ...] = field(default=())


def read_masked(configuration: Configuration, *, folder: Path) -> MaskedColumns:
    """The columns of `[data] source` (relative to `folder`), masked; raises ConfigurationError."""
    section = masking_section(configuration)
    texts = [name for name, rule in section.columns.items() if rule.action in _AS_TEXT]
    texts += [*text_columns(configuration), *columns_wanted(configuration)]
    columns = read_columns(configuration.data.source, folder, texts=texts)
    for name in (*section.columns, *section.quasi_identifiers):
        if name not in columns:
            raise ConfigurationError(f"[masking] the data has no column '{name}'")
    key = _key(folder / section.key) if section.key else b""
    masked, remarks = dict(columns), []
    for name, rule in section.columns.items():
        if rule.action == "drop":
            del masked[name]
        elif rule.action == "redact":
            masked[name], remark = _redacted(name, columns[name], rule)
            remarks.append(remark)
        elif rule.action != KEEP:
            masked[name] = _masked(name, columns[name], rule, key=key)
    return MaskedColumns(masked, (*remarks, *_shared(section, columns, masked)))


def _masked(name: str, values: NDArray[Any], rule: ColumnRule, *, key: bytes) -> NDArray[Any]:
    match rule.action:
        case "bin" | "top":
            return _coarse(numbers_of(name, values), rule)
        case "hash":
            return _each(name, values, lambda _row, text: _hash(key, name, text))
        case "month":
            return _each(name, values, lambda row, text: date_of(name, row, text).replace(day=1).isoformat())
        case "year":
            return _each(name, values, lambda row, text: date_of(name, row, text).replace(month=1, day=1).isoformat())
        case "prefix":
            assert rule.characters is not None
            kept = rule.characters
            return _each(name, values, lambda _row, text: text[:kept])
    raise ValueError(rule.action)


def _each(name: str, values: NDArray[Any], mask: Callable[[int, str], str]) -> NDArray[np.object_]:
    found = np.empty(len(values), dtype=np.object_)
    for row, text in enumerate(texts_of(name, values)):
        found[row] = mask(row + 1, text)
    return found


def _coarse(numbers: NDArray[np.float64], rule: ColumnRule) -> NDArray[np.float64]:
    """Cut off at the ends, then the middle of the bin [start + k width, start + (k + 1) width)."""
    low = -np.inf if rule.low is None else float(rule.low)
    high = np.inf if rule.high is None else float(rule.high)
    cut: NDArray[np.float64] = np.clip(numbers, low, high)
    if rule.width is None:
        return cut
    start, width = float(rule.start or 0), float(rule.width)
    middles: NDArray[np.float64] = start + (np.floor((cut - start) / width) + 0.5) * width
    return middles


def _hash(key: bytes, name: str, text: str) -> str:
    column, value = name.encode(), text.encode()
    return hmac.digest(key, len(column).to_bytes(8, "big") + column + value, "sha256")[:_HASH_BYTES].hex()


def _redacted(name: str, values: NDArray[Any], rule: ColumnRule) -> tuple[NDArray[np.object_], str]:
    found, counts = np.empty(len(values), dtype=np.object_), dict.fromkeys(rule.kinds or (), 0)
    for row, value in enumerate(values.tolist()):
        if not isinstance(value, str):
            raise ConfigurationError(f"column '{name}', row {row + 1}: holds no text; mend or remove the row")
        found[row], seen = redacted(value, kinds=rule.kinds)
        for kind, count in seen.items():
            counts[kind] = counts.get(kind, 0) + count
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "nothing"
    return found, f"redacted in '{name}': {shown}"


def _shared(section: MaskingSection, before: Columns, after: Columns) -> list[str]:
    names = section.quasi_identifiers
    if not names:
        return []
    return [
        f"rows that share {', '.join(names)}, {when}: {crowds([columns[name] for name in names])}"
        for when, columns in (("before masking", before), ("after", after))
    ]


def _key(path: Path) -> bytes:
    """The key for hashes: a file that only its owner may read."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(MAX_MASKING_KEY + 1)
    except OSError as error:
        raise ConfigurationError(
            f"[masking] key {path} cannot be read: {error.strerror}; make one: "
            f"(umask 077; head -c {MIN_MASKING_KEY} /dev/urandom > {path})"
        ) from error
    if mode & 0o077:
        raise ConfigurationError(f"[masking] key {path} can be read by others: chmod 600 {path}")
    if not MIN_MASKING_KEY <= len(key) <= MAX_MASKING_KEY:
        raise ConfigurationError(f"[masking] key {path} must have {MIN_MASKING_KEY} to {MAX_MASKING_KEY} random bytes")
    return key
