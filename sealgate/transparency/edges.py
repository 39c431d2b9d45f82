"""How a shard begins and ends, as its own records say it: what they must be, and what they say of the shards around.

    index 0        of every shard but the first of a log: `log.opened`, naming origin, size and root of the one before
                   its time is in the half-year that the origin names, as far as its own clock knew
    from index 1   what was in force and under way then (`log.carried`), nowhere else
    last index     of a shard that was followed by another: `log.closed`, naming that one

A shard may go on after its half-year: a writer that was down, or was told not to turn, turns late or never. That is no
contradiction, and is said.

Pure. Trusts nothing. Never: says that what is named was shown; `chain` compares.
"""

from __future__ import annotations

import re

from sealgate.transparency.carried import (
    KIND,
    NEXT,
    PREVIOUS_ORIGIN,
    PREVIOUS_ROOT,
    PREVIOUS_SIZE,
    begins_shard,
    ends_shard,
)
from sealgate.transparency.checks import Problems, Range, Verdict
from sealgate.transparency.notes import Checkpoint
from sealgate.transparency.record import Record
from sealgate.transparency.shards import belongs_to, half_year_in, half_year_of, is_later, log_of

_SIZE = re.compile(r"[1-9][0-9]{0,17}\Z")
_ROOT = re.compile(r"[0-9a-f]{64}\Z")


_CLOCKS_APART_US = 60_000_000  # the clock is read twice at a turn, and may be set back in between
_LATE = "records from {} on are of a later half-year than the shard's name says: it ended late, or has not ended"
_ALONE = "that {} and this shard follow each other, nothing lost between them, shows only who verifies them together"


class Edges:
    """The check of one shard's beginning and end."""

    name = "the shard begins and ends as shards do"

    def __init__(self, origin: str, *, first: int = 0) -> None:
        """`first` is the index of the first record that will be shown."""
        self._origin = origin
        self._half_year = half_year_in(origin)
        self._late = -1  # the first record of a later half-year
        # Up to which index records are carried ones. What stands before a range that is cut out may be: unknown.
        self._carrying = max(0, first - 1) if self._half_year is not None else -2
        self._problems = Problems()
        self._ended_at = -1
        self.previous: Checkpoint | None = None
        self.next = ""

    @property
    def concerned(self) -> bool:
        """Whether there is anything to say: a log of one shard has no edges."""
        return bool(self.previous or self.next or self._problems.count)

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if self._ended_at >= 0:
            self._problems.add(f"record {index} comes after the end of the shard")
        if self._late < 0 and self._half_year is not None and half_year_of(record.ts_us) > self._half_year:
            self._late = index
        if index == 0:
            self._begin(record)
        elif begins_shard(record):
            self._problems.add(f"record {index} begins a shard in the middle of one")
        if record.kind == KIND:
            if index != self._carrying + 1:
                self._problems.add(f"record {index} carries something over in the middle of a shard")
            self._carrying = index
        if ends_shard(record):
            self._ended_at, self.next = index, record.detail[NEXT]
            if not self._follows(self.next, self._origin):
                self._problems.add(f"record {index} names no later shard of this log")

    def _begin(self, record: Record) -> None:
        named = self._half_year is not None
        if not named or not begins_shard(record):
            if named:
                self._problems.add("the origin names a half-year, but record 0 does not say which shard it follows")
            elif begins_shard(record):
                self._problems.add("record 0 follows a shard, but the origin names no half-year")
            self._carrying = -2
            return
        origin, size, root = (record.detail.get(name, "") for name in (PREVIOUS_ORIGIN, PREVIOUS_SIZE, PREVIOUS_ROOT))
        if not self._follows(self._origin, origin) or not _SIZE.match(size) or not _ROOT.match(root):
            self._problems.add("record 0 names no earlier shard of this log")
            return
        self.previous = Checkpoint(origin, int(size), bytes.fromhex(root))
        around = {half_year_of(max(0, record.ts_us + apart)) for apart in (-_CLOCKS_APART_US, 0, _CLOCKS_APART_US)}
        if self._half_year not in around:
            self._problems.add(
                "record 0 is not of the half-year that the origin names: the shard was begun early or late"
            )

    @staticmethod
    def _follows(origin: str, before: str) -> bool:
        return belongs_to(before, log_of(origin)) and is_later(origin, before)

    def limits(self) -> tuple[str, ...]:
        """What a bundle of this shard alone does not show."""
        before = self.previous.origin if self.previous else ""
        names = [name for name in (before, self.next) if name]
        late = (_LATE.format(self._late),) if self._late >= 0 else ()
        return ((_ALONE.format(" and ".join(names)),) if names else ()) + late

    def verdict(self, part: Range) -> Verdict:
        if 0 <= self._ended_at < part.size - 1:
            self._problems.add("the signed tree goes on after the end of the shard")
        if self._problems.count:
            return self._problems.verdict()
        said = [f"it follows {self.previous.origin} of {self.previous.size} records"] if self.previous else []
        said += [f"{self.next} follows it"] if self.next else []
        return Verdict("ok", "; ".join(said))
