"""The link to the runtime: bounded, told apart by id, and not led astray by what the other end says."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
from pathlib import Path

import pytest

from gateway.errors import RuntimeAway, RuntimeBusy
from gateway.limits import MAX_LINK_NOTICES
from gateway.runtime_link import RuntimeLink
from gateway.telemetry import Telemetry
from sealgate.errors import DecodeError
from sealgate.limits import MAX_FRAME_HEADER
from sealgate.protocol import frames

CALLER = frames.Caller(tenant="t", subject="s", authn="jwt", credential_binding="b")
STATE = frames.RuntimeState(
    ready=True,
    detail="",
    log_state="ok",
    log="l",
    key_configs=b"",
    models=(),
    policy_digest="",
    assurance="software",
    profile="dev",
    degraded=False,
)


def submission(purpose="p"):
    return frames.Submit(
        model="m",
        operation="infer",
        purpose=purpose,
        media_type="x",
        caller=CALLER,
        decision=frames.Decision(policy_digest=""),
    )


class Host:
    """One connection at a time, driven step by step by a test."""

    def __init__(self, path):
        self.path = path
        self.writer = None
        self.frames = asyncio.Queue()
        self.server = None
        self.open = 0  # connections

    async def listen(self):
        self.server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader, writer):
        self.writer = writer
        self.open += 1
        await self.say(STATE)
        cutter = frames.FrameReader(frames.GatewayToHost)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for frame, body in cutter.feed(data):
                    self.frames.put_nowait((frame, body))
        writer.close()
        self.open -= 1

    async def say(self, frame, body=b""):
        for part in frames.encode_frame(frame, body):
            self.writer.write(part)

    async def hear(self):
        return await asyncio.wait_for(self.frames.get(), 60)


@contextlib.asynccontextmanager
async def connected(**options):
    with tempfile.TemporaryDirectory(prefix="sg-") as folder:
        host = Host(Path(folder) / "s")
        await host.listen()
        link = RuntimeLink(host.path, telemetry=Telemetry(stream=io.StringIO()), **options)
        link.start()
        await soon(lambda: link._state is not None)
        try:
            yield link, host
        finally:
            await link.close()
            host.server.close()
            await soon(lambda: not host.open)
            await asyncio.sleep(0)


async def soon(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def run(test):
    """A coroutine test on a plain event loop."""

    def runner():
        asyncio.run(test())

    runner.__name__ = test.__name__
    runner.__doc__ = test.__doc__
    return runner


def answer(number):
    return frames.Answer(id=number, media_type="x", log="l", record=number, receipt=b"")


@run
async def test_what_is_cancelled_still_counts_until_the_host_answered():
    async with connected(outstanding_max=2) as (link, host):
        tasks = [asyncio.create_task(link.submit(submission(), b"")) for _ in range(2)]
        first, second = (await host.hear())[0], (await host.hear())[0]
        with pytest.raises(RuntimeBusy):
            await link.submit(submission(), b"")
        tasks[0].cancel()
        assert isinstance((await host.hear())[0], frames.Cancel)
        with pytest.raises(RuntimeBusy):
            await link.submit(submission(), b"")
        await host.say(answer(first.id))
        await soon(lambda: not link._abandoned)
        third = asyncio.create_task(link.submit(submission(), b""))
        number = (await host.hear())[0].id
        await host.say(answer(number))
        await host.say(answer(second.id))
        assert (await third)[0].record == number
        assert (await tasks[1])[0].record == second.id
        assert not link._waiting


@run
async def test_an_answer_of_the_wrong_kind_ends_the_connection():
    async with connected() as (link, host):
        asking = asyncio.create_task(
            link.deny(
                frames.Deny(
                    model="m", operation="infer", purpose="p", caller=CALLER, decision=frames.Decision(policy_digest="")
                )
            )
        )
        number = (await host.hear())[0].id
        await host.say(answer(number))
        with pytest.raises(RuntimeAway):
            await asking
        await soon(lambda: link._state is None)
        await soon(lambda: link._state is not None)  # and it connects again


@run
async def test_garbage_from_the_host_fails_what_is_in_flight():
    async with connected() as (link, host):
        asking = asyncio.create_task(link.submit(submission(), b""))
        await host.hear()
        host.writer.write(b"\xff" * 64)
        with pytest.raises(RuntimeAway):
            await asking


@run
async def test_answers_that_nobody_asked_for_are_ignored():
    async with connected() as (link, host):
        await host.say(answer(999))
        await host.say(frames.Recorded(id=0, log="l", record=1, receipt=b""))
        asking = asyncio.create_task(link.evidence(b"n"))
        number = (await host.hear())[0].id
        await host.say(frames.EvidenceGiven(id=number), b"given")
        assert await asking == b"given"


@run
async def test_a_request_too_large_for_a_frame_leaves_nothing_behind():
    async with connected() as (link, _):
        with pytest.raises(DecodeError):
            await link.submit(submission("x" * MAX_FRAME_HEADER), b"")
        assert not link._waiting


@run
async def test_a_host_that_does_not_read_gets_no_more_notices():
    async with connected() as (link, host):
        host.writer.transport.pause_reading()
        notice = frames.AuthFailed(reason="r" * 100, source="loopback")
        for _ in range(100_000):
            link.auth_failed(notice)
        assert link._dropped > 0
        assert link._connection.unsent <= MAX_LINK_NOTICES + 1000
        host.writer.transport.resume_reading()
        await soon(lambda: link._connection.unsent == 0)
        link.auth_failed(notice)
        assert link._dropped == 0


@run
async def test_closing_fails_what_is_in_flight():
    async with connected() as (link, host):
        asking = asyncio.create_task(link.submit(submission(), b""))
        await host.hear()
        await link.close()
        with pytest.raises(RuntimeAway):
            await asking
        with pytest.raises(RuntimeAway):
            await link.submit(submission(), b"")
