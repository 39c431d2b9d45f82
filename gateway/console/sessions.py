"""What a browser carries of a sign-in: sealed cookies, and the token that makes a form post count.

A session is the caller's access token, encrypted (RFC 8439) under a key that the gateway's processes share. On every
request it is opened and judged like any token that came in a header: expiry, revocation, withdrawn keys and a changed
policy end a session at once, and there is no table of sessions that could be stolen or fill up. Cookies carry the
`__Host-` prefix, are HttpOnly and Secure and, but for the one that must come back from the provider, SameSite=Strict.

Trusts: the key. Never: lets a browser's script or another site read or use a session; outlives the token.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from litestar.datastructures import Cookie

from gateway.errors import Problem, Unauthenticated
from gateway.limits import MAX_COOKIE, MAX_SESSION_COOKIES, SIGN_IN_S
from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.errors import DecodeError
from sealgate.protocol.dpop import from_base64url, to_base64url

SESSION = "__Host-sealgate-session"
SIGN_IN = "__Host-sealgate-sign-in"
KEY_PURPOSE = b"sealgate console v1"

_NONCE = 12
_CSRF = b"csrf\x00"


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What must come back together with the provider's answer, and only from the browser that began."""

    state: str
    verifier: str
    to: str  # the page that was wanted
    expires_us: int


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A signed-in browser. The token in it is judged anew on every request."""

    token: str
    expires_us: int


_Shape = TypeVar("_Shape", SignIn, Session)


class Sessions:
    """Makes and opens the cookies. One per process; `key` is the same in all of them."""

    def __init__(self, key: bytes, *, clock: Clock = now_us, entropy: Entropy = random_bytes) -> None:
        self._key = key
        self._aead = ChaCha20Poly1305(hashlib.sha256(b"seal\x00" + key).digest())
        self._clock = clock
        self._entropy = entropy

    # Signing in -------------------------------------------------------------------------------------------------------

    def begin(self, to: str) -> tuple[SignIn, Cookie]:
        """A sign-in that starts now. Its cookie is Lax: the provider sends the browser back from another site."""
        expires_us = self._clock() + SIGN_IN_S * 1_000_000
        state, verifier = to_base64url(self._entropy(24)), to_base64url(self._entropy(32))
        begun = SignIn(state=state, verifier=verifier, to=to, expires_us=expires_us)
        return begun, _cookie(SIGN_IN, self._sealed(SIGN_IN, begun), max_age=SIGN_IN_S, same_site="lax")

    def begun(self, cookies: dict[str, str]) -> SignIn:
        """The sign-in that this browser began. Raises Unauthenticated."""
        return self._opened(SIGN_IN, cookies.get(SIGN_IN, ""), SignIn)

    # Being signed in --------------------------------------------------------------------------------------------------

    def start(self, token: str, *, expires_us: int) -> list[Cookie]:
        """The cookies of a session with this verified token, until its expiry."""
        sealed = self._sealed(SESSION, Session(token=token, expires_us=expires_us))
        parts = [sealed[at : at + MAX_COOKIE] for at in range(0, len(sealed), MAX_COOKIE)]
        if len(parts) > MAX_SESSION_COOKIES:
            raise Unauthenticated("token-too-large")
        max_age = max(0, (expires_us - self._clock()) // 1_000_000)
        filled = dict(zip(_names(), parts, strict=False))
        made = [_cookie(name, part, max_age=max_age) for name, part in filled.items()]
        return [*made, *(cookie for cookie in self.end() if cookie.key not in filled)]

    def end(self) -> list[Cookie]:
        """The cookies that end it in this browser."""
        return [_cookie(name, "", max_age=0) for name in (*_names(), SIGN_IN)]

    def present(self, cookies: dict[str, str]) -> bool:
        """Whether the browser shows a session, good or bad."""
        return SESSION in cookies

    def token(self, cookies: dict[str, str]) -> str:
        """The token of the session. Raises Unauthenticated."""
        return self._opened(SESSION, "".join(cookies.get(name, "") for name in _names()), Session).token

    # Forms ------------------------------------------------------------------------------------------------------------

    def form_token(self, credential_binding: str) -> str:
        """What a form must bring back to count as sent from a page of this caller."""
        digest = hmac.digest(self._key, _CSRF + credential_binding.encode("utf-8"), hashlib.sha256)
        return to_base64url(digest)

    def require_form_token(self, given: str, credential_binding: str) -> None:
        """Raises Problem for a form that no page of this caller made."""
        if not hmac.compare_digest(given.encode("utf-8"), self.form_token(credential_binding).encode("ascii")):
            raise Problem("malformed-request", detail="This form is not from a page of yours. Go back and try again.")

    # Inside -----------------------------------------------------------------------------------------------------------

    def _sealed(self, name: str, value: msgspec.Struct) -> str:
        nonce = self._entropy(_NONCE)
        return to_base64url(nonce + self._aead.encrypt(nonce, msgspec.json.encode(value), name.encode("ascii")))

    def _opened(self, name: str, text: str, shape: type[_Shape]) -> _Shape:
        try:
            raw = from_base64url(text)
            opened = self._aead.decrypt(raw[:_NONCE], raw[_NONCE:], name.encode("ascii"))
            found = msgspec.json.decode(opened, type=shape)
        except (DecodeError, InvalidTag, ValueError, UnicodeError):
            raise Unauthenticated("session-invalid") from None
        if self._clock() >= found.expires_us:
            raise Unauthenticated("session-invalid")
        return found


def _names() -> list[str]:
    return [SESSION, *(f"{SESSION}-{number}" for number in range(1, MAX_SESSION_COOKIES))]


def _cookie(name: str, value: str, *, max_age: int, same_site: Literal["lax", "strict"] = "strict") -> Cookie:
    return Cookie(key=name, value=value, max_age=max_age, path="/", secure=True, httponly=True, samesite=same_site)
