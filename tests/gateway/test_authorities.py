"""Authorities that come and go under a running gateway, by real handshakes and on open connections."""

from __future__ import annotations

import contextlib
import socket
import ssl

import httpx
import pytest

from gateway import pki as ours
from gateway.authentication.authorities import Authorities, judge
from gateway.errors import Unauthenticated
from sealgate.ambient import now_us, random_bytes
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from tests.gateway.conftest import Running, hosted, post_sealed
from tests.gateway.issuing import DAY, Ca, accept, install, key_pem, map_any_authority, now, pem
from tests.gateway.test_certificates import authority_of

REFUSED = (httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)
URI = "URI:urn:sealgate:client:integration"


def refused_by_tls(gateway, name):
    with pytest.raises(REFUSED):
        post_sealed(gateway.client(certificate=name))
    return True


def reasons(gateway, count=1):
    return [frame.reason for frame in gateway.host.heard(frames.AuthFailed, count)]


@contextlib.contextmanager
def serving(deployment, host):
    """A gateway whose host knows the policy as it is now."""
    running = Running(deployment, host)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def clients_of_any_authority(deployment):
    map_any_authority(deployment)


# While the gateway runs ----------------------------------------------------------------------------------------------


def test_an_authority_is_accepted_and_removed_without_a_restart(gateway):
    partner = Ca("Partner CA")
    install(gateway.deployment.pki, "partner", partner.client(URI))
    assert refused_by_tls(gateway, "partner")
    accept(gateway.deployment.pki, "partner", partner)
    client = gateway.client(certificate="partner")
    assert post_sealed(client).status_code == 200
    (gateway.deployment.pki / "authorities" / "partner.pem").unlink()
    assert post_sealed(client).status_code == 401  # on the connection that is open
    assert len(gateway.server.server_state.connections) == 1
    assert reasons(gateway) == ["certificate-untrusted"]
    assert refused_by_tls(gateway, "partner")
    assert post_sealed(gateway.client(certificate="integration")).status_code == 200


def test_the_only_authority_can_be_removed(gateway):
    client = gateway.client(certificate="integration")
    assert post_sealed(client).status_code == 200
    newcomer = gateway.client(certificate="integration")  # has read ca.pem, as a client does
    (gateway.deployment.pki / "ca.pem").unlink()
    assert post_sealed(client).status_code == 401
    with pytest.raises(REFUSED):
        post_sealed(newcomer)


def test_a_client_that_names_no_server_gets_the_newest_authorities_too(gateway):
    partner = Ca()
    accept(gateway.deployment.pki, "partner", partner)
    install(gateway.deployment.pki, "partner", partner.client(URI))
    context = gateway.tls("partner")
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", gateway.port)) as raw, context.wrap_socket(raw) as secure:
        secure.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert secure.recv(100).startswith(b"HTTP/1.1 200")
    (gateway.deployment.pki / "authorities" / "partner.pem").unlink()
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("127.0.0.1", gateway.port)) as raw,
        context.wrap_socket(raw) as secure,
    ):
        secure.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert secure.recv(100) == b""


@pytest.mark.parametrize("content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nMIIB", "leaf", "half"])
def test_a_file_that_is_no_authority_leaves_those_before_in_force(gateway, content):
    partner = Ca()
    whole = pem(partner.certificate)
    content = {"leaf": pem(partner.client(URI)[0]), "half": whole + whole[: len(whole) // 2]}.get(content, content)
    accept(gateway.deployment.pki, "partner", partner)
    install(gateway.deployment.pki, "partner", partner.client(URI))
    client = gateway.client(certificate="partner")
    assert post_sealed(client).status_code == 200
    (gateway.deployment.pki / "authorities" / "partner.pem").write_bytes(content)
    assert post_sealed(client).status_code == 200
    assert post_sealed(gateway.client(certificate="partner")).status_code == 200
    told = gateway.events("client-certificates")
    assert len(told) == 1  # once, however many requests come
    assert "authorities/partner.pem" in told[0]["detail"]
    accept(gateway.deployment.pki, "partner", partner)
    assert post_sealed(client).status_code == 200
    assert "as they should be" in gateway.events("client-certificates")[1]["detail"]


def test_a_new_server_certificate_is_shown_without_a_restart(gateway):
    def shown():
        with (
            socket.create_connection(("127.0.0.1", gateway.port)) as raw,
            gateway.tls().wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            return secure.getpeercert(binary_form=True)

    pki, before = gateway.deployment.pki, shown()
    certificate, key = ours.make_server(
        authority_of(gateway.deployment), ("localhost",), now_us=now_us(), entropy=random_bytes
    )
    (pki / "server.pem").write_bytes(pem(certificate))
    assert shown() == before  # the key is not there yet
    (pki / "server.key").write_bytes(key_pem(key))
    assert shown() == ssl.PEM_cert_to_DER_cert(pem(certificate).decode())
    (pki / "server.key").write_bytes(b"")
    assert shown() == ssl.PEM_cert_to_DER_cert(pem(certificate).decode())


def test_those_above_a_certificate_may_be_shown_by_the_client(gateway):
    root = Ca("Root")
    between = Ca("Between", parent=root)
    accept(gateway.deployment.pki, "corporate", root)
    install(gateway.deployment.pki, "whole", between.client(URI), between.certificate)
    assert post_sealed(gateway.client(certificate="whole")).status_code == 200
    install(gateway.deployment.pki, "alone", between.client(URI))
    assert refused_by_tls(gateway, "alone")
    accept(gateway.deployment.pki, "corporate", between)  # one below a root may be an anchor itself
    assert post_sealed(gateway.client(certificate="alone")).status_code == 200


def test_one_above_a_certificate_can_be_denied(gateway):
    root = Ca("Root")
    between = Ca("Between", parent=root)
    accept(gateway.deployment.pki, "corporate", root)
    install(gateway.deployment.pki, "whole", between.client(URI), between.certificate)
    client = gateway.client(certificate="whole")
    assert post_sealed(client).status_code == 200
    from gateway.authentication.authorities import fingerprint_of

    (gateway.deployment.pki / "revoked.txt").write_text(fingerprint_of(between.certificate) + "\n")
    assert post_sealed(client).status_code == 401
    assert reasons(gateway) == ["certificate-revoked"]


def test_a_rule_may_ask_for_its_own_authority(deployment):
    mine, other = Ca("Mine"), Ca("Other")
    accept(deployment.pki, "mine", mine)
    accept(deployment.pki, "other", other)
    tenants = deployment.policy / "tenants.toml"
    tenants.write_text(
        tenants.read_text()
        + """
[[client]]
certificate = "URI:spiffe://example.org/ward/*"
authority = "mine"
tenant = "clinic"
subject_from = "certificate"
roles = ["client"]
purposes = ["treatment"]
"""
    )
    for name, authority in (("good", mine), ("bad", other)):
        install(deployment.pki, name, authority.client("URI:spiffe://example.org/ward/7/triage"))
    with hosted(deployment) as host, serving(deployment, host) as gateway:
        assert post_sealed(gateway.client(certificate="good")).status_code == 200
        assert host.heard(frames.Submit)[0].caller.subject == "spiffe://example.org/ward/7/triage"
        assert post_sealed(gateway.client(certificate="bad")).status_code == 401
        assert reasons(gateway) == ["certificate-unmapped"]


# Without a gateway ---------------------------------------------------------------------------------------------------


def why(authorities, leaf, *above, at=0):
    try:
        judge(authorities.current(), leaf, above, now_us=now_us() + at)
    except Unauthenticated as error:
        return error.code
    return "good"


@pytest.fixture
def root():
    return Ca("Root")


@pytest.fixture
def authorities(tmp_path, root):
    accept(tmp_path, "root", root)
    return Authorities(tmp_path, crl="if-present")


def test_who_is_good(authorities, root):
    assert why(authorities, root.client(URI)[0]) == "good"
    assert why(authorities, root.client()[0]) == "good"  # known by its common name alone
    assert why(authorities, Ca("Root").client(URI)[0]) == "certificate-untrusted"  # of the same name
    assert why(authorities, root.certificate) == "certificate-untrusted"  # an authority is no client
    assert why(authorities, root.client(URI, purpose=ours.ExtendedKeyUsageOID.SERVER_AUTH)[0]) == (
        "certificate-untrusted"
    )
    assert why(authorities, root.client(URI, ends=now() - DAY / 24)[0]) == "certificate-expired"
    assert why(authorities, root.client(URI, begins=now() + DAY)[0]) == "certificate-expired"


def test_a_certificate_below_one_that_has_expired_is_refused(authorities, root):
    between = Ca("Between", parent=root, days=0.5)
    leaf = between.client(URI)[0]
    assert why(authorities, leaf, between.certificate) == "certificate-untrusted"
    assert why(authorities, leaf) == "certificate-untrusted"


def test_an_end_certificate_cannot_issue(authorities, root):
    false_authority = Ca("False", parent=root)
    false_authority.certificate, false_authority.key = root.client(URI, common="False")
    forged = false_authority.client(URI)[0]
    assert why(authorities, forged, false_authority.certificate) == "certificate-untrusted"


def test_what_was_judged_holds_until_the_first_end(authorities, root):
    between = Ca("Between", parent=root, days=30)
    leaf = between.client(URI)[0]
    found = judge(authorities.current(), leaf, (between.certificate,), now_us=now_us())
    assert found.until_us == int(between.certificate.not_valid_after_utc.timestamp()) * 1_000_000
    assert found.authorities == {"root"}
    assert why(authorities, leaf, between.certificate, at=31 * 86400 * 10**6) == "certificate-untrusted"


def test_both_authorities_stand_behind_a_certificate_that_both_signed_for(tmp_path, root):
    between = Ca("Between", parent=root)
    accept(tmp_path, "root", root)
    accept(tmp_path, "between", between)
    authorities = Authorities(tmp_path, crl="off")
    found = judge(authorities.current(), between.client(URI)[0], (between.certificate,), now_us=now_us())
    assert found.authorities == {"root", "between"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a", b"x", "holds something other|is not a certificate"),
        ("ca", "root", "the name that stands for pki/ca.pem"),
        ("many", "many", "holds more than 16 certificates"),
        ("large", b"x" * 300_000, "larger than"),
        ("leaf", "leaf", "not an authority's"),
    ],
)
def test_what_is_no_authority_stops_the_start(tmp_path, root, name, content, says):
    accept(tmp_path, "root", root)
    given = {"root": pem(root.certificate), "many": pem(root.certificate) * 17, "leaf": pem(root.client(URI)[0])}
    (tmp_path / "authorities" / f"{name}.pem").write_bytes(given.get(content, content))
    with pytest.raises(ConfigurationError, match=says):
        Authorities(tmp_path, crl="off")


def test_without_any_authority_nothing_starts(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        Authorities(tmp_path, crl="off")


@pytest.mark.parametrize("other", [b"nothing", "unreadable"])
def test_a_removed_authority_is_gone_whatever_is_wrong_with_another(tmp_path, root, other):
    """Else a slip in one file would keep an authority in force that was taken away because its key was stolen."""
    for name in ("root", "other", "stolen"):
        accept(tmp_path, name, root if name == "root" else Ca())
    authorities = Authorities(tmp_path, crl="off", report=(told := []).append)
    file = tmp_path / "authorities" / "other.pem"
    if other == "unreadable":
        file.unlink()
        file.mkdir()  # what root cannot read either
    else:
        file.write_bytes(other)
    (tmp_path / "authorities" / "stolen.pem").unlink()
    for _ in range(2):
        assert [authority.name for authority in authorities.current().authorities] == ["other", "root"]
    assert "other.pem" in told[-1]
    accept(tmp_path, "added", Ca())
    assert "stolen" not in {authority.name for authority in authorities.current().authorities}


def test_too_many_authorities_leave_those_before_in_force(tmp_path, root):
    accept(tmp_path, "root", root)
    authorities = Authorities(tmp_path, crl="off")
    for number in range(40):
        accept(tmp_path, f"a{number}", root)
    assert [authority.name for authority in authorities.current().authorities] == ["root"]
    for number in range(40):
        (tmp_path / "authorities" / f"a{number}.pem").unlink()
    accept(tmp_path, "second", root)
    assert [authority.name for authority in authorities.current().authorities] == ["root", "second"]


def test_a_generation_lasts_while_nothing_changes(authorities, tmp_path, root):
    first = authorities.current()
    assert authorities.current() is first
    accept(tmp_path, "root", root)  # the same content, written again
    assert authorities.current() is first
    accept(tmp_path, "root", root, Ca())
    assert authorities.current().number == first.number + 1
