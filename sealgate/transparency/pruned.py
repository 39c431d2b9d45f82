"""Records that are no longer kept: how the log says which, and what an auditor can check of it.

Before a record's bytes are deleted, a `retention.pruned` record names its index. Only its hash stays, in the tree, so
every proof about other records still holds. A record that is missing and was not announced was not pruned but withheld.

    detail.pruned       the indices, ascending: "0-255 300 302-400"
    detail.shortest_us  none of them was younger than this, by the rules of retention that were in force

Pure. Trusts nothing. Never: takes the word of whoever exported a bundle for what is missing from it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from sealgate.errors import DecodeError
from sealgate.limits import MAX_LEAF
from sealgate.transparency.checks import Problems, Range, Verdict
from sealgate.transparency.record import Record

KIND = "retention.pruned"
INDICES, SHORTEST = "pruned", "shortest_us"  # of the detail

_TEXT = re.compile(r"(?:0|[1-9][0-9]{0,15})(?:-[1-9][0-9]{0,15})?(?: (?:0|[1-9][0-9]{0,15})(?:-[1-9][0-9]{0,15})?)*\Z")
_CLOCK_US = 24 * 3600 * 1_000_000  # a clock that was set back makes neighbours differ; more than a day is no clock


@dataclass(frozen=True)
class Indices:
    """Ascending ranges of indices, both ends included, none touching the next. `of` and `parse` make them."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, indices: Iterable[int]) -> Indices:
        """From ascending indices."""
        ranges: list[tuple[int, int]] = []
        for index in indices:
            if ranges and index == ranges[-1][1] + 1:
                ranges[-1] = (ranges[-1][0], index)
            else:
                ranges.append((index, index))
        return cls(tuple(ranges))

    @classmethod
    def parse(cls, text: str) -> Indices:
        """The one form that `text` writes; raises DecodeError."""
        if len(text) > MAX_LEAF or not _TEXT.match(text):
            raise DecodeError("not a list of indices")
        ranges = []
        for part in text.split(" "):
            first, _, last = part.partition("-")
            ranges.append((int(first), int(last or first)))
        found = cls(tuple(ranges))
        ends = [end for pair in ranges for end in pair]
        touching = any(after[0] <= before[1] + 1 for before, after in pairwise(ranges))
        if ends != sorted(ends) or touching or str(found) != text:
            raise DecodeError("not a list of indices in its one form")
        return found

    def __str__(self) -> str:
        return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        return (index for first, last in self.ranges for index in range(first, last + 1))

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self.ranges, (index, 1 << 62)) - 1
        return at >= 0 and self.ranges[at][0] <= index <= self.ranges[at][1]


@dataclass
class _Gap:
    """Records of a range that are missing side by side. They are no older than the older one of their neighbours: the
    one before them, unless the clock was set back."""

    first: int
    last: int
    oldest_us: int


class Pruned:
    """The check of what is missing from a range. `miss` is told of each missing record, `see` of every other."""

    name = "what is missing was pruned, and the log says so"

    def __init__(self) -> None:
        self._gaps: list[_Gap] = []
        self._announced: list[tuple[int, Record, Indices]] = []
        self._before_us = 0
        self._problems = Problems()

    def __contains__(self, index: int) -> bool:
        """Whether this record is missing."""
        at = bisect_right(self._gaps, index, key=lambda gap: gap.first) - 1
        return at >= 0 and self._gaps[at].first <= index <= self._gaps[at].last

    @property
    def count(self) -> int:
        """How many records are missing so far."""
        return sum(gap.last - gap.first + 1 for gap in self._gaps)

    @property
    def newest(self) -> int:
        """The newest record that is missing so far, -1 if none is."""
        return self._gaps[-1].last if self._gaps else -1

    def miss(self, index: int, hashed: bytes) -> None:
        """The record at `index`, the next one in order, is not there."""
        if self._gaps and self._gaps[-1].last == index - 1:
            self._gaps[-1].last = index
        else:
            self._gaps.append(_Gap(index, index, self._before_us))

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        self._before_us = record.ts_us
        if self._gaps and self._gaps[-1].last == index - 1:
            self._gaps[-1].oldest_us = min(self._gaps[-1].oldest_us, record.ts_us)
        if record.kind != KIND:
            return
        try:
            indices = Indices.parse(record.detail.get(INDICES, ""))
        except DecodeError:
            self._problems.add(f"record {index} does not say what was pruned")
            return
        if indices.ranges[-1][1] >= index:
            self._problems.add(f"record {index} announces the pruning of records that came after it")
            return
        self._announced.append((index, record, indices))

    def verdict(self, part: Range) -> Verdict:
        used, silent = set(), 0
        for gap in self._gaps:
            for index, record, indices, count in self._announcements(gap):
                silent -= count
                used.add(index)
                self._check_age(gap, index, record, indices)
            silent += gap.last - gap.first + 1
        if silent and part.last == part.size - 1:
            self._problems.add(f"{silent} of {self.count} missing records were never announced: they are withheld")
        if self._problems.count:
            return self._problems.verdict()
        if silent:
            return Verdict(
                "skipped", f"{silent} records are missing, and none of this range says why: export to the end"
            )
        if not self._gaps:
            return Verdict("ok", "nothing is missing")
        said = ", ".join(str(index) for index in sorted(used)[:3]) + ("..." if len(used) > 3 else "")
        return Verdict("ok", f"{self.count} records, only their hashes are left; announced by record {said}")

    def _announcements(self, gap: _Gap) -> Iterator[tuple[int, Record, Indices, int]]:
        """Those that explain some of the gap, each with how many more records of it than those before."""
        left = [(gap.first, gap.last)]
        for index, record, indices in self._announced:
            rest = [piece for first, last in left for piece in _without(first, last, indices)]
            gone = _length(left) - _length(rest)
            if gone:
                yield index, record, indices, gone
            left = rest

    def _check_age(self, gap: _Gap, index: int, record: Record, indices: Indices) -> None:
        """What is missing is no older than what stands around it: if that was too young, so was this."""
        text = record.detail.get(SHORTEST, "")
        shortest_us = int(text) if re.fullmatch("[0-9]{1,18}", text) else -1
        if shortest_us < 0:
            self._problems.add(f"record {index} does not say how old the pruned records were")
        elif gap.oldest_us and record.ts_us - gap.oldest_us < shortest_us - _CLOCK_US:
            self._problems.add(f"record {gap.first} was pruned before its time, as record {index} states it")


def _length(pieces: list[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in pieces)


def _without(first: int, last: int, indices: Indices) -> Iterator[tuple[int, int]]:
    """What is left of first..last."""
    at = max(0, bisect_right(indices.ranges, (first, 1 << 62)) - 1)
    for low, high in indices.ranges[at:]:
        if low > last:
            break
        if high < first:
            continue
        if low > first:
            yield first, low - 1
        first = high + 1
    if first <= last:
        yield first, last
