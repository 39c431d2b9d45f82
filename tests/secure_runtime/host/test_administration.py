"""The administration socket: who may ask, who the record says it was, and what a bad question costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.administration import HostAway, HostRefused, tell_host
from sealgate.deployment import Deployment, DeploymentSection, Settings
from sealgate.errors import ConfigurationError
from sealgate.protocol.administration import AdminToHost, ApplyPolicy, CredentialRevoked, HostToAdmin
from sealgate.protocol.frames import Recorded, Refused, Shutdown, encode_frame
from secure_runtime.host import administration
from secure_runtime.host.administration import AdminServer

REVOKED = CredentialRevoked(what="token", fingerprint="a" * 64, tenant="clinic", note="lost laptop")
APPLY = ApplyPolicy(digest="b" * 64, scenarios=3, scenarios_digest="c" * 64)


class Host:
    """Remembers what it was asked; `reply` says what it answers."""

    def __init__(self, reply: Callable[[AdminToHost], HostToAdmin] | None = None) -> None:
        self.asked: list[tuple[AdminToHost, str]] = []
        self.faults: list[str] = []
        self.reply = reply or (lambda frame: Recorded(id=frame.id, log="l", record=7, receipt=b""))

    async def administer(self, frame: AdminToHost, *, by: str) -> HostToAdmin:
        self.asked.append((frame, by))
        return self.reply(frame)

    def fault(self, error: Exception) -> None:
        self.faults.append(type(error).__name__)


def deployment(folder: Path) -> Deployment:
    (folder / "run").mkdir(exist_ok=True)
    return Deployment(folder, Settings(deployment=DeploymentSection(audience="a", origin="o")))


def during(host: Host, at: Deployment, work: Callable[[], Any]) -> Any:
    """The result of `work` in a thread while the host's socket is served."""

    async def play() -> Any:
        server = AdminServer(host)
        await server.listen(at.admin_socket)
        try:
            return await asyncio.to_thread(work)
        finally:
            await server.close(drain_s=5)

    return asyncio.run(play())


@pytest.mark.parametrize("frame", [REVOKED, APPLY])
def test_what_is_told_is_answered_and_says_who_told_it(tmp_path: Path, frame: AdminToHost) -> None:
    host, at = Host(), deployment(tmp_path)
    assert during(host, at, lambda: tell_host(at, frame)).record == 7
    assert host.asked == [(frame, f"uid:{os.getuid()}")]


def test_only_the_hosts_user_may_ask(tmp_path: Path) -> None:
    at = deployment(tmp_path)
    mode = during(Host(), at, lambda: at.admin_socket.stat().st_mode & 0o777)
    assert mode == 0o600


def test_nobody_there_is_said(tmp_path: Path) -> None:
    at = deployment(tmp_path)
    with pytest.raises(HostAway, match="no runtime host runs"):
        tell_host(at, REVOKED)
    during(Host(), at, lambda: None)  # leaves its socket behind, as a killed host does
    with pytest.raises(HostAway, match="no runtime host runs"):
        tell_host(at, REVOKED)


def test_a_refusal_is_in_words(tmp_path: Path) -> None:
    at = deployment(tmp_path)
    host = Host(lambda frame: Refused(id=frame.id, status=503, code="unavailable"))
    with pytest.raises(HostRefused, match="the audit log takes no records now") as caught:
        during(host, at, lambda: tell_host(at, APPLY))
    assert caught.value.code == "unavailable"


def test_a_fault_is_an_answer_and_is_told(tmp_path: Path) -> None:
    at = deployment(tmp_path)

    def fail(frame: AdminToHost) -> HostToAdmin:
        raise OSError("the database is elsewhere")

    host = Host(fail)
    with pytest.raises(HostRefused) as caught:
        during(host, at, lambda: tell_host(at, APPLY))
    assert caught.value.code == "internal"
    assert host.faults == ["OSError"]


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "A" * 64},
        {"fingerprint": "a" * 63},
        {"what": "everything"},
        {"tenant": "two words"},
        {"tenant": "clinic\n"},
        {"note": "x" * 301},
        {"note": "two\nlines"},
        {"note": "\x1b[2J"},
    ],
)
def test_what_the_host_would_not_take_is_not_sent(tmp_path: Path, changes: dict[str, Any]) -> None:
    host, at = Host(), deployment(tmp_path)
    values: dict[str, Any] = {"what": "token", "fingerprint": "a" * 64, **changes}
    with pytest.raises(ConfigurationError):
        during(host, at, lambda: tell_host(at, CredentialRevoked(**values)))
    assert host.asked == []


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"".join(encode_frame(Shutdown())),
        b"".join(encode_frame(REVOKED, b"a body")),
        b"".join(encode_frame(REVOKED)) + b"\x00",
        b"".join(encode_frame(CredentialRevoked(what="token", fingerprint="short"))),
        (200_000).to_bytes(4, "big") + bytes(4) + b"\x81" * 100_000,
        b"\x00\x00",
    ],
)
def test_a_bad_question_gets_no_answer(tmp_path: Path, raw: bytes) -> None:
    host, at = Host(), deployment(tmp_path)

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(at.admin_socket))
            try:
                sock.sendall(raw)
                sock.shutdown(socket.SHUT_WR)
                return sock.recv(100)
            except (BrokenPipeError, ConnectionResetError):
                return b""

    assert during(host, at, ask) == b""
    assert host.asked == []


def test_the_silent_and_the_many_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "ADMIN_QUESTION_S", 0.05)
    monkeypatch.setattr(administration, "MAX_ADMIN_CONNECTIONS", 2)
    host, at = Host(), deployment(tmp_path)

    def ask() -> list[bytes]:
        socks = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        ends = []
        for sock in socks:
            sock.settimeout(60)
            sock.connect(str(at.admin_socket))
        for sock in socks:
            try:
                ends.append(sock.recv(1))
            except ConnectionResetError:
                ends.append(b"")
            sock.close()
        return ends

    assert during(host, at, ask) == [b""] * 5
    assert during(host, at, lambda: tell_host(at, REVOKED)).record == 7


def test_an_answer_that_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    at = deployment(tmp_path)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(at.admin_socket))
        silent.listen(1)
        with pytest.raises(HostRefused, match="did not answer"):
            tell_host(at, REVOKED, timeout_s=0.05)


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for(tmp_path: Path) -> None:
    at, ended, sent = deployment(tmp_path), threading.Event(), []
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(at.admin_socket))
        slow.listen(1)

        def drip() -> None:
            connection, _ = slow.accept()
            with connection, contextlib.suppress(OSError):
                for byte in bytes([0, 0, 0, 200]) + bytes(200):  # half a minute of them
                    connection.sendall(bytes([byte]))
                    sent.append(byte)
                    if ended.wait(0.15):
                        return

        dripping = threading.Thread(target=drip)
        dripping.start()
        with pytest.raises(HostRefused, match="did not answer"):
            tell_host(at, REVOKED, timeout_s=0.4)
        ended.set()
        dripping.join()
    assert len(sent) < 60, "of 204: one comes each 150 ms at most, so this is nine seconds, and no clock stops a test"


def test_an_answer_of_another_kind_is_none(tmp_path: Path) -> None:
    at = deployment(tmp_path)
    with pytest.raises(HostRefused, match="did not answer"):
        during(Host(lambda frame: Shutdown()), at, lambda: tell_host(at, REVOKED))  # type: ignore[arg-type, return-value]
