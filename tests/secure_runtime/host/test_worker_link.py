"""The host's end of a worker: what a dead, hung, lying or babbling worker leads to. The other end is scripted here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.protocol.completion import Statement, sign_completion
from sealgate.protocol.frames import Cancel, Done, FrameReader, Grant, HostToWorker, Obligations, Work, encode_frame
from secure_runtime.errors import WorkerGone
from secure_runtime.host.worker_link import Outcome, WorkerLink, connect

KEY = Ed25519PrivateKey.generate()
GRANT = Grant(
    id="g",
    model="m",
    operation="infer",
    purpose="p",
    actor="a",
    credential_binding="b",
    obligations=Obligations(),
    expires_us=2**52,
)


class Worker:
    """The other end of the socketpair."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader(HostToWorker)
        self._frames: list[tuple[Any, bytes]] = []

    async def next(self) -> tuple[Any, bytes]:
        loop = asyncio.get_running_loop()
        while not self._frames:
            self._frames += self._reader.feed(await loop.sock_recv(self._sock, 1 << 16))
        return self._frames.pop(0)

    async def say(self, *parts: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, b"".join(parts))

    def hang_up(self) -> None:
        self._sock.close()


def done(frame_id: int) -> Done:
    statement = Statement(
        instance="i",
        seq=1,
        grant="g",
        outcome="completed",
        reason="",
        model="m",
        model_digest="",
        certificate_digest="",
        units=1,
        req_commit="",
        resp_commit="",
    )
    return Done(id=frame_id, completion=sign_completion(statement, KEY), media_type="message/ohttp-res")


def play(story: Callable[[WorkerLink, Worker, asyncio.Event, list[WorkerGone]], Awaitable[None]]) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        lost: list[WorkerGone] = []
        link = WorkerLink(lambda event: None, lost.append)
        await connect(link, ours)
        worker = Worker(theirs)
        try:
            await asyncio.wait_for(story(link, worker, asyncio.Event(), lost), 20)
        finally:
            worker.hang_up()
            link.abort(WorkerGone("the test is over"))
            await asyncio.sleep(0)

    asyncio.run(run())


def ask(link: WorkerLink, gone: asyncio.Event, **times: float) -> asyncio.Task[Outcome]:
    limits = {"timeout_s": 10.0, "grace_s": 10.0, **times}
    return asyncio.create_task(link.run(GRANT, b"sealed", media_type="message/ohttp-req", gone=gone, **limits))


def test_work_goes_out_whole_and_its_end_comes_back() -> None:
    async def story(link: WorkerLink, worker: Worker, gone: asyncio.Event, lost: list[WorkerGone]) -> None:
        task = ask(link, gone)
        frame, body = await worker.next()
        assert isinstance(frame, Work)
        assert (frame.grant, body) == (GRANT, b"sealed")
        header, answer = encode_frame(done(frame.id), b"sealed answer")
        for byte in header + bytes(answer):  # the smallest pieces that a stream can come in
            await worker.say(bytes([byte]))
        outcome = await task
        assert outcome.sealed_response == b"sealed answer"
        assert link.in_flight == 0

    play(story)


def test_a_worker_that_hangs_up_fails_everything_in_flight() -> None:
    async def story(link: WorkerLink, worker: Worker, gone: asyncio.Event, lost: list[WorkerGone]) -> None:
        tasks = [ask(link, gone) for _ in range(3)]
        await worker.next()
        worker.hang_up()
        for task in tasks:
            with pytest.raises(WorkerGone) as caught:
                await task
            assert caught.value.code == "worker-died"
        assert [why.code for why in lost] == ["worker-died"]
        with pytest.raises(WorkerGone):
            await ask(link, gone)

    play(story)


def test_a_worker_that_never_answers_counts_as_hung() -> None:
    async def story(link: WorkerLink, worker: Worker, gone: asyncio.Event, lost: list[WorkerGone]) -> None:
        task = ask(link, gone, timeout_s=0.01, grace_s=0.01)
        with pytest.raises(WorkerGone) as caught:
            await task
        assert caught.value.code == "worker-hung"
        kinds = [type((await worker.next())[0]) for _ in range(2)]
        assert kinds == [Work, Cancel]

    play(story)


def test_a_caller_that_leaves_is_passed_on_and_the_end_still_counts() -> None:
    async def story(link: WorkerLink, worker: Worker, gone: asyncio.Event, lost: list[WorkerGone]) -> None:
        task = ask(link, gone)
        frame, _ = await worker.next()
        gone.set()
        cancel, _ = await worker.next()
        assert isinstance(cancel, Cancel)
        assert cancel.id == frame.id
        await worker.say(*map(bytes, encode_frame(done(frame.id), b"late")))
        assert (await task).sealed_response == b"late"

    play(story)


@pytest.mark.parametrize(
    "babble",
    [
        b"\xff" * 64,
        b"\x00\x00\x00\x02\x00\x00\x00\x00{}",
        b"".join(map(bytes, encode_frame(done(77), b"unasked"))),
        b"".join(map(bytes, encode_frame(Cancel(id=1)))),
    ],
    ids=["noise", "not-msgpack", "an-end-that-nobody-asked-for", "a-frame-of-the-other-direction"],
)
def test_a_worker_that_breaks_the_protocol_is_cut_off(babble: bytes) -> None:
    async def story(link: WorkerLink, worker: Worker, gone: asyncio.Event, lost: list[WorkerGone]) -> None:
        task = ask(link, gone)
        await worker.next()
        await worker.say(babble)
        with pytest.raises(WorkerGone) as caught:
            await task
        assert caught.value.code == "worker-protocol"

    play(story)


def test_a_worker_that_skips_a_number_is_cut_off() -> None:
    async def story(link: WorkerLink, worker: Worker, gone: asyncio.Event, lost: list[WorkerGone]) -> None:
        first, second = ask(link, gone), ask(link, gone)
        frames = [(await worker.next())[0] for _ in range(2)]
        await worker.say(*map(bytes, encode_frame(done(frames[0].id), b"one")))
        await worker.say(*map(bytes, encode_frame(done(frames[1].id), b"again number one")))
        assert (await first).sealed_response == b"one"
        with pytest.raises(WorkerGone) as caught:
            await second
        assert caught.value.code == "worker-protocol"

    play(story)
