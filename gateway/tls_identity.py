"""The connection: TLS 1.3 in this process or a UNIX socket for a proxy, and what the application is told of the peer.

`TlsIdentity` gives each new handshake the authorities and the server certificate that stand on disk now.
`SealedHttpProtocol` puts the peer's certificate into `scope["extensions"]["tls"]` (ASGI TLS extension), which uvicorn
does not, takes the fields that forward one (RFC 9440) out of the request, and bounds what uvicorn leaves open: a head
that grows or dawdles, trailers, a refused body that never ends, an answer that is never read, too many connections, too
many requests on one of them.
uvicorn is pinned to the tested minor version, because this class overrides its protocol's callbacks.

Trusts: the TLS library's verification against the accepted authorities; file permissions of the UNIX socket. Never:
resumes a session (a certificate that was revoked must not come back by a ticket), speaks anything older than TLS 1.3,
or hands a header about the peer to anything but `gateway.authentication.forwarded`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.authentication.authorities import Authorities, Generation
from gateway.authentication.forwarded import CERTIFICATE_FIELD, CHAIN_FIELD, EXTENSION, Forwarded
from gateway.authentication.watched_files import WatchedFiles
from gateway.errors import MEDIA_PROBLEM, Problem
from gateway.exchange import WHOLE, Exchange
from gateway.gathered_writes import GatheredWrites
from gateway.limits import (
    HEAD_TIMEOUT_S,
    LINGER_S,
    MAX_AUTHORITY_FILE,
    MAX_CHAIN,
    MAX_CONNECTIONS,
    MAX_HEAD,
    MAX_PIPELINED,
    WRITE_STALL_S,
)
from gateway.telemetry import Telemetry
from sealgate.ambient import Clock, now_us
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError

_DER = 2  # X509_FILETYPE_ASN1, as the private chain of Python before 3.13 takes it
_NOTHING: dict[str, Any] = {}  # all that there is to say of the extension WHOLE
_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def make_tls_context(deployment: Deployment, *, telemetry: Telemetry | None = None) -> ssl.SSLContext:
    """The server's context: TLS 1.3 only, no session tickets; every handshake uses the files as they are then.

    Raises ConfigurationError if they cannot be used now.
    """
    log = telemetry or Telemetry()
    return TlsIdentity(deployment, report=lambda text: log.event("server-certificate", detail=text)).context


class TlsIdentity:
    """The newest TLS context of a deployment, behind one that never changes: `context`.

    Files that cannot be used leave the context before in force: a half-written certificate must not end the service.
    """

    def __init__(
        self, deployment: Deployment, *, clock: Clock = now_us, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._report = report
        self._settings = deployment.settings.gateway
        self._server = (deployment.pki / "server.pem", deployment.pki / "server.key")
        self._unfinished = False  # what changed could not be used yet: the next handshake tries again
        self._files = WatchedFiles(*self._server, files_max=2, bytes_max=MAX_AUTHORITY_FILE, clock=clock)
        try:
            self._files.changed()
            # Lists are asked about certificates on every request, so handshakes need none.
            self._authorities = Authorities(deployment.pki, crl="off", clock=clock)
            self._generation = self._authorities.current()
            self._newest = self.context = self._make(self._generation)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the certificates in {deployment.pki} cannot be used (server.pem, server.key and ca.pem are needed): "
                f"{error.strerror if isinstance(error, OSError) else error}"
            ) from error
        self.context.sni_callback = self._at_handshake

    def _at_handshake(self, connection: ssl.SSLObject, _name: str | None, _base: ssl.SSLContext) -> None:
        """Called by the TLS library for each ClientHello, also for one that names no server."""
        self._refresh()
        if self._newest is not self.context:
            connection.context = self._newest

    def _refresh(self) -> None:
        generation = self._authorities.current()
        try:
            stale = self._files.changed() is not None or self._unfinished
        except (OSError, ValueError):
            return
        if not stale and generation is self._generation:
            return
        try:
            self._newest = self._make(generation)
            self._generation = generation
            if self._unfinished:
                self._report("server.pem and server.key are as they should be")
            self._unfinished = False
        except (OSError, ValueError):
            if not self._unfinished:
                self._report("server.pem and server.key do not fit or cannot be read: those before stay")
            self._unfinished = True

    def _make(self, generation: Generation) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_cert_chain(*self._server)
        if generation.authorities:
            context.load_verify_locations(cadata=generation.pem)
        context.verify_mode = _VERIFY[self._settings.client_certificates]
        return context


class _TooMany(Exception):
    """More requests at once than a connection may have."""


class SealedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _tls: dict[str, Any]
    _local: bool  # over the UNIX socket
    _certificate: tuple[bytes, ...] = ()  # fields of the present request that forward a certificate
    _chain: tuple[bytes, ...] = ()
    _in_head = True
    _begins = False  # the head began with the bytes that are being parsed
    _ended = False  # the connection is given up: nothing more of it is parsed
    _unproductive = 0  # bytes since the peer last completed a head or sent a byte of a body
    _deadline: asyncio.TimerHandle | None = None  # for the head, or for the rest of a body that was refused
    _stall: asyncio.TimerHandle | None = None
    _idle_since: float | None = None  # by the loop's clock; None while something is under way

    @staticmethod
    def listening() -> bool:
        """Whether new connections are served; whoever listens puts its own answer in this one's place."""
        return True

    # The peer ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(GatheredWrites(transport, self.loop))  # type: ignore[arg-type]
        secure = transport.get_extra_info("ssl_object")
        self._tls = {"client_cert_chain": () if secure is None else _shown_chain(secure)}
        self._local = transport.get_extra_info("socket").family == socket.AF_UNIX
        if len(self.connections) > MAX_CONNECTIONS or not self.listening():
            transport.abort()
            return
        self._arm(HEAD_TIMEOUT_S)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"tls": self._tls, WHOLE: _NOTHING}  # type: ignore[dict-item]
        self._certificate, self._chain = (), ()
        self._in_head = self._begins = True
        self._idle_since = None

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            # The parser would drop what comes with this head, and take what comes next for the next request: the body
            # of one request, as a proxy sees it, could hold another one.
            self._ended = True
            self._refuse("malformed-request")
            return
        self._disarm()
        self._in_head, self._unproductive, self._idle_since = False, 0, None
        if self._local or self._certificate or self._chain:
            forwarded = Forwarded(local=self._local, certificate=self._certificate, chain=self._chain)
            self.scope["extensions"][EXTENSION] = forwarded  # type: ignore[assignment]
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        """The head is whole: complete the scope, and let the application have it, now or when its turn comes."""
        if len(self.pipeline) >= MAX_PIPELINED:  # what came in one piece is thousands: each would be kilobytes here
            self._ended = True
            self.transport.abort()
            raise _TooMany  # which ends the parsing of this piece
        version, scope = self.parser.get_http_version(), self.scope
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Exchange(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            False,
            self.server_state.default_headers,
            asyncio.Event(),
            self.expect_100_continue,
            version != "1.0" and self.parser.should_keep_alive(),
            self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # pipelined: no more is read until it is its turn
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    # Bounds on what the peer sends ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if self._unproductive > MAX_HEAD:
            self._refuse("header-too-large")
            return
        self._unproductive += len(data)
        super().data_received(data)
        if self._begins and self._in_head:  # a head that came in one piece needs no timer
            self._begins = False
            self._arm(HEAD_TIMEOUT_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer must never become a header of the request
            return
        field = name.lower()
        if field == CERTIFICATE_FIELD:
            self._certificate += (value,)
            return
        if field == CHAIN_FIELD:
            self._chain += (value,)
            return
        if field == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((field, value))

    def on_body(self, body: bytes) -> None:
        self._unproductive = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._unproductive = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._rest()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            # Refused before the body was read: take what is under way for a moment, so that the refusal arrives.
            self._arm(LINGER_S)

    def _rest(self) -> None:
        """The connection is idle from now on. One timer runs at a time; when it is due it looks for how long it was."""
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_in(self.timeout_keep_alive)

    def _look_again_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn asks for this whenever bytes come. A head ends the rest, not an empty line, which begins none."""

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None or self.transport.is_closing():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._look_again_in(left)
        else:
            self.transport.close()

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
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
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


def _shown_chain(secure: ssl.SSLObject) -> tuple[str, ...]:
    """The peer's certificate in PEM form, and the others that it sent with it."""
    der = secure.getpeercert(binary_form=True)
    if der is None:
        return ()
    if hasattr(secure, "get_unverified_chain"):  # Python 3.13
        chain: list[bytes] = secure.get_unverified_chain()
    else:
        parsed = secure._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        chain = [item.public_bytes(_DER) for item in parsed]
    # The first of them is the peer's own; the library says so twice, and the one that it verified counts.
    return tuple(ssl.DER_cert_to_PEM_cert(item) for item in (der, *chain[1:MAX_CHAIN]))
