"""A wait ends at its limit, when its caller has gone, or when somebody else says so; each shows as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from gateway import patience as module
from gateway.errors import CallerGone
from gateway.patience import Patience

RUNNERS = pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
_LONG_S = 3600.0


async def _gone() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def _for_ever() -> Any:
    await asyncio.get_running_loop().create_future()


@RUNNERS
def test_a_limit_shorter_than_the_first_look_ends_the_wait(runner: Any) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError), Patience().limit(0.001) as limit:
            await _for_ever()
        assert limit.ran_out
        await asyncio.sleep(0)  # the task is not left cancelled

    runner(main())


@RUNNERS
def test_a_longer_limit_gets_its_timer_at_the_first_look(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_AFTER_S", 0.001)

    async def main() -> None:
        patience = Patience()
        with patience.limit(_LONG_S):
            pass  # over before the one behind it in the queue
        with pytest.raises(TimeoutError), patience.limit(0.002) as limit:
            await _for_ever()
        assert limit.ran_out

    runner(main())


@RUNNERS
def test_a_caller_that_goes_away_ends_the_wait(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_AFTER_S", 0.0)

    async def main() -> None:
        with pytest.raises(CallerGone), Patience().limit(_LONG_S, receive=_gone) as limit:
            await _for_ever()
        assert not limit.ran_out

    runner(main())


@RUNNERS
def test_a_timeout_of_the_work_itself_is_not_the_limits(runner: Any) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError), Patience().limit(_LONG_S) as limit:
            raise TimeoutError
        assert not limit.ran_out

    runner(main())


@RUNNERS
def test_who_else_cancels_the_task_is_heard(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_AFTER_S", 0.0)

    async def main() -> None:
        both: list[Callable[[], Any]] = []

        async def gone_as_well() -> dict[str, Any]:
            both[0]()
            return await _gone()

        async def wait(receive: Callable[[], Awaitable[Any]] | None) -> None:
            with Patience().limit(_LONG_S, receive=receive):
                await _for_ever()

        for receive in (None, gone_as_well):
            task = asyncio.create_task(wait(receive))
            both[:] = [task.cancel]
            if receive is None:
                await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    runner(main())


@RUNNERS
def test_of_waits_that_are_over_nothing_stays(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_AFTER_S", 0.001)

    async def main() -> None:
        patience = Patience()
        for _ in range(3):
            with patience.limit(_LONG_S, receive=_gone) as limit:
                assert not limit.is_over
            assert limit.is_over
            assert limit._receive is None
        for _ in range(2):  # the second wait is looked after again
            with pytest.raises(TimeoutError), patience.limit(0.002):
                await _for_ever()
            assert not patience._begun
            assert not patience._looking

    runner(main())
