"""Reading examples that are arrays, from the NPZ files of numpy: one array per input, the first dimension the examples.

Trusts: nothing in the data. Never: unpickles, fills gaps, drops examples, or computes a statistic.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealgate.errors import ConfigurationError
from training.limits import MAX_CELLS, MAX_DATA_FILE, MAX_ROWS

Arrays = dict[str, NDArray[Any]]


def read_arrays(source: str, relative_to: Path, wanted: list[str]) -> Arrays:
    """The wanted arrays of an NPZ file, all of one length; raises ConfigurationError."""
    path = relative_to / source
    if path.suffix.lower() != ".npz":
        raise ConfigurationError(f"[data] source '{source}' must be a .npz file with the arrays: {', '.join(wanted)}")
    arrays = _read(path)
    for name in wanted:
        if name not in arrays:
            raise ConfigurationError(f"{path} has no array '{name}'; it has: {', '.join(sorted(arrays)[:8])}")
        if arrays[name].ndim == 0:
            raise ConfigurationError(f"array '{name}' is a single value, needs one for each example")
    if len({len(arrays[name]) for name in wanted}) != 1:
        raise ConfigurationError("the arrays have different numbers of examples")
    count = len(arrays[wanted[0]])
    if count == 0:
        raise ConfigurationError("the data has no examples")
    if count > MAX_ROWS or sum(arrays[name].size for name in wanted) > MAX_CELLS:
        raise ConfigurationError(f"the data is larger than {MAX_ROWS} examples or {MAX_CELLS} numbers")
    return {name: arrays[name] for name in wanted}


def _read(path: Path) -> Arrays:
    try:
        if path.stat().st_size > MAX_DATA_FILE:
            raise ConfigurationError(f"{path} is larger than {MAX_DATA_FILE} bytes")
        with path.open("rb") as file, zipfile.ZipFile(file) as members:
            if sum(member.file_size for member in members.infolist()) > MAX_DATA_FILE:
                raise ConfigurationError(f"{path} unpacks to more than {MAX_DATA_FILE} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except ConfigurationError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or 'damaged file'}") from error
    except (ValueError, EOFError, KeyError) as error:
        raise ConfigurationError(f"{path} is not an NPZ file of plain arrays (pickled objects are refused)") from error
    except Exception as error:  # zipfile and zlib raise errors of their own for damaged archives
        raise ConfigurationError(f"{path} is a damaged NPZ file") from error


def finite_numbers(name: str, values: NDArray[Any], *, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array as finite float32 [n, *shape]: what the model will be asked with. Raises ConfigurationError."""
    if values.dtype.kind not in "iufb":
        raise ConfigurationError(f"array '{name}' holds {values.dtype}, needs numbers")
    if values.shape[1:] != shape:
        raise ConfigurationError(
            f"array '{name}' has examples of shape {list(values.shape[1:])}, the configuration says {list(shape)}"
        )
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        place = ", ".join(map(str, wrong[0][1:].tolist()))
        raise ConfigurationError(
            f"array '{name}', example {wrong[0][0] + 1}, place [{place}]: not a finite number ({len(wrong)} such)"
        )
    return numbers


def whole_numbers(name: str, values: NDArray[Any], *, shape: tuple[int, ...], below: int) -> NDArray[np.int64]:
    """An array as int64 [n, *shape], each in [0, below); raises ConfigurationError."""
    if values.dtype.kind not in "iu" or values.shape[1:] != shape:
        raise ConfigurationError(
            f"array '{name}' is {values.dtype} {list(values.shape[1:])}, needs whole numbers {list(shape)}"
        )
    wrong = np.argwhere((values < 0) | (values >= below))
    if len(wrong):
        raise ConfigurationError(f"array '{name}', example {wrong[0][0] + 1}: holds a number outside 0 to {below - 1}")
    return values.astype(np.int64)
