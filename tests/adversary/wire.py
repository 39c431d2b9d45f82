"""HTTPS by hand: exactly these bytes go out, and what comes back is compared byte for byte."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

IDLE_S = 5.0  # a connection that was idle for longer is made anew: the server closes it some time
# What may differ between two answers that tell a caller the same.
_VARYING = {"date", "dpop-nonce"}


@dataclass(frozen=True)
class Seen:
    """An answer as a caller sees it."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def told(self) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
        """Everything that could tell one refusal from another."""
        return self.status, tuple(sorted(field for field in self.fields if field[0] not in _VARYING)), self.body

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)


class Wire:
    """One TLS connection, made again when the server said that it closes it, or after a while without use."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._connection: ssl.SSLSocket | None = None
        self._used = 0.0

    def _connected(self) -> ssl.SSLSocket:
        if time.monotonic() - self._used > IDLE_S:
            self.close()
        self._used = time.monotonic()
        if self._connection is None:
            plain = socket.create_connection(("127.0.0.1", self._port), timeout=20)
            self._connection = self._context.wrap_socket(plain, server_hostname="localhost")
        return self._connection

    def ask(
        self,
        fields: Iterable[tuple[str, str | bytes]] = (),
        *,
        method: str = "POST",
        target: str = "/sealed/wine",
        body: bytes = b"",
    ) -> Seen:
        """One request with these fields besides Host and Content-Length, in this order, as often as they stand here."""
        lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: localhost", b"Content-Length: %d" % len(body)]
        for name, value in fields:
            lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode("latin-1")))
        return self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body, method=method)

    def send(self, raw: bytes, *, method: str = "POST") -> Seen:
        connection = self._connected()
        connection.sendall(raw)
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        body = answer.read()
        fields = tuple((name.lower(), value) for name, value in answer.getheaders())
        if answer.will_close:
            self.close()
        return Seen(answer.status, fields, body)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
