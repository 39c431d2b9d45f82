"""Every known way to pass for the holder of a client certificate, over real handshakes and behind a trusted proxy.

What a handshake refuses never becomes a request. What becomes one gets the uniform answer, and the host the reason.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import random
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.errors import AUTHENTICATION_FAILURES
from sealgate.deployment import open_deployment
from tests.adversary.conftest import MATRIX, Target, add_realms
from tests.adversary.forge import b64
from tests.adversary.wire import Seen, Wire
from tests.gateway.conftest import Running, copied, hosted
from tests.gateway.issuing import DAY, Ca, accept, install, key_pem, now, pem, publish
from tests.peers.components import require_program

INTEGRATION = "URI:urn:sealgate:client:integration"
PROXY = "DNS:proxy.internal"
WARD = "URI:spiffe://hospital.example/ward"

RULES = f"""
[[client]]
certificate = "{WARD}/*"
tenant = "clinic"
subject_from = "certificate"
roles = ["client"]
purposes = ["treatment"]

[[client]]
certificate = "{PROXY}"
tenant = "clinic"
subject = "never-this-one"
roles = ["client"]
purposes = ["treatment"]
"""


class Ours(Ca):
    """The deployment's own authority, in the hands of a test."""

    def __init__(self, pki: Path) -> None:
        self.certificate = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes())
        self.key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
        self.name = self.certificate.subject


class Site(Target):
    """A gateway with a partner's authority, SPIFFE rules and a trusted proxy, and hands to make certificates."""

    def __init__(self, running: Running) -> None:
        super().__init__(running)
        self.pki = running.deployment.pki
        self.ours = Ours(self.pki)
        self.partner = Ca("Partner CA")
        accept(self.pki, "partner", self.partner)
        self._names = 0

    def wire_with(self, leaf: Any, *above: x509.Certificate) -> Wire:
        """A connection that shows this certificate, and those above it."""
        self._names += 1
        name = f"attack-{self._names}"
        install(self.pki, name, leaf, *above)
        return Wire(self.running.port, self.running.tls(name))

    def stored(self, name: str) -> Any:
        folder = self.pki / "clients"
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
        return x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes()), key

    def shut_out(self, attack: str, wire: Wire) -> None:
        """The handshake fails, or the connection ends before any answer."""
        with wire, pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            self.ask(wire=wire)
        assert not self.running.host.told, attack
        MATRIX[attack] = ("no handshake", "nothing")


@pytest.fixture(scope="module")
def _site(provisioned: Path) -> Iterator[Site]:
    with copied(provisioned) as deployment:
        with (deployment.policy / "tenants.toml").open("a") as file:
            file.write(RULES)
        add_realms(deployment)
        settings = deployment.root / "deployment.toml"
        settings.write_text(settings.read_text().replace("[gateway]\n", f'[gateway]\ntrusted_proxies = ["{PROXY}"]\n'))
        changed = open_deployment(deployment.root)
        with hosted(changed) as host:
            running = Running(changed, host)
            made = Site(running)
            yield made
            made.wire.close()
            running.close()


@pytest.fixture
def site(_site: Site) -> Site:
    _site.running.host.told.clear()
    return _site


# Handshakes ----------------------------------------------------------------------------------------------------------


class Twin(Ca):
    """An authority of the same name and the same key identifier as another, but with a key of its own."""

    def __init__(self, other: Ca) -> None:
        self._known_as = x509.SubjectKeyIdentifier.from_public_key(other.key.public_key())
        super().__init__()
        self.name = other.certificate.subject
        public = self.certificate
        self.certificate = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(public.not_valid_before_utc)
            .not_valid_after(public.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(self._known_as, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier(self._known_as.digest, None, None)


def namesake(other: Ca) -> Ca:
    """An authority of the same name alone."""
    made = Ca()
    made.name = other.certificate.subject
    return made


def below_a_client(site: Site) -> tuple[Any, x509.Certificate]:
    """Issued by a client certificate, which is no authority."""
    certificate, key = site.stored("integration")
    issuer = Ca("integration")
    issuer.certificate, issuer.key, issuer.name = certificate, key, certificate.subject
    return issuer.client(INTEGRATION), certificate


SHUT_OUT: dict[str, Callable[[Site], tuple[Any, ...]]] = {
    "an authority of its own": lambda site: (Ca("rogue").client(INTEGRATION),),
    "an authority of our name": lambda site: (namesake(site.ours).client(INTEGRATION),),
    "an authority of our name and key identifier": lambda site: (Twin(site.ours).client(INTEGRATION),),
    "... sending that authority along": lambda site: (
        lambda rogue: (rogue.client(INTEGRATION), rogue.certificate)
    )(Twin(site.ours)),
    "issued by a client certificate": below_a_client,
    "expired yesterday": lambda site: (
        site.ours.client(INTEGRATION, begins=now() - 9 * DAY, ends=now() - DAY),
    ),
    "valid from tomorrow": lambda site: (site.ours.client(INTEGRATION, begins=now() + DAY),),
    "a server's certificate": lambda site: (site.ours.client(INTEGRATION, purpose=ExtendedKeyUsageOID.SERVER_AUTH),),
    "a certificate for signing code": lambda site: (
        site.ours.client(INTEGRATION, purpose=ExtendedKeyUsageOID.CODE_SIGNING),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHUT_OUT)
def test_a_certificate_that_no_accepted_authority_stands_behind_makes_no_connection(site: Site, name: str) -> None:
    site.shut_out(f"certificate: {name}", site.wire_with(*SHUT_OUT[name](site)))


def test_somebody_elses_certificate_needs_its_key(site: Site) -> None:
    """The certificate is public. Libraries refuse to load a wrong key; OpenSSL's own client is told not to look."""
    certificate, _ = site.stored("integration")
    stranger = ec.generate_private_key(ec.SECP256R1())
    folder = site.pki / "clients"
    (folder / "public.pem").write_bytes(pem(certificate))
    (folder / "public.key").write_bytes(key_pem(stranger))
    with pytest.raises(ssl.SSLError):
        site.running.tls("public")


def s_client(site: Site, *arguments: str, certificate: str = "", said: bytes = b"") -> str:
    """OpenSSL's client as a foreign one; what it prints."""
    openssl = require_program("openssl")
    if certificate:
        folder = site.pki / "clients"
        arguments += ("-cert", str(folder / f"{certificate}.pem"), "-key", str(folder / f"{certificate}.key"))
    line = [openssl, "s_client", "-connect", f"127.0.0.1:{site.running.port}", "-servername", "localhost"]
    done = subprocess.run(
        [*line, "-CAfile", str(site.pki / "ca.pem"), *arguments],
        input=said,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return (done.stdout + done.stderr).decode("utf-8", "replace")


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_older_tls_is_not_spoken(site: Site, version: str) -> None:
    said = s_client(site, version, "-cipher", "ALL:@SECLEVEL=0", certificate="integration", said=b"Q\n")
    assert "Cipher is (NONE)" in said
    MATRIX[f"certificate: {version[1:]}, and with it renegotiation"] = ("no handshake", "nothing")


def test_a_session_cannot_be_resumed_after_its_certificate_was_revoked(site: Site, tmp_path: Path) -> None:
    session = tmp_path / "session.pem"
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    first = s_client(site, "-ign_eof", "-sess_out", str(session), certificate="integration", said=request)
    assert "TLSv1.3" in first
    assert '{"live":true}' in first
    assert not session.exists()  # no ticket was given, so there is no session to come back with
    MATRIX["certificate: a resumed session (openssl -sess_out, -sess_in)"] = ("no ticket", "nothing")


def test_early_data_is_not_taken(site: Site, tmp_path: Path) -> None:
    said = s_client(site, certificate="integration", said=b"Q\n")
    assert "Max Early Data: 0" in said or "Early data was not sent" in said


# Names ---------------------------------------------------------------------------------------------------------------

NOBODYS = {
    "a name in other letters": ["URI:urn:sealgate:client:INTEGRATION"],
    "a longer name": ["URI:urn:sealgate:client:integration2"],
    "a shorter name": ["URI:urn:sealgate:client:integratio"],
    "the name with a space": ["URI:urn:sealgate:client:integration "],
    "the name with a zero byte": ["URI:urn:sealgate:client:integration\x00.evil.example"],
    "the name with a line break": ["URI:x\nURI:urn:sealgate:client:integration"],
    "the name as a host": ["DNS:urn:sealgate:client:integration"],
    "the name as a mailbox": ["email:urn:sealgate:client:integration"],
    "two names that stand for two clients": [INTEGRATION, "URI:urn:sealgate:client:auditor"],
    "the path itself": [WARD],
    "the path with a slash": [f"{WARD}/"],
    "a path beside it": [f"{WARD}s/robot"],
    "a path that leads out": [f"{WARD}/../admin"],
    "a path that leads out, in one step more": [f"{WARD}/x/../../admin"],
    "a path that leads out, escaped": [f"{WARD}/%2e%2e/admin"],
    "a path with a dot": [f"{WARD}/./robot"],
    "a double slash": [f"{WARD}//robot"],
    "a star": [f"{WARD}/*"],
    "a query": [f"{WARD}/robot?x"],
    "a fragment": [f"{WARD}/robot#x"],
    "another trust domain": [f"{WARD}/robot".replace("hospital.example", "evil.example")],
    "a longer trust domain": [f"{WARD}/robot".replace("hospital.example", "hospital.example.evil")],
    "the trust domain in capitals": [f"{WARD}/robot".replace("hospital", "HOSPITAL")],
    "the trust domain with a user": [f"{WARD}/robot".replace("hospital", "user@hospital")],
    "the trust domain with a port": [f"{WARD}/robot".replace("example", "example:443")],
    "the scheme in capitals": [f"{WARD}/robot".replace("spiffe", "SPIFFE")],
    "two SPIFFE IDs": [f"{WARD}/robot", f"{WARD}/nurse"],
    "a SPIFFE ID beside another URI": [f"{WARD}/robot", "https://hospital.example/"],
}


@pytest.mark.parametrize("name", NOBODYS)
def test_a_certificate_of_ours_with_another_name_stands_for_nobody(site: Site, name: str) -> None:
    names = [text if ":" in text[:6] else f"URI:{text}" for text in NOBODYS[name]]
    names = [f"URI:{text}" if text.startswith("https:") else text for text in names]
    with site.wire_with(site.ours.client(*names)) as wire:
        site.refused(f"certificate: {name}", site.ask(wire=wire), "certificate-unmapped", "certificate-malformed")


def test_a_common_name_does_not_stand_in_for_an_alternative_name(site: Site) -> None:
    for common in ("integration", "urn:sealgate:client:integration", INTEGRATION):
        with site.wire_with(site.ours.client(common=common)) as wire:
            site.refused("certificate: our name as common name", site.ask(wire=wire), "certificate-unmapped")


def test_what_the_attacks_are_made_from_is_let_in(site: Site) -> None:
    with site.wire_with(site.ours.client(INTEGRATION)) as wire:
        assert site.served(site.ask(wire=wire)).caller.subject == "hospital-integration"
    with site.wire_with(site.ours.client(f"{WARD}/robot")) as wire:
        caller = site.served(site.ask(wire=wire)).caller
        assert (caller.subject, caller.authn) == ("spiffe://hospital.example/ward/robot", "mtls")


@pytest.mark.parametrize("name", [INTEGRATION, "URI:urn:sealgate:client:auditor", f"{WARD}/robot", PROXY])
def test_a_partners_authority_cannot_make_our_clients(site: Site, name: str) -> None:
    with site.wire_with(site.partner.client(name)) as wire:
        site.refused(f"certificate: {name} by a partner's authority", site.ask(wire=wire), "certificate-unmapped")


def test_a_token_beside_another_tenants_certificate_gains_nothing_by_it(site: Site) -> None:
    """The token stays what it is, the connection does not count as mutual TLS for its tenant, and a token that is
    bound to a certificate does not go with another one, not even one of the same tenant."""
    auditor, _ = site.stored("auditor")
    token = site.forge.token()
    with site.wire_with(site.stored("auditor")) as wire:
        caller = site.served(site.bearer(token, wire=wire)).caller
        assert (caller.tenant, caller.subject, caller.authn) == ("clinic", "alice", "jwt")
        site.refused("certificate: a bad token beside it", site.bearer("x.y.z", wire=wire), "token-malformed")
    bound = site.forge.token(cnf={"x5t#S256": thumbprint(auditor)})
    for leaf in (site.stored("integration"), site.ours.client("URI:urn:sealgate:client:auditor")):
        with site.wire_with(leaf) as wire:
            seen = site.bearer(bound, wire=wire)
            site.refused("certificate: beside a token of another certificate", seen, "token-bound-elsewhere")


# Forged fields about a certificate -----------------------------------------------------------------------------------


def forwarded(certificate: x509.Certificate) -> str:
    return f":{base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()}:"


def thumbprint(certificate: x509.Certificate) -> str:
    return b64(certificate.fingerprint(hashes.SHA256()))


FIELDS = [
    "Client-Cert", "client-cert", "CLIENT-CERT", "Client_Cert", "X-Client-Cert", "X-SSL-Client-Cert", "SSL-Client-Cert",
    "X-Forwarded-Client-Cert", "X-Forwarded-Tls-Client-Cert", "X-ARR-ClientCert", "X-Amzn-Mtls-Clientcert",
    "X-Client-Certificate", "X-SSL-Cert",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_a_client_cannot_say_which_certificate_it_has(site: Site, field: str) -> None:
    certificate, _ = site.stored("integration")
    text = pem(certificate).decode().replace("\n", " ").strip()
    escaped = text.replace(" ", "%20")
    for value in (forwarded(certificate), text, escaped, f'Hash={thumbprint(certificate)};Cert="{escaped}"'):
        fields = [(field, value), ("X-SSL-Client-Verify", "SUCCESS"), ("X-Client-Verified", "SUCCESS")]
        site.refused(f"forged field: {field}", site.ask(fields), "no-credential")
    bound = site.forge.token(cnf={"x5t#S256": thumbprint(certificate)})
    fields = [(field, forwarded(certificate)), ("Authorization", f"Bearer {bound}")]
    site.refused(f"forged field: {field}, and its stolen token", site.ask(fields), "token-bound-elsewhere")


def test_a_client_with_a_certificate_of_its_own_cannot_swap_it(site: Site) -> None:
    certificate, _ = site.stored("integration")
    with site.wire_with(site.ours.client(f"{WARD}/robot")) as wire:
        fields = [("Client-Cert", forwarded(certificate)), ("Client-Cert-Chain", forwarded(site.ours.certificate))]
        submitted = site.served(site.ask(fields, wire=wire))
        assert submitted.caller.subject == "spiffe://hospital.example/ward/robot"
    MATRIX["forged field: Client-Cert beside another certificate"] = ("200 as itself", "itself")


def test_a_field_behind_the_body_is_no_field(site: Site) -> None:
    certificate, _ = site.stored("integration")
    lines = ["POST /sealed/wine HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", "Trailer: Client-Cert"]
    lines += [f"{name}: {value}" for name, value in site.plain_fields]
    trailers = f"Client-Cert: {forwarded(certificate)}\r\nAuthorization: Bearer {site.forge.token()}\r\n"
    raw = "\r\n".join(lines).encode() + b"\r\n\r\n" + b"%x\r\n" % len(site.body) + site.body
    seen = site.wire.send(raw + b"\r\n0\r\n" + trailers.encode() + b"\r\n")
    site.refused("forged field: in a trailer", seen, "no-credential")


# Behind a trusted proxy ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(_site: Site) -> Iterator[Wire]:
    """The connection of a proxy that the gateway trusts."""
    with _site.wire_with(_site.ours.client(PROXY)) as wire:
        yield wire


def behind(site: Site, proxy: Wire, certificate: x509.Certificate | str, **more: str) -> Seen:
    value = certificate if isinstance(certificate, str) else forwarded(certificate)
    fields = [("Client-Cert", value), *((name.replace("_", "-"), text) for name, text in more.items())]
    return site.ask(fields, wire=proxy)


def test_what_a_trusted_proxy_forwards_is_judged_like_what_is_shown_here(site: Site, proxy: Wire) -> None:
    integration, _ = site.stored("integration")
    caller = site.served(behind(site, proxy, integration)).caller
    assert (caller.subject, caller.authn) == ("hospital-integration", "mtls")
    token = site.forge.token(cnf={"x5t#S256": thumbprint(integration)})
    submitted = site.served(behind(site, proxy, integration, Authorization=f"Bearer {token}"))
    assert submitted.caller.subject == "alice"
    robot, _ = site.ours.client(f"{WARD}/robot")
    seen = behind(site, proxy, robot, Authorization=f"Bearer {token}")
    site.refused("proxy: a bound token beside another certificate", seen, "token-bound-elsewhere")
    seen = site.ask([("Authorization", f"Bearer {token}")], wire=proxy)
    site.refused("proxy: a bound token beside none", seen, "token-bound-elsewhere")
    for name, (make, reasons) in {
        "an authority of its own": (lambda: Ca("rogue").client(INTEGRATION), ["certificate-untrusted"]),
        "an authority of our name and key identifier": (
            lambda: Twin(site.ours).client(INTEGRATION),
            ["certificate-untrusted"],
        ),
        "expired": (
            lambda: site.ours.client(INTEGRATION, begins=now() - 9 * DAY, ends=now() - DAY),
            ["certificate-expired"],
        ),
        "valid from tomorrow": (lambda: site.ours.client(INTEGRATION, begins=now() + DAY), ["certificate-expired"]),
        "a server's certificate": (
            lambda: site.ours.client(INTEGRATION, purpose=ExtendedKeyUsageOID.SERVER_AUTH),
            ["certificate-untrusted"],
        ),
        "a name that stands for nobody": (lambda: site.ours.client("URI:urn:x"), ["certificate-unmapped"]),
        "another proxy's certificate": (lambda: site.ours.client(PROXY), ["certificate-of-proxy"]),
        "the authority itself": (
            lambda: (site.ours.certificate, None),
            ["certificate-untrusted", "certificate-unmapped"],
        ),
    }.items():
        certificate, _ = make()
        site.refused(f"proxy: {name}", behind(site, proxy, certificate), *reasons)


VERSION = (bytes.fromhex("a003020102"), bytes.fromhex("a003020105"))  # in DER: version 3, and a sixth one


def spoiled(good: str, der: bytes) -> dict[str, str]:
    """Ways to write a certificate into the field that RFC 9440 does not know."""
    raw = base64.b64encode(der).decode()
    wrapped = "-----BEGIN CERTIFICATE----- " + raw + " -----END CERTIFICATE-----"
    return {
        "no colons": raw,
        "one colon": f":{raw}",
        "base64url": f":{base64.urlsafe_b64encode(der + bytes([251, 255, 254])).decode()}:",
        "no padding": f":{base64.b64encode(der + b'x' * (1 + (-len(der) - 2) % 3)).decode().rstrip('=')}:",
        "bytes after the certificate": f":{base64.b64encode(der + b'xxx').decode()}:",
        "the certificate cut short": f":{base64.b64encode(der[:-3]).decode()}:",
        "a version that there is not": f":{base64.b64encode(der.replace(*VERSION, 1)).decode()}:",
        "two certificates": f":{base64.b64encode(der + der).decode()}:",
        "PEM": wrapped,
        "PEM between colons": f":{base64.b64encode(wrapped.encode()).decode()}:",
        "a quoted text": f'"{raw}"',
        "a list": f"{good}, {good}",
        "a parameter": f"{good};a=1",
        "spaces inside": f": {raw} :",
        "nothing between the colons": "::",
        "nothing": "",
        "text": "none",
    }


def test_a_field_that_is_not_as_the_standard_writes_it_is_nobody(site: Site, proxy: Wire) -> None:
    certificate, _ = site.stored("integration")
    good, der = forwarded(certificate), certificate.public_bytes(serialization.Encoding.DER)
    for name, value in spoiled(good, der).items():
        seen = behind(site, proxy, value)
        site.refused(f"proxy: {name}", seen, "forwarded-malformed", "certificate-malformed")
    for name, fields in {
        "the field twice": [("Client-Cert", good), ("client-cert", good)],
        "the client's own field before the proxy's": [("Client-Cert", "x"), ("Client-Cert", good)],
        "a chain without a certificate": [("Client-Cert-Chain", good)],
        "a chain that is nonsense": [("Client-Cert", good), ("Client-Cert-Chain", "x")],
        "a chain of many": [("Client-Cert", good), ("Client-Cert-Chain", ", ".join([good] * 20))],
    }.items():
        seen = site.ask(fields, wire=proxy)
        site.refused(f"proxy: {name}", seen, "forwarded-malformed", "certificate-malformed")


def test_random_mutations_of_a_forwarded_certificate_never_pass(site: Site, proxy: Wire) -> None:
    """A proxy that does not check what it forwards lets a client send any bytes."""
    dice = random.Random(9440)
    certificate, _ = site.stored("integration")
    der = certificate.public_bytes(serialization.Encoding.DER)
    for number in range(400):
        changed = bytearray(der)
        for _ in range(dice.choice((1, 1, 1, 2, 8))):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        if number % 10 == 0:
            del changed[dice.randrange(len(changed)) :]
        if bytes(changed) == der:
            continue
        seen = behind(site, proxy, f":{base64.b64encode(changed).decode()}:")
        assert seen.told == site.nobody.told, changed.hex()
        assert site.reason() in AUTHENTICATION_FAILURES
    MATRIX["proxy: 400 random changes of a good certificate"] = (
        "401",
        "certificate-malformed, certificate-untrusted, …",
    )
    site.served(behind(site, proxy, certificate))


def test_a_proxys_own_certificate_never_stands_for_a_client(site: Site, proxy: Wire) -> None:
    """Not even where tenants.toml gives its name to one, and not for a token that is bound to it."""
    site.refused("proxy: a request without a client's certificate", site.ask(wire=proxy), "no-credential")
    own, _ = site.ours.client(PROXY)
    with site.wire_with(site.ours.client(PROXY)) as another:
        token = site.forge.token(cnf={"x5t#S256": thumbprint(own)})
        seen = site.ask([("Authorization", f"Bearer {token}")], wire=another)
        site.refused("proxy: a token bound to the proxy's own certificate", seen, "token-bound-elsewhere")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a client that is no proxy", [INTEGRATION]),
        ("a name that ends like a proxy's", ["DNS:not-proxy.internal"]),
        ("a name that begins like a proxy's", ["DNS:proxy.internal.evil.example"]),
        ("a proxy's name as another kind", ["URI:proxy.internal"]),
    ],
)
def test_only_trusted_proxies_are_believed(site: Site, name: str, names: list[str]) -> None:
    auditor, _ = site.stored("auditor")
    with site.wire_with(site.ours.client(*names)) as wire:
        seen = behind(site, wire, auditor)
    if names == [INTEGRATION]:
        assert site.served(seen).caller.subject == "hospital-integration"
        MATRIX[f"proxy: {name} forwards another's certificate"] = ("200 as itself", "itself")
    else:
        site.refused(f"proxy: {name} forwards a certificate", seen, "certificate-unmapped")


def test_a_partners_authority_cannot_make_a_proxy(site: Site) -> None:
    auditor, _ = site.stored("auditor")
    with site.wire_with(site.partner.client(PROXY)) as wire:
        site.refused("proxy: a proxy by a partner's authority", behind(site, wire, auditor), "certificate-unmapped")


class Constrained(Ca):
    """Below another authority, and allowed names of one kind and place only (RFC 5280 section 4.2.1.10)."""

    def __init__(self, parent: Ca, permitted: x509.GeneralName) -> None:
        super().__init__("Branch", parent=parent)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = (
            x509.CertificateBuilder(parent.name, self.name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(self.certificate.not_valid_before_utc)
            .not_valid_after(self.certificate.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(parent.identifier(), critical=False)
            .add_extension(x509.NameConstraints([permitted], None), critical=True)
            .sign(parent.key, hashes.SHA256())
        )


def test_an_authority_that_may_name_its_own_place_names_no_other(site: Site, proxy: Wire) -> None:
    own = x509.DNSName("branch.example")
    for name, permitted, leaf_name, reason in (
        ("its own place", own, "DNS:robot.branch.example", "certificate-unmapped"),  # good, and nobody here
        ("another host", own, "DNS:robot.hospital.example", "certificate-untrusted"),
        ("a place that ends like it", own, "DNS:robot-branch.example", "certificate-untrusted"),
        ("a SPIFFE ID", x509.UniformResourceIdentifier("branch.example"), f"{WARD}/robot", "certificate-untrusted"),
        ("a mailbox", x509.RFC822Name("branch.example"), "email:robot@hospital.example", "certificate-untrusted"),
    ):
        branch = Constrained(site.partner, permitted)
        leaf, _ = branch.client(leaf_name)
        seen = behind(site, proxy, leaf, Client_Cert_Chain=forwarded(branch.certificate))
        site.refused(f"proxy: a constrained authority names {name}", seen, reason)


# Revocation ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_more(*paths: Path) -> Iterator[None]:
    """Afterwards these files are as if they had never been; a list that was there must be answered by an empty one."""
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def test_revocation_ends_open_connections_and_what_proxies_forward(site: Site, proxy: Wire) -> None:
    leaf = site.ours.client(INTEGRATION)
    token = site.forge.token(cnf={"x5t#S256": thumbprint(leaf[0])})
    with site.wire_with(leaf) as wire:
        site.served(site.ask(wire=wire))
        site.served(behind(site, proxy, leaf[0]))
        publish(site.pki, "ca.pem", site.ours.crl(leaf[0]))
        site.refused("revoked by its authority: on its open connection", site.ask(wire=wire), "certificate-revoked")
        site.refused("revoked by its authority: behind a proxy", behind(site, proxy, leaf[0]), "certificate-revoked")
        seen = site.ask([("Authorization", f"Bearer {token}")], wire=wire)
        site.refused("revoked by its authority: with its bound token", seen, "certificate-revoked")
        publish(site.pki, "ca.pem", Twin(site.ours).crl())
        site.refused("a revocation list that somebody else signed", site.ask(wire=wire), "crl-unusable")
        publish(site.pki, "ca.pem", site.ours.crl(begins=now() - 9 * DAY, ends=now() - DAY))
        site.refused("a revocation list that is over", site.ask(wire=wire), "crl-stale")
        (site.pki / "crl" / "ca.pem").write_bytes(b"-----BEGIN X509 CRL-----\nhalf")
        site.refused("a revocation list that is half written", site.ask(wire=wire), "crl-unreadable")
        der = site.ours.crl().public_bytes(serialization.Encoding.DER)
        version = der.index(bytes.fromhex("020101"))
        (site.pki / "crl" / "ca.der").write_bytes(der[: version + 2] + b"\x05" + der[version + 3 :])
        publish(site.pki, "ca.pem", site.ours.crl())
        site.refused("a revocation list of a version that there is not", site.ask(wire=wire), "crl-unreadable")
        (site.pki / "crl" / "ca.der").unlink()
        site.served(site.ask(wire=wire))
        denied = site.pki / "revoked.txt"
        denied.write_text(leaf[0].fingerprint(hashes.SHA256()).hex() + "\n")
        site.refused("on the deny list: on its open connection", site.ask(wire=wire), "certificate-revoked")
        site.refused("on the deny list: behind a proxy", behind(site, proxy, leaf[0]), "certificate-revoked")
        denied.write_text("not a fingerprint\n")
        site.refused("a deny list that cannot be read", site.ask(wire=wire), "deny-list-unreadable")
        denied.write_text("")
        site.refused("a deny list that was emptied", site.ask(wire=wire), "deny-list-unreadable")
        denied.write_text("# nobody\n")
        site.served(site.ask(wire=wire))
