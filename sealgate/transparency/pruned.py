"""Records that are no longer kept: how the log says which, and what an auditor can check of it.

Before a record's bytes are deleted, a `retention.pruned` record names its index. Only its hash stays, in the tree, so
every proof about other records still holds. A record that is missing and was not announced was not pruned but withheld.

    detail.pruned       the indices, ascending: "0-255 300 302-400"
    detail.shard        of which shard of the log they are, if it is not the announcement's own
    detail.shortest_us  none of them was younger than this, by the rules of retention that were in force

No announcement holds while a hold over the whole log is in force, nor one whose clock was ahead: times fall after it.
(A hold over a tenant or a person cannot be checked so: whose the records were, only the hash is left to say.)

Pure. Trusts nothing. Never: takes the word of whoever exported a bundle for what is missing from it.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

from sealgate.errors import DecodeError
from sealgate.limits import MAX_LEAF
from sealgate.transparency.carried import ends_shard
from sealgate.transparency.checks import Problems, Range, Verdict
from sealgate.transparency.record import Record

KIND = "retention.pruned"
INDICES, SHORTEST, SHARD = "pruned", "shortest_us", "shard"  # of the detail
PLACED, RELEASED = "hold.placed", "hold.released"

_TEXT = re.compile(r"(?:0|[1-9][0-9]{0,15})(?:-[1-9][0-9]{0,15})?(?: (?:0|[1-9][0-9]{0,15})(?:-[1-9][0-9]{0,15})?)*\Z")
_DAY_US = 24 * 3600 * 1_000_000
_CLOCK_US = _DAY_US  # a clock that was set back makes neighbours differ; more than a day is no clock


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

    def moved(self, by: int) -> Indices:
        """The same, each so much higher."""
        return Indices(tuple((first + by, last + by) for first, last in self.ranges))

    def __iter__(self) -> Iterator[int]:
        return (index for first, last in self.ranges for index in range(first, last + 1))

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self.ranges, (index, 1 << 62)) - 1
        return at >= 0 and self.ranges[at][0] <= index <= self.ranges[at][1]


@dataclass
class _Gap:
    """Records of a range that are missing side by side. They are no older than the older one of their neighbours: the
    one before them, unless the clock was set back. `offset` is how many are missing before the first of them."""

    first: int
    last: int
    oldest_us: int
    offset: int


@dataclass
class _Announcement:
    """A record that says what was pruned. `said_us` is its time, unless the clock proved to have been ahead then."""

    index: int
    record: Record
    indices: Indices
    said_us: int


class Pruned:
    """The check of what is missing from a range. `miss` is told of each missing record, `see` of every other."""

    name = "what is missing was pruned, and the log says so"

    def __init__(self, *, told: Iterable[Record] = (), held: frozenset[str] = frozenset()) -> None:
        """`told` are announcements of later shards of the log about this one, `held` holds of earlier ones."""
        self._told = list(told)
        self._gaps: list[_Gap] = []
        self._announced: list[_Announcement] = []
        self._ahead: list[tuple[int, int]] = []  # heap: announcements (newest time first) after which no time fell
        self._held = set(held)  # holds over the whole log
        self._before_us = 0
        self._ended = False  # the shard: another one follows
        self._problems = Problems()

    def __contains__(self, index: int) -> bool:
        """Whether this record is missing."""
        at = bisect_right(self._gaps, index, key=lambda gap: gap.first) - 1
        return at >= 0 and self._gaps[at].first <= index <= self._gaps[at].last

    @property
    def count(self) -> int:
        """How many records are missing so far."""
        return self._gaps[-1].offset + self._gaps[-1].last - self._gaps[-1].first + 1 if self._gaps else 0

    @property
    def newest(self) -> int:
        """The newest record that is missing so far, -1 if none is."""
        return self._gaps[-1].last if self._gaps else -1

    def miss(self, index: int, hashed: bytes) -> None:
        """The record at `index`, the next one in order, is not there."""
        if self._gaps and self._gaps[-1].last == index - 1:
            self._gaps[-1].last = index
        else:
            self._gaps.append(_Gap(index, index, self._before_us, self.count))

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        self._before_us = record.ts_us
        self._ended = ends_shard(record)
        if self._gaps and self._gaps[-1].last == index - 1:
            self._gaps[-1].oldest_us = min(self._gaps[-1].oldest_us, record.ts_us)
        while self._ahead and record.ts_us < -self._ahead[0][0] - _CLOCK_US:
            self._announced[heappop(self._ahead)[1]].said_us = record.ts_us
        if record.kind == PLACED and not record.tenant:
            self._held.add(record.reason)
        elif record.kind == RELEASED:
            self._held.discard(record.reason)
        elif record.kind == KIND:
            self._announce(index, record)

    @property
    def held(self) -> frozenset[str]:
        """Holds over the whole log that were in force at the end."""
        return frozenset(self._held)

    def _announce(self, index: int, record: Record) -> None:
        if record.detail.get(SHARD, record.log) != record.log:
            return  # of an earlier shard, whose check is told of it
        try:
            indices = Indices.parse(record.detail.get(INDICES, ""))
        except DecodeError:
            self._problems.add(f"record {index} does not say what was pruned")
            return
        if indices.ranges[-1][1] >= index:
            self._problems.add(f"record {index} announces the pruning of records that came after it")
            return
        if self._held:
            self._problems.add(f"record {index} announces a pruning although a hold over the whole log is in force")
        heappush(self._ahead, (-record.ts_us, len(self._announced)))
        self._announced.append(_Announcement(index, record, indices, record.ts_us))

    def _take_told(self, part: Range) -> None:
        """They came after everything of this shard; whether a hold was in force then is checked where they stand."""
        for number, record in enumerate(self._told):
            try:
                indices = Indices.parse(record.detail.get(INDICES, ""))
            except DecodeError:
                self._problems.add("a later shard does not say what was pruned of this one")
                continue
            self._announced.append(_Announcement(part.size + number, record, indices, record.ts_us))
        self._told = []

    def verdict(self, part: Range) -> Verdict:
        self._take_told(part)
        used: dict[int, int] = {}  # record: how old what it announced was, at least
        silent = self.count
        for gap, said, count in self._explained():
            silent -= count
            used[said.index] = self._check_age(gap, said)
        if silent and part.last == part.size - 1 and not self._ended:
            self._problems.add(f"{silent} of {self.count} missing records were never announced: they are withheld")
        if self._problems.count:
            return self._problems.verdict()
        if silent:
            return Verdict(
                "skipped",
                f"{silent} records are missing, and none of this range says why: "
                + ("a later shard may, verify it with this one" if self._ended else "export to the end"),
            )
        if not self._gaps:
            return Verdict("ok", "nothing is missing")
        said_by = ", ".join(str(index) for index in sorted(used)[:3]) + ("..." if len(used) > 3 else "")
        age = f"none younger than {min(used.values()) // _DAY_US} days by its rules then"
        return Verdict("ok", f"{self.count} records, only their hashes are left, {age}; announced by record {said_by}")

    def _explained(self) -> Iterator[tuple[_Gap, _Announcement, int]]:
        """Which announcement explains how many records of which gap: each record counts for the first that names it."""
        left = _Left(self.count)
        for said in self._announced:
            for low, high in said.indices.ranges:
                at = max(0, bisect_right(self._gaps, low, key=lambda gap: gap.first) - 1)
                while at < len(self._gaps) and (gap := self._gaps[at]).first <= high:
                    first = left.next(gap.offset + min(max(low, gap.first), gap.last + 1) - gap.first)
                    past = gap.offset + min(high, gap.last) - gap.first + 1
                    if count := left.take(first, past):
                        yield gap, said, count
                    if past <= gap.offset + gap.last - gap.first:
                        break
                    beyond = left.next(past)
                    at = max(at + 1, bisect_right(self._gaps, beyond, key=lambda gap: gap.offset) - 1)

    def _check_age(self, gap: _Gap, said: _Announcement) -> int:
        """What is missing is no older than what stands around it: if that was too young, so was this. Gives how old it
        was at least, as the announcement states it."""
        text = said.record.detail.get(SHORTEST, "")
        shortest_us = int(text) if re.fullmatch("[0-9]{1,18}", text) else -1
        # A clock that later showed a time before these very records was broken then, not right again.
        said_us = said.said_us if said.said_us >= gap.oldest_us else said.record.ts_us
        if shortest_us < 0:
            self._problems.add(f"record {said.index} does not say how old the pruned records were")
        elif gap.oldest_us and said_us - gap.oldest_us < shortest_us - _CLOCK_US:
            ahead = ", by a clock that was ahead" if said_us != said.record.ts_us else ""
            self._problems.add(
                f"record {gap.first} was pruned before its time, as record {said.index} states it{ahead}"
            )
        return shortest_us


class _Left:
    """Missing records by their number, from which nothing is taken twice, in time that does not depend on how often."""

    def __init__(self, count: int) -> None:
        self._after = array("q", range(count + 1))

    def next(self, at: int) -> int:
        """The first that is left from this one on; their count if none is."""
        after = self._after
        while after[at] != at:
            after[at] = after[after[at]]
            at = after[at]
        return at

    def take(self, at: int, past: int) -> int:
        """Take those from `at`, which is left, to before `past`; how many there were."""
        taken = 0
        while at < past:
            self._after[at] = at + 1
            taken += 1
            at = self.next(at + 1)
        return taken
