"""The socket for gateways: what a gateway that does not play along can make the host keep in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sealgate.protocol.frames import (
    Answer,
    AuthFailed,
    Caller,
    Cancel,
    Decision,
    EvidenceGiven,
    EvidenceWanted,
    Frame,
    FrameReader,
    HostToGateway,
    Refused,
    RuntimeState,
    Submit,
    encode_frame,
)
from secure_runtime.host import link_server
from secure_runtime.host.link_server import Asked, LinkServer, Reply

STATE = RuntimeState(
    ready=True,
    detail="",
    log_state="ok",
    log="l",
    key_configs=b"",
    models=(),
    policy_digest="",
    assurance="software",
    profile="dev",
    degraded=True,
)


class Host:
    """Answers every question with `size` bytes, once it is let."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.let = asyncio.Event()
        self.gone: list[asyncio.Event] = []
        self.faults: list[str] = []

    async def answer(self, frame: Asked, body: bytes, gone: asyncio.Event) -> tuple[Reply, bytes]:
        self.gone.append(gone)
        await self.let.wait()
        if body == b"fault":
            raise ZeroDivisionError
        if isinstance(frame, Submit):
            return Answer(id=frame.id, media_type="", log="l", record=frame.id, receipt=b"r"), bytes(self.size)
        return EvidenceGiven(id=frame.id), bytes(self.size)

    def auth_failed(self, frame: AuthFailed) -> None:
        return None

    def fault(self, error: Exception) -> None:
        self.faults.append(type(error).__name__)

    def state(self) -> RuntimeState:
        return STATE


class Gateway:
    """The other end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._frames = FrameReader(HostToGateway)

    async def ask(self, *frames: Frame, body: bytes = b"") -> None:
        for frame in frames:
            self.writer.write(b"".join(encode_frame(frame, body)))
        await self.writer.drain()

    async def frames(self, count: int) -> list[Frame]:
        found: list[Frame] = []
        while len(found) < count:
            data = await self.reader.read(1 << 16)
            if not data:
                break
            found += [frame for frame, _ in self._frames.feed(data)]
        return found


async def connected(host: Host, folder: Path) -> tuple[LinkServer, Gateway]:
    server = LinkServer(host)
    await server.listen(folder / "s", group="")
    return server, Gateway(*await asyncio.open_unix_connection(folder / "s"))


def test_a_gateway_that_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "MAX_UNREAD_BYTES", 4 * 1024 * 1024)

    async def play() -> None:
        host = Host(size=1024 * 1024)
        server, gateway = await connected(host, tmp_path)
        host.let.set()
        await gateway.ask(*(EvidenceWanted(id=number, nonce=b"") for number in range(64)))
        async with asyncio.timeout(60):
            while server.connections:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
            await gateway.frames(64 + 1)  # it finds out as soon as it reads
        assert gateway.reader.at_eof()
        gateway.writer.close()
        await server.close(drain_s=5)

    asyncio.run(play())


def submitted(number: int, subject: str) -> Submit:
    caller = Caller(tenant="clinic", subject=subject, authn="jwt", credential_binding="")
    decision = Decision(policy_digest="", policy_ids=())
    return Submit(id=number, model="m", operation="infer", purpose="p", media_type="", caller=caller, decision=decision)


def test_answers_that_are_not_read_are_refused_one_by_one_and_the_connection_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caller asks for sixteen times what may wait; another one's answer, and all that follows, comes."""
    monkeypatch.setattr(link_server, "MAX_UNREAD_BYTES", 8 * 1024 * 1024)

    async def play() -> None:
        host = Host(size=512 * 1024)
        server, gateway = await connected(host, tmp_path)
        host.let.set()
        await gateway.ask(*(submitted(number, "greedy") for number in range(256)))
        async with asyncio.timeout(60):
            while len(host.gone) < 256 or server.running:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
            await gateway.ask(submitted(256, "other"))
            _, *replies = await gateway.frames(1 + 257)
            assert len(replies) == 257
            given = [reply for reply in replies if isinstance(reply, Answer)]
            refused = [reply for reply in replies if isinstance(reply, Refused)]
            assert 8 <= len(given) <= 128  # what waits, and what the kernel took: some megabytes
            assert replies[-1] == Answer(id=256, media_type="", log="l", record=256, receipt=b"r")
            assert {(one.status, one.code, one.log, one.receipt) for one in refused} == {(503, "busy", "l", b"r")}
            assert all(one.record == one.id for one in refused)
            await gateway.ask(submitted(257, "greedy"))  # everything was read: there is room again
            (again,) = await gateway.frames(1)
        assert isinstance(again, Answer)
        gateway.writer.close()
        await server.close(drain_s=5)

    asyncio.run(play())


def test_a_body_above_the_deployments_limit_ends_the_connection(tmp_path: Path) -> None:
    async def play() -> None:
        host = Host(size=1)
        host.let.set()
        server = LinkServer(host, body_max=1000)
        await server.listen(tmp_path / "s", group="")
        gateway = Gateway(*await asyncio.open_unix_connection(tmp_path / "s"))
        await gateway.ask(EvidenceWanted(id=1, nonce=b""), body=bytes(1000))
        assert len(await gateway.frames(2)) == 2
        await gateway.ask(EvidenceWanted(id=2, nonce=b""), body=bytes(1001))
        assert await gateway.frames(1) == []
        assert len(host.gone) == 1
        gateway.writer.close()
        await server.close(drain_s=5)

    asyncio.run(play())


def test_an_answer_comes_for_every_question_even_for_a_fault(tmp_path: Path) -> None:
    async def play() -> None:
        host = Host(size=1)
        host.let.set()
        server, gateway = await connected(host, tmp_path)
        await gateway.ask(EvidenceWanted(id=1, nonce=b""), body=b"fault")
        state, refused = await gateway.frames(2)
        assert state == STATE
        assert isinstance(refused, Refused)
        assert (refused.id, refused.status, host.faults) == (1, 500, ["ZeroDivisionError"])
        gateway.writer.close()
        await server.close(drain_s=5)

    asyncio.run(play())


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_who_no_longer_waits_is_known(tmp_path: Path, how: str) -> None:
    async def play() -> None:
        host = Host(size=1)
        server, gateway = await connected(host, tmp_path)
        await gateway.ask(EvidenceWanted(id=1, nonce=b""), EvidenceWanted(id=2, nonce=b""))
        if how == "cancel":
            await gateway.ask(Cancel(id=1))
        async with asyncio.timeout(60):
            while len(host.gone) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
            if how == "leave":
                gateway.writer.close()
            await host.gone[0].wait()
            if how == "leave":
                await host.gone[1].wait()
            else:
                assert not host.gone[1].is_set()
        host.let.set()
        gateway.writer.close()
        await server.close(drain_s=5)

    asyncio.run(play())


def test_an_id_used_twice_ends_the_connection(tmp_path: Path) -> None:
    async def play() -> None:
        host = Host(size=1)
        server, gateway = await connected(host, tmp_path)
        await gateway.ask(EvidenceWanted(id=1, nonce=b""), EvidenceWanted(id=1, nonce=b""))
        async with asyncio.timeout(60):
            await gateway.frames(9)
        assert gateway.reader.at_eof()
        host.let.set()
        gateway.writer.close()
        await server.close(drain_s=5)

    asyncio.run(play())
