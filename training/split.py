"""The held-out rows, and the commitment to the others.

Whether a row is held out depends on its own content and a public word alone, so adding or removing a row moves no
other row, and equal rows always land on the same side. The commitment is a Merkle root (RFC 9162) over salted rows:
without the salt key it says nothing, with it a row can be shown to have been in the training data.

Trusts: nothing. Never: shuffles by a random generator.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sealgate.errors import ConfigurationError
from sealgate.transparency.merkle import leaf_hash, root_of
from training.examples import Examples
from training.limits import MIN_ROWS

COMMITMENT = "rfc9162-hmac-salted-rows"


def hold_out(examples: Examples, *, fraction: Fraction, word: str) -> tuple[Examples, Examples]:
    """Training and held-out rows; raises ConfigurationError if one side is too small to be of use.

    Where rows belong to people, all of a person's rows go to the same side.
    """

    def identity(row: int) -> bytes:
        return examples.row_bytes(row) if examples.people is None else b"person\x00" + examples.people[row].encode()

    limit = int(fraction * 2**64)
    prefix = b"sealgate split v1\x00" + word.encode() + b"\x00"
    mask: NDArray[np.bool_] = np.array(
        [
            int.from_bytes(hashlib.sha256(prefix + identity(row)).digest()[:8], "big") < limit
            for row in range(len(examples))
        ],
        dtype=np.bool_,
    )
    kept, held = examples.take(~mask), examples.take(mask)
    if len(kept) < MIN_ROWS or len(held) == 0:
        raise ConfigurationError(
            f"the data has too few rows: {len(kept)} to train on and {len(held)} held out; "
            f"training needs at least {MIN_ROWS}, and one to measure with"
        )
    return kept, held


def commit(examples: Examples, *, key: bytes) -> str:
    """Hex Merkle root over the rows, each salted by HMAC-SHA-256(key, its place).

    Where they are nodes of a network, all of its nodes and edges follow.
    """
    rows = map(examples.row_bytes, range(len(examples)))
    contents = chain(rows, examples.network.leaves() if examples.network else ())

    def leaf(place: int, content: bytes) -> bytes:
        return leaf_hash(hmac.digest(key, place.to_bytes(8, "big"), "sha256") + content)

    return root_of(leaf(place, content) for place, content in enumerate(contents)).hex()


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
