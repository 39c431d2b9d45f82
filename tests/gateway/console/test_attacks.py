"""What somebody would try: links that lead elsewhere, sign-ins that another site begins, providers that lie."""

from __future__ import annotations

import asyncio
import html
import io
import re

import jwt
import msgspec
import pytest

from gateway.console.frame import HOME, own_path
from gateway.console.provider import Registration, SignInProvider
from gateway.console.sessions import SignIn
from gateway.errors import Problem, Unauthenticated
from gateway.telemetry import Telemetry

ISSUER = "https://login.example"
METADATA = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth",
    "token_endpoint": f"{ISSUER}/token",
    "code_challenge_methods_supported": ["plain", "S256"],
}


@pytest.fixture
def overseer(consoled):
    """May read every tenant's records."""
    return consoled.client(certificate="auditor")


# Links ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "to",
    [
        "/console/../audit/v1/exports",
        "/console/./../audit/v1/exports",
        "/console/..",
        "/console/%2e%2e/audit/v1/exports",
        "/console/.%2E/audit/v1/exports",
        "/console/records/..%2f../audit",
    ],
)
def test_no_way_on_climbs_out_of_the_console(consoled, to):
    """A browser takes dot segments out of an address before it asks: the API would be read, and that be on record."""
    text = consoled.client().get("/console/sign-in", params={"to": to}).text
    assert html.escape(to) not in text
    assert own_path(to) == HOME


@pytest.mark.parametrize("to", ["/console/records/5", "/console/reports/access?from=2030-01-01T08:00", "/console/a..b"])
def test_a_page_of_the_console_is_a_way_on(to):
    assert own_path(to) == to


def test_no_other_site_chooses_what_is_opened_after_signing_in(consoled):
    """Who signs in on a page that another site opened would be led to, and on record at, a page of its choosing."""
    path = "/console/sign-in?to=%2Fconsole%2Frecords%2F5"
    for site in ("cross-site", "same-site"):
        answer = consoled.client().get(path, headers={"Sec-Fetch-Site": site})
        assert "A link from elsewhere" in answer.text
        assert "/console/records/5" not in answer.text
    assert 'href="/console/records/5"' in consoled.client().get(path, headers={"Sec-Fetch-Site": "none"}).text


def test_what_is_read_is_kept_by_no_cache(overseer):
    """The log is read again, and that is on record again."""
    given = re.search(r'name="form_token" value="([^"]+)"', overseer.get("/console").text)
    form = {"form_token": given[1], "first": "0", "last": "3"}
    assert overseer.post("/console/evidence", data=form).headers["cache-control"] == "no-store"
    assert overseer.get("/audit/v1/records").headers["cache-control"] == "no-store"


# Oddities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "?from=0001-01-01",
        "?from=9999-12-31&to=0001-01-01",
        "?tenant=%00",
        "?tenant=%ff",
        "?tenant=%ed%a0%80",
        "?order=%00",
        "?cursor=%ff",
        "?from=2026-02-30",
        "/records/%00",
        "/records/%D9%A3",  # a digit, but none of ours
        "/records/999999999999999",
        "/records/..%2f",
        "/records?record=..",
        "/reports/access?from=0001-01-01",
        "/reports/completeness?first=0&last=9007199254740993",
        "/reports/__class__",
        "/static/%00",
        "/sign-in?to=%ff",
    ],
)
def test_what_nobody_would_ask_breaks_nothing(overseer, path):
    assert overseer.get(f"/console{path}").status_code in (200, 303, 400, 404)


# Providers -----------------------------------------------------------------------------------------------------------


class Lying(SignInProvider):
    """A provider as its connection shows it: what it says is given, not asked for."""

    def __init__(self, metadata=METADATA, token=""):
        registration = Registration(
            issuer=ISSUER, client_id="console", secret="", scope="openid", resource="", redirect_uri="https://here/"
        )
        super().__init__(registration, ca=None, proxy=None, telemetry=Telemetry(stream=io.StringIO()))
        self.answers = {"GET": metadata, "POST": {"access_token": token, "token_type": "Bearer"}}

    async def _ask(self, method, url, *, most, **more):
        return 200, msgspec.json.encode(self.answers[method])


BEGUN = SignIn(state="s" * 32, verifier="v" * 43, to=HOME, expires_us=0)


def redeemed(**claims):
    token = jwt.encode({"iss": ISSUER, "client_id": "console", **claims}, "k" * 32, "HS256")
    return asyncio.run(Lying(token=token).redeem(BEGUN, {"state": BEGUN.state, "code": "c"})), token


@pytest.mark.parametrize(
    "claims", [{"iss": "https://other.example"}, {"iss": ""}, {"iss": ISSUER + "/"}, {"client_id": "other"}]
)
def test_a_provider_speaks_for_itself_only(claims):
    """Another configured issuer's token would be judged good: by whom somebody signs in is not for this one to say."""
    got, token = redeemed()
    assert got == token
    with pytest.raises(Unauthenticated) as refused:
        redeemed(**claims)
    assert refused.value.code == "sign-in-failed"


@pytest.mark.parametrize("methods", [["plain"], []])
def test_a_provider_without_pkce_is_no_provider(methods):
    with pytest.raises(Problem):
        asyncio.run(Lying(METADATA | {"code_challenge_methods_supported": methods}).address(BEGUN))
    assert asyncio.run(Lying().address(BEGUN)).startswith(f"{ISSUER}/auth?")
