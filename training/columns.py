"""Reading columns from CSV, Parquet, NPZ or scikit-learn, and refusing bad cells with column and row.

Rows are counted from 1, as they stand in the file (a CSV's header line is not a row). Trusts: nothing in the data.
Never: unpickles, fills gaps, drops rows, or computes a statistic.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealgate.errors import ConfigurationError
from training.configuration import Configuration
from training.csv_faults import fault_of, repeated_name
from training.limits import MAX_CELLS, MAX_CSV_ROW, MAX_DATA_FILE, MAX_FAULTS_SHOWN, MAX_ROWS

SKLEARN_SETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")
_DECIMAL_COMMA = re.compile(r"[+-]?\d{1,3}(?:[. ']?\d{3}){0,6},\d{1,20}\Z")
Columns = dict[str, NDArray[Any]]


class Faults:
    """What is wrong with several columns, to be said together."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the ConfigurationError of one column."""
        try:
            yield
        except ConfigurationError as error:
            self._found.append(str(error))

    def require_none(self) -> None:
        """Raise ConfigurationError with what was gathered, in one line."""
        if self._found:
            more = len(self._found) - MAX_FAULTS_SHOWN
            also = [f"{more} more columns"] if more > 0 else []
            raise ConfigurationError(". Also: ".join([*self._found[:MAX_FAULTS_SHOWN], *also]))


def require_columns(columns: Columns, wanted: list[str]) -> int:
    """The number of rows, if every wanted column is there and all are of one length; raises ConfigurationError."""
    missing = [name for name in wanted if name not in columns]
    if missing:
        near = difflib.get_close_matches(missing[0], columns, n=1)
        known = f"did you mean '{near[0]}'? It has: " if near else "it has: "
        known += ", ".join(sorted(columns)[:8]) + (", ..." if len(columns) > 8 else "")
        also = f" ({len(missing) - 1} more are missing)" if missing[1:] else ""
        raise ConfigurationError(f"the data has no column '{missing[0]}'{also}; {known}")
    rows = {len(columns[name]) for name in wanted}
    if len(rows) != 1:
        raise ConfigurationError("the columns have different numbers of rows")
    (count,) = rows
    if count == 0:
        raise ConfigurationError("the data has no rows")
    if count > MAX_ROWS or sum(columns[name].size for name in wanted) > MAX_CELLS:
        raise ConfigurationError(f"the data is larger than {MAX_ROWS} rows or {MAX_CELLS} cells")
    return count


def target_of(configuration: Configuration, columns: Columns) -> NDArray[np.float64]:
    """Class indices or finite values of the target column [n]; raises ConfigurationError."""
    values = columns[configuration.data.target]
    if configuration.data.classes:
        return _classes(configuration, values)
    return numbers_of(configuration.data.target, values)


def people_of(configuration: Configuration, columns: Columns) -> NDArray[np.str_] | None:
    """Whose row each is, if `[data] person` names a column; raises ConfigurationError for a row of nobody's."""
    name = configuration.data.person
    if not name:
        return None
    people = np.array([str(value) for value in columns[name].tolist()])
    nobody = np.flatnonzero(people == "")
    if len(nobody):
        raise ConfigurationError(
            f"column '{name}', row {nobody[0] + 1}: names nobody; every row must belong to a person"
        )
    return people


def read_columns(source: str, relative_to: Path, *, texts: Sequence[str] = ()) -> Columns:
    """The columns of a file or of a scikit-learn set, by name; raises ConfigurationError.

    A CSV's cells are numbers where they look like it, except in the columns named by `texts`.
    """
    if source.startswith("sklearn:"):
        return _read_sklearn(source.removeprefix("sklearn:"))
    path = relative_to / source
    readers: dict[str, Callable[[Path], Columns]] = {
        ".csv": partial(_read_csv, texts=texts),
        ".parquet": _read_parquet,
        ".npz": _read_npz,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(
            f"[data] source '{source}' is none of: a .csv, .parquet or .npz file, or sklearn:NAME "
            f"with NAME one of {', '.join(SKLEARN_SETS)}"
        )
    try:
        if path.stat().st_size > MAX_DATA_FILE:
            raise ConfigurationError(f"{path} is larger than {MAX_DATA_FILE} bytes")
        return reader(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or 'damaged file'}") from error


def _read_csv(path: Path, *, texts: Sequence[str]) -> Columns:
    import pyarrow
    from pyarrow import csv

    if path.stat().st_size == 0:
        raise ConfigurationError(f"{path} is empty")
    try:
        # Texts stay texts: a gap is then an empty text that `numbers_of` can point at.
        kinds = dict.fromkeys(texts, pyarrow.string())
        options = csv.ConvertOptions(strings_can_be_null=False, null_values=[], check_utf8=True, column_types=kinds)
        # A text may hold line ends between quotes, and be long: a row must fit into one block.
        parsing, reading = csv.ParseOptions(newlines_in_values=True), csv.ReadOptions(block_size=MAX_CSV_ROW)
        table = csv.read_csv(path, parse_options=parsing, read_options=reading, convert_options=options)
        other = table.num_columns == 1 and any(sign in table.column_names[0] for sign in ";\t|")
        # What is not UTF-8 is taken for bytes.
        if other or any(pyarrow.types.is_binary(kind) for kind in table.schema.types):
            raise ConfigurationError(fault_of(path))
        return _from_arrow(table, path)
    except pyarrow.ArrowInvalid as error:
        raise ConfigurationError(fault_of(path)) from error


def _read_parquet(path: Path) -> Columns:
    import pyarrow
    from pyarrow import parquet

    try:
        return _from_arrow(parquet.read_table(path, memory_map=False), path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise ConfigurationError(f"{path} is not a Parquet file that can be read") from error


def _from_arrow(table: Any, path: Path) -> Columns:
    if twice := repeated_name(table.column_names):
        raise ConfigurationError(f"{path} has two columns named '{twice[:40]}'")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _read_npz(path: Path) -> Columns:
    """One 1-D array per column; or a 2-D array `X`, whose columns are named by an array `columns` or x0, x1, ..."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as members:
            if sum(member.file_size for member in members.infolist()) > MAX_DATA_FILE:
                raise ConfigurationError(f"{path} unpacks to more than {MAX_DATA_FILE} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except ConfigurationError:
        raise
    except (ValueError, EOFError, KeyError) as error:
        raise ConfigurationError(f"{path} is not an NPZ file of plain arrays (pickled objects are refused)") from error
    except Exception as error:  # zipfile and zlib raise errors of their own for damaged archives
        raise ConfigurationError(f"{path} is a damaged NPZ file") from error
    columns: Columns = {name: array for name, array in arrays.items() if array.ndim == 1}
    matrix = arrays.get("X")
    if matrix is not None and matrix.ndim == 2:
        given = columns.pop("columns", None)
        names = [str(name) for name in given] if given is not None else [f"x{i}" for i in range(matrix.shape[1])]
        if len(names) != matrix.shape[1] or len(set(names)) != len(names):
            raise ConfigurationError(f"{path}: 'columns' does not name each column of X once")
        columns.update({name: matrix[:, index] for index, name in enumerate(names)})
    return columns


def _read_sklearn(name: str) -> Columns:
    if name not in SKLEARN_SETS:
        raise ConfigurationError(f"[data] 'sklearn:{name}' is unknown; there are: {', '.join(SKLEARN_SETS)}")
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    columns: Columns = {str(column): loaded.data[:, index] for index, column in enumerate(loaded.feature_names)}
    return {**columns, "target": loaded.target}


def numbers_of(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """The column as finite float64; raises ConfigurationError with the first row that is not a number."""
    if values.dtype.kind in "iufb":
        numbers = values.astype(np.float64)
    else:
        numbers, cells, unread = np.empty(len(values)), values.tolist(), []
        for place, value in enumerate(cells):
            try:
                numbers[place] = float(value)
            except (TypeError, ValueError):
                unread.append(place)
        if unread:
            raise ConfigurationError(
                f"column '{name}', row {unread[0] + 1}: holds {_shown(cells[unread[0]])}, needs a number; "
                f"mend or remove the row{and_more(len(unread) - 1)}"
            )
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise ConfigurationError(
            f"column '{name}', row {wrong[0] + 1}: not a finite number ({len(wrong)} such rows); fill or remove them"
        )
    return numbers


def and_more(rows: int) -> str:
    """How much of the same there is: who mends a file wants to know it before the next run."""
    return f", and {rows} more like it" if rows else ""


def _shown(value: object) -> str:
    """What a cell holds instead of a number, without showing it."""
    if value is None or value == "":
        return "nothing"
    if not isinstance(value, str):
        return "no number"
    return "a decimal comma" if _DECIMAL_COMMA.match(value.strip()) else "text"


def varying(name: str, values: NDArray[np.float64], *, low: float, high: float) -> NDArray[np.float64]:
    """The column, unless its range makes it constant: [n] -> [n]; raises ConfigurationError."""
    least, greatest = float(np.clip(values.min(), low, high)), float(np.clip(values.max(), low, high))
    if least == greatest and len(values) > 1:
        raise ConfigurationError(
            f"column '{name}': the same in every row from row 1 on, once cut to its range [{low:g}, {high:g}]; "
            "mend the range, or leave the column out"
        )
    return values


def _classes(configuration: Configuration, values: NDArray[Any]) -> NDArray[np.float64]:
    """Class indices in the order of `[data] classes`; raises ConfigurationError for unknown or missing classes."""
    name, classes = configuration.data.target, list(configuration.data.classes)
    texts = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values.tolist()]
    places = {text: index for index, text in enumerate(classes)}
    indices = np.empty(len(texts))
    for row, text in enumerate(texts, start=1):
        if text not in places:
            raise ConfigurationError(
                f"column '{name}', row {row}: '{text[:40]}' is no class; [data] classes has: {', '.join(classes)[:80]}"
            )
        indices[row - 1] = places[text]
    for index, text in enumerate(classes):
        if not bool((indices == index).any()):
            raise ConfigurationError(f"column '{name}' never holds the class '{text}'; a classifier needs every class")
    return indices
