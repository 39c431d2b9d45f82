"""Keys over real HTTPS: found where the issuer says, bounded in every direction, and nothing but the issuer's own."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl

import httpx
import pytest

from gateway.authentication import discovery
from gateway.authentication.discovery import FetchFailed, KeyFetcher, metadata_urls, parse_metadata
from gateway.authentication.issuers import RemoteKeys
from gateway.limits import MAX_JWKS, MAX_KEYS_FRESH_S, MAX_METADATA
from sealgate.errors import ConfigurationError
from tests.gateway.issuer_server import IssuerServer, Reply, Signer


@pytest.fixture
def server(tmp_path):
    made = IssuerServer(tmp_path)
    yield made
    made.close()


def remote(server, **changes):
    settings = {"jwks_uri": "", "ca": server.ca, "proxy": None, "stale_s": 60, "cooldown_s": 30}
    return RemoteKeys(**settings | changes)


def fetch(server, *, times=1, issuer=None, **changes):
    async def run():
        fetcher = KeyFetcher(issuer or server.url, remote(server, **changes))
        try:
            return [await fetcher.fetch() for _ in range(times)][-1]
        finally:
            await fetcher.close()

    return asyncio.run(run())


def test_keys_are_found_through_the_metadata_and_its_place_is_remembered(server):
    server.describe()
    server.publish(Signer("a"), Cache_Control="public, max-age=600")
    got = fetch(server, times=3)
    assert json.loads(got.data)["keys"][0]["kid"] == "a"
    assert got.fresh_s == 600
    assert server.asked == ["/.well-known/openid-configuration", "/jwks", "/jwks", "/jwks"]


def test_metadata_of_rfc_8414_when_there_is_no_openid_document(server):
    server.describe(path="/.well-known/oauth-authorization-server/tenant", issuer=f"{server.url}/tenant")
    server.publish(Signer("a"))
    assert fetch(server, issuer=f"{server.url}/tenant").fresh_s == 300
    assert server.asked[:2] == [
        "/tenant/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server/tenant",
    ]


def test_where_metadata_may_stand():
    """The examples of OpenID Connect Discovery section 4.1 and RFC 8414 sections 3.1 and 5."""
    assert list(metadata_urls("https://example.com/issuer1")) == [
        "https://example.com/issuer1/.well-known/openid-configuration",
        "https://example.com/.well-known/oauth-authorization-server/issuer1",
    ]
    assert list(metadata_urls("https://example.com/")) == [
        "https://example.com/.well-known/openid-configuration",
        "https://example.com/.well-known/oauth-authorization-server",
    ]


def test_a_place_that_failed_is_looked_up_again(server):
    server.describe()
    server.replies["/jwks"] = Reply(status=503)

    async def run():
        fetcher = KeyFetcher(server.url, remote(server))
        try:
            with pytest.raises(FetchFailed, match="answered 503"):
                await fetcher.fetch()
            server.describe(jwks_uri=f"{server.url}/moved")
            server.publish(Signer("a"), path="/moved")
            return await fetcher.fetch()
        finally:
            await fetcher.close()

    assert b'"a"' in asyncio.run(run()).data


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"issuer": "https://evil.example", "jwks_uri": "https://a.example/k"}, "another issuer"),
        ({"issuer": "https://i.example/", "jwks_uri": "https://a.example/k"}, "another issuer"),
        ({"issuer": "https://i.example", "jwks_uri": "http://a.example/k"}, "not an https URL"),
        ({"issuer": "https://i.example", "jwks_uri": "file:///etc/passwd"}, "not an https URL"),
        ({"issuer": "https://i.example", "jwks_uri": "https://user@a.example/k"}, "not an https URL"),
        ({"issuer": "https://i.example"}, "no 'issuer' and 'jwks_uri'"),
        ({"issuer": 1, "jwks_uri": []}, "no 'issuer' and 'jwks_uri'"),
        ([], "no 'issuer' and 'jwks_uri'"),
    ],
)
def test_metadata_that_is_not_the_issuers_own(metadata, says):
    with pytest.raises(FetchFailed, match=says):
        parse_metadata(json.dumps(metadata).encode(), issuer="https://i.example")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 5000])
def test_metadata_that_is_no_document(data):
    with pytest.raises(FetchFailed):
        parse_metadata(data, issuer="https://i.example")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(status=302, headers={"Location": "https://localhost/jwks"}), "answered 302"),
        (Reply(status=307, headers={"Location": "http://169.254.169.254/"}), "answered 307"),
        (Reply(status=204), "answered 204"),
        (Reply(status=500, body=b"x" * 100), "answered 500"),
        (Reply(b" " * (MAX_JWKS + 1)), "larger than"),
        (Reply(gzip.compress(b" " * 10_000_000), headers={"Content-Encoding": "gzip"}), "compressed"),
    ],
)
def test_answers_that_are_not_taken(server, reply, says):
    server.replies["/jwks"] = reply
    with pytest.raises(FetchFailed, match=says) as caught:
        fetch(server, jwks_uri=f"{server.url}/jwks")
    assert "169.254" not in str(caught.value)


def test_metadata_is_bounded_too(server):
    server.replies["/.well-known/openid-configuration"] = Reply(b" " * (MAX_METADATA + 1))
    with pytest.raises(FetchFailed, match="larger than"):
        fetch(server)


def test_what_is_asked_carries_no_credential_and_asks_for_no_compression(server):
    server.publish(Signer("a"))
    fetch(server, jwks_uri=f"{server.url}/jwks")
    (fields,) = server.fields
    assert fields["accept-encoding"] == "identity"
    assert not {"authorization", "cookie"} & set(fields)


def test_an_authority_that_is_not_named_vouches_for_nobody(server, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    stranger = IssuerServer(other)
    server.publish(Signer("a"))
    try:
        for ca in (stranger.ca, None):
            with pytest.raises(FetchFailed, match=r"connection failed .*certificate is not believed; the setting `ca`"):
                fetch(server, jwks_uri=f"{server.url}/jwks", ca=ca)
    finally:
        stranger.close()
    assert server.asked == []


def test_another_host_than_the_certificate_says(server):
    server.publish(Signer("a"))
    with pytest.raises(FetchFailed, match="connection failed"):
        fetch(server, jwks_uri=f"https://127.0.0.1:{server.port}/jwks")


def test_nobody_there(server):
    with pytest.raises(FetchFailed, match="connection failed"):
        fetch(server, jwks_uri="https://localhost:1/jwks")


def test_an_answer_that_does_not_come_is_given_up(server, monkeypatch):
    monkeypatch.setattr(discovery, "KEY_FETCH_TIMEOUT_S", 0.05)
    server.replies["/jwks"] = Reply(b"{", headers={"Content-Length": "100"})  # 99 bytes never come
    with pytest.raises(FetchFailed, match=r"no answer within|connection failed"):
        fetch(server, jwks_uri=f"{server.url}/jwks")


def test_the_environment_names_no_proxy(server, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://localhost:1")
    server.publish(Signer("a"))
    assert fetch(server, jwks_uri=f"{server.url}/jwks").data
    with pytest.raises(FetchFailed):
        fetch(server, jwks_uri=f"{server.url}/jwks", proxy="http://localhost:1")


@pytest.mark.parametrize(
    ("fields", "fresh_s"),
    [
        ({}, 300),
        ({"Cache-Control": "max-age=3600"}, 3600),
        ({"Cache-Control": 'public, MAX-AGE="120", must-revalidate'}, 120),
        ({"Cache-Control": "max-age=3600", "Age": "600"}, 3000),
        ({"Cache-Control": "max-age=3600", "Age": "x"}, 3600),
        ({"Cache-Control": "max-age=0"}, 60),
        ({"Cache-Control": "max-age=100", "Age": "5000"}, 60),
        ({"Cache-Control": "no-store, max-age=3600"}, 60),
        ({"Cache-Control": "no-cache"}, 60),
        ({"Cache-Control": "max-age=9999999999"}, MAX_KEYS_FRESH_S),
        ({"Cache-Control": "max-age=-5"}, 300),
        ({"Cache-Control": "s-maxage=5, x-max-age=7"}, 300),
        ({"Cache-Control": "max-age=" + "9" * 5000}, 300),
    ],
)
def test_how_long_a_set_is_fresh(fields, fresh_s):
    assert discovery._fresh_s(httpx.Headers(fields)) == fresh_s


def test_a_ca_file_that_holds_no_authority_stops_the_start(server, tmp_path):
    path = tmp_path / "empty.pem"
    path.write_text("nothing")
    with pytest.raises(ConfigurationError, match=r"empty\.pem"):
        KeyFetcher(server.url, remote(server, ca=path))


def test_old_tls_is_not_spoken(server):
    context = KeyFetcher(server.url, remote(server))._context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
