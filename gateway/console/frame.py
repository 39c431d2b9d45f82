"""What every page of the console stands in: templates, headers, who is signed in, and pages for what goes wrong.

The headers allow scripts and styles of this server's own files and nothing else, no frames, no caches. Trusts: the
templates, which escape everything. Never: renders a text of an exception; answers a page to a link from another site
before its reader has said so, because reading is put on record in the reader's name.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

import jinja2
from litestar import Response
from litestar.datastructures import Cookie
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from gateway.audit_reading import MayRead, authorise_reading
from gateway.authentication.forwarded import EXTENSION, Forwarded
from gateway.console import presentation
from gateway.console.assets import Assets
from gateway.console.provider import SignInProvider
from gateway.console.sessions import Sessions
from gateway.errors import GatewayError, PolicyChanged, Problem, RuntimeAway, RuntimeBusy, Unauthenticated
from gateway.gate import Asking, Gate, note
from gateway.intake import Intake
from gateway.limits import MAX_FORM
from sealgate.ambient import Clock
from sealgate.protocol.frames import AuditKind
from sealgate.protocol.obligations import epsilon_text

HOME = "/console"
SIGN_IN = "/console/sign-in"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Vary": "Cookie, HX-Request",
}
_OWN_PATH = re.compile(r"/console(?:/[A-Za-z0-9._~%/-]*)?(?:\?[A-Za-z0-9._~%&=+:-]*)?")
_LENT = "gateway.console_token"  # in a scope: the session's token was put into its header
_ELSEWHERE = frozenset({"cross-site", "same-site"})
_BY_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}


class SignInNeeded(GatewayError):
    """The browser shows nothing to be recognised by. Nothing is counted: nobody tried anything."""

    code = "sign-in-needed"

    def __init__(self, wanted: str) -> None:
        super().__init__("sign in first")
        self.wanted = wanted


class FromElsewhere(GatewayError):
    """A link from another site leads here: its reader says first whether to go on."""

    code = "from-elsewhere"

    def __init__(self, wanted: str) -> None:
        super().__init__("a link from another site")
        self.wanted = wanted


@dataclass(frozen=True, kw_only=True)
class Console:
    """One per process; made by `gateway.console.router`."""

    gate: Gate
    sessions: Sessions
    provider: SignInProvider | None
    templates: jinja2.Environment
    assets: Assets
    forms: Intake
    signing_in: Intake
    log_url: str
    clock: Clock

    async def may_read(
        self,
        request: Asking,
        question: str,
        said: Mapping[str, str],
        *,
        kind: AuditKind = "audit.query",
        too_wide: str = "",
        state: Callable[[], Awaitable[dict[str, str]]] | None = None,
    ) -> MayRead:
        """The right to read, once that is on record. Raises what `exception_handlers` makes pages of."""
        self.require_own(request)
        self.recognise(request)
        return await authorise_reading(
            request, self.gate, f"console {question}", kind=kind, said=said, too_wide=too_wide, state=state
        )

    def require_own(self, request: Asking) -> None:
        """Raises FromElsewhere for a navigation that another site began (Fetch Metadata)."""
        if request.headers.get("sec-fetch-site", "") in _ELSEWHERE:
            raise FromElsewhere(wanted_address(request))

    def recognise(self, request: Asking) -> None:
        """Let the session's token speak as if it came in a header; a bad session raises Problem, as a bad token does.

        Raises SignInNeeded if the browser shows nothing at all.
        """
        if _LENT in request.scope:
            return
        if self.sessions.present(request.cookies):
            try:
                token = self.sessions.token(request.cookies)
            except Unauthenticated as error:
                raise self.gate.turn_away(request, error) from None
            lent = (b"authorization", b"Bearer " + token.encode("ascii", "replace"))
            request.scope["headers"] = [*request.scope["headers"], lent]
            request.scope[_LENT] = True  # type: ignore[literal-required]
        elif not shows_anything(request):
            raise SignInNeeded(wanted_address(request))

    async def read_form(self, request: Asking) -> dict[str, str]:
        """The fields of a form that one of this caller's pages made. Raises Problem."""
        self.require_own(request)
        self.recognise(request)
        principal = await self.gate.authenticate(request)
        with self.forms.slot((principal.tenant, principal.subject)) as slot:
            declared = request.headers.get("content-length")
            body = await slot.read_body(request.receive, declared=declared, limit=MAX_FORM)
        try:
            pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=16)
        except (UnicodeError, ValueError):
            raise Problem("malformed-request") from None
        self.sessions.require_form_token(dict(pairs).get("form_token", ""), principal.credential_binding)
        return dict(pairs)

    # Pages ------------------------------------------------------------------------------------------------------------

    def page(self, template: str, may: MayRead, **more: Any) -> Response[bytes]:
        """A page of somebody who is signed in."""
        principal = may.principal
        return self.render(
            template,
            headers=may.headers,
            me=principal,
            everything=may.permit.records_of is None,
            form_token=self.sessions.form_token(principal.credential_binding),
            viewed=may.headers["Audit-Record"].rpartition(" ")[2],
            **more,
        )

    def render(
        self,
        template: str,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        cookies: list[Cookie] | None = None,
        **more: Any,
    ) -> Response[bytes]:
        """A page."""
        context = {"asset": self.assets.address, "me": None, "provider": self.provider, **more}
        text = self.templates.get_template(template).render(context)
        return Response(
            content=text.encode(),
            status_code=status,
            media_type="text/html",
            headers={**HEADERS, **(headers or {})},
            cookies=cookies,
        )

    def sign_in_page(self, *, status: int, to: str, refused: bool = False, **more: Any) -> Response[bytes]:
        """Where one signs in."""
        return self.render("sign_in.html", status=status, to=own_path(to), refused=refused, title="Sign in", **more)


def make_templates() -> jinja2.Environment:
    """The templates. Undefined names are errors, everything is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gateway.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": presentation.moment,
        "machine_time": presentation.machine_time,
        "short": presentation.short,
        "epsilon": epsilon_text,
    }
    environment.tests["digest"] = presentation.is_digest
    environment.globals["address"] = presentation.address
    environment.globals["zip"] = zip
    return environment


def wanted_address(request: Asking) -> str:
    """Path and query of a page that was asked for."""
    if request.method != "GET":
        return HOME
    query = request.scope.get("query_string", b"").decode("latin-1")
    return own_path(request.scope["path"] + (f"?{query}" if query else ""))


def own_path(text: str) -> str:
    """The text if it is an address of this console, else its first page. Browsers take dot segments out of a path,
    encoded ones too: one with them is an address of something else."""
    fine = len(text) <= 2048 and _OWN_PATH.fullmatch(text) and "//" not in text
    return text if fine and {".", ".."}.isdisjoint(unquote(text.partition("?")[0]).split("/")) else HOME


def shows_anything(request: Asking) -> bool:
    extensions: Mapping[str, Any] = request.scope.get("extensions") or {}
    forwarded = extensions.get(EXTENSION, Forwarded(local=False))
    shown = extensions.get("tls", {}).get("client_cert_chain", ())
    return bool("authorization" in request.headers or forwarded.certificate or (shown and not forwarded.local))


def exception_handlers(console: Console, others: ExceptionHandlersMap) -> ExceptionHandlersMap:
    """Pages instead of problem documents. What is unexpected is logged by the application's own handler first."""

    def as_page(request: Asking, error: Exception) -> Response[Any]:
        if isinstance(error, SignInNeeded):
            return _whole_page(request, console.sign_in_page(status=401, to=error.wanted))
        if isinstance(error, FromElsewhere):
            return console.render("entry.html", wanted=error.wanted, title="A link from elsewhere")
        problem = _problem(error)
        if problem is None:
            others[Exception](request, error)
            problem = Problem("internal")
        note(request, problem=problem.code)
        if problem.status == 401:
            return _whole_page(request, console.sign_in_page(status=401, to=wanted_address(request), refused=True))
        headers = {name: value for name, value in problem.headers.items() if name != "Connection"}
        return console.render(
            "problem.html", status=problem.status, headers=headers, problem=problem, title=problem.title
        )

    return {Exception: as_page, HTTPException: as_page, Problem: as_page}


def _problem(error: Exception) -> Problem | None:
    if isinstance(error, Problem):
        return error
    if isinstance(error, RuntimeAway | PolicyChanged):
        return Problem("unavailable")
    if isinstance(error, RuntimeBusy):
        return Problem("busy")
    if isinstance(error, HTTPException):
        return Problem(_BY_STATUS.get(error.status_code, "malformed-request"))
    return None


def _whole_page(request: Asking, answer: Response[bytes]) -> Response[bytes]:
    """Where a script asked for a part of a page, have the browser go to the whole one."""
    if "hx-request" in request.headers:
        answer.headers["HX-Redirect"] = HOME
    return answer
