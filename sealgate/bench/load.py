"""A load generator that costs little beside what it measures: whole requests prepared beforehand, one thread, epoll.

A closed loop: each of N connections has one request in flight and sends its next one as soon as its answer is there.
The same generator serves every server, with or without TLS. A rate counts the answers that came inside the window;
what was sent before it warms the server up, and what is in flight at its end is waited for and not counted.

Trusts: nothing that comes back; answers are bounded. Never: parses a body, seals or opens anything, retries.
"""

from __future__ import annotations

import gc
import selectors
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sealgate.ambient import monotonic_ns
from sealgate.errors import SealgateError

_READ = 256 * 1024
_MAX_ANSWER = 256 << 20
_CONNECT_S = 10.0
_STALL_S = 60.0  # no answer at all for so long: the server hangs


class LoadFailed(SealgateError):
    """The load cannot be applied: nobody answers, or what answers is not HTTP."""


@dataclass(frozen=True)
class Answer:
    """One answer as it came. `number` counts the requests of this run from 0; `body` is not decoded if `chunked`."""

    number: int
    status: int
    head: bytes
    body: bytes = field(repr=False)
    latency_us: float

    def fields(self) -> dict[str, str]:
        """Header fields, names in lower case."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        return {name.strip().lower(): value.strip() for name, _, value in pairs}


@dataclass(kw_only=True)
class Run:
    """What one run came to. `answered` counts all, `counted` those inside the window, which lasted `window_s`."""

    window_s: float = 0.0
    answered: int = 0
    counted: int = 0
    refused: int = 0  # of all: status other than 200
    latencies_us: list[float] = field(default_factory=list)  # of those counted
    kept: list[Answer] = field(default_factory=list)
    first_refusal: Answer | None = None

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.counted / self.window_s if self.window_s else 0.0


class _Connection:
    """One socket with at most one request in flight."""

    __slots__ = ("buffer", "head", "number", "sent_ns", "sock", "status", "unsent", "want")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.unsent: memoryview = memoryview(b"")
        self.head = b""
        self.want = -1  # bytes of head and body; -1: the head is not there; -2: chunked
        self.number = -1  # of the request in flight; -1: none
        self.sent_ns = 0
        self.status = 0


class Load:
    """Connections to one server; a context manager. `path` is a UNIX socket, instead of host and port."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        connections: int,
        path: str = "",
        tls: ssl.SSLContext | None = None,
        name: str = "localhost",
    ) -> None:
        self._address = (host, port)
        self._path = path
        self._tls = tls
        self._name = name
        self._selector = selectors.EpollSelector()
        self._connections: list[_Connection] = []
        try:
            self._connections += [_Connection(self._connect()) for _ in range(connections)]
        except OSError as error:
            self.close()
            raise LoadFailed(f"{path or self._address} cannot be reached: {error.strerror or error}") from error
        for connection in self._connections:
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    def run(self, requests: Iterator[bytes], *, seconds: float, warm_s: float = 0.0, keep_every: int = 0) -> Run:
        """Send until the window is over or the requests are; every `keep_every`-th answer is kept whole.

        Where the requests end first, the window ends with the last answer that had a full house beside it.
        """
        run, number = Run(), 0
        begin = monotonic_ns()
        opens, closes = begin + int(warm_s * 1e9), begin + int((warm_s + seconds) * 1e9)
        busy, exhausted_ns = 0, 0
        with _no_garbage():
            for connection in self._connections:
                request = next(requests, None)
                if request is None:
                    exhausted_ns = begin
                    break
                self._send(connection, request, number)
                number, busy = number + 1, busy + 1
            while busy:
                ready = self._selector.select(_STALL_S)
                if not ready:
                    raise LoadFailed(f"no answer came within {_STALL_S:.0f} s")
                for key, events in ready:
                    connection = key.data
                    if events & selectors.EVENT_WRITE:
                        self._flush(connection)
                    if not events & selectors.EVENT_READ or not self._receive(connection):
                        continue
                    now = monotonic_ns()
                    self._take(connection, run, now, counted=opens <= now <= (exhausted_ns or closes), keep=keep_every)
                    busy -= 1
                    if now < closes and not exhausted_ns:
                        request = next(requests, None)
                        if request is None:
                            exhausted_ns = now
                        else:
                            self._send(connection, request, number)
                            number, busy = number + 1, busy + 1
        run.window_s = max(0, min(exhausted_ns or closes, closes) - opens) / 1e9
        return run

    def _take(self, connection: _Connection, run: Run, now: int, *, counted: bool, keep: int) -> None:
        latency_us = (now - connection.sent_ns) / 1000
        run.answered += 1
        if counted:
            run.counted += 1
            run.latencies_us.append(latency_us)
        kept = keep and connection.number % keep == 0
        if kept or connection.status != 200:
            data, size = bytes(connection.buffer), len(connection.head)
            answer = Answer(connection.number, connection.status, connection.head, data[size:], latency_us)
            if connection.status != 200:
                run.refused += 1
                run.first_refusal = run.first_refusal or answer
            elif kept:
                run.kept.append(answer)
        closing = b"connection: close" in connection.head.lower()
        connection.buffer.clear()
        connection.number, connection.want, connection.head = -1, -1, b""
        if closing:
            self._reconnect(connection)

    def _send(self, connection: _Connection, request: bytes, number: int) -> None:
        connection.number, connection.sent_ns = number, monotonic_ns()
        connection.unsent = memoryview(request)
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        """Write what the socket takes; the selector tells when it takes more."""
        waiting = len(connection.unsent)
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._selector.modify(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
            return
        except OSError as error:
            raise LoadFailed(f"the server closed a connection: {error.strerror or error}") from error
        if waiting and self._selector.get_key(connection.sock).events & selectors.EVENT_WRITE:
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _receive(self, connection: _Connection) -> bool:
        """Read what is there; whether a whole answer is."""
        while True:
            try:
                data = connection.sock.recv(_READ)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except OSError as error:
                raise LoadFailed(f"the server closed a connection: {error.strerror or error}") from error
            if not data:
                raise LoadFailed("the server closed a connection in the middle of an answer")
            connection.buffer += data
            if len(connection.buffer) > _MAX_ANSWER:
                raise LoadFailed("an answer is larger than anything that was asked for")
            if connection.number < 0:
                raise LoadFailed("the server sent what nobody asked for")
            if connection.want == -1:
                self._read_head(connection)
            if connection.want == -2 and connection.buffer.endswith(b"0\r\n\r\n"):
                return True
            if 0 <= connection.want <= len(connection.buffer):
                return True

    def _read_head(self, connection: _Connection) -> None:
        end = connection.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        connection.head = bytes(connection.buffer[: end + 4])
        lower = connection.head.lower()
        try:
            connection.status = int(lower[9:12])
            at = lower.find(b"\r\ncontent-length:")
            if at >= 0:
                connection.want = end + 4 + int(lower[at + 17 : lower.index(b"\r", at + 17)])
            elif b"\r\ntransfer-encoding: chunked" in lower:
                connection.want = -2
            else:
                raise ValueError("no length")
        except ValueError as error:
            raise LoadFailed("what the server sends is not an HTTP/1.1 answer with a length") from error

    def _connect(self) -> socket.socket:
        if self._path:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(_CONNECT_S)
            sock.connect(self._path)
        else:
            sock = socket.create_connection(self._address, timeout=_CONNECT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self._name)
        sock.setblocking(False)
        return sock

    def _reconnect(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        connection.sock.close()
        connection.sock = self._connect()
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            connection.sock.close()
        self._selector.close()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def http_request(
    method: str, path: str, fields: dict[str, str], body: bytes = b"", *, host: str = "localhost"
) -> bytes:
    """The bytes of one HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@contextmanager
def _no_garbage() -> Iterator[None]:
    """No garbage collection while the clock runs."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
