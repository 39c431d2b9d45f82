"""TLS 1.3 in this process, and a uvicorn protocol that hands the client certificate to the application.

uvicorn does not tell the application who the TLS peer is; `SealedHttpProtocol` puts the verified certificate into
`scope["extensions"]["tls"]` (ASGI TLS extension). It also bounds what uvicorn leaves open: a head that grows or
dawdles, trailers, a refused body that never ends, an answer that is never read, too many connections. uvicorn is pinned
to the tested minor version, because this class overrides its protocol's callbacks.

Trusts: the TLS library's verification against `pki/ca.pem`. Never: resumes a session (a certificate that was revoked
must not come back by a ticket), speaks anything older than TLS 1.3, or believes a header about the peer.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import MEDIA_PROBLEM, Problem
from gateway.limits import HEAD_TIMEOUT_S, LINGER_S, MAX_CONNECTIONS, MAX_HEAD, WRITE_STALL_S
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def make_tls_context(deployment: Deployment) -> ssl.SSLContext:
    """The server's context: TLS 1.3 only, no session tickets, client certificates of our authority."""
    pki = deployment.pki
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_cert_chain(pki / "server.pem", pki / "server.key")
        context.load_verify_locations(pki / "ca.pem")
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the certificates in {pki} cannot be used (server.pem, server.key and ca.pem are needed): {error.strerror}"
        ) from error
    context.verify_mode = _VERIFY[deployment.settings.gateway.client_certificates]
    return context


class SealedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _tls: dict[str, Any]
    _in_head = True
    _unproductive = 0  # bytes since the peer last completed a head or sent a byte of a body
    _deadline: asyncio.TimerHandle | None = None  # for the head, or for the rest of a body that was refused
    _stall: asyncio.TimerHandle | None = None

    # The peer ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        secure = transport.get_extra_info("ssl_object")
        der = secure.getpeercert(binary_form=True) if secure is not None else None
        self._tls = {"client_cert_chain": (ssl.DER_cert_to_PEM_cert(der),) if der else ()}
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._arm(HEAD_TIMEOUT_S)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"tls": self._tls}  # type: ignore[dict-item]
        self._in_head = True
        self._arm(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._in_head, self._unproductive = False, 0
        super().on_headers_complete()

    # Bounds on what the peer sends ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._unproductive > MAX_HEAD:
            self._refuse("header-too-large")
            return
        self._unproductive += len(data)
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer must never become a header of the request
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._unproductive = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._unproductive = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            # Refused before the body was read: take what is under way for a moment, so that the refusal arrives.
            self._arm(LINGER_S)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._too_late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        if self._in_head and self._unproductive:
            self._refuse("too-slow")
        elif not self.transport.is_closing():
            self.transport.abort()

    # Bounds on what the peer does not read ----------------------------------------------------------------------------

    def pause_writing(self) -> None:
        # Answers come in pieces (gateway.access_log), so a pause that lasts is a reader that takes nothing.
        super().pause_writing()
        self._stall = self.loop.call_later(WRITE_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    # Refusals below the application -----------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        self._refuse("malformed-request")

    def _refuse(self, code: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # an answer is half written: a second one would corrupt it
            return
        problem = Problem(code)
        body = msgspec.json.encode(problem.document())
        head = [STATUS_LINE.get(problem.status, STATUS_LINE[400])]
        fields = {"Content-Type": MEDIA_PROBLEM, "Content-Length": str(len(body)), "Connection": "close"}
        head += [f"{name}: {value}\r\n".encode("ascii") for name, value in (fields | problem.headers).items()]
        self.transport.write(b"".join(head) + b"\r\n" + body)
        self.transport.close()
