"""How a shard begins and ends, as its own records say it: what they must be, and what they say of the shards around.

    index 0        of every shard but the first of a log: `log.opened`, naming origin, size and root of the one before
    from index 1   what was in force and under way then (`log.carried`), nowhere else
    last index     of a shard that was followed by another: `log.closed`, naming that one

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
from sealgate.transparency.shards import belongs_to, half_year_in, is_later, log_of

_SIZE = re.compile(r"[1-9][0-9]{0,17}\Z")
_ROOT = re.compile(r"[0-9a-f]{64}\Z")


_ALONE = "that {} and this shard follow each other, nothing lost between them, shows only who verifies them together"


class Edges:
    """The check of one shard's beginning and end."""

    name = "the shard begins and ends as shards do"

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._carrying = 0  # up to which index records may be carried ones
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
        named = half_year_in(self._origin) is not None
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

    @staticmethod
    def _follows(origin: str, before: str) -> bool:
        return belongs_to(before, log_of(origin)) and is_later(origin, before)

    def limits(self) -> tuple[str, ...]:
        """What a bundle of this shard alone does not show."""
        before = self.previous.origin if self.previous else ""
        names = [name for name in (before, self.next) if name]
        return (_ALONE.format(" and ".join(names)),) if names else ()

    def verdict(self, part: Range) -> Verdict:
        if 0 <= self._ended_at < part.size - 1:
            self._problems.add("the signed tree goes on after the end of the shard")
        if self._problems.count:
            return self._problems.verdict()
        said = [f"it follows {self.previous.origin} of {self.previous.size} records"] if self.previous else []
        said += [f"{self.next} follows it"] if self.next else []
        return Verdict("ok", "; ".join(said))
