"""httpx transports that seal: any httpx-based program sends ordinary inference requests and gets opened answers.

    httpx.Client(transport=SealedTransport("client/", purpose="diagnosis", token=read_token), base_url="https://sealed")
        .post("/v2/models/breast-cancer/infer", json=...)

The host in the program's URL does not matter: the trust file says where the gateway is and what the inner authority is.
With `dpop_key` tokens go as DPoP, each with a proof of its own (RFC 9449).
`response.extensions["sealgate"]` is a `SealedAnswer` with the verified receipt and evidence. A `Purpose` header of a
request overrides the transport's; a bearer token in its `Authorization` header is used where the transport has none.

Verification failures and refusals raise Sealgate errors; network failures raise httpx's own, as in every transport.
Trusts: the trust directory for the TLS authority. Never: follows a redirect, decodes what it did not open, logs.
"""

from __future__ import annotations

import inspect
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, cast

import httpx
from anyio import to_thread

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.client.credentials import (
    CertificateSource,
    ClientCertificate,
    Credential,
    RenewingSource,
    TokenSource,
    take_certificate,
    take_token,
)
from sealgate.client.dpop import DpopKey, Prover
from sealgate.client.errors import UsageError
from sealgate.client.exchange import SealedAnswer, SealedChannel, ask_evidence
from sealgate.client.messages import InnerRequest, OuterRequest, OuterResponse
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.evidence.kept import AskedEvidence
from sealgate.evidence.trust import Trust, load_trust
from sealgate.evidence.verify import VerifiedEvidence
from sealgate.limits import LARGE_BODY

EXTENSION = "sealgate"
DEFAULT_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
TrustSource: TypeAlias = "Trust | str | os.PathLike[str]"
AsyncTokenSource: TypeAlias = "TokenSource | Callable[[], Awaitable[str]]"

_Result = TypeVar("_Result")
_PIECE = 64 * 1024
_DROPPED_INNER = frozenset({"content-length", "transfer-encoding"})


def open_trust(source: TrustSource) -> Trust:
    """A trust file, from itself, a path or a directory."""
    return source if isinstance(source, Trust) else load_trust(Path(source))


@contextmanager
def reading_proxy() -> Iterator[None]:
    """Turn what httpx raises for a proxy that it cannot use into UsageError; the address is not shown, it may hold a
    password."""
    try:
        yield
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise UsageError(
            "the proxy (--proxy, or HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) cannot be used; write http://HOST:PORT"
        ) from error


def tls_context(trust: Trust, certificate: ClientCertificate | None, *, trust_env: bool) -> ssl.SSLContext:
    """TLS to the gateway: only the trust directory's authority if there is one, TLS 1.3 then, and our certificate."""
    if trust.ca_file is None:
        context = httpx.create_ssl_context(trust_env=trust_env)
    else:
        try:
            context = ssl.create_default_context(cafile=os.fspath(trust.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{trust.ca_file} is not a readable PEM file of certificates") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    if certificate is not None:
        certificate.load_into(context)
    return context


@dataclass(frozen=True)
class _Setting:
    """What both transports are made from."""

    channel: SealedChannel
    purpose: str
    certificate: bytes | None
    prover: Prover | None

    @classmethod
    def read(
        cls,
        trust: TrustSource,
        purpose: str,
        certificate: ClientCertificate | None,
        dpop_key: DpopKey | None,
        cose_receipts: bool,
        clock: Clock,
        entropy: Entropy,
    ) -> _Setting:
        channel = SealedChannel(open_trust(trust), cose_receipts=cose_receipts, clock=clock, entropy=entropy)
        prover = Prover(dpop_key, clock=clock, entropy=entropy) if dpop_key else None
        return cls(channel, purpose, certificate.leaf() if certificate else None, prover)

    def inner(self, request: httpx.Request, body: bytes) -> InnerRequest:
        return InnerRequest(
            method=request.method,
            path=request.url.raw_path.decode("ascii"),
            fields=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw),
            body=body,
            purpose=request.headers.get("purpose", self.purpose),
        )

    def credential(self, token: str | None, request: httpx.Request) -> Credential:
        if token is None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            token = given.strip() if scheme.lower() in ("bearer", "dpop") else None
        return Credential(token=token, certificate=self.certificate, prover=self.prover)


class SealedTransport(httpx.BaseTransport):
    """Seals for threads and plain programs. One evidence and one connection pool, shared by all requests.

    `proxy` and `trust_env` are httpx's: a corporate proxy is given explicitly or by HTTPS_PROXY. `outer` replaces the
    network, for programs that bring their own connection.
    """

    def __init__(
        self,
        trust: TrustSource,
        *,
        purpose: str = "",
        token: TokenSource | None = None,
        certificate: CertificateSource = None,
        dpop_key: DpopKey | None = None,
        cose_receipts: bool = False,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool = True,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        outer: httpx.BaseTransport | None = None,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        certificate = take_certificate(certificate)
        self._setting = _Setting.read(trust, purpose, certificate, dpop_key, cose_receipts, clock, entropy)
        self._token = token
        held = self._setting.channel.trust
        with reading_proxy():
            self._client = httpx.Client(
                verify=tls_context(held, certificate, trust_env=trust_env),
                proxy=proxy,
                trust_env=trust_env,
                timeout=timeout,
                transport=outer,
            )

    @property
    def trust(self) -> Trust:
        return self._setting.channel.trust

    @property
    def held_evidence(self) -> VerifiedEvidence | None:
        """The newest verified evidence, if any; perhaps expired. `evidence()` fetches."""
        return self._setting.channel.evidence

    def evidence(self) -> VerifiedEvidence:
        """Fetch and verify evidence now; the next requests use it."""
        return self._drive(self._setting.channel.renew(), None)

    def ask_evidence(self, entropy: Entropy = random_bytes) -> AskedEvidence:
        """Fetch evidence and leave the judging to the caller; no request uses it."""
        return self._drive(ask_evidence(entropy), None)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Seal, send, verify, open."""
        inner = self._setting.inner(request, request.read())
        credential = self._setting.credential(take_token(self._token), request)
        flow = self._setting.channel.exchange(inner, credential)
        return _opened(self._drive(flow, request.extensions.get("timeout")), request)

    def _drive(
        self, flow: Generator[OuterRequest, OuterResponse, _Result], timings: Mapping[str, Any] | None
    ) -> _Result:
        try:
            outer = next(flow)
            while True:
                outer = flow.send(self._send(outer, timings))
        except StopIteration as done:
            return cast("_Result", done.value)
        finally:
            flow.close()

    def _send(self, outer: OuterRequest, timings: Mapping[str, Any] | None) -> OuterResponse:
        request = _outer_request(self._client, outer, self.trust, timings)
        response = self._client.send(request, stream=True, follow_redirects=False)
        try:
            body = BytesIO()  # which hands out what it holds without a copy
            for part in response.iter_raw():
                _append(body, part, outer.limit)
        finally:
            response.close()
        return _outer_response(response, body.getvalue())

    def close(self) -> None:
        self._client.close()


class AsyncSealedTransport(httpx.AsyncBaseTransport):
    """The same for asyncio and trio. `token` may be a coroutine function."""

    def __init__(
        self,
        trust: TrustSource,
        *,
        purpose: str = "",
        token: AsyncTokenSource | None = None,
        certificate: CertificateSource = None,
        dpop_key: DpopKey | None = None,
        cose_receipts: bool = False,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool = True,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        outer: httpx.AsyncBaseTransport | None = None,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        certificate = take_certificate(certificate)
        self._setting = _Setting.read(trust, purpose, certificate, dpop_key, cose_receipts, clock, entropy)
        self._token = token
        held = self._setting.channel.trust
        with reading_proxy():
            self._client = httpx.AsyncClient(
                verify=tls_context(held, certificate, trust_env=trust_env),
                proxy=proxy,
                trust_env=trust_env,
                timeout=timeout,
                transport=outer,
            )

    @property
    def trust(self) -> Trust:
        return self._setting.channel.trust

    @property
    def held_evidence(self) -> VerifiedEvidence | None:
        """The newest verified evidence, if any; perhaps expired. `evidence()` fetches."""
        return self._setting.channel.evidence

    async def evidence(self) -> VerifiedEvidence:
        """Fetch and verify evidence now; the next requests use it."""
        return await self._drive(self._setting.channel.renew(), None)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Seal, send, verify, open."""
        inner = self._setting.inner(request, await request.aread())
        credential = self._setting.credential(await self._take_token(), request)
        flow = self._setting.channel.exchange(inner, credential)
        return _opened(await self._drive(flow, request.extensions.get("timeout")), request)

    async def _take_token(self) -> str | None:
        if isinstance(self._token, RenewingSource):
            held = self._token.held()
            return take_token(await to_thread.run_sync(self._token) if held is None else held)
        found = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(found):
            found = await found
        return take_token(found)

    async def _drive(
        self, flow: Generator[OuterRequest, OuterResponse, _Result], timings: Mapping[str, Any] | None
    ) -> _Result:
        try:
            outer = next(flow)
            while True:
                outer = flow.send(await self._send(outer, timings))
        except StopIteration as done:
            return cast("_Result", done.value)
        finally:
            flow.close()

    async def _send(self, outer: OuterRequest, timings: Mapping[str, Any] | None) -> OuterResponse:
        request = _outer_request(self._client, outer, self.trust, timings)
        response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            body = BytesIO()
            async for part in response.aiter_raw():
                _append(body, part, outer.limit)
        finally:
            await response.aclose()
        return _outer_response(response, body.getvalue())

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


class _Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A large body, piece by piece: what is below takes a TLS record at a time and copies the rest of what it was given
    each time. Can be read again, for a second attempt."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), _PIECE):
            yield bytes(self._body[start : start + _PIECE])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def _outer_request(
    client: httpx.Client | httpx.AsyncClient, outer: OuterRequest, trust: Trust, timings: Mapping[str, Any] | None
) -> httpx.Request:
    headers = [("accept-encoding", "identity"), *outer.headers]
    request = client.build_request(outer.method, trust.url + outer.path, headers=headers, content=outer.body or None)
    if len(outer.body) > LARGE_BODY:
        request.stream = _Pieces(outer.body)
    if timings is not None:
        request.extensions = {**request.extensions, "timeout": timings}
    return request


def _append(body: BytesIO, part: bytes, limit: int) -> None:
    body.write(part)
    if body.tell() > limit:
        raise DecodeError("the gateway's answer is larger than it may be", code="too-large")


def _outer_response(response: httpx.Response, body: bytes) -> OuterResponse:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise DecodeError("the gateway's answer has a content encoding that was not asked for")
    headers = {name.lower(): value for name, value in response.headers.items()}
    return OuterResponse(status=response.status_code, headers=headers, body=body)


def _opened(answer: SealedAnswer, request: httpx.Request) -> httpx.Response:
    inner = answer.response
    return httpx.Response(
        inner.status,
        headers=[(name, value) for name, value in inner.fields if name not in _DROPPED_INNER],
        content=bytes(inner.body),
        request=request,
        extensions={EXTENSION: answer},
    )
