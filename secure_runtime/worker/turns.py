"""Whose turn it is: requests of many callers wait for one thread, and no caller's many keep another's one waiting.

In a sweep the first request of each caller comes first, then the second of each, and so on. Explanations, which take
seconds, wait here between sweeps: callers take turns, and what is cancelled leaves at once.

Trusts: the grant's pseudonym for who is asking. Never: opens a request, or drops one without giving it back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Set as AbstractSet

from sealgate.protocol.frames import Work
from secure_runtime.limits import MAX_WAITING_EXPLANATIONS

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


class ExplanationQueue:
    """Explanations that wait. Owned by the worker's only thread."""

    def __init__(self, bytes_max: int = MAX_WAITING_EXPLANATIONS) -> None:
        self._max = bytes_max
        self._of: dict[str, deque[Waiting]] = {}  # by caller; whose turn is next comes first
        self._bytes: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, one: Waiting) -> bool:
        """Whether there was room: sealed requests are kept here, of one caller three quarters of what may be at most,
        and one of any size where nothing waits."""
        actor, size = one[0].grant.actor, len(one[1])
        full = self._bytes.total() + size > self._max or self._bytes[actor] + size > self._max - self._max // 4
        if full and self._of:
            return False
        self._of.setdefault(actor, deque()).append(one)
        self._bytes[actor] += size
        return True

    def next(self) -> Waiting:
        """The next one; its caller's others wait until everybody else had a turn."""
        actor = next(iter(self._of))
        others = self._of.pop(actor)
        one = others.popleft()
        self._let_go(actor, len(one[1]))
        if others:
            self._of[actor] = others
        return one

    def cancel(self, ids: AbstractSet[int]) -> list[Waiting]:
        """Those that nobody waits for any more, which are out of the queue now."""
        found: list[Waiting] = []
        for actor, waiting in list(self._of.items()) if ids else ():
            gone = [(work, raw, True) for work, raw, _ in waiting if work.id in ids]
            if not gone:
                continue
            found += gone
            self._let_go(actor, sum(len(raw) for _, raw, _ in gone))
            left = deque(one for one in waiting if one[0].id not in ids)
            if left:
                self._of[actor] = left
            else:
                del self._of[actor]
        return found

    def _let_go(self, actor: str, size: int) -> None:
        self._bytes[actor] -= size
        if not self._bytes[actor]:
            del self._bytes[actor]
