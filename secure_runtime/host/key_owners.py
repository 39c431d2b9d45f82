"""Which worker holds the key of which number: how a sealed request finds its worker.

The number is the first byte of a sealed request (RFC 9458 section 4.1). Workers choose numbers by themselves, avoiding
those that they were told of; two may choose one at the same time. Then it stays with whom it was claimed by first, the
other one's key is not published, and that worker is asked for others.

A number is held while it is published, and as long after as a stale key is opened. Trusts: what workers say of their
own keys, for routing only: whoever gets a request that it cannot open refuses it. Never: gives a held number to
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sealgate.ambient import monotonic_ns
from secure_runtime.limits import MAX_REMEMBERED_KEY_IDS


@dataclass(frozen=True)
class _Held:
    owner: object
    gone_ns: int | None  # None while it is published


class KeyOwners:
    """Owned by the host's event loop. An owner is any object that stands for one worker."""

    def __init__(
        self, used: Sequence[int] = (), *, stale_s: float = 3600.0, time_ns: Callable[[], int] = monotonic_ns
    ) -> None:
        """`used` are numbers of earlier workers, oldest first."""
        self._recent = list(used)[-MAX_REMEMBERED_KEY_IDS:]
        self._held: dict[int, _Held] = {}
        self._stale_ns = int(stale_s * 1e9)
        self._time_ns = time_ns

    def claim(self, owner: object, numbers: Iterable[int]) -> frozenset[int]:
        """`owner` has these keys now, and published no others; returns those numbers that are another's."""
        wanted, now = dict.fromkeys(numbers), self._time_ns()
        theirs = frozenset(number for number in wanted if self._holder(number, now) not in (None, owner))
        for number, held in list(self._held.items()):
            if held.owner is owner and held.gone_ns is None and number not in wanted:
                self._held[number] = _Held(owner, now + self._stale_ns)
        for number in wanted:
            if number not in theirs:
                self._held[number] = _Held(owner, None)
        self._recent = (self._recent + list(wanted))[-MAX_REMEMBERED_KEY_IDS:]
        return theirs

    def release(self, owner: object) -> None:
        """The worker ended, or takes no more requests."""
        self._held = {number: held for number, held in self._held.items() if held.owner is not owner}

    def owner(self, number: int) -> object | None:
        """Whose key it is; None for a number that nobody holds."""
        return self._holder(number, self._time_ns())

    def _holder(self, number: int, now: int) -> object | None:
        held = self._held.get(number)
        return held.owner if held is not None and (held.gone_ns is None or held.gone_ns > now) else None

    def to_avoid(self, owner: object = None) -> tuple[int, ...]:
        """Numbers that a new key of `owner` should not take: used lately by anybody, or held by another."""
        others = (number for number, held in self._held.items() if held.owner is not owner)
        return tuple(dict.fromkeys((*self._recent, *others)))
