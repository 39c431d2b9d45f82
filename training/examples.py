"""Rows that passed every check, in the order of the model's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.network import Network


@dataclass(frozen=True, eq=False)
class Examples:
    """`inputs` in the manifest's order, raw (not scaled), [n, ...] each; texts are tokens already.

    `target` holds class indices or finite values. `people` says whose row it is, where the unit of privacy is a person.
    """

    inputs: tuple[NDArray[Any], ...]
    target: NDArray[np.float64]  # [n]
    people: NDArray[np.str_] | None = None  # [n]
    texts: NDArray[np.object_] | None = None  # [n], what the tokens were made of, to write held-out rows as they were
    network: Network | None = None  # that the rows are nodes of; the same for every part of them

    def __len__(self) -> int:
        return len(self.target)

    def take(self, mask: NDArray[np.bool_]) -> Examples:
        """The rows where `mask` holds."""
        people = None if self.people is None else self.people[mask]
        texts = None if self.texts is None else self.texts[mask]
        return Examples(tuple(one[mask] for one in self.inputs), self.target[mask], people, texts, self.network)

    def groups(self) -> torch.Tensor | None:
        """Numbers that are equal for the rows of one person, int64 [n]; None where the unit is a row."""
        if self.people is None:
            return None
        return torch.from_numpy(np.unique(self.people, return_inverse=True)[1].astype(np.int64))

    def row_bytes(self, row: int) -> bytes:
        """One row's content: every input and the target, little-endian."""
        parts = [*(one[row] for one in self.inputs), self.target[row : row + 1]]
        return b"".join(part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts)
