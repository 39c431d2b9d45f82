"""`Client-Cert` and `Client-Cert-Chain` (RFC 9440): how they are read, and from whom."""

from __future__ import annotations

import base64
import contextlib
import os
import socket

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.authentication.forwarded import Forwarded, TrustedProxies, parse_forwarded
from gateway.errors import Unauthenticated
from gateway.own_authority import issue
from gateway.pki import certificate_names
from gateway.serve import listen_for_proxy
from sealgate.deployment import socket_address
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from tests.gateway.conftest import Running, hosted, post_sealed, sealed_request
from tests.gateway.issuing import Ca, accept, install, map_any_authority
from tests.gateway.test_certificates import der_of
from tests.gateway.test_proxies import changed

# RFC 9440 appendix A: the certificate of the example, as the field carries it.
PUBLISHED = (
    b":"
    b"MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQYDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZBgNVBAMMEkxBIElu"
    b"dGVybWVkaWF0ZSBDQTAeFw0yMDAxMTQyMjU1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJBgNVBAMMAkJDMFkwEwYHKoZIzj0CAQYI"
    b"KoZIzj0DAQcDQgAE8YnXXfaUgmnMtOXU/IncWalRhebrXmckC8vdgJ1p5Be5F/3YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9"
    b"M6NyMHAwCQYDVR0TBAIwADAfBgNVHSMEGDAWgBRm3WjLa38lbEYCuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBAww"
    b"CgYIKwYBBQUHAwIwHQYDVR0RAQH/BBMwEYEPYmRjQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/r1vaL6G3VliL4/"
    b"Di6YK0Q6bMjeSkC3dFCOOB8TAiEAx/kHSB4urmiZ0NX5r5XarmPk0wmuydBVoU4hBVZ1yhk="
    b":"
)


def field(der):
    return b":" + base64.b64encode(der) + b":"


def read(*certificate, chain=()):
    return parse_forwarded(Forwarded(local=True, certificate=certificate, chain=chain))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600), st.lists(st.binary(min_size=1, max_size=60), max_size=6))
def test_what_is_written_by_the_rules_is_read(leaf, above):
    lines = [b", ".join(field(der) for der in above)] if above else []
    assert read(field(leaf), chain=tuple(lines)) == (leaf, *above)
    assert read(b"  " + field(leaf) + b" ", chain=tuple(field(der) for der in above)) == (leaf, *above)
    joined = b"\t,  ".join(field(der) for der in above)
    assert read(field(leaf), chain=(joined,) if above else ()) == (leaf, *above)


def test_the_published_example_is_read():
    (der,) = read(PUBLISHED)
    certificate = x509.load_der_x509_certificate(der)
    assert certificate_names(certificate) == ("email:bdc@example.com",)
    assert certificate.issuer.rfc4514_string() == "CN=LA Intermediate CA,O=Let's Authenticate"


def test_nothing_is_nobody():
    assert read() == ()


@pytest.mark.parametrize(
    ("certificate", "chain"),
    [
        ((b"",), ()),
        ((b"::",), ()),
        ((b":AAAA",), ()),
        ((b"AAAA",), ()),
        ((b'"AAAA"',), ()),
        ((b":AAAA:;a=1",), ()),
        ((b":AAAA:, :AAAA:",), ()),
        ((b":AAA:",), ()),  # without padding
        ((b":AAB=:",), ()),  # bits that mean nothing
        ((b":AA-_:",), ()),
        ((b":AA AA:",), ()),
        ((b":AAAA\n:",), ()),
        ((b":AAAA:", b":AAAA:"), ()),
        ((), (b":AAAA:",)),
        ((b":AAAA:",), (b"",)),
        ((b":AAAA:",), (b":AAAA:,",)),
        ((b":AAAA:",), (b":AAAA:,,:AAAA:",)),
        ((b":AAAA:",), (b"(:AAAA: :AAAA:)",)),
        ((b":AAAA:",), (b":AAAA:",) * 8),
        ((b":" + b"A" * 24_000 + b":",), ()),
    ],
)
def test_anything_else_is_malformed(certificate, chain):
    with pytest.raises(Unauthenticated) as caught:
        read(*certificate, chain=chain)
    assert caught.value.code == "forwarded-malformed"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80))
@example(b":AAAA:", b" ")
def test_garbage_is_one_typed_refusal(certificate, chain):
    with contextlib.suppress(Unauthenticated):
        assert all(isinstance(der, bytes) for der in read(certificate, chain=(chain,)))


# Whom to believe -----------------------------------------------------------------------------------------------------


def test_proxies_are_named_by_fingerprint_or_by_name_and_authority():
    proxies = TrustedProxies(("ab" * 32, "DNS:proxy", "partner/URI:urn:proxy"))

    def included(*names, fingerprint="cd" * 32, authorities=("ca",)):
        return proxies.include(fingerprint=fingerprint, names=names, authorities=frozenset(authorities))

    assert included(fingerprint="ab" * 32)
    assert included("DNS:proxy")
    assert not included("DNS:proxy", authorities=("partner",))  # or any authority could name itself a proxy
    assert included("URI:urn:proxy", authorities=("partner",))
    assert not included("URI:urn:proxy")
    assert not included("DNS:proxy.example", "URI:urn", "CN:proxy")
    assert not TrustedProxies().include(fingerprint="", names=("DNS:proxy",), authorities=frozenset({"ca"}))


@pytest.mark.parametrize("setting", ["", "proxy", "AB" * 32, "ab" * 31, "IP:1.2.3.4", "DNS:", "/DNS:x", "a b/DNS:x"])
def test_a_proxy_that_is_not_named_properly_stops_the_start(setting):
    with pytest.raises(ConfigurationError, match="trusted_proxies"):
        TrustedProxies((setting,))
    with pytest.raises(ConfigurationError, match="more than"):
        TrustedProxies(("ab" * 32,) * 65)


def test_a_direct_client_cannot_forward_anything(run_gateway):
    gateway = run_gateway(unix_socket="run/gateway.sock")
    forged = field(der_of(gateway, "integration")).decode()
    for certificate in (None, "auditor"):
        client = gateway.client(certificate=certificate)
        answer = post_sealed(client, Client_Cert=forged, Client_Cert_Chain=forged)
        assert answer.status_code == (401 if certificate is None else 403)
    assert gateway.host.heard(frames.Deny)[0].caller.subject == "auditor"
    malformed = post_sealed(gateway.client(certificate="integration"), Client_Cert="nonsense")
    assert malformed.status_code == 200  # it was taken out, not read


# Over the UNIX socket ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def as_proxy(gateway):
    """A client on the gateway's UNIX socket."""
    path = gateway.deployment.gateway_socket
    with socket_address(path) as address:
        transport = httpx.HTTPTransport(uds=address)
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=20) as client:
            yield client


def test_over_the_socket_the_fields_say_who_is_calling(run_gateway):
    gateway = run_gateway(unix_socket="run/gateway.sock")
    assert gateway.deployment.gateway_socket.stat().st_mode & 0o777 == 0o600
    forwarded = field(der_of(gateway, "integration")).decode()
    with as_proxy(gateway) as client:
        assert post_sealed(client).status_code == 401
        assert post_sealed(client, Client_Cert=forwarded).status_code == 200
        assert post_sealed(client).status_code == 401  # nothing of the request before stays
        assert post_sealed(client, Client_Cert="x").status_code == 401
        assert post_sealed(client, Client_Cert_Chain=forwarded).status_code == 401
        assert post_sealed(client, Client_Cert=field(b"not a certificate").decode()).status_code == 401
        assert client.get("/health/live").status_code == 200
    reasons = [frame.reason for frame in gateway.host.heard(frames.AuthFailed, 5)]
    assert reasons == [
        "no-credential",
        "no-credential",
        "forwarded-malformed",
        "forwarded-malformed",
        "certificate-malformed",
    ]


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "other", "CONNECT"])
def test_the_body_of_an_upgrade_is_no_request(run_gateway, protocol):
    """What comes after such a head is not HTTP to our parser, and what comes after that is the next request: a client
    could write one into its body, with whose certificate it likes, and the proxy would forward it as a body."""
    gateway = run_gateway(unix_socket="run/gateway.sock")
    raw, media_type = sealed_request()
    forged = field(der_of(gateway, "integration"))
    inside = b"POST /sealed/wine HTTP/1.1\r\nHost: x\r\nPurpose: treatment\r\nClient-Cert: " + forged + b"\r\n"
    inside += f"Content-Type: {media_type}\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw
    length = f"Content-Length: {len(inside)}\r\n\r\n"
    head = f"POST /sealed/wine HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{length}"
    if protocol == "CONNECT":
        head = f"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n{length}"
    with socket_address(gateway.deployment.gateway_socket) as address, socket.socket(socket.AF_UNIX) as proxy:
        proxy.settimeout(20)
        proxy.connect(address)
        proxy.sendall(head.encode())
        answer = proxy.recv(65536)
        with contextlib.suppress(ConnectionError):
            proxy.sendall(inside)
            while more := proxy.recv(65536):
                answer += more
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 400 ") == 1
    assert b"connection: close" in answer.lower()
    assert gateway.host.told == []


def test_a_proxy_lets_nobody_come_without_a_certificate_where_one_is_required(deployment, run_gateway):
    """Over TLS the handshake insists; behind a proxy the handshake is the proxy's."""
    proxy = issue(deployment, "proxy", names=("DNS:proxy.internal",), days=1)
    gateway = run_gateway(
        unix_socket="run/gateway.sock", client_certificates="required", trusted_proxies=(proxy.fingerprint,)
    )
    forwarded = field(der_of(gateway, "integration")).decode()
    with as_proxy(gateway) as client:
        for proxied in (client, gateway.client(certificate="proxy")):
            proxied.headers["Authorization"] = f"Bearer {gateway.token()}"
            assert post_sealed(proxied).status_code == 401
            assert post_sealed(proxied, Client_Cert=forwarded).status_code == 200
    reasons = [frame.reason for frame in gateway.host.heard(frames.AuthFailed, 2)]
    assert reasons == ["certificate-missing"] * 2


def test_a_forwarded_certificate_is_judged_like_any_other(run_gateway, deployment):
    gateway = run_gateway(unix_socket="run/gateway.sock")
    stranger = Ca().client("URI:urn:sealgate:client:integration")[0].public_bytes(Encoding.DER)
    with as_proxy(gateway) as client:
        assert post_sealed(client, Client_Cert=field(stranger).decode()).status_code == 401
        good = field(der_of(gateway, "integration")).decode()
        assert post_sealed(client, Client_Cert=good).status_code == 200
        gateway.clock.later_s = 400 * 86400
        assert post_sealed(client, Client_Cert=good).status_code == 401
    reasons = [frame.reason for frame in gateway.host.heard(frames.AuthFailed, 2)]
    assert reasons == ["certificate-untrusted", "certificate-expired"]


@pytest.fixture
def mapped(deployment):
    map_any_authority(deployment)


def test_those_above_may_be_forwarded(mapped, deployment, run_gateway):
    root = Ca("Root")
    between = Ca("Between", parent=root)
    accept(deployment.pki, "corporate", root)
    gateway = run_gateway(unix_socket="run/gateway.sock")
    leaf = field(between.client("URI:urn:sealgate:client:integration")[0].public_bytes(Encoding.DER)).decode()
    above = field(between.certificate.public_bytes(Encoding.DER)).decode()
    with as_proxy(gateway) as client:
        assert post_sealed(client, Client_Cert=leaf).status_code == 401
        assert gateway.host.heard(frames.AuthFailed)[0].reason == "certificate-untrusted"
        assert post_sealed(client, Client_Cert=leaf, Client_Cert_Chain=above).status_code == 200


def test_a_proxy_is_trusted_by_its_name_below_the_own_authority_only(deployment):
    partner = Ca("Partner")
    accept(deployment.pki, "partner", partner)
    issue(deployment, "proxy", names=("DNS:proxy.internal",), days=9)
    install(deployment.pki, "false", partner.client("DNS:proxy.internal"))
    with hosted(deployment) as host:
        gateway = Running(changed(deployment, trusted_proxies=("DNS:proxy.internal",)), host)
        forwarded = field(der_of(gateway, "integration")).decode()
        assert post_sealed(gateway.client(certificate="proxy"), Client_Cert=forwarded).status_code == 200
        assert post_sealed(gateway.client(certificate="proxy")).status_code == 401
        assert post_sealed(gateway.client(certificate="false"), Client_Cert=forwarded).status_code == 401
        reasons = [frame.reason for frame in host.heard(frames.AuthFailed, 2)]
        assert reasons == ["no-credential", "certificate-unmapped"]
        gateway.close()


def test_a_socket_that_cannot_be_had_stops_the_start(deployment):
    assert listen_for_proxy(deployment) is None
    with pytest.raises(ConfigurationError, match=r"cannot listen on .*nowhere"):
        listen_for_proxy(changed(deployment, unix_socket="nowhere/gateway.sock"))
    with pytest.raises(ConfigurationError, match="unix_socket_group names 'nobodys'"):
        listen_for_proxy(changed(deployment, unix_socket="g.sock", unix_socket_group="nobodys"))
    (deployment.root / "file").write_text("precious")
    with pytest.raises(ConfigurationError, match="is not a socket"):
        listen_for_proxy(changed(deployment, unix_socket="file"))
    first = listen_for_proxy(changed(deployment, unix_socket="g.sock"))
    first.listen()
    with pytest.raises(ConfigurationError, match="another gateway"):
        listen_for_proxy(changed(deployment, unix_socket="g.sock"))
    first.close()
    listen_for_proxy(changed(deployment, unix_socket="g.sock", unix_socket_group=str(os.getgid()))).close()
    assert (deployment.root / "g.sock").stat().st_mode & 0o777 == 0o660
