"""The OpenID provider that auditors sign in with: authorization code with PKCE (RFC 6749, RFC 7636, RFC 9700).

What comes back is an access token for this service, judged like everybody's (`gateway.authentication`). The ID token,
if one comes too, is not looked at: who the auditor is stands in the access token, and that this sign-in belongs to this
browser is shown by `state` and the PKCE verifier, both sealed in its cookie.

Trusts: the issuer of `[console] issuer`, over HTTPS, under the same authority as its keys. Never: follows a redirect,
sends the client's secret to an address that the issuer's own metadata did not name, or accepts another issuer's answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import msgspec

from gateway.authentication.discovery import metadata_urls
from gateway.authentication.issuers import Issuer, require_https
from gateway.authentication.tokens import parse_unverified
from gateway.console.sessions import SignIn
from gateway.errors import Problem, Unauthenticated
from gateway.limits import MAX_CODE, MAX_METADATA, MAX_TOKEN_ANSWER, PROVIDER_FRESH_S, PROVIDER_TIMEOUT_S
from gateway.telemetry import Telemetry
from sealgate.ambient import Clock, now_us
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError
from sealgate.protocol.dpop import to_base64url

CALLBACK = "/console/signed-in"


class _Metadata(msgspec.Struct, frozen=True, kw_only=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    authorization_response_iss_parameter_supported: bool = False
    code_challenge_methods_supported: list[str] | None = None


class _Granted(msgspec.Struct, frozen=True, kw_only=True):
    access_token: str
    token_type: str


@dataclass(frozen=True, kw_only=True)
class Registration:
    """How this console is known at the provider."""

    issuer: str
    client_id: str
    secret: str  # "": a public client, PKCE alone
    scope: str
    resource: str  # RFC 8707; "": not sent
    redirect_uri: str


class SignInProvider:
    """One per process, used from its event loop; `close` ends its connections."""

    def __init__(
        self,
        registration: Registration,
        *,
        ca: Path | None,
        proxy: str | None,
        telemetry: Telemetry,
        clock: Clock = now_us,
    ) -> None:
        self.registration = registration
        self._ca = ca
        self._proxy = proxy
        self._telemetry = telemetry
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._metadata: _Metadata | None = None
        self._found_us = 0

    @property
    def name(self) -> str:
        """The issuer's name."""
        return self.registration.issuer

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def address(self, begun: SignIn) -> str:
        """Where the browser goes to sign in. Raises Problem if the provider does not say."""
        metadata = await self._discovered()
        challenge = to_base64url(hashlib.sha256(begun.verifier.encode("ascii")).digest())
        query = {
            "response_type": "code",
            "client_id": self.registration.client_id,
            "redirect_uri": self.registration.redirect_uri,
            "scope": self.registration.scope,
            "state": begun.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        if self.registration.resource:
            query["resource"] = self.registration.resource
        joint = "&" if "?" in metadata.authorization_endpoint else "?"
        return metadata.authorization_endpoint + joint + urlencode(query, quote_via=quote)

    async def redeem(self, begun: SignIn, answer: Mapping[str, str]) -> str:
        """The access token for the provider's answer, not judged yet. Raises Unauthenticated or Problem."""
        metadata = await self._discovered()
        if not hmac.compare_digest(answer.get("state", "").encode(), begun.state.encode()):
            raise Unauthenticated("sign-in-failed")
        named = answer.get("iss")  # RFC 9207: an answer of another issuer must not be taken for this one's
        if named != metadata.issuer and (named is not None or metadata.authorization_response_iss_parameter_supported):
            raise Unauthenticated("sign-in-failed")
        code = answer.get("code", "")
        if "error" in answer or not 0 < len(code) <= MAX_CODE:
            raise Unauthenticated("sign-in-failed")
        token = await self._exchanged(metadata.token_endpoint, code, begun.verifier)
        _, claims = parse_unverified(token)
        if claims.get("iss") != metadata.issuer:
            raise Unauthenticated("sign-in-failed")  # of another issuer, that this one has no word for
        if claims.get("client_id", claims.get("azp")) != self.registration.client_id:
            raise Unauthenticated("sign-in-failed")  # a token that was made for another program
        return token

    async def _exchanged(self, endpoint: str, code: str, verifier: str) -> str:
        """RFC 6749 section 4.1.3 with RFC 7636 section 4.5."""
        mine = self.registration
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": mine.redirect_uri,
            "code_verifier": verifier,
        }
        if mine.resource:
            form["resource"] = mine.resource
        auth: httpx.Auth | None = None
        if mine.secret:  # section 2.3.1: both parts are form-encoded first
            auth = httpx.BasicAuth(quote(mine.client_id, safe=""), quote(mine.secret, safe=""))
        else:
            form["client_id"] = mine.client_id
        status, data = await self._ask("POST", endpoint, most=MAX_TOKEN_ANSWER, data=form, auth=auth)
        if status != 200:
            self._telemetry.event("sign-in", detail="the provider refused the code", status=status)
            raise Unauthenticated("sign-in-failed")
        try:
            granted = msgspec.json.decode(data, type=_Granted)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise Unauthenticated("sign-in-failed") from None
        if granted.token_type.lower() != "bearer":
            raise Unauthenticated("sign-in-failed")
        return granted.access_token

    async def _discovered(self) -> _Metadata:
        now = self._clock()
        if self._metadata is not None and 0 <= now - self._found_us < PROVIDER_FRESH_S * 1_000_000:
            return self._metadata
        for url in metadata_urls(self.registration.issuer):
            status, data = await self._ask("GET", url, most=MAX_METADATA)
            if status == 200:
                self._metadata, self._found_us = self._parsed(data), now
                return self._metadata
        raise self._away("its metadata cannot be had")

    def _parsed(self, data: bytes) -> _Metadata:
        try:
            metadata = msgspec.json.decode(data, type=_Metadata)
            require_https(metadata.authorization_endpoint)
            require_https(metadata.token_endpoint)
        except (msgspec.DecodeError, UnicodeError, RecursionError, ConfigurationError):
            raise self._away("its metadata names no place to sign in over https") from None
        if metadata.issuer != self.registration.issuer or "#" in metadata.authorization_endpoint:
            raise self._away("its metadata is another issuer's")
        said = metadata.code_challenge_methods_supported
        if said is not None and "S256" not in said:  # RFC 9700 section 2.1.1; some do it and say nothing
            raise self._away("it does not know PKCE with S256")
        return metadata

    async def _ask(self, method: str, url: str, *, most: int, **more: Any) -> tuple[int, bytes]:
        """One request; the body is empty unless the status is 200."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=_tls(self._ca), proxy=self._proxy, trust_env=False, timeout=PROVIDER_TIMEOUT_S
            )
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        data = bytearray()
        try:
            async with (
                asyncio.timeout(PROVIDER_TIMEOUT_S),
                self._client.stream(method, url, headers=headers, follow_redirects=False, **more) as response,
            ):
                if response.status_code == 200:
                    async for piece in response.aiter_raw():
                        data += piece
                        if len(data) > most:
                            raise self._away("its answer is too large")
                return response.status_code, bytes(data)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            raise self._away(f"the connection failed ({type(error).__name__})") from None

    def _away(self, what: str) -> Problem:
        self._telemetry.event("sign-in", detail=f"the provider cannot be used: {what}")
        return Problem("unavailable", detail="The sign-in provider cannot be reached now. Try again later.")


def open_provider(
    deployment: Deployment, issuers: Mapping[str, Issuer], *, telemetry: Telemetry, clock: Clock = now_us
) -> SignInProvider | None:
    """The provider of `[console]`, None if there is none. Raises ConfigurationError that says what to mend."""
    settings = deployment.settings.console
    if not settings.issuer:
        if settings.client_id or settings.client_secret_file:
            raise ConfigurationError("deployment.toml: console.client_id means nothing without console.issuer")
        return None
    issuer = issuers.get(settings.issuer)
    if issuer is None or issuer.remote is None:
        raise ConfigurationError(
            f"deployment.toml: console.issuer '{settings.issuer}' must be an issuer of tokens/issuers.toml whose keys "
            "are fetched (discovery = true or jwks_uri)"
        )
    if not settings.client_id:
        raise ConfigurationError("deployment.toml: console.client_id is needed with console.issuer")
    base = settings.base_url or f"https://{deployment.settings.deployment.audience}"
    require_https(base)
    audience = issuer.audience or deployment.token_audience
    registration = Registration(
        issuer=issuer.name,
        client_id=settings.client_id,
        secret=_secret(deployment.root / settings.client_secret_file) if settings.client_secret_file else "",
        scope=settings.scope,
        resource=audience if settings.send_resource else "",
        redirect_uri=base.rstrip("/") + CALLBACK,
    )
    _tls(issuer.remote.ca)  # now, not at the first sign-in
    return SignInProvider(
        registration, ca=issuer.remote.ca, proxy=issuer.remote.proxy, telemetry=telemetry, clock=clock
    )


def _secret(path: Path) -> str:
    try:
        secret = path.read_text("ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{path}: the console's client secret cannot be read") from error
    if not secret:
        raise ConfigurationError(f"{path}: the console's client secret is empty")
    return secret


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{ca}: holds no certificate authority in PEM form") from error
