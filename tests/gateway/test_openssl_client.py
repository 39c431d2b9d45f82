"""OpenSSL's command line as a TLS client that shares no code with ours: resumption, old versions, renegotiation."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.authentication.authorities import fingerprint_of
from sealgate.protocol import frames
from tests.gateway.issuing import DAY, Ca, install, now, pem
from tests.gateway.test_certificates import authority_of, der_of
from tests.gateway.test_proxies import free_port

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="NOT TESTED with a foreign TLS client: apt install openssl"
)

REQUEST = b"POST /sealed/wine HTTP/1.1\r\nHost: localhost\r\nPurpose: treatment\r\nContent-Length: 0\r\n\r\n"
KNOWN = b"HTTP/1.1 415 "  # who is known is told that the body is of no kind that is taken


def client(gateway, *more, certificate="integration"):
    pki = gateway.deployment.pki
    command = ["openssl", "s_client", "-connect", f"localhost:{gateway.port}", "-CAfile", str(pki / "ca.pem")]
    command += ["-verify_return_error", "-servername", "localhost"]
    if certificate:
        command += ["-cert", str(pki / "clients" / f"{certificate}.pem")]
        command += ["-key", str(pki / "clients" / f"{certificate}.key")]
        chain = pki / "clients" / f"{certificate}.chain.pem"
        command += ["-cert_chain", str(chain)] if chain.exists() else []
    return subprocess.Popen([*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ask(gateway, *more, certificate="integration", times=1):
    """Send the request over one connection; gives everything that the client said."""
    process = client(gateway, *more, "-ign_eof", certificate=certificate)
    last = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    out, _ = process.communicate(REQUEST * (times - 1) + last, timeout=30)
    return out


def reason(gateway):
    return gateway.host.heard(frames.AuthFailed)[-1].reason


def test_a_foreign_client_is_known_by_its_certificate(gateway):
    said = ask(gateway)
    assert KNOWN in said
    assert b"Verification: OK" in said
    assert b"New, TLSv1.3" in said
    assert b"401" in ask(gateway, certificate=None)


def test_there_is_no_session_to_resume(gateway, tmp_path):
    session = tmp_path / "session"
    said = ask(gateway, "-sess_out", str(session))
    assert KNOWN in said
    assert b"New Session Ticket" not in said
    assert not session.exists()  # none was given, so there is nothing to come back with
    (gateway.deployment.pki / "revoked.txt").write_text(
        fingerprint_of(x509.load_der_x509_certificate(der_of(gateway, "integration"))) + "\n"
    )
    said = ask(gateway)
    assert b"Reused" not in said
    assert b"HTTP/1.1 401 " in said


def test_a_session_of_another_server_is_not_resumed(gateway, tmp_path):
    """A ticket that the client brings with it (RFC 8446 section 4.2.11) is passed over: the handshake is a full one."""
    session = foreign_session(gateway, tmp_path)
    said = ask(gateway, "-sess_in", str(session))
    assert b"New, TLSv1.3" in said
    assert b"Reused" not in said
    assert KNOWN in said
    assert b"HTTP/1.1 401 " in ask(gateway, "-sess_in", str(session), certificate=None)


def foreign_session(gateway, tmp_path):
    """A session of OpenSSL's own server, with the gateway's certificate and key."""
    pki, session = gateway.deployment.pki, tmp_path / "foreign"
    port = free_port()
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", str(port), "-cert", pki / "server.pem", "-key", pki / "server.key", "-www"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while not session.exists():
            assert time.monotonic() < end
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["openssl", "s_client", "-connect", f"localhost:{port}", "-sess_out", session, "-ign_eof"],
                    input=b"GET / HTTP/1.0\r\n\r\n",
                    capture_output=True,
                    timeout=5,
                    check=False,
                )
    finally:
        server.kill()
        server.communicate()
    return session


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_older_versions_are_refused(gateway, version):
    said = ask(gateway, version, "-cipher", "ALL:@SECLEVEL=0")
    assert b"HTTP/1.1" not in said
    assert b"Cipher is (NONE)" in said  # no handshake came about
    assert gateway.host.told == []


def test_there_is_no_renegotiation(gateway):
    """TLS 1.3 has none (RFC 8446 section 4.1.2), and no request for a certificate after the handshake: what was proved
    at the beginning of a connection cannot be exchanged for something else. A key update is neither."""
    process = client(gateway)
    try:
        heard = b""
        for command, answer in ((b"k\n", b"KEYUPDATE"), (b"R\n", b"RENEGOTIATING")):
            process.stdin.write(command)
            process.stdin.flush()
            while not heard.startswith(answer):
                heard = process.stdout.readline()
                assert heard, f"no {answer}"
        process.stdin.close()
        said = process.stdout.read()
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert b"wrong ssl version" in said
    assert gateway.host.told == []


@pytest.mark.parametrize("kind", ["rogue", "expired", "not yet", "for servers", "of a leaf"])
def test_certificates_that_do_not_pass_the_handshake(gateway, kind):
    ours = Ca.of(authority_of(gateway.deployment))
    uri = "URI:urn:sealgate:client:integration"
    leaf = {
        "rogue": lambda: Ca("Sealgate local authority").client(uri),
        "expired": lambda: ours.client(uri, begins=now() - 3 * DAY, ends=now() - DAY),
        "not yet": lambda: ours.client(uri, begins=now() + DAY),
        "for servers": lambda: ours.client(uri, purpose=ExtendedKeyUsageOID.SERVER_AUTH),
        "of a leaf": lambda: of_a_leaf(gateway, ours, uri),
    }[kind]()
    install(gateway.deployment.pki, "bad", leaf)
    said = ask(gateway, certificate="bad")
    assert b"HTTP/1.1" not in said
    assert b"error:" in said or b"errno=" in said  # the connection was cut
    assert gateway.host.told == []


def of_a_leaf(gateway, ours, uri):
    """An end certificate plays the authority, and is shown with what it signed."""
    between = Ca("False")
    between.certificate, between.key = ours.client("URI:urn:x", common="False")
    (gateway.deployment.pki / "clients" / "bad.chain.pem").write_bytes(pem(between.certificate))
    return between.client(uri)


def test_revocation_is_in_force_between_two_requests_of_one_connection(gateway):
    """The connection stays; who has been revoked on it is nobody for the rest of it."""
    process = client(gateway, "-quiet")
    try:
        process.stdin.write(REQUEST)
        process.stdin.flush()
        first = process.stdout.readline()
        while not first.startswith(b"HTTP/1.1"):
            first = process.stdout.readline()
        assert first.startswith(KNOWN)
        (gateway.deployment.pki / "revoked.txt").write_text(
            fingerprint_of(x509.load_der_x509_certificate(der_of(gateway, "integration"))) + "\n"
        )
        process.stdin.write(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        process.stdin.flush()
        rest, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert b"HTTP/1.1 401 " in rest
    assert reason(gateway) == "certificate-revoked"
