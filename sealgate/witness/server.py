"""The witness over HTTP (C2SP tlog-witness): `POST /add-checkpoint`, and nothing else.

There is no caller to authenticate: the log's signature on the checkpoint is the authority. Bounded: body size, time per
connection (a peer that sends a byte at a time gains nothing), connections and requests at once. TLS where a certificate
is given; without one it belongs on loopback or behind a proxy.
Trusts: `Witness`. Never: answers with more than the protocol says.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sealgate.ambient import monotonic_ns
from sealgate.errors import ConfigurationError
from sealgate.witness.witness import MAX_BODY, Witness, WitnessRefusal

_PATH = "/add-checkpoint"
_TIMEOUT_S = 20.0  # of one read
_LIFE_S = 60.0  # of a connection, whatever happens on it
_AT_ONCE = 64
_CONNECTIONS = 512


class WitnessServer(ThreadingHTTPServer):
    """Listens from construction on; `serve_forever` answers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], witness: Witness, *, tls: ssl.SSLContext | None, tell: Callable[[str], None]
    ) -> None:
        self.witness = witness
        self.tell = tell
        self.slots = threading.BoundedSemaphore(_AT_ONCE)
        self._open: dict[socket.socket, int] = {}  # when each was accepted; entries go when they close
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {address[0]} port {address[1]}: {error.strerror}") from error
        if tls is not None:
            # The handshake happens in the request's own thread, at its first read: a slow peer holds up nobody else.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= _CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open[request] = monotonic_ns()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by `serve_forever` at every turn: end the connections whose time is over. Their threads then see the
        end of the stream."""
        before = monotonic_ns() - int(_LIFE_S * 1e9)
        for request in [one for one, since in self._open.copy().items() if since < before]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(request, socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that went away, or TLS that failed: nothing that anybody needs a trace of."""


class _Handler(BaseHTTPRequestHandler):
    server: WitnessServer
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    def do_POST(self) -> None:  # the name that http.server looks for
        if not self.server.slots.acquire(blocking=False):
            self._answer(503, b"busy\n", "text/plain", close=True)
            return
        try:
            self._add_checkpoint()
        finally:
            self.server.slots.release()

    def _add_checkpoint(self) -> None:
        length = self.headers.get("content-length", "")
        if self.path != _PATH:
            self._answer(404, b"not found\n", "text/plain", close=True)
        elif not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > MAX_BODY:
            self._answer(413 if length.isdigit() else 411, b"the body needs a plain length\n", "text/plain", close=True)
        else:
            body = self.rfile.read(int(length))
            try:
                self._answer(200, self.server.witness.add_checkpoint(body), "text/plain; charset=utf-8")
            except WitnessRefusal as refusal:
                self._answer(refusal.status, refusal.body.encode(), refusal.media_type)

    def do_GET(self) -> None:
        self._answer(405, b"POST only\n", "text/plain", close=True)

    def _answer(self, status: int, body: bytes, media_type: str, *, close: bool = False) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a witness has no callers whose doings concern anybody."""


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 with this certificate; raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{certificate} and {key} cannot be used for TLS: {error.strerror}") from error
    return context
