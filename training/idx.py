"""Reading IDX files (LeCun's form of MNIST and its kin): whole bytes in up to four dimensions, gzipped or not.

Layout: two zero bytes, 0x08 for unsigned bytes, the number of dimensions; each size as a big-endian 32-bit integer;
then the values. Trusts: nothing in the file. Never: unpacks more than its header announces, or than the bound.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sealgate.errors import ConfigurationError
from training.limits import MAX_CELLS, MAX_DATA_FILE

_UNSIGNED_BYTES = b"\x00\x00\x08"
_MAX_DIMENSIONS = 4
_GZIP = b"\x1f\x8b"


def is_idx(name: str) -> bool:
    """Whether a file is named as IDX files are: "train-images-idx3-ubyte", "...ubyte.gz", "digits.idx"."""
    return name.lower().removesuffix(".gz").endswith(("-ubyte", ".idx"))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The values, in the announced shape; raises ConfigurationError."""
    try:
        if path.stat().st_size > MAX_DATA_FILE:
            raise ConfigurationError(f"{path} is larger than {MAX_DATA_FILE} bytes")
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _values(unpacked, path)
            return _values(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigurationError(f"{path} is a damaged gzip file") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or 'damaged file'}") from error


def _values(file: BinaryIO | gzip.GzipFile, path: Path) -> NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:3] != _UNSIGNED_BYTES or not 0 < head[3] <= _MAX_DIMENSIONS:
        raise ConfigurationError(f"{path} is not an IDX file of unsigned bytes in 1 to {_MAX_DIMENSIONS} dimensions")
    sizes = file.read(4 * head[3])
    shape = tuple(int.from_bytes(sizes[place : place + 4], "big") for place in range(0, len(sizes), 4))
    count = math.prod(shape)
    if len(sizes) < 4 * head[3] or count > MAX_CELLS:
        raise ConfigurationError(f"{path} announces no sizes, or more than {MAX_CELLS} values")
    values = file.read(count + 1)
    if len(values) != count:
        raise ConfigurationError(f"{path} does not hold exactly the {count} values that it announces: it is damaged")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape).copy()  # torch wants memory that may be written to
