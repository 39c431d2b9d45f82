"""Tokens from an identity provider: how they are asked for, how long they are kept, and what is not taken for one."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import jwt
import pytest

from gateway import pki
from sealgate.ambient import now_us, random_bytes
from sealgate.client.credentials import ClientCertificate
from sealgate.client.dpop import DpopKey
from sealgate.client.errors import TokenUnavailable, UsageError
from sealgate.client.token_source import ClientCredentials
from sealgate.client.transport import AsyncSealedTransport
from sealgate.errors import ConfigurationError

URL = "https://id.example/realms/one/token"
Answer = Callable[[httpx.Request], httpx.Response]


def said(status: int, document: Any, **headers: str) -> httpx.Response:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


class Provider:
    """Answers token requests as a test scripts it; counts them, names each token by its number."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.now_us = 1_800_000_000_000_000
        self.life_s: Any = 600
        self.kind = "Bearer"
        self.answer: Answer = self.grant

    def grant(self, request: httpx.Request) -> httpx.Response:
        document = {"access_token": f"token.{len(self.requests)}.x", "token_type": self.kind, "expires_in": self.life_s}
        return said(200, {name: value for name, value in document.items() if value is not None})

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)

    def source(self, **options: Any) -> ClientCredentials:
        arguments = {"client_id": "triage-app", "client_secret": "s3cret"} | options
        return ClientCredentials(
            URL, outer=httpx.MockTransport(self.handle), clock=lambda: self.now_us, trust_env=False, **arguments
        )


@pytest.fixture
def provider() -> Provider:
    return Provider()


def test_the_request_of_rfc_6749_section_4_4(provider: Provider) -> None:
    with provider.source(
        scope="infer audit", resources=("https://sealgate.test:8443",), parameters={"audience": "a b"}
    ) as source:
        assert source() == "token.1.x"
    request = provider.requests[0]
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"triage-app:s3cret").decode()
    assert "dpop" not in request.headers
    assert parse_qsl(request.content.decode()) == [
        ("grant_type", "client_credentials"),
        ("resource", "https://sealgate.test:8443"),
        ("scope", "infer audit"),
        ("audience", "a b"),
    ]


def test_names_and_secrets_of_any_characters(provider: Provider) -> None:
    """RFC 6749 section 2.3.1: both are form-encoded before they are joined, so a colon is no end."""
    provider.source(client_id="a:b c", client_secret="ä%:+")()
    pair = base64.b64decode(provider.requests[0].headers["authorization"].removeprefix("Basic "))
    assert pair == b"a%3Ab+c:%C3%A4%25%3A%2B"


def test_without_a_secret_the_name_goes_in_the_form(provider: Provider) -> None:
    provider.source(client_secret=None)()
    assert "authorization" not in provider.requests[0].headers
    assert ("client_id", "triage-app") in parse_qsl(provider.requests[0].content.decode())


def test_a_token_is_kept_until_shortly_before_it_expires(provider: Provider) -> None:
    source = provider.source()
    assert source.held() is None
    assert source() == source() == "token.1.x"
    provider.now_us += 539 * 1_000_000
    assert source() == "token.1.x"
    provider.now_us += 1_000_000
    assert source.held() is None
    assert source() == "token.2.x"
    assert len(provider.requests) == 2


@pytest.mark.parametrize(("life_s", "kept_s"), [(10, 8), ("600", 540), (None, 48), (10**12, 86340), ("soon", 48)])
def test_how_long_that_is(provider: Provider, life_s: Any, kept_s: int) -> None:
    provider.life_s = life_s
    source = provider.source()
    source()
    provider.now_us += kept_s * 1_000_000 - 1
    assert source.held() is not None
    provider.now_us += 1
    assert source.held() is None


def test_many_threads_ask_once(provider: Provider) -> None:
    source = provider.source()
    with ThreadPoolExecutor(16) as threads:
        tokens = set(threads.map(lambda _: source(), range(64)))
    assert tokens == {"token.1.x"}
    assert len(provider.requests) == 1


def test_a_provider_that_is_away_costs_nothing_until_the_token_expires(provider: Provider) -> None:
    source = provider.source()
    source()

    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    provider.answer = away
    provider.now_us += 599 * 1_000_000
    assert source() == "token.1.x"
    provider.now_us += 1_000_000
    with pytest.raises(TokenUnavailable, match=r"cannot be reached \(ConnectError\)"):
        source()
    provider.answer = provider.grant
    assert source() == "token.4.x"


SECRET = "a-secret-in-an-answer"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said(401, {"error": "invalid_client", "error_description": SECRET}), r"refused \(401 invalid_client\)"),
        (said(400, {"error": f"{SECRET} <b>"}), r"refused \(400\)"),
        (said(500, b"<html>" + SECRET.encode()), r"refused \(500\)"),
        (said(302, b"", location="https://elsewhere.example/"), r"refused \(302\)"),
        (said(200, b"[]"), "not a token"),
        (said(200, b"{" * 500), "not a token"),
        (said(200, {"token_type": "Bearer", "note": SECRET}), "not a token"),
        (said(200, {"access_token": 7, "token_type": "Bearer"}), "not a token"),
        (said(200, {"access_token": SECRET, "token_type": "mac"}), "no Bearer token"),
        (said(200, {"access_token": SECRET, "token_type": "DPoP"}), "no Bearer token"),
        (said(200, {"access_token": f"{SECRET}\r\nX: y", "token_type": "Bearer"}), "cannot be sent"),
        (said(200, {"access_token": "", "token_type": "Bearer"}), "cannot be sent"),
        (said(200, b'{"access_token": "' + b"x" * 40_000 + b'", "token_type": "Bearer"}'), "larger than it may be"),
    ],
)
def test_what_is_no_token_is_one_line_without_the_providers_words(
    provider: Provider, answer: httpx.Response, words: str
) -> None:
    provider.answer = lambda _: answer
    with pytest.raises(TokenUnavailable, match=words) as caught:
        provider.source()()
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(provider.requests) == 1


# Bound to a key -----------------------------------------------------------------------------------------------------


def claims_of(request: httpx.Request) -> dict[str, Any]:
    header = jwt.get_unverified_header(request.headers["dpop"])
    return jwt.decode(  # type: ignore[no-any-return]
        request.headers["dpop"], jwt.PyJWK(header["jwk"]), ["ES256"], options={"verify_iat": False}
    )


def test_a_bound_token_is_asked_for_with_a_proof(provider: Provider) -> None:
    provider.kind = "DPoP"
    provider.source(dpop_key=DpopKey.generate())()
    claims = claims_of(provider.requests[0])
    assert (claims["htm"], claims["htu"]) == ("POST", URL)
    assert "ath" not in claims


@pytest.mark.parametrize("status", [400, 401])
def test_the_providers_nonce_is_taken(provider: Provider, status: int) -> None:
    """RFC 9449 section 8: told with an error the first time, remembered from then on."""
    provider.kind = "DPoP"

    def wants(request: httpx.Request) -> httpx.Response:
        if claims_of(request).get("nonce") == "n-1":
            return provider.grant(request)
        return said(status, {"error": "use_dpop_nonce"}, **{"DPoP-Nonce": "n-1"})

    provider.answer = wants
    source = provider.source(dpop_key=DpopKey.generate())
    assert source() == "token.2.x"
    provider.now_us += 600 * 1_000_000
    assert source() == "token.3.x"
    assert len({claims_of(request)["jti"] for request in provider.requests}) == 3


def test_a_provider_that_always_wants_another_nonce_is_asked_twice(provider: Provider) -> None:
    provider.answer = lambda _: said(400, {"error": "use_dpop_nonce"}, **{"DPoP-Nonce": "n"})
    with pytest.raises(TokenUnavailable, match=r"400 use_dpop_nonce"):
        provider.source(dpop_key=DpopKey.generate())()
    assert len(provider.requests) == 2


def test_an_unbound_token_is_not_taken_for_a_bound_one(provider: Provider) -> None:
    with pytest.raises(TokenUnavailable, match="no DPoP token"):
        provider.source(dpop_key=DpopKey.generate())()


# Settings and event loops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "http://id.example/token", "id.example/token", "https://user:pw@id.example/token"])
def test_the_secret_goes_over_https_only(url: str) -> None:
    with pytest.raises(ConfigurationError, match="https://"):
        ClientCredentials(url, client_id="a", client_secret="b")


def test_a_bad_authority_or_proxy_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.pem"):
        ClientCredentials(URL, client_id="a", ca_file=tmp_path / "none.pem")
    with pytest.raises(UsageError, match="proxy"):
        ClientCredentials(URL, client_id="a", proxy="nonsense://x")


def test_it_shows_neither_secret_nor_token(provider: Provider) -> None:
    source = provider.source()
    token = source()
    for text in (repr(source), repr(source._held)):
        assert token not in text
        assert "s3cret" not in text


def test_a_closed_source_forgets(provider: Provider) -> None:
    source = provider.source()
    source()
    source.close()
    assert source.held() is None


def test_an_event_loop_goes_on_while_a_token_is_fetched(provider: Provider, service: Any) -> None:
    go_on = threading.Event()
    asked: list[Callable[[], Any]] = []
    waited: list[bool] = []

    def slow(request: httpx.Request) -> httpx.Response:
        asked[0]()
        waited.append(go_on.wait(60))
        document = {"access_token": "header.payload.signature", "token_type": "Bearer", "expires_in": 600}
        return said(200, document)

    provider.answer = slow
    provider.now_us = service.clock()
    transport = AsyncSealedTransport(
        service.trust(),
        purpose="diagnosis",
        token=provider.source(),
        outer=service.transport(),
        clock=service.clock,
        trust_env=False,
    )

    async def ask() -> list[int]:
        request = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
        async with httpx.AsyncClient(transport=transport, base_url="https://anything.invalid") as client:
            begun, loop = asyncio.Event(), asyncio.get_running_loop()
            asked.append(lambda: loop.call_soon_threadsafe(begun.set))
            first = asyncio.ensure_future(client.post("/v2/models/toy/infer", json=request))
            await asyncio.wait_for(begun.wait(), 10)  # were the loop blocked, nobody would let the provider go on
            go_on.set()
            return [(await first).status_code, (await client.post("/v2/models/toy/infer", json=request)).status_code]

    assert asyncio.run(ask()) == [200, 200]
    assert waited == [True]
    assert len(provider.requests) == 1


# Over real TLS, by certificate --------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        names = self.connection.getpeercert() or {}  # type: ignore[attr-defined]
        uris = [value for kind, value in names.get("subjectAltName", ()) if kind == "URI"]
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"access_token": "a.b.c", "token_type": "Bearer"} if uris else {"error": "invalid_client"})
        self.server.seen.extend(uris)  # type: ignore[attr-defined]
        self.send_response(200 if uris else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def tls_provider(tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, Path]]:
    """A token endpoint over real TLS that asks for client certificates."""
    now = now_us()
    authority = pki.make_authority("a provider's authority", now_us=now, entropy=random_bytes)
    server, key = pki.make_server(authority, ("localhost",), now_us=now, entropy=random_bytes)
    client, client_key = pki.make_client(authority, "integration", now_us=now, entropy=random_bytes)
    (tmp_path / "ca.pem").write_bytes(pki.certificate_pem(authority.certificate))
    for name, certificate, private in (("server", server, key), ("client", client, client_key)):
        (tmp_path / f"{name}.pem").write_bytes(pki.certificate_pem(certificate))
        (tmp_path / f"{name}.key").write_bytes(_pem(private))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    http.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield http, tmp_path
    http.shutdown()
    thread.join()
    http.server_close()


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(  # type: ignore[no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_certificate_stands_for_the_client(tls_provider: tuple[ThreadingHTTPServer, Path]) -> None:
    server, folder = tls_provider
    url = f"https://localhost:{server.server_port}/token"
    certificate = ClientCertificate(folder / "client.pem", folder / "client.key")
    options: dict[str, Any] = {"client_id": "a", "ca_file": folder / "ca.pem", "trust_env": False}
    with ClientCredentials(url, certificate=certificate, **options) as source:
        assert source() == "a.b.c"
    assert server.seen == ["urn:sealgate:client:integration"]  # type: ignore[attr-defined]
    with ClientCredentials(url, **options) as source, pytest.raises(TokenUnavailable, match="invalid_client"):
        source()
    with (
        ClientCredentials(url, client_id="a", client_secret="b", trust_env=False) as stranger,
        pytest.raises(TokenUnavailable, match=r"cannot be reached .*certificate is not believed: see ca_file"),
    ):
        stranger()
