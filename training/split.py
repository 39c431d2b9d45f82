"""The held-out rows, and the commitment to the others.

Whether a row is held out depends on its own content and a public word alone, so adding or removing a row moves no
other row, and equal rows always land on the same side. The commitment is a Merkle root (RFC 9162) over salted rows:
without the salt key it says nothing, with it a row can be shown to have been in the training data.

Trusts: nothing. Never: shuffles by a random generator.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import hmac
import io
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sealgate.errors import ConfigurationError
from sealgate.transparency.merkle import leaf_hash, root_of
from training.configuration import Configuration
from training.data import Table
from training.limits import MIN_ROWS

COMMITMENT = "rfc9162-hmac-salted-rows"


def _row_bytes(table: Table, row: int) -> bytes:
    return bytes(table.features[row].astype("<f8").tobytes() + table.target[row : row + 1].astype("<f8").tobytes())


def hold_out(table: Table, *, fraction: Fraction, word: str) -> tuple[Table, Table]:
    """Training and held-out rows; raises ConfigurationError if one side is too small to be of use."""
    limit = int(fraction * 2**64)
    prefix = b"sealgate split v1\x00" + word.encode() + b"\x00"
    mask: NDArray[np.bool_] = np.array(
        [
            int.from_bytes(hashlib.sha256(prefix + _row_bytes(table, row)).digest()[:8], "big") < limit
            for row in range(len(table))
        ],
        dtype=np.bool_,
    )
    kept, held = table.take(~mask), table.take(mask)
    if len(kept) < MIN_ROWS or len(held) == 0:
        raise ConfigurationError(
            f"the data has too few rows: {len(kept)} to train on and {len(held)} held out; "
            f"training needs at least {MIN_ROWS}, and one to measure with"
        )
    return kept, held


def commit(table: Table, *, key: bytes) -> str:
    """Hex Merkle root over the rows, each salted by HMAC-SHA-256(key, its place)."""

    def leaf(row: int) -> bytes:
        salt = hmac.digest(key, row.to_bytes(8, "big"), "sha256")
        return leaf_hash(salt + _row_bytes(table, row))

    return root_of(leaf(row) for row in range(len(table))).hex()


def write_heldout(path: Path, table: Table, configuration: Configuration) -> None:
    """Write the held-out rows as CSV (features as they were, then the class name or value); mode 0600, atomic."""
    names = list(configuration.data.classes.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*configuration.columns, configuration.data.target])
    for features, target in zip(table.features.tolist(), table.target.tolist(), strict=True):
        writer.writerow([*map(repr, features), names[int(target)] if names else repr(target)])
    write_private(path, text.getvalue())


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, all or nothing; raises ConfigurationError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
