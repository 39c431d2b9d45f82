"""Coming in and going out: the sign-in page, the way to the OpenID provider and back, the end of a session.

    /console/sign-in              says how
    /console/sign-in/provider     begins: a sealed cookie with state and PKCE verifier, then the provider's page
    /console/signed-in            the provider's answer: a code, redeemed for a token that is judged like any other
    /console/sign-out             ends the session in this browser

A token that counts becomes a session; nothing is said of why another did not. The answer after a sign-in is a page that
leads on by itself instead of a redirect: a redirect that another site began would not carry the Strict cookie.
Trusts: the provider for the token, the gate to judge it. Never: signs in a browser that did not begin.
"""

from __future__ import annotations

from typing import Any

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Redirect

from gateway.console.assets import Asset
from gateway.console.frame import HEADERS, HOME, SIGN_IN, Console, own_path, shows_anything
from gateway.errors import Problem, Unauthenticated
from gateway.gate import Asking
from gateway.limits import MAX_CODE

_ANSWER = ("code", "state", "iss", "error")


@get(SIGN_IN, include_in_schema=False)
async def sign_in(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """How to sign in."""
    console.require_own(request)  # `to` is opened, and on record, as soon as its reader is signed in
    return console.sign_in_page(status=200, to=request.query_params.get("to", HOME))


@get(f"{SIGN_IN}/provider", include_in_schema=False)
async def to_provider(request: Asking, console: NamedDependency[Console]) -> Response[Any]:
    """Begin at the provider."""
    if console.provider is None:
        raise Problem("not-found")
    console.require_own(request)
    begun, cookie = console.sessions.begin(own_path(request.query_params.get("to", HOME)))
    with console.signing_in.slot():
        address = await console.provider.address(begun)
    return Redirect(address, status_code=303, headers=HEADERS, cookies=[cookie])


@get("/console/signed-in", include_in_schema=False)
async def signed_in(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """The provider's answer."""
    if console.provider is None:
        raise Problem("not-found")
    try:
        begun = console.sessions.begun(request.cookies)
        answer = _answer(request)
        with console.signing_in.slot():  # strangers get this far: they may not have the provider asked without end
            token = await console.provider.redeem(begun, answer)
    except Unauthenticated as error:
        raise console.gate.turn_away(request, error) from None
    request.scope["headers"] = [
        *((name, value) for name, value in request.scope["headers"] if name != b"authorization"),
        (b"authorization", b"Bearer " + token.encode("ascii", "replace")),
    ]
    principal = await console.gate.authenticate(request)
    cookies = console.sessions.start(token, expires_us=principal.expires_us)
    return console.render("signed_in.html", cookies=cookies, to=begun.to, title="Signed in")


@post("/console/sign-out", include_in_schema=False, status_code=200)
async def sign_out(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """End the session in this browser."""
    await console.read_form(request)
    certificate = not console.sessions.present(request.cookies) and shows_anything(request)
    answer = console.sign_in_page(status=200, to=HOME, signed_out=True, by_certificate=certificate)
    answer.cookies = console.sessions.end()
    return answer


@get("/console/static/{name:str}", include_in_schema=False)
async def static(console: NamedDependency[Console], name: FromPath[str]) -> Response[bytes]:
    """A style sheet, a script, the icon."""
    found: Asset | None = console.assets.find(name)
    if found is None:
        raise Problem("not-found")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Cross-Origin-Resource-Policy": "same-origin"}
    return Response(content=found.content, media_type=found.media_type, headers=headers)


ROUTES: tuple[Any, ...] = (sign_in, to_provider, signed_in, sign_out, static)


def _answer(request: Asking) -> dict[str, str]:
    """The parameters of the provider's answer, each at most once (RFC 6749 section 3.1)."""
    given = [(name, value) for name, value in request.query_params.multi_items() if name in _ANSWER]
    if len({name for name, _ in given}) != len(given) or any(len(value) > MAX_CODE for _, value in given):
        raise Unauthenticated("sign-in-failed")
    return dict(given)
