"""Signing in at a real OpenID provider: in a browser from end to end, and by hand where somebody cheats."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest

from gateway.console.sessions import SESSION, SIGN_IN
from sealgate.cli import main
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from tests.gateway.conftest import Running, copied, hosted
from tests.gateway.console.conftest import filled
from tests.peers.identity_provider import SECRET, IdentityProvider, running_provider

AUDITOR = {"tenant": "oversight", "roles": ["auditor"], "purposes": []}
RESOURCE = "https://localhost:8443"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client(client_id: str, port: int, **more: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "client_id": client_id,
            "token_endpoint_auth_method": "none",
            "grant_types": ["authorization_code"],
            "response_types": ["code"],
            "redirect_uris": [f"https://localhost:{port}/console/signed-in"],
            **more,
        },
        "claims": AUDITOR,
    }


class Company:
    """A provider with a console that is registered there, and people to sign in."""

    def __init__(self, provider: IdentityProvider, running: Running) -> None:
        self.provider = provider
        self.running = running
        self.base = f"https://localhost:{running.port}"

    def console(self) -> httpx.Client:
        return self.running.client()

    @contextlib.contextmanager
    def person(self) -> Iterator[httpx.Client]:
        """Somebody's browser, as far as the provider sees it."""
        with httpx.Client(verify=self.provider.tls(), trust_env=False, timeout=20) as browser:
            yield browser

    def consent(self, browser: httpx.Client, address: str, login: str = "ada") -> str:
        """Sign in at the provider's own page; gives the address that leads back."""
        answer = browser.get(address)
        for _ in range(8):
            here = answer.url
            if answer.is_redirect:
                to = str(here.join(answer.headers["location"]))
                if to.startswith(self.base):
                    return to
                answer = browser.get(to)
            else:
                form = {"prompt": "login", "login": login, "password": "x"} if "login" in answer.text else {}
                form = form if 'name="login"' in answer.text else {"prompt": "consent"}
                answer = browser.post(str(here), data=form)
        raise AssertionError("the provider does not lead back")

    def way_in(self, console: httpx.Client) -> str:
        """From the console to the provider and back; the answer is not handed in yet."""
        begun = console.get("/console/sign-in/provider")
        assert begun.status_code == 303
        with self.person() as browser:
            return self.consent(browser, begun.headers["location"])

    def sign_in(self) -> httpx.Client:
        console = self.console()
        assert console.get(self.way_in(console)).status_code == 200
        return console


def configured(deployment: Deployment, provider: IdentityProvider, port: int, **console: Any) -> Deployment:
    (deployment.tokens / "provider-ca.pem").write_bytes(provider.ca.read_bytes())
    (deployment.tokens / "issuers.toml").write_text(
        f'[[issuer]]\nname = "{provider.issuer}"\ndiscovery = true\nca = "provider-ca.pem"\n'
    )
    fields = {"issuer": provider.issuer, "client_id": "console", "base_url": f"https://localhost:{port}", **console}
    section = msgspec.structs.replace(deployment.settings.console, **fields)
    return Deployment(deployment.root, msgspec.structs.replace(deployment.settings, console=section))


@pytest.fixture(scope="module")
def company(provisioned: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    port = free_port()
    folder = tmp_path_factory.mktemp("provider")
    with (
        running_provider(folder, resource=RESOURCE, people=True, more_clients=[client("console", port)]) as provider,
        copied(provisioned) as deployment,
        hosted(deployment) as host,
        filled(deployment),
    ):
        running = Running(configured(deployment, provider, port), host, port=port)
        yield Company(provider, running)
        running.close()


@pytest.fixture(autouse=True)
def _fresh(company: Company) -> None:
    company.running.host.told.clear()
    company.running.clock.later_s = 0


def refused(company: Company, answer: httpx.Response, reason: str) -> None:
    assert answer.status_code == 401
    assert "You could not be signed in" in answer.text
    assert reason not in answer.text
    assert [frame.reason for frame in company.running.host.heard(frames.AuthFailed)] == [reason]
    company.running.host.told.clear()


# In a browser --------------------------------------------------------------------------------------------------------


def test_somebody_signs_in_looks_and_signs_out(company, browse):
    window = browse(running=company.running, certificate=None)
    window.page.context.route("https://fonts.googleapis.com/**", lambda route: route.abort())
    window.open("/console/records/5")
    window.page.click("text=Sign in with your organisation")
    window.page.fill("input[name=login]", "ada")
    window.page.fill("input[name=password]", "x")
    window.page.click("button[type=submit]")
    window.page.click("button[type=submit]")  # consent
    window.page.wait_for_selector("h1:has-text('Record 5')")
    assert window.page.url == f"{company.base}/console/records/5"
    assert "ada of oversight" in window.page.inner_text(".who")
    cookies = {cookie["name"]: cookie for cookie in window.page.context.cookies(company.base)}
    mine = cookies[SESSION]
    assert (mine["httpOnly"], mine["secure"], mine["sameSite"], mine["path"]) == (True, True, "Strict", "/")
    assert SIGN_IN not in cookies
    assert window.page.evaluate("document.cookie") == ""
    caller = company.running.host.heard(frames.AuditRead)[-1].caller
    assert (caller.tenant, caller.subject, caller.authn) == ("oversight", "ada", "jwt")

    window.page.click("text=Sign out")
    window.page.wait_for_selector("h1:has-text('Signed out')")
    assert SESSION not in {cookie["name"] for cookie in window.page.context.cookies(company.base)}
    assert window.open("/console").status == 401


# By hand -------------------------------------------------------------------------------------------------------------


def test_the_request_to_the_provider_is_as_it_should_be(company):
    begun = company.console().get("/console/sign-in/provider")
    asked = {name: value[0] for name, value in parse_qs(urlsplit(begun.headers["location"]).query).items()}
    assert asked["response_type"] == "code"
    assert asked["code_challenge_method"] == "S256"
    assert len(asked["code_challenge"]) == 43
    assert len(asked["state"]) == 32
    assert asked["resource"] == RESOURCE
    assert asked["redirect_uri"] == f"{company.base}/console/signed-in"
    cookie = begun.headers["set-cookie"].lower()
    assert cookie.startswith(SIGN_IN.lower())
    assert all(word in cookie for word in ("httponly", "secure", "samesite=lax", "path=/", "max-age=600"))
    assert asked["state"] not in begun.headers["set-cookie"]


def test_a_session_is_judged_on_every_page(company):
    console = company.sign_in()
    assert console.get("/console").status_code == 200
    company.running.clock.later_s = 601  # the token's life
    company.running.host.told.clear()
    refused(company, console.get("/console"), "session-invalid")


def test_a_revoked_caller_is_out_at_once(company):
    console = company.sign_in()
    state = str(company.running.deployment.root)
    arguments = ["--subject", "ada", "--tenant", "oversight"]
    assert main(["token", "revoke", state, *arguments]) == 0
    try:
        refused(company, console.get("/console"), "token-revoked")
    finally:
        assert main(["token", "restore", state, *arguments]) == 0
    assert console.get("/console").status_code == 200


def test_every_gateway_process_knows_the_session(company):
    console = company.sign_in()
    other = Running(company.running.deployment, company.running.host)
    try:
        browser = other.client()
        browser.cookies.update(console.cookies)
        assert browser.get("/console").status_code == 200
    finally:
        other.close()


def test_a_session_is_for_the_console_only(company):
    assert company.sign_in().get("/audit/v1/records").status_code == 401


def test_an_answer_belongs_to_the_browser_that_asked(company):
    mine, theirs = company.console(), company.console()
    back = company.way_in(mine)
    refused(company, theirs.get(back), "session-invalid")  # it began nothing
    theirs.get("/console/sign-in/provider")
    refused(company, theirs.get(back), "sign-in-failed")  # it began another one
    assert mine.get(back).status_code == 200


def test_a_code_counts_once(company):
    console = company.console()
    begun = console.get("/console/sign-in/provider")
    with company.person() as browser:
        back = company.consent(browser, begun.headers["location"])
    kept = dict(console.cookies)
    assert console.get(back).status_code == 200
    again = company.console()
    again.cookies.update({SIGN_IN: kept[SIGN_IN]})
    refused(company, again.get(back), "sign-in-failed")


@pytest.mark.parametrize(
    "change",
    [
        {"state": "x"},
        {"state": ""},
        {"code": "x"},
        {"code": ""},
        {"code": "c" * 3000},
        {"iss": "https://evil.example"},
        {"iss": ""},
        {"error": "access_denied"},
    ],
    ids=lambda change: "-".join(f"{name}={value[:12]}" for name, value in change.items()),
)
def test_a_changed_answer_signs_nobody_in(company, change):
    console = company.console()
    back = urlsplit(company.way_in(console))
    given = {name: value[0] for name, value in parse_qs(back.query).items()} | change
    answer = console.get("/console/signed-in", params=given)
    refused(company, answer, "sign-in-failed")
    assert SESSION not in answer.headers.get("set-cookie", "")


@pytest.mark.parametrize("name", ["code", "state"])
def test_a_repeated_parameter_signs_nobody_in(company, name):
    console = company.console()
    back = company.way_in(console)
    refused(company, console.get(f"{back}&{name}=again"), "sign-in-failed")


def test_a_token_that_was_made_for_another_program_signs_nobody_in(company, monkeypatch):
    console = company.console()
    back = company.way_in(console)

    async def another(*_):
        return company.provider.token()  # good, of this issuer, for this audience

    monkeypatch.setattr("gateway.console.provider.SignInProvider._exchanged", another)
    refused(company, console.get(back), "sign-in-failed")


def test_who_may_not_read_is_told_so_after_signing_in(company, monkeypatch):
    """Being somebody is not being an auditor: the policy decides on the first page."""
    console = company.sign_in()
    company.running.host.told.clear()
    permit = type(company.running.gate.policy)._ask
    monkeypatch.setattr(
        type(company.running.gate.policy), "_ask", lambda self, *_, **__: self._deny("no-policy-permits")
    )
    company.running.gate.policy._cache.clear()
    assert console.get("/console").status_code == 403
    monkeypatch.setattr(type(company.running.gate.policy), "_ask", permit)
    company.running.gate.policy._cache.clear()


def test_a_provider_that_is_away_is_said_to_be(company):
    console = company.console()
    back = company.way_in(console)
    company.provider.down()
    try:
        answer = console.get(back)
        assert answer.status_code == 503
        assert "sign-in provider cannot be reached" in answer.text
        (line, *_) = company.running.events("sign-in")[-1:]
        assert line["detail"] == "the provider cannot be used: the connection failed (ConnectError)"
    finally:
        company.provider.up()


def test_a_client_with_a_secret(provisioned, tmp_path):
    port = free_port()
    registered = client("console", port, token_endpoint_auth_method="client_secret_basic", client_secret=SECRET)
    with (
        running_provider(tmp_path, resource=RESOURCE, people=True, more_clients=[registered]) as provider,
        copied(provisioned) as deployment,
        hosted(deployment) as host,
        filled(deployment),
    ):
        (deployment.root / "console.secret").write_text(f"{SECRET}\n")
        changed = configured(deployment, provider, port, client_secret_file="console.secret")
        running = Running(changed, host, port=port)
        try:
            assert Company(provider, running).sign_in().get("/console").status_code == 200
        finally:
            running.close()


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"issuer": "https://nobody.example"}, "must be an issuer of tokens/issuers.toml"),
        ({"client_id": ""}, "console.client_id is needed"),
        ({"issuer": ""}, "means nothing without console.issuer"),
        ({"base_url": "http://localhost"}, "https"),
        ({"client_secret_file": "missing"}, "the console's client secret cannot be read"),
    ],
)
def test_settings_that_cannot_work_stop_the_start(company, settings, said):
    from gateway.console.router import open_console

    section = msgspec.structs.replace(company.running.deployment.settings.console, **settings)
    deployment = company.running.deployment
    changed = Deployment(deployment.root, msgspec.structs.replace(deployment.settings, console=section))
    with pytest.raises(ConfigurationError) as refusal:
        open_console(changed, company.running.gate)
    assert said in str(refusal.value)
