"""Whose turn it is: requests of many callers wait for one thread, and no caller's many keep another's one waiting.

In a sweep the first request of each caller comes first, then the second of each, and so on. Explanations, which take
seconds, wait here between sweeps, and so does what is to have a process of its own: callers take turns, and what is
cancelled leaves at once.

Trusts: the grant's pseudonym for who is asking. Never: opens a request, or drops one without giving it back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from sealgate.protocol.frames import Work
from secure_runtime.limits import MAX_WAITING_EXPLANATIONS

T = TypeVar("T")
_NOTHING: Mapping[str, int] = {}

Waiting = tuple[Work, bytes, bool]
"""A work item: the frame, the sealed request, and whether it was cancelled."""


def in_turns(works: list[Waiting]) -> list[Waiting]:
    """The same requests: each caller's in their order, and callers in turns."""
    seen: Counter[str] = Counter()
    turns: list[int] = []
    for work, _, _ in works:
        turns.append(seen[work.grant.actor])
        seen[work.grant.actor] += 1
    if len(seen) < 2:
        return works
    return [works[at] for at in sorted(range(len(works)), key=turns.__getitem__)]


class Turns(Generic[T]):
    """What waits, by caller: each caller's in their order, and callers in turns."""

    def __init__(self) -> None:
        self._of: dict[str, deque[T]] = {}  # whose turn is next comes first

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, actor: str, one: T) -> None:
        """Behind what this caller waits for already."""
        self._of.setdefault(actor, deque()).append(one)

    def whose(self, running: Mapping[str, int] = _NOTHING) -> str:
        """Whose turn it is: of those that wait, a caller of whom the fewest are `running`."""
        return min(self._of, key=lambda actor: running.get(actor, 0)) if running else next(iter(self._of))

    def take(self, actor: str) -> T:
        """The next one of this caller, who waits: its others wait until everybody else had a turn."""
        others = self._of.pop(actor)
        one = others.popleft()
        if others:
            self._of[actor] = others
        return one

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Those that nobody waits for any more, which are out of the queue now."""
        found: list[T] = []
        for actor, waiting in list(self._of.items()):
            gone = [one for one in waiting if unwanted(one)]
            if not gone:
                continue
            found += gone
            left = deque(one for one in waiting if not unwanted(one))
            if left:
                self._of[actor] = left
            else:
                del self._of[actor]
        return found


class ExplanationQueue:
    """Explanations that wait. Owned by the worker's only thread."""

    def __init__(self, bytes_max: int = MAX_WAITING_EXPLANATIONS) -> None:
        self._max = bytes_max
        self._turns = Turns[Waiting]()
        self._bytes: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, one: Waiting) -> bool:
        """Whether there was room: sealed requests are kept here, of one caller three quarters of what may be at most,
        and one of any size where nothing waits."""
        actor, size = one[0].grant.actor, len(one[1])
        full = self._bytes.total() + size > self._max or self._bytes[actor] + size > self._max - self._max // 4
        if full and self._turns:
            return False
        self._turns.add(actor, one)
        self._bytes[actor] += size
        return True

    def next(self) -> Waiting:
        """The next one; its caller's others wait until everybody else had a turn."""
        one = self._turns.take(self._turns.whose())
        self._let_go(one)
        return one

    def cancel(self, ids: AbstractSet[int]) -> list[Waiting]:
        """Those that nobody waits for any more, which are out of the queue now."""
        gone = self._turns.drop(lambda one: one[0].id in ids) if ids else []
        for one in gone:
            self._let_go(one)
        return [(work, raw, True) for work, raw, _ in gone]

    def _let_go(self, one: Waiting) -> None:
        actor = one[0].grant.actor
        self._bytes[actor] -= len(one[1])
        if not self._bytes[actor]:
            del self._bytes[actor]
