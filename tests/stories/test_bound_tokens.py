"""Our client, a real OpenID provider and a whole deployment: plain tokens, tokens of a certificate, tokens of a key.

The tenant demands tokens that are bound to something. The provider binds them, our client proves what they are bound
to, the gateway checks it, the policy demands it, and the log says how each caller showed who it is.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway import pki
from sealgate.ambient import now_us
from sealgate.client.credentials import ClientCertificate
from sealgate.client.dpop import DpopKey
from sealgate.client.errors import ServiceRefused, TokenUnavailable
from sealgate.client.token_source import ClientCredentials
from tests.adversary.forge import b64, decoded, jwk, jws, key, thumbprint
from tests.live import MODEL, Live, clone, wait_until
from tests.peers.identity_provider import DPOP, MTLS, PLAIN, SECRET, IdentityProvider, running_provider


class Site:
    """A live deployment whose only issuer is the provider, and whose tenant takes none but bound tokens."""

    def __init__(self, live: Live, provider: IdentityProvider) -> None:
        self.live = live
        self.provider = provider

    def source(self, client_id: str, **more: Any) -> ClientCredentials:
        settings: dict[str, Any] = {
            "ca_file": self.provider.ca,
            "resources": [self.provider.resource],
            "trust_env": False,
        }
        return ClientCredentials(self.provider.token_endpoint, client_id=client_id, **settings, **more)


def authority_of(live: Live) -> pki.Authority:
    certificate = x509.load_pem_x509_certificate((live.deployment.pki / "ca.pem").read_bytes())
    private = load_pem_private_key((live.deployment.pki / "ca.key").read_bytes(), None)
    return pki.Authority(certificate, private)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def site(template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    live = clone(template.folder, template.rows)
    folder = tmp_path_factory.mktemp("provider")
    try:
        deployment = live.deployment
        with running_provider(
            folder, resource=deployment.token_audience, authority=authority_of(live), ttl_s=600, dpop_nonce=True
        ) as provider:
            (deployment.tokens / "provider-ca.pem").write_bytes(provider.ca.read_bytes())
            (deployment.tokens / "issuers.toml").write_text(
                f'[[issuer]]\nname = "{provider.issuer}"\ndiscovery = true\nca = "provider-ca.pem"\n'
                'algorithms = ["ES256"]\ntenants = ["clinic"]\nunknown_key_cooldown_s = 1\n'
            )
            tenants = deployment.policy / "tenants.toml"
            text, changes = re.subn(
                r'(?m)^token_binding = "none"', 'token_binding = "any"', tenants.read_text(), count=1
            )
            assert changes == 1
            tenants.write_text(text)
            live.start()
            live.ready()
            yield Site(live, provider)
    finally:
        live.stop()
        shutil.rmtree(live.root.parent, ignore_errors=True)


def reasons_in_the_log(site: Site, *wanted: str) -> None:
    def there() -> bool:
        found = {record.reason for record in site.live.records() if record.kind == "auth.failed"}
        return found >= set(wanted)

    wait_until(there, within_s=60, what=f"{wanted} in the log")


# Our client ----------------------------------------------------------------------------------------------------------


def test_our_client_holds_a_key_and_proves_it_to_provider_and_gateway(site: Site) -> None:
    held = DpopKey.generate()
    with (
        site.source(DPOP, client_secret=SECRET, dpop_key=held) as source,
        site.live.session(token=source, dpop_key=held) as session,
    ):
        results = [session.infer(MODEL, site.live.rows[:2]) for _ in range(5)]
        token = source()
    assert decoded(token.split(".")[1])["cnf"] == {"jkt": held.jkt}
    assert {result.receipt.record.authn for result in results} == {"jwt"}
    assert len({result.receipt.index for result in results}) == 5


def test_our_client_shows_the_certificate_that_its_token_is_bound_to(site: Site) -> None:
    machine = site.provider.machine
    with (
        site.source(MTLS, certificate=ClientCertificate(machine.certificate, machine.key)) as source,
        site.live.session(token=source, certificate=(machine.certificate, machine.key)) as session,
    ):
        assert session.infer(MODEL, site.live.rows[:1]).labels


def test_a_token_that_is_bound_to_nothing_is_known_and_denied(site: Site) -> None:
    with (
        site.source(PLAIN, client_secret=SECRET) as source,
        site.live.session(token=source) as session,
        pytest.raises(ServiceRefused) as caught,
    ):
        session.infer(MODEL, site.live.rows[:1])
    assert caught.value.status == 403
    denied = [record for record in site.live.records() if record.kind == "inference.denied"]
    assert denied


def test_our_client_without_the_key_or_with_another_gets_nothing(site: Site) -> None:
    held = DpopKey.generate()
    with site.source(DPOP, client_secret=SECRET, dpop_key=held) as source:
        token = source()
        for wrong in (None, DpopKey.generate()):
            with site.live.session(token=token, dpop_key=wrong) as session, pytest.raises(ServiceRefused) as caught:
                session.infer(MODEL, site.live.rows[:1])
            assert caught.value.status == 401
        with site.live.session(token=token, dpop_key=held) as session:
            assert session.infer(MODEL, site.live.rows[:1]).labels
    reasons_in_the_log(site, "scheme-mismatch", "proof-key-mismatch")


def test_our_client_says_in_one_line_why_it_has_no_token(site: Site) -> None:
    for client_id, secret in ((PLAIN, "wrong"), ("nobody", SECRET)):
        with (
            site.source(client_id, client_secret=secret) as source,
            pytest.raises(TokenUnavailable, match="invalid_client") as caught,
        ):
            source()
        assert secret not in str(caught.value)
    with site.source(DPOP, client_secret=SECRET) as source, pytest.raises(TokenUnavailable):
        source()  # this client has to prove a key


def test_callers_are_served_while_the_key_rotates(site: Site) -> None:
    """Three callers of our client. The new key signs the moment that it is published."""
    stop, failures, served = threading.Event(), [], [0, 0, 0]
    held = DpopKey.generate()

    def call(which: int) -> None:
        try:
            while not stop.is_set():
                with (
                    site.source(DPOP, client_secret=SECRET, dpop_key=held) as source,
                    site.live.session(token=source, dpop_key=held) as session,
                ):
                    for _ in range(3):
                        assert session.infer(MODEL, site.live.rows[:1]).labels
                        served[which] += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()

    def more(count: int) -> None:
        wanted = sum(served) + count
        wait_until(lambda: failures or sum(served) >= wanted, within_s=60, what="more answers")

    try:
        more(6)
        fetched = site.provider.fetches()["jwks"]
        site.provider.sign_with(site.provider.add_key())
        wait_until(
            lambda: failures or site.provider.fetches()["jwks"] > fetched, within_s=30, what="the gateway asks for keys"
        )
        more(6)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


# By hand -------------------------------------------------------------------------------------------------------------


class ByHand:
    """A client of the provider's and the gateway's that shares no code with either."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.name = "p256 by hand"
        self.public = jwk(key(self.name).public_key())
        self.nonces: dict[str, str] = {}
        self.count = 0

    def proof(self, url: str, *, method: str = "POST", **claims: Any) -> str:
        self.count += 1
        stated = {"jti": f"by-hand-{self.count}", "htm": method, "htu": url, "iat": now_us() // 1_000_000, **claims}
        return jws(key(self.name), {"typ": "dpop+jwt", "alg": "ES256", "jwk": self.public}, stated)

    def token(self) -> str:
        endpoint = self.site.provider.token_endpoint
        first = self.site.provider.ask(DPOP, headers={"DPoP": self.proof(endpoint)})
        assert first.json()["error"] == "use_dpop_nonce"
        second = self.site.provider.ask(
            DPOP, headers={"DPoP": self.proof(endpoint, nonce=first.headers["dpop-nonce"])}
        )  # fmt: skip
        assert second.json()["token_type"] == "DPoP"
        return str(second.json()["access_token"])


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with site.live.http() as made:
        yield made


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_by_hand_as_the_standard_says(site: Site, client: httpx.Client) -> None:
    """A nonce is asked for and given; the proof then counts once, for one address, and not without its scheme."""
    hand = ByHand(site)
    token = hand.token()
    assert decoded(token.split(".")[1])["cnf"] == {"jkt": thumbprint(hand.public)}
    url = f"{site.live.url}/sealed/{MODEL}"

    def send(proof: str, *, scheme: str = "DPoP", address: str = url) -> httpx.Response:
        headers = {"Authorization": f"{scheme} {token}", "DPoP": proof, "Purpose": "treatment"}
        return client.post(address, headers=headers, content=b"x")

    ath = b64(sha256(token))
    asked = send(hand.proof(url, ath=ath))
    assert asked.status_code == 401
    assert 'error="use_dpop_nonce"' in asked.headers["www-authenticate"]
    nonce = asked.headers["dpop-nonce"]
    good = hand.proof(url, ath=ath, nonce=nonce)
    assert send(good).status_code == 415  # past the door: now the body is looked at
    assert send(good).status_code == 401
    assert send(hand.proof(url, ath=ath, nonce=nonce), scheme="Bearer").status_code == 401
    assert send(hand.proof(url + "x", ath=ath, nonce=nonce)).status_code == 401
    assert send(hand.proof(url, ath=b64(sha256("x")), nonce=nonce)).status_code == 401
    reasons_in_the_log(
        site, "proof-nonce-stale", "proof-replayed", "scheme-mismatch", "proof-url-mismatch", "proof-token-mismatch"
    )
