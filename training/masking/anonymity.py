"""How many rows look alike in the columns whose combination could point at a person (k-anonymity, Sweeney 2002).

A figure for the owner of the rows, on their terminal: it is computed of private rows, no epsilon covers it, and neither
certificate nor card repeats it. Trusts: nothing. Never: removes rows to make the figure better, because whether a row
stays would then depend on the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

FEW = 5


@dataclass(frozen=True, kw_only=True)
class Crowds:
    """The smallest group of rows that are alike, how many groups there are, and rows in groups of fewer than five."""

    smallest: int
    groups: int
    exposed: int
    rows: int

    def __str__(self) -> str:
        return f"k = {self.smallest}; {self.exposed} of {self.rows} rows are alike to fewer than {FEW - 1} others"


def crowds(columns: list[NDArray[Any]]) -> Crowds:
    """Counts rows that agree in all columns, each [n]."""
    counts = Counter(zip(*(column.tolist() for column in columns), strict=True))
    return Crowds(
        smallest=min(counts.values(), default=0),
        groups=len(counts),
        exposed=sum(count for count in counts.values() if count < FEW),
        rows=counts.total(),
    )
