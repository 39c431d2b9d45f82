"""A sealing proxy on this machine: programs that speak the Open Inference Protocol in plain HTTP ask it. What leaves
the machine is sealed; evidence, receipt and seal are verified before an answer is handed on.

    tritonclient, KServe's client, curl  --plain, loopback-->  proxy  --TLS, sealed-->  gateway

Whoever may connect to its port asks with its credential: so it listens on a loopback address and nowhere else, takes no
request from a browser (Origin comes with a script's and a form's, Sec-Fetch-Site and Referer with what a page only
loads or links to) and none that names another host (a name that a stranger's DNS points here). On a machine with users
who must not ask, use the Python client instead.

Trusts: the trust directory, and everybody on the loopback interface. Never: hands on an answer that does not hold; logs
what it carries.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from contextlib import nullcontext
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore
from typing import Any

import httpx
import msgspec

from sealgate.client.errors import InferenceFailed, ServiceRefused, ServiceUnreachable, UsageError
from sealgate.client.exchange import SealedAnswer
from sealgate.client.model_configuration import described_by, model_configuration, with_extension
from sealgate.client.results import reaching
from sealgate.client.transport import EXTENSION, SealedTransport
from sealgate.errors import EvidenceError, SealgateError
from sealgate.limits import DEFAULT_MESSAGE, MAX_INNER_MESSAGE
from sealgate.protocol.inference import HEADER_LENGTH_FIELD

MAX_AT_ONCE = 64  # requests whose bodies are held; others wait before theirs is read
MAX_LARGE_AT_ONCE = 4  # of them above DEFAULT_MESSAGE
MAX_CONNECTIONS = 256  # a thread each; further ones are closed at once
IDLE_S = 30.0  # for a caller's next byte
_HANDED_ON = ("content-type", HEADER_LENGTH_FIELD)
_OF_BROWSERS = ("origin", "referer", "sec-fetch-site")  # Fetch Metadata: sent to loopback addresses as to https
_ONCE = ("host", "content-length", "content-encoding", *_HANDED_ON)
_LIVE, _READY, _SERVER = "/v2/health/live", "/v2/health/ready", "/v2"

Told = tuple[int, list[tuple[str, str]], bytes]
Ask = Callable[[str, str, list[tuple[str, str]], bytes], Told]


class Asker:
    """One request of a local program to one opened answer. Safe to share between threads."""

    def __init__(self, transport: SealedTransport, *, model: str | None, timeout_s: float) -> None:
        """`model` is one that the caller may read: questions about the server are asked beside it."""
        self._transport = transport
        self._model = model
        self._url = transport.trust.url
        self._client = httpx.Client(transport=transport, base_url=self._url, timeout=timeout_s)

    def __call__(self, method: str, path: str, fields: list[tuple[str, str]], body: bytes) -> Told:
        """Status, fields and body, whatever happens."""
        try:
            if (method, path) == ("GET", _LIVE):
                return _document(200, {"live": True})
            if (method, path) == ("GET", _READY):
                with reaching(self._url):
                    self._transport.evidence()
                return _document(200, {"ready": True})
            if path == _SERVER:
                if self._model is None:
                    raise UsageError("name a model that you may read (--model): the policy decides about models")
                fields = [*fields, ("sealed-model", self._model)]
                return _said(self._ask(method, path, fields, body), with_extension)
            if method == "GET" and (described := described_by(path)):
                return _said(self._ask(method, described, fields, body), model_configuration)
            return self._ask(method, path, fields, body)
        except SealgateError as error:
            return _document(_status(error), {"error": str(error)})
        except Exception:  # a fault of ours: no answer, and no more said of it
            return _document(500, {"error": "the proxy failed; nothing was handed on"})

    def _ask(self, method: str, path: str, fields: list[tuple[str, str]], body: bytes) -> Told:
        with reaching(self._url):
            response = self._client.request(method, path, headers=fields, content=body or None)
        answer = response.extensions[EXTENSION]
        assert isinstance(answer, SealedAnswer)
        record = f"{answer.receipt.record.log} {answer.receipt.index}"
        kept = [(name, value) for name, value in answer.response.fields if name in _HANDED_ON]
        return response.status_code, [*kept, ("audit-record", record)], bytes(answer.response.body)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _status(error: SealgateError) -> int:
    match error:
        case ServiceRefused() | InferenceFailed():
            return error.status
        case UsageError():
            return 400
        case ServiceUnreachable():
            return 503
        case EvidenceError(code="model-not-served"):
            return 404  # by evidence that holds
        case _:
            return 502  # evidence, receipt or seal did not hold


def _said(told: Told, change: Callable[[bytes], bytes]) -> Told:
    """The same answer in other words; an error stays as it is."""
    status, fields, body = told
    return (status, fields, change(body)) if status == HTTPStatus.OK else told


def _document(status: int, document: object) -> Told:
    return status, [("content-type", "application/json")], msgspec.json.encode(document)


class LocalProxy(ThreadingHTTPServer):
    """Serves until `shutdown`. Raises UsageError for an address that others could reach."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, ask: Ask) -> None:
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise UsageError(f"{host}: the proxy listens on a loopback address only, such as 127.0.0.1")
        self.ask = ask
        self.at_once = BoundedSemaphore(MAX_AT_ONCE)
        self.large_at_once = BoundedSemaphore(MAX_LARGE_AT_ONCE)
        self._places = BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in host:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}"
        self.names = frozenset(f"{name}:{self.server_address[1]}" for name in (shown, "localhost"))

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, if there is one left."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up is no news, and a traceback might quote what it sent."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: LocalProxy

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        refused = self._refusal()
        if refused is not None:
            self.close_connection = True
            self._answer(*_document(*refused))
            return
        length = int(self.headers.get("content-length", "0"))
        fields = [(name, self.headers[name]) for name in _HANDED_ON if name in self.headers]
        large = self.server.large_at_once if length > DEFAULT_MESSAGE else nullcontext()
        with large, self.server.at_once:
            body = self.rfile.read(length)
            if len(body) < length:  # it went away in the middle: what it meant to ask is not known
                self.close_connection = True
                return
            self._answer(*self.server.ask(self.command, "/" + self.path.lstrip("/"), fields, body))

    def _refusal(self) -> tuple[int, dict[str, str]] | None:
        length = self.headers.get("content-length", "0")
        for holds, status, why in (
            (not any(name in self.headers for name in _OF_BROWSERS), 403, "web pages may not ask here"),
            (all(len(self.headers.get_all(name, ())) < 2 for name in _ONCE), 400, "a field is given twice"),
            (self.headers.get("host", "").lower() in self.server.names, 403, "this is another host"),
            ("transfer-encoding" not in self.headers, 411, "send Content-Length"),
            (length.isascii() and length.isdigit() and int(length) <= MAX_INNER_MESSAGE, 413, "the body is too large"),
            (self.headers.get("content-encoding", "identity") == "identity", 415, "send the body without compression"),
        ):
            if not holds:
                return status, {"error": why}
        return None

    def _answer(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: paths name models, and who asks for what is told in the audit log."""
