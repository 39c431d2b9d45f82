"""Time limits of many short waits, for the price of one timer.

`asyncio.timeout` makes a timer for each wait, and nearly none of them ever runs out. Here a wait only takes its place
in a queue; whoever is still waiting after WATCH_AFTER_S gets a timer of its own, and a look whether its caller is still
there. A limit that is shorter than that has its timer at once.

Trusts: nobody. Never: lets a wait go on past its limit, or holds on to anything of a wait that is over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from gateway.errors import CallerGone
from gateway.limits import WATCH_AFTER_S

Receive = Callable[[], Awaitable[Any]]


class Patience:
    """The waits of one kind of work. Used from one event loop only."""

    def __init__(self) -> None:
        self._begun: deque[Limit] = deque()  # the oldest first; those that are over go when they come to the front
        self._looking = False

    def limit(self, timeout_s: float, *, receive: Receive | None = None) -> Limit:
        """`with` it around a wait in a task: what takes longer is cancelled and becomes a TimeoutError. With `receive`
        of an ASGI request, it becomes CallerGone as soon as the caller is seen to have gone."""
        return Limit(self, timeout_s, receive)

    def add(self, limit: Limit, loop: asyncio.AbstractEventLoop) -> None:
        """Begin `limit` if it is not over after WATCH_AFTER_S."""
        self._begun.append(limit)
        if not self._looking:
            self._looking = True
            loop.call_at(limit.began + WATCH_AFTER_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        begun, before = self._begun, loop.time() - WATCH_AFTER_S
        while begun and (begun[0].is_over or begun[0].began <= before):
            begun.popleft().begin()
        self._looking = bool(begun)
        if begun:
            loop.call_at(begun[0].began + WATCH_AFTER_S, self._look, loop)


class Limit:
    """One wait of one task."""

    __slots__ = (
        "_cancelled_before",
        "_failure",
        "_patience",
        "_receive",
        "_timeout_s",
        "_timer",
        "_waiting",
        "_watch",
        "began",
    )

    def __init__(self, patience: Patience, timeout_s: float, receive: Receive | None) -> None:
        self._patience = patience
        self._timeout_s = timeout_s
        self._receive = receive
        self._failure: type[Exception] | None = None  # why the task was cancelled, if it was from here
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more."""
        return self._waiting is None

    @property
    def ran_out(self) -> bool:
        """Whether the wait took longer than it might."""
        return self._failure is TimeoutError

    def __enter__(self) -> Limit:
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        self._waiting: asyncio.Task[Any] | None = task
        self._cancelled_before = task.cancelling()
        self.began = loop.time()
        if self._timeout_s < WATCH_AFTER_S:
            self.begin()
        else:
            self._patience.add(self, loop)
        return self

    def begin(self) -> None:
        """It takes longer than most: set the timer, and look whether the caller is still there."""
        if self._waiting is None:
            return
        loop = self._waiting.get_loop()
        self._timer = loop.call_at(self.began + self._timeout_s, self._cancel, TimeoutError)
        if self._receive is not None:
            self._watch = loop.create_task(self._until_gone(self._receive))

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel(CallerGone)

    def _cancel(self, failure: type[Exception]) -> None:
        if self._waiting is not None and self._failure is None:
            self._failure = failure
            self._waiting.cancel()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        task, self._waiting, self._receive = self._waiting, None, None
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._failure is None or task is None:
            return
        # As asyncio.timeout does: the cancellation of somebody else stays one.
        if task.uncancel() <= self._cancelled_before and kind is asyncio.CancelledError:
            raise self._failure from None
