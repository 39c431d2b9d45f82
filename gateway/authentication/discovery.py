"""An issuer's keys over HTTPS: its metadata (RFC 8414, OpenID Connect Discovery), then its JWK set, all bounded.

One refresh is at most three small GETs within KEY_FETCH_TIMEOUT_S together. Where the metadata says that the keys are
is remembered for a day, or until they cannot be had there. Trusts: whoever the TLS authorities (`ca`, else the
system's) vouch for as the issuer's host, to say which keys are the issuer's. Never: follows a redirect, unpacks a
body, takes anything over plain HTTP, sends a credential, or believes metadata that names another issuer.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.authentication.issuers import RemoteKeys, require_https
from gateway.errors import GatewayError
from gateway.limits import KEY_FETCH_TIMEOUT_S, KEYS_FRESH_S, MAX_JWKS, MAX_KEYS_FRESH_S, MAX_METADATA, MIN_KEYS_FRESH_S
from sealgate.ambient import Clock, now_us
from sealgate.errors import ConfigurationError

_MAX_AGE = re.compile(r'(?:^|,)\s*max-age\s*=\s*"?([0-9]{1,10})"?\s*(?:,|$)', re.IGNORECASE)
_NOT_KEPT = re.compile(r"(?:^|,)\s*(?:no-store|no-cache)\b", re.IGNORECASE)


class FetchFailed(GatewayError):
    """The issuer's keys could not be had. The text is for the operator's log and quotes nothing that was received."""

    code = "keys-unavailable"


@dataclass(frozen=True, kw_only=True)
class FetchedKeys:
    """A JWK set as it came, and for how long it counts as fresh (RFC 9111 section 4.2)."""

    data: bytes
    fresh_s: int


class _Metadata(msgspec.Struct, frozen=True, kw_only=True):
    issuer: str
    jwks_uri: str


class KeyFetcher:
    """Fetches for one issuer. Used from one event loop; `close` ends its connections."""

    def __init__(self, issuer: str, remote: RemoteKeys, *, clock: Clock = now_us) -> None:
        self._issuer = issuer
        self._remote = remote
        self._clock = clock
        self._context = _tls(remote)
        self._client: httpx.AsyncClient | None = None
        self._found = ""  # the jwks_uri of the metadata
        self._found_us = 0

    async def fetch(self) -> FetchedKeys:
        """The issuer's JWK set. Raises FetchFailed."""
        try:
            async with asyncio.timeout(KEY_FETCH_TIMEOUT_S):
                return await self._fetch()
        except TimeoutError:
            self._found = ""
            raise FetchFailed(f"no answer within {KEY_FETCH_TIMEOUT_S:.0f} s") from None
        except FetchFailed:
            self._found = ""
            raise

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _fetch(self) -> FetchedKeys:
        response, data = await self._get(self._remote.jwks_uri or await self._discovered(), most=MAX_JWKS)
        if response.status_code != 200:
            raise FetchFailed(f"the key set's place answered {response.status_code}")
        return FetchedKeys(data=data, fresh_s=_fresh_s(response.headers))

    async def _discovered(self) -> str:
        """Where the metadata says that the keys are."""
        if self._found and 0 <= self._clock() - self._found_us < MAX_KEYS_FRESH_S * 1_000_000:
            return self._found
        status = 0
        for url in metadata_urls(self._issuer):
            response, data = await self._get(url, most=MAX_METADATA)
            status = response.status_code
            if status == 200:
                self._found, self._found_us = parse_metadata(data, issuer=self._issuer), self._clock()
                return self._found
        raise FetchFailed(f"the metadata's place answered {status}")

    async def _get(self, url: str, *, most: int) -> tuple[httpx.Response, bytes]:
        """One GET; the body is empty unless the status is 200."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=self._context, proxy=self._remote.proxy, trust_env=False, timeout=KEY_FETCH_TIMEOUT_S
            )
        headers = {"Accept": "application/json, application/jwk-set+json", "Accept-Encoding": "identity"}
        data = bytearray()
        try:
            async with self._client.stream("GET", url, headers=headers, follow_redirects=False) as response:
                if response.status_code == 200:
                    if response.headers.get("content-encoding", "identity").lower() != "identity":
                        raise FetchFailed("the answer is compressed, which was not asked for")
                    async for piece in response.aiter_raw():
                        data += piece
                        if len(data) > most:
                            raise FetchFailed(f"the answer is larger than {most} bytes")
                return response, bytes(data)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise FetchFailed(f"the connection failed ({_why(error)})") from error


def _why(error: BaseException) -> str:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return "the provider's TLS certificate is not believed; the setting `ca` names its authority"
        found = found.__cause__ or found.__context__
    return type(error).__name__


def metadata_urls(issuer: str) -> Iterator[str]:
    """Where the metadata may stand: OpenID Connect Discovery 1.0 section 4 first, then RFC 8414 section 3.1."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    yield f"https://{parts.netloc}{path}/.well-known/openid-configuration"
    yield f"https://{parts.netloc}/.well-known/oauth-authorization-server{path}"


def parse_metadata(data: bytes, *, issuer: str) -> str:
    """The `jwks_uri` of metadata that is this issuer's own (RFC 8414 section 3.3). Raises FetchFailed."""
    try:
        metadata = msgspec.json.decode(data, type=_Metadata)
        if metadata.issuer != issuer:
            raise FetchFailed("the metadata is another issuer's: its 'issuer' must equal the name here exactly")
        require_https(metadata.jwks_uri)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise FetchFailed("the metadata has no 'issuer' and 'jwks_uri'") from error
    except ConfigurationError as error:
        raise FetchFailed("the metadata's jwks_uri is not an https URL") from error
    return metadata.jwks_uri


def _fresh_s(headers: httpx.Headers) -> int:
    said = headers.get("cache-control", "")
    found = _MAX_AGE.search(said)
    if _NOT_KEPT.search(said):
        fresh = 0
    elif found is None:
        fresh = KEYS_FRESH_S
    else:
        age = headers.get("age", "0")
        fresh = int(found[1]) - (int(age) if re.fullmatch(r"[0-9]{1,10}", age) else 0)
    return min(max(fresh, MIN_KEYS_FRESH_S), MAX_KEYS_FRESH_S)


def _tls(remote: RemoteKeys) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=remote.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{remote.ca}: holds no certificate authority in PEM form") from error
