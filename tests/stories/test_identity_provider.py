"""A real OpenID provider and a real gateway: discovery, rotation under load, outages, floods, tokens that are bound.

The provider is npm's oidc-provider on loopback HTTPS (tests/peers); nothing between it and the gateway is a double.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway import pki
from sealgate.deployment import Deployment
from sealgate.protocol import frames
from tests.adversary.forge import Forge, jws, key
from tests.gateway.conftest import Running, copied, hosted, post_sealed, provisioned
from tests.peers.identity_provider import MTLS, PLAIN, SELF_SIGNED, Credentials, IdentityProvider, running_provider

__all__ = ["provisioned"]  # a fixture of the gateway's tests, taken over

COOLDOWN_S = 1
FRESH_S, STALE_S = 60, 120


def authority_of(deployment: Deployment) -> pki.Authority:
    certificate = x509.load_pem_x509_certificate((deployment.pki / "ca.pem").read_bytes())
    return pki.Authority(certificate, load_pem_private_key((deployment.pki / "ca.key").read_bytes(), None))  # type: ignore[arg-type]


class Company:
    """A deployment that relies on the company's provider and has no issuer of its own."""

    def __init__(self, deployment: Deployment, folder: Path, provider: IdentityProvider) -> None:
        self.deployment = deployment
        self.folder = folder
        self.provider = provider
        (deployment.tokens / "provider-ca.pem").write_bytes(provider.ca.read_bytes())
        (deployment.tokens / "issuers.toml").write_text(
            f"""
[[issuer]]
name = "{provider.issuer}"
discovery = true
ca = "provider-ca.pem"
algorithms = ["ES256", "EdDSA"]
tenants = ["clinic"]
stale_s = {STALE_S}
unknown_key_cooldown_s = {COOLDOWN_S}
"""
        )

    @contextmanager
    def gateway(self) -> Iterator[Running]:
        with hosted(self.deployment) as host:
            running = Running(self.deployment, host)
            try:
                yield running
            finally:
                running.close()


@pytest.fixture
def company(provisioned: Path, tmp_path: Path) -> Iterator[Company]:
    with copied(provisioned) as deployment:
        audience, authority = deployment.token_audience, authority_of(deployment)
        with running_provider(tmp_path, resource=audience, authority=authority, ttl_s=900) as provider:
            yield Company(deployment, tmp_path, provider)


@pytest.fixture
def gateway(company: Company) -> Iterator[Running]:
    with company.gateway() as running:
        yield running


def status(client: httpx.Client, token: str) -> int:
    return post_sealed(client, Authorization=f"Bearer {token}").status_code


def reasons(gateway: Running, count: int = 1) -> Counter[str]:
    """Why so many callers were refused, as the host was told."""
    return Counter(frame.reason for frame in gateway.host.heard(frames.AuthFailed, count))


def past_the_cooldown(gateway: Running) -> None:
    gateway.clock.later_s += COOLDOWN_S + 0.1


# Discovery -----------------------------------------------------------------------------------------------------------


def test_a_token_of_the_companys_provider_is_a_caller_and_the_provider_is_asked_once(
    company: Company, gateway: Running
) -> None:
    client = gateway.client()
    for _ in range(20):
        assert status(client, company.provider.token()) == 200
    submitted = gateway.host.heard(frames.Submit, 20)
    assert {(frame.caller.tenant, frame.caller.subject, frame.caller.authn) for frame in submitted} == {
        ("clinic", PLAIN, "jwt")
    }
    asked = company.provider.fetches()
    assert (asked["metadata"], asked["jwks"]) == (1, 1)


@pytest.mark.parametrize("alg", ["EdDSA", "RS256"])
def test_only_the_algorithms_of_the_issuers_entry_count(company: Company, gateway: Running, alg: str) -> None:
    company.provider.sign_with(company.provider.add_key(alg))
    expected = {"EdDSA": 200, "RS256": 401}[alg]
    assert status(gateway.client(), company.provider.token()) == expected


def test_a_provider_at_another_name_than_it_says_is_not_believed(company: Company) -> None:
    """The same server by another address of it: its metadata names another issuer, so it is somebody else."""
    path = company.deployment.tokens / "issuers.toml"
    path.write_text(path.read_text().replace('"\ndiscovery', '/"\ndiscovery'))
    with company.gateway() as gateway:
        assert status(gateway.client(), company.provider.token()) == 401  # the token's iss is not the configured one
        gateway.until(lambda: bool(gateway.events("issuer-keys")))
        assert "another issuer's" in gateway.events("issuer-keys")[0]["detail"]


def test_a_provider_that_the_authority_does_not_vouch_for_is_not_believed(company: Company) -> None:
    other = company.folder / "other"
    other.mkdir()
    with running_provider(other, resource=company.deployment.token_audience) as stranger:
        (company.deployment.tokens / "provider-ca.pem").write_bytes(stranger.ca.read_bytes())
        with company.gateway() as gateway:
            assert status(gateway.client(), company.provider.token()) == 401
            assert reasons(gateway) == {"keys-unavailable": 1}


# Rotation ------------------------------------------------------------------------------------------------------------


class Load:
    """Callers that ask without pause, each with a token that it renews now and then."""

    def __init__(self, company: Company, gateway: Running, callers: int) -> None:
        self._company, self._gateway = company, gateway
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self.answers = Counter[int]()
        self._pool = ThreadPoolExecutor(callers)
        self._work = [self._pool.submit(self._call) for _ in range(callers)]

    def _call(self) -> None:
        with self._gateway.client() as client:
            while not self._stop.is_set():
                token = self._company.provider.token()
                for _ in range(10):
                    answer = status(client, token)
                    with self._turn:
                        self.answers[answer] += 1

    def more(self, count: int) -> None:
        """Wait until that many more requests were answered."""
        wanted = self.answers.total() + count
        self._gateway.until(lambda: self.answers.total() >= wanted or any(one.done() for one in self._work))

    def stop(self) -> None:
        self._stop.set()
        for one in self._work:
            one.result(60)
        self._pool.shutdown()


def test_keys_rotate_under_load_without_a_dropped_request(company: Company, gateway: Running) -> None:
    """The hard way, three times: the new key signs the moment it is published, and the gateway has not heard of it."""
    load = Load(company, gateway, callers=3)
    old = [company.provider.kid]
    try:
        for _ in range(3):
            load.more(30)
            fetched = company.provider.fetches()["jwks"]
            past_the_cooldown(gateway)
            old.append(company.provider.add_key())
            company.provider.sign_with(old[-1])
            gateway.until(lambda before=fetched: company.provider.fetches()["jwks"] > before)
        load.more(30)
    finally:
        load.stop()
    assert set(load.answers) == {200}
    assert load.answers.total() >= 120
    assert company.provider.fetches()["jwks"] <= 1 + 3 * 2  # for each rotation one, or two where it fell between


def test_a_withdrawn_key_ends_with_the_next_fetch_and_takes_its_remembered_tokens_along(
    company: Company, gateway: Running
) -> None:
    client, provider = gateway.client(), company.provider
    before = provider.token()
    assert status(client, before) == 200
    new = provider.add_key()
    provider.sign_with(new)
    provider.withdraw(provider.kid)
    assert status(client, before) == 200  # nobody has asked yet
    past_the_cooldown(gateway)
    after = provider.token()
    assert status(client, after) == 200  # an unknown key: asked
    past_the_cooldown(gateway)
    assert status(client, before) == 401
    assert reasons(gateway) == {"key-unknown": 1}
    assert status(client, after) == 200


# Outages -------------------------------------------------------------------------------------------------------------


def test_with_the_provider_down_known_keys_serve_for_a_time_and_then_nothing_does(
    company: Company, gateway: Running
) -> None:
    client, provider = gateway.client(), company.provider
    provider.cache_control(f"max-age={FRESH_S}")
    token = provider.token()
    past_the_cooldown(gateway)
    provider.sign_with(provider.add_key())
    newer = provider.token()
    assert status(client, newer) == 200  # this fetch had the max-age
    provider.down()
    gateway.clock.later_s += FRESH_S + STALE_S - 10
    assert [status(client, one) for one in (token, newer)] == [200, 200]
    gateway.clock.later_s += 20
    assert [status(client, one) for one in (token, newer)] == [401, 401]
    assert reasons(gateway, 2) == {"keys-unavailable": 2}
    provider.up()
    past_the_cooldown(gateway)
    assert [status(client, one) for one in (token, newer)] == [200, 200]


def test_a_gateway_starts_while_its_provider_is_down_and_heals_without_a_restart(company: Company) -> None:
    token = company.provider.token()
    company.provider.down()
    with company.gateway() as gateway:
        client = gateway.client()
        assert client.get("/health/live").status_code == 200
        assert status(client, token) == 401
        assert reasons(gateway) == {"keys-unavailable": 1}
        company.provider.up()
        past_the_cooldown(gateway)
        assert status(client, token) == 200


@pytest.mark.parametrize("fault", ["status", "garbage", "oversize", "redirect"])
def test_whatever_a_broken_provider_answers_the_keys_stay_as_they_were(
    company: Company, gateway: Running, fault: str
) -> None:
    client, provider = gateway.client(), company.provider
    known = provider.token()
    assert status(client, known) == 200
    provider.fault(fault)
    provider.sign_with(provider.add_key())
    unknown = provider.token()
    past_the_cooldown(gateway)
    assert [status(client, unknown), status(client, known)] == [401, 200]
    assert reasons(gateway) == {"key-unknown": 1}
    assert gateway.events("issuer-keys")
    provider.fault(None)
    past_the_cooldown(gateway)
    assert [status(client, unknown), status(client, known)] == [200, 200]


def test_a_provider_that_stalls_holds_up_nobody_whose_key_is_known(company: Company, gateway: Running) -> None:
    provider = company.provider
    known = provider.token()
    with gateway.client() as client, gateway.client() as other, ThreadPoolExecutor(1) as pool:
        assert status(client, known) == 200
        fetched = provider.fetches()
        provider.fault("stall")
        provider.sign_with(provider.add_key())
        unknown = provider.token()
        past_the_cooldown(gateway)
        held = pool.submit(status, other, unknown)
        gateway.until(lambda: sum(provider.fetches().values()) > sum(fetched.values()) + 1)  # the gateway is asking
        assert [status(client, known) for _ in range(20)] == [200] * 20
        assert not held.done()
        provider.fault(None)
        assert held.result(60) == 401  # what it waited for failed
        past_the_cooldown(gateway)
        assert status(client, unknown) == 200


# Floods --------------------------------------------------------------------------------------------------------------


def test_a_flood_of_invented_key_names_costs_the_provider_one_fetch_in_a_cooldown(
    company: Company, gateway: Running
) -> None:
    provider = company.provider
    good = provider.token()
    forge = Forge(company.deployment.token_audience)
    callers, each = 4, 60

    def flood(which: int) -> Counter[int]:
        answers = Counter[int]()
        with gateway.client() as client:
            for number in range(each):
                header = {"typ": "at+jwt", "alg": "ES256", "kid": f"{which}-{number}"}
                token = jws(key("p256 attacker"), header, forge.claims(iss=provider.issuer))
                answers[status(client, token)] += 1
        return answers

    with gateway.client() as client:
        assert status(client, good) == 200
        fetched = provider.fetches()["jwks"]
        started = gateway.clock()
        with ThreadPoolExecutor(callers) as pool:
            work = [pool.submit(flood, which) for which in range(callers)]
            served = [status(client, good) for _ in range(30)]
            answers = sum((one.result(60) for one in work), Counter[int]())
        elapsed_s = (gateway.clock() - started) / 1e6
    assert set(served) == {200}
    assert answers == {401: callers * each}
    assert provider.fetches()["jwks"] - fetched <= 1 + elapsed_s / COOLDOWN_S


# Tokens bound to certificates (RFC 8705) -----------------------------------------------------------------------------


def install(deployment: Deployment, name: str, credentials: Credentials) -> None:
    """Where `Running.client` looks for client certificates."""
    folder = deployment.pki / "clients"
    (folder / f"{name}.pem").write_bytes(credentials.certificate.read_bytes())
    (folder / f"{name}.key").write_bytes(credentials.key.read_bytes())


def test_a_token_bound_to_a_certificate_needs_that_certificate(company: Company, gateway: Running) -> None:
    provider = company.provider
    install(company.deployment, MTLS, provider.machine)
    token = provider.token(MTLS, credentials=provider.machine)
    assert status(gateway.client(certificate=MTLS), token) == 200
    (submitted,) = gateway.host.heard(frames.Submit)
    assert (submitted.caller.tenant, submitted.caller.subject) == ("clinic", MTLS)
    assert status(gateway.client(), token) == 401
    assert status(gateway.client(certificate="integration"), token) == 401
    assert reasons(gateway, 2) == {"token-bound-elsewhere": 2}


def test_a_token_bound_to_a_self_signed_certificate_is_useless_here(company: Company, gateway: Running) -> None:
    """The provider knows that certificate, the gateway's authorities do not: no connection can show it."""
    provider = company.provider
    token = provider.token(SELF_SIGNED, credentials=provider.lone_machine)
    assert status(gateway.client(), token) == 401
    install(company.deployment, SELF_SIGNED, provider.lone_machine)
    with pytest.raises(httpx.TransportError):
        status(gateway.client(certificate=SELF_SIGNED), token)
