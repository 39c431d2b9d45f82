"""Access tokens from an identity provider, by the client credentials grant (RFC 6749 section 4.4).

    source = ClientCredentials("https://id.example/token", client_id="triage-app", client_secret=secret)
    Session("client/", purpose="treatment", token=source)

The client shows who it is by its secret (`client_secret_basic`), by a certificate (RFC 8705 section 2) or, with
neither, by its name alone. With `dpop_key` the token is bound to that key (RFC 9449 section 5): give the same key to
the session. A token is kept until shortly before it expires; where the provider cannot be reached then, it is used
until it does.

Trusts: the provider, over HTTPS. Never: follows a redirect, sends a secret over anything but TLS, takes a token that is
not bound where a bound one was asked for, or shows a secret, a token or the provider's words beyond its error code.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote_plus, urlencode

import httpx
import msgspec

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.client.credentials import MAX_TOKEN, CertificateSource, check_token, take_certificate
from sealgate.client.dpop import DpopKey, Prover
from sealgate.client.errors import TokenUnavailable
from sealgate.client.results import is_tls_failure
from sealgate.client.transport import reading_proxy
from sealgate.errors import ConfigurationError, DecodeError, SealgateError
from sealgate.protocol.dpop import target_url

_MAX_ANSWER = MAX_TOKEN + 16 * 1024
_RENEW_BEFORE_S = 60  # or a fifth of the token's life, where that is less
_UNSTATED_LIFE_S = 60  # RFC 6749 section 5.1: a provider should say how long a token lives, but need not
_MAX_LIFE_S = 24 * 3600
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_Shape = TypeVar("_Shape")
_FORM = "application/x-www-form-urlencoded"
_WANTED = "use_dpop_nonce"


class _Granted(msgspec.Struct, frozen=True):
    """RFC 6749 section 5.1."""

    access_token: str
    token_type: str
    expires_in: int | str | None = None  # a number, but some providers write it as text


class _Refused(msgspec.Struct, frozen=True):
    """RFC 6749 section 5.2."""

    error: str = ""


@dataclass(frozen=True, repr=False)
class _Held:
    token: str
    renew_us: int
    expires_us: int


class ClientCredentials:
    """A function without arguments that returns the token of now. Safe to share between threads and event loops; one
    request to the provider is under way at a time. Raises TokenUnavailable."""

    def __init__(
        self,
        token_url: str,
        *,
        client_id: str,
        client_secret: str | None = None,
        certificate: CertificateSource = None,
        dpop_key: DpopKey | None = None,
        scope: str = "",
        resources: Sequence[str] = (),
        parameters: Mapping[str, str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool = True,
        timeout: httpx.Timeout | float = 20.0,
        outer: httpx.BaseTransport | None = None,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        """`resources` are RFC 8707's; `parameters` whatever else the provider wants (some want `audience`). `ca_file`
        is the provider's certificate authority, if it is not one that everybody trusts."""
        try:
            target_url(token_url)
        except DecodeError as error:
            raise ConfigurationError("the token url must be an absolute https:// URL") from error
        self._url = token_url
        self._headers = {"accept": "application/json", "content-type": _FORM, "accept-encoding": "identity"}
        form = [("grant_type", "client_credentials"), *(("resource", one) for one in resources)]
        form += [("scope", scope)] if scope else []
        if client_secret is None:
            form.append(("client_id", client_id))
        else:  # RFC 6749 section 2.3.1: each part is form-encoded before both are joined
            pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
            self._headers["authorization"] = f"Basic {base64.b64encode(pair.encode('ascii')).decode('ascii')}"
        self._form = urlencode([*form, *(parameters or {}).items()]).encode("ascii")
        self._prover = Prover(dpop_key, clock=clock, entropy=entropy) if dpop_key else None
        self._clock = clock
        self._lock = threading.Lock()
        self._held: _Held | None = None  # replaced whole
        context = _tls(None if ca_file is None else Path(ca_file), certificate, trust_env=trust_env)
        with reading_proxy():
            self._client = httpx.Client(
                verify=context, proxy=proxy, trust_env=trust_env, timeout=timeout, transport=outer
            )

    def __repr__(self) -> str:
        return f"ClientCredentials({self._url})"

    def held(self) -> str | None:
        """The token, if there is one that need not be renewed yet. Never waits."""
        held = self._held
        return held.token if held is not None and self._clock() < held.renew_us else None

    def __call__(self) -> str:
        """The token of now; waits for the provider where it must."""
        token = self.held()
        if token is not None:
            return token
        with self._lock:
            token = self.held()  # another thread may have been first
            return self._renew() if token is None else token

    def _renew(self) -> str:
        try:
            held = self._ask()
        except TokenUnavailable:
            old = self._held
            if old is None or self._clock() >= old.expires_us:
                raise
            return old.token
        self._held = held
        return held.token

    def _ask(self) -> _Held:
        for _ in range(2):
            asked_us = self._clock()
            status, headers, body = self._post()
            if self._prover is not None:
                self._prover.learn(headers)
            if status == 200:
                return self._granted(body, asked_us)
            code = (_decoded(body, _Refused) or _Refused()).error
            if self._prover is None or code != _WANTED:  # RFC 9449 section 8
                break
        said = f" {code}" if _CODE.match(code) else ""
        raise TokenUnavailable(f"the token service refused ({status}{said}); check the client's name and credential")

    def _post(self) -> tuple[int, Mapping[str, str], bytes]:
        headers = dict(self._headers)
        if self._prover is not None:
            headers["dpop"] = self._prover.proof("POST", self._url, token=None)
        try:
            with self._client.stream(
                "POST", self._url, headers=headers, content=self._form, follow_redirects=False
            ) as response:
                body = bytearray()
                for part in response.iter_raw():
                    body += part
                    if len(body) > _MAX_ANSWER:
                        raise TokenUnavailable("the token service's answer is larger than it may be")
                return response.status_code, response.headers, bytes(body)
        except httpx.HTTPError as error:
            why = "its TLS certificate is not believed: see ca_file" if is_tls_failure(error) else type(error).__name__
            raise TokenUnavailable(f"the token service cannot be reached ({why})") from error

    def _granted(self, body: bytes, asked_us: int) -> _Held:
        answer = _decoded(body, _Granted)
        if answer is None:
            raise TokenUnavailable("the token service's answer is not a token (RFC 6749 section 5.1)")
        wanted = "Bearer" if self._prover is None else "DPoP"
        if answer.token_type.lower() != wanted.lower():
            raise TokenUnavailable(f"the token service gave no {wanted} token; is this client set up for that there?")
        try:
            check_token(answer.access_token)
        except SealgateError as error:
            raise TokenUnavailable("the token service gave a token that cannot be sent") from error
        life_s = _seconds(answer.expires_in)
        early_s = min(_RENEW_BEFORE_S, life_s // 5)
        expires_us = asked_us + life_s * 1_000_000
        return _Held(answer.access_token, expires_us - early_s * 1_000_000, expires_us)

    def close(self) -> None:
        """Close the connections, and forget the token."""
        self._held = None
        self._client.close()

    def __enter__(self) -> ClientCredentials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _seconds(stated: int | str | None) -> int:
    if isinstance(stated, str):
        stated = int(stated) if re.fullmatch(r"[0-9]{1,9}", stated) else None
    if stated is None:
        return _UNSTATED_LIFE_S
    return max(0, min(stated, _MAX_LIFE_S))


def _decoded(body: bytes, shape: type[_Shape]) -> _Shape | None:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _tls(ca_file: Path | None, source: CertificateSource, *, trust_env: bool) -> ssl.SSLContext:
    try:
        context = (
            httpx.create_ssl_context(trust_env=trust_env)
            if ca_file is None
            else ssl.create_default_context(cafile=os.fspath(ca_file))
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{ca_file} is not a readable PEM file of certificates") from error
    if (certificate := take_certificate(source)) is not None:
        certificate.load_into(context)
    return context
