"""The worker's side of single-use processes: which slot runs what, what waits for a slot, and what came of it.

The worker has done checks 1 to 4 and taken the one secret that opens the request out of its encapsulation; it never
opens it. Callers take turns: a free slot is for one of whom the fewest run, and one caller has three quarters at most.

What a process says of its work is checked here like the word of a stranger, because the host ends a worker whose
completions do not fit: a process that a hostile request took over may spoil that request, and nothing else.

Trusts: the zygote's word for which process has ended. Never: signals a process; waits.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from sealgate.ambient import Clock, now_us
from sealgate.errors import DecodeError, OpenError
from sealgate.protocol.frames import Grant, ModelFacts, Work
from sealgate.protocol.hpke import OneSecret
from sealgate.protocol.ohttp import (
    MEDIA_CHUNKED_REQUEST,
    MEDIA_CHUNKED_RESPONSE,
    MEDIA_REQUEST,
    MEDIA_RESPONSE,
)
from secure_runtime.errors import ENGINE_REASONS, GATEKEEPER_REASONS, TurnedAway
from secure_runtime.limits import MAX_UNITS
from secure_runtime.worker.gatekeeper import Accepted
from secure_runtime.worker.slots import Job, Result, Slot
from secure_runtime.worker.turns import Turns
from secure_runtime.worker.zygote import BEGIN, ENDED, NOT_MADE, WELL

_ANSWERED_AS = {MEDIA_REQUEST: MEDIA_RESPONSE, MEDIA_CHUNKED_REQUEST: MEDIA_CHUNKED_RESPONSE}
_PROBLEMS = ("sealed-request-refused", "unknown-key")
_LONGEST_MS = 2**32 - 1


@dataclass(frozen=True)
class Task:
    """One request on its way through a process of its own."""

    work: Work
    raw: bytes = field(repr=False)
    accepted: Accepted
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Ended:
    """A task's end: a result that was checked, with the sealed response, or a refusal."""

    work: Work
    raw: bytes = field(repr=False)
    result: Result
    sealed: bytes = field(default=b"", repr=False)


class SingleUse:
    """Owned by the worker's only thread."""

    def __init__(
        self,
        channel: socket.socket,
        slots: Sequence[Slot],
        *,
        models: Mapping[str, ModelFacts],
        clock: Clock = now_us,
    ) -> None:
        self._channel = channel
        self._slots = slots
        self._models = models
        self._clock = clock
        self._share = len(slots) - len(slots) // 4
        self._free = list(range(len(slots)))
        self._running: dict[int, Task] = {}
        self._waiting = Turns[Task]()

    @property
    def channel(self) -> socket.socket:
        """To poll: when there is something to read, `advance`."""
        return self._channel

    @property
    def busy(self) -> bool:
        """Whether any task has not come to its end."""
        return bool(self._running or self._waiting)

    def begin(self, work: Work, raw: bytes, accepted: Accepted) -> None:
        """Run it, or let it wait for a slot; raises TurnedAway for an encapsulation that is none."""
        sealed = accepted.sealed
        try:
            secret = OneSecret.taken(accepted.key.private, sealed.enc).decapsulate(sealed.enc)
        except OpenError:
            raise TurnedAway("cannot-open") from None
        # Ahead of opening: two processes must not open one request at the same time.
        accepted.key.replay.remember(sealed.enc)
        self._waiting.add(work.grant.actor, Task(work, raw, accepted, secret))

    def cancel(self, ids: AbstractSet[int]) -> list[Ended]:
        """Drop those that wait; what runs has until its deadline."""
        dropped = self._waiting.drop(lambda task: task.work.id in ids) if ids else []
        return [_unopened(task, TurnedAway("cancelled", problem="timed-out")) for task in dropped]

    def advance(self) -> list[Ended]:
        """Take the ends that the zygote told of, and fill the slots again. Raises ConnectionError without a zygote."""
        ended = []
        while True:
            try:
                told = self._channel.recv(ENDED.size)
            except BlockingIOError:
                break
            if not told:
                raise ConnectionError("the zygote ended")
            ended.append(self._end(*ENDED.unpack(told)))
        while (task := self._next()) is not None:
            lifetime_ms = (task.work.grant.expires_us - self._clock()) // 1000
            if lifetime_ms <= 0:
                ended.append(_unopened(task, TurnedAway("grant-expired", problem="timed-out")))
                continue
            index = self._free.pop()
            self._slots[index].put(
                Job(grant=task.work.grant, media_type=task.work.media_type, secret=task.secret), task.raw
            )
            self._running[index] = task
            self._channel.sendall(BEGIN.pack(index, min(lifetime_ms, _LONGEST_MS)))
        return ended

    def _next(self) -> Task | None:
        """What a free slot is for; None while there is none, or those that wait have their share."""
        if not (self._waiting and self._free):
            return None
        running = Counter(task.work.grant.actor for task in self._running.values())
        actor = self._waiting.whose(running)
        return self._waiting.take(actor) if running[actor] < self._share else None

    def _end(self, index: int, how: int) -> Ended:
        task, slot = self._running.pop(index), self._slots[index]
        self._free.append(index)
        if how == NOT_MADE:
            slot.wipe()
            return _unopened(task, TurnedAway("single-use-not-made", problem="busy"))
        if how != WELL:
            slot.wipe()
            if self._clock() >= task.work.grant.expires_us:
                return _refused(task, TurnedAway("single-use-timed-out", problem="timed-out"))
            return _refused(task, TurnedAway("single-use-died"))
        try:
            result, sealed = slot.take(Result)
        except (DecodeError, MemoryError):
            return _refused(task, TurnedAway("single-use-died"))
        if not self._fits(result, sealed, task):
            return _refused(task, TurnedAway("single-use-died"))
        if not result.opened:
            _forget(task)
        return Ended(task.work, task.raw, result, sealed)

    def _fits(self, result: Result, sealed: bytes, task: Task) -> bool:
        """Whether the worker may sign this."""
        if result.outcome == "refused":
            return not sealed and result.reason in GATEKEEPER_REASONS and result.problem in _PROBLEMS
        digests = (result.model_digest, result.certificate_digest)
        allowed = {("", "")} if result.outcome == "failed" else set()
        for facts in self._models.values():
            if facts.name == task.work.grant.model:
                allowed.add((facts.model_digest, facts.certificate_digest))
        reasons = {"completed": frozenset({""}), "failed": ENGINE_REASONS}.get(result.outcome, frozenset())
        return (
            result.opened
            and bool(sealed)
            and not result.problem
            and result.reason in reasons
            and result.media_type == _ANSWERED_AS[task.work.media_type]
            and 0 <= result.units <= MAX_UNITS
            and _epsilon_fits(result, task.work.grant)
            and digests in allowed
        )


def _epsilon_fits(result: Result, grant: Grant) -> bool:
    """As the host looks at it: whole rows, at least one for an answer, no more than may be; nothing without noise."""
    one_row = grant.obligations.noise_epsilon_micro if grant.operation == "infer" else 0
    if not one_row:
        return result.eps_micro == 0
    least = one_row if result.outcome == "completed" else 0
    return least <= result.eps_micro <= one_row * grant.obligations.noise_rows and result.eps_micro % one_row == 0


def _refused(task: Task, why: TurnedAway) -> Ended:
    result = Result(opened=True, outcome="refused", reason=why.code, problem=why.problem)
    return Ended(task.work, task.raw, result)


def _unopened(task: Task, why: TurnedAway) -> Ended:
    """Refused before anybody saw inside."""
    _forget(task)
    return _refused(task, why)


def _forget(task: Task) -> None:
    """The sealed request was not opened, so it is not used up."""
    task.accepted.key.replay.forget(task.accepted.sealed.enc)
