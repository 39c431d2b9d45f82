"""Client certificates: by real handshakes, and on connections that outlive what made them good."""

from __future__ import annotations

import base64
import datetime
import gc
import hashlib
import os
import ssl
import types

import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from gateway import pki
from gateway.authentication.certificates import DenyList
from gateway.errors import Unauthenticated
from gateway.tls_identity import make_tls_context
from policy.store import load_files
from sealgate.ambient import now_us, random_bytes
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from tests.gateway.conftest import post_sealed
from tests.gateway.issuing import Ca


def der_of(gateway, name):
    return ssl.PEM_cert_to_DER_cert((gateway.deployment.pki / "clients" / f"{name}.pem").read_text())


def fingerprint(gateway, name):
    return hashlib.sha256(der_of(gateway, name)).hexdigest()


def install(deployment, name, leaf):
    """Put a client certificate and its key where `Running.client` looks for them."""
    certificate, key = leaf
    folder = deployment.pki / "clients"
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def authority_of(deployment):
    certificate = x509.load_pem_x509_certificate((deployment.pki / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((deployment.pki / "ca.key").read_bytes(), None)
    return pki.Authority(certificate, key)


# The handshake -------------------------------------------------------------------------------------------------------


def test_only_tls_1_3_is_spoken(gateway):
    context = gateway.tls()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(httpx.ConnectError):
        httpx.Client(verify=context).get(f"https://localhost:{gateway.port}/health/live")


def test_no_ticket_is_given_so_no_session_comes_back(gateway):
    import socket

    context = gateway.tls("integration")
    for _ in range(2):
        with (
            socket.create_connection(("127.0.0.1", gateway.port)) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert secure.recv(100)
            assert secure.version() == "TLSv1.3"
            assert not secure.session_reused
            assert secure.session is None or not secure.session.has_ticket


def test_a_certificate_of_another_authority_does_not_get_in(gateway):
    stranger = pki.make_authority("x", now_us=now_us(), entropy=random_bytes)
    install(
        gateway.deployment, "stranger", pki.make_client(stranger, "integration", now_us=now_us(), entropy=random_bytes)
    )
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
        post_sealed(gateway.client(certificate="stranger"))
    assert gateway.host.told == []


def test_a_server_certificate_is_no_client(gateway):
    ours = authority_of(gateway.deployment)
    install(gateway.deployment, "server", pki.make_server(ours, ("localhost",), now_us=now_us(), entropy=random_bytes))
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
        post_sealed(gateway.client(certificate="server"))


@pytest.mark.parametrize(("setting", "served"), [("none", False), ("required", True)])
def test_the_setting_decides_who_is_asked_for_a_certificate(run_gateway, setting, served):
    gateway = run_gateway(client_certificates=setting)
    answer = post_sealed(gateway.client(certificate="integration"))
    assert answer.status_code == (200 if served else 401)
    if setting == "required":
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
            gateway.client(token=gateway.token()).get("/health/live")


def test_headers_about_a_certificate_are_nothing(gateway):
    pem = (gateway.deployment.pki / "clients" / "integration.pem").read_text().replace("\n", " ").strip()
    for name in ("Client-Cert", "X-Forwarded-Client-Cert", "X-SSL-Client-Cert"):
        answer = post_sealed(gateway.client(), **{name.replace("-", "_"): pem})
        assert answer.status_code == 401


def test_certificates_that_cannot_be_used_stop_the_start(deployment):
    (deployment.pki / "server.key").write_text("nothing")
    with pytest.raises(ConfigurationError, match=r"server\.key"):
        make_tls_context(deployment)
    (deployment.pki / "server.key").unlink()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        make_tls_context(deployment)


# After the handshake -------------------------------------------------------------------------------------------------


def test_a_revoked_certificate_is_refused_on_its_open_connection(gateway):
    client = gateway.client(certificate="integration")
    assert post_sealed(client).status_code == 200
    revoked = gateway.deployment.pki / "revoked.txt"
    revoked.write_text(f"# lost laptop\n{fingerprint(gateway, 'integration')}  # integration\n")
    assert post_sealed(client).status_code == 401
    assert len(gateway.server.server_state.connections) == 1  # it was the same connection
    assert gateway.host.heard(frames.AuthFailed)[0].reason == "certificate-revoked"
    assert post_sealed(gateway.client(certificate="integration")).status_code == 401
    token = gateway.token()
    assert post_sealed(gateway.client(token=token, certificate="integration")).status_code == 401
    assert post_sealed(gateway.client(token=token)).status_code == 200


def test_certificates_revoked_in_the_policy_are_refused(deployment, host, run_gateway):
    tenants = deployment.policy / "tenants.toml"
    der = ssl.PEM_cert_to_DER_cert((deployment.pki / "clients" / "integration.pem").read_text())
    text = tenants.read_text()
    assert "revoked_certificates = []" in text
    tenants.write_text(
        text.replace("revoked_certificates = []", f'revoked_certificates = ["{hashlib.sha256(der).hexdigest()}"]')
    )
    host.push(policy_digest=load_files(deployment.policy).digest)
    gateway = run_gateway()
    assert post_sealed(gateway.client(certificate="integration")).status_code == 401


def test_a_certificate_that_expires_is_refused_on_its_open_connection(gateway):
    client = gateway.client(certificate="integration")
    assert post_sealed(client).status_code == 200
    gateway.clock.later_s = (pki.LEAF_DAYS + 1) * 86400
    assert post_sealed(client).status_code == 401
    assert gateway.host.heard(frames.AuthFailed)[0].reason == "certificate-expired"


def test_a_certificate_that_stands_for_nobody_is_nobody(gateway):
    ours = authority_of(gateway.deployment)
    install(gateway.deployment, "guest", pki.make_client(ours, "guest", now_us=now_us(), entropy=random_bytes))
    assert post_sealed(gateway.client(certificate="guest")).status_code == 401
    assert gateway.host.heard(frames.AuthFailed)[0].reason == "certificate-unmapped"
    assert post_sealed(gateway.client(token=gateway.token(), certificate="guest")).status_code == 200
    assert gateway.host.heard(frames.Submit)[0].caller.authn == "jwt"


def test_names_in_a_certificate_that_cannot_be_read_make_it_nobody(gateway):
    """The TLS layer refuses such a certificate already; the reader does too."""
    ours = authority_of(gateway.deployment)
    good, key = pki.make_client(ours, "integration", now_us=now_us(), entropy=random_bytes)
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        good.issuer, good.subject, key.public_key(), 12345, now - datetime.timedelta(1), now + datetime.timedelta(1)
    )
    builder = builder.add_extension(
        x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x03\x86\x01\xff"), critical=False
    )
    odd = builder.sign(ours.key, hashes.SHA256())
    install(gateway.deployment, "odd", (odd, key))
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
        post_sealed(gateway.client(certificate="odd"))
    pem = odd.public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(Unauthenticated) as caught:
        gateway.gate.authenticator._certificates.read({"extensions": {"tls": {"client_cert_chain": (pem,)}}})
    assert caught.value.code == "certificate-malformed"


# Tokens that are bound to a certificate (RFC 8705) -------------------------------------------------------------------


def bound_token(gateway, thumbprint):
    """A token of the deployment's issuer with `cnf`."""
    plain = gateway.token()
    key = serialization.load_pem_private_key((gateway.deployment.tokens / "issuer.key").read_bytes(), None)
    payload = jwt.decode(plain, options={"verify_signature": False}) | {"cnf": {"x5t#S256": thumbprint}}
    headers = {name: value for name, value in jwt.get_unverified_header(plain).items() if name != "alg"}
    return jwt.encode(payload, key, algorithm="ES256", headers=headers)


def test_a_bound_token_needs_its_certificate(gateway):
    right = base64.urlsafe_b64encode(hashlib.sha256(der_of(gateway, "integration")).digest()).rstrip(b"=").decode()
    token = bound_token(gateway, right)
    assert post_sealed(gateway.client(token=token, certificate="integration")).status_code == 200
    assert post_sealed(gateway.client(token=token, certificate="auditor")).status_code == 401
    assert post_sealed(gateway.client(token=token)).status_code == 401
    assert (
        post_sealed(gateway.client(token=bound_token(gateway, "é" * 43), certificate="integration")).status_code == 401
    )
    reasons = {frame.reason for frame in gateway.host.heard(frames.AuthFailed, 3)}
    assert reasons == {"token-bound-elsewhere", "claims-invalid"}


# The deny list -------------------------------------------------------------------------------------------------------

ONE, TWO = "a" * 64, "b" * 64


def test_the_deny_list_follows_its_file(tmp_path):
    path = tmp_path / "revoked.txt"
    deny = DenyList(path)
    deny.require_accepted({ONE, TWO})
    path.write_text(f"{ONE}\n")
    with pytest.raises(Unauthenticated) as caught:
        deny.require_accepted({ONE})
    assert caught.value.code == "certificate-revoked"
    path.write_text("# nobody\n\n")
    deny.require_accepted({ONE})


@pytest.mark.parametrize("content", ["A" * 64, "a" * 63, "a" * 64 + " x", "é", "\x00"])
def test_a_deny_list_that_cannot_be_read_refuses_everybody(tmp_path, content):
    path = tmp_path / "revoked.txt"
    path.write_text(f"{ONE}\n")
    deny = DenyList(path)
    deny.require_accepted({TWO})
    path.write_text(content)
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            deny.require_accepted({TWO})
        assert caught.value.code == "deny-list-unreadable"
    path.write_text(f"{ONE}\n{TWO}\n")
    with pytest.raises(Unauthenticated) as caught:
        deny.require_accepted({TWO})
    assert caught.value.code == "certificate-revoked"


def test_a_deny_list_that_vanishes_refuses_everybody(tmp_path):
    path = tmp_path / "revoked.txt"
    path.write_text("")
    deny = DenyList(path)
    deny.require_accepted({ONE})
    path.unlink()
    with pytest.raises(Unauthenticated):
        deny.require_accepted({ONE})


def test_a_deny_list_that_was_emptied_refuses_everybody(tmp_path):
    """An editor that writes in place empties it for a moment."""
    path = tmp_path / "revoked.txt"
    path.write_text("")
    deny = DenyList(path)
    deny.require_accepted({ONE})
    path.write_text(ONE)
    path.write_text("")
    deny.require_accepted({ONE})  # nobody saw a line in it
    path.write_text(ONE)
    with pytest.raises(Unauthenticated, match="could not"):
        deny.require_accepted({ONE})
    path.write_text("")
    with pytest.raises(Unauthenticated) as caught:
        deny.require_accepted({ONE})
    assert caught.value.code == "deny-list-unreadable"
    path.write_text("# nobody\n")
    deny.require_accepted({ONE})


def test_a_deny_list_that_is_too_large_refuses_everybody(tmp_path):
    path = tmp_path / "revoked.txt"
    path.touch()
    os.truncate(path, 5_000_000)
    with pytest.raises(Unauthenticated):
        DenyList(path).require_accepted({ONE})


def test_certificates_are_remembered_within_bounds(gateway):
    reader = gateway.gate.authenticator._certificates
    pem = (gateway.deployment.pki / "clients" / "integration.pem").read_text()
    scope = {"extensions": {"tls": {"client_cert_chain": (pem,)}}}
    assert reader.read(scope) is reader.read(scope)
    assert reader.read({"extensions": {"tls": {"client_cert_chain": ()}}}) is None
    reader._remembered_max = 2
    for number in range(5):
        other = pki.make_client(authority_of(gateway.deployment), f"c{number}", now_us=now_us(), entropy=random_bytes)
        text = other[0].public_bytes(serialization.Encoding.PEM).decode()
        reader.read({"extensions": {"tls": {"client_cert_chain": (text,)}}})
    assert len(reader._remembered) <= 2
    with pytest.raises(Unauthenticated):
        reader.read({"extensions": {"tls": {"client_cert_chain": ("nonsense",)}}})


def test_what_is_shown_beside_a_certificate_is_not_kept(gateway):
    """Its sender chooses it, as large as a handshake may be, and other with each connection."""
    reader = gateway.gate.authenticator._certificates
    pem = (gateway.deployment.pki / "clients" / "integration.pem").read_text()
    beside = Ca("Beside").client(*(f"DNS:{number}.{'x' * 50}.example" for number in range(200)))[0]
    large = beside.public_bytes(serialization.Encoding.PEM).decode()
    reader.read({"extensions": {"tls": {"client_cert_chain": (pem, large)}}})
    found, queue = {}, [reader._remembered]
    while queue:
        new = {id(item): item for item in gc.get_referents(*queue) if id(item) not in found}
        found |= new
        queue = [item for item in new.values() if not isinstance(item, type | types.ModuleType | types.FunctionType)]
    assert large not in [item for item in found.values() if isinstance(item, str)]
    assert beside not in [item for item in found.values() if isinstance(item, x509.Certificate)]
