"""`sealgate certificate` as it is typed, beside a gateway that runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from cryptography import x509

from gateway import certificate_commands, pki
from gateway.authentication.authorities import fingerprint_of
from policy.history import InForce, PolicyHistory
from sealgate.cli import main
from tests.gateway.conftest import post_sealed
from tests.gateway.issuing import Ca, accept, install, map_any_authority, pem, without_key_usage


@pytest.fixture(autouse=True)
def mapped(deployment):
    map_any_authority(deployment)


def sealgate(*words, code=0):
    assert main(["certificate", *map(str, words)]) == code


def refused(capsys, *words):
    sealgate(*words, code=1)
    said = capsys.readouterr().err
    assert said.startswith("sealgate: ")
    assert said.count("\n") == 1
    return said


def leaf(deployment, name):
    return x509.load_pem_x509_certificate((deployment.pki / "clients" / f"{name}.pem").read_bytes())


def own_list(deployment):
    return x509.load_pem_x509_crl((deployment.pki / "crl" / "ca.pem").read_bytes())


def test_a_certificate_is_issued_and_mapped(gateway, capsys):
    root, folder = gateway.deployment.root, gateway.deployment.pki / "clients"
    sealgate(
        "issue", root, "robot", "--san", "DNS:robot.example.org", "--san", "URI:spiffe://example.org/r", "--days", 9
    )
    said = capsys.readouterr().out
    made = leaf(gateway.deployment, "robot")
    assert pki.certificate_names(made) == ("URI:spiffe://example.org/r", "DNS:robot.example.org")
    assert (made.not_valid_after_utc - made.not_valid_before_utc).days == 9
    assert fingerprint_of(made) in said
    assert "stands for nobody yet" in said
    assert 'certificate = "URI:spiffe://example.org/r"' in said
    assert (folder / "robot.key").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in said
    sealgate("issue", root, "twin", "--san", "URI:urn:sealgate:client:integration")
    assert "clinic/hospital-integration" in capsys.readouterr().out
    assert post_sealed(gateway.client(certificate="twin")).status_code == 200
    assert post_sealed(gateway.client(certificate="robot")).status_code == 401  # nobody


def test_a_revocation_is_in_force_at_once_on_an_open_connection(gateway, capsys):
    root = gateway.deployment.root
    client = gateway.client(certificate="integration")
    assert post_sealed(client).status_code == 200
    sealgate("revoke", root, "integration", "--reason", "key-compromise", "--note", "lost laptop")
    said = capsys.readouterr()
    assert "in force now" in said.out
    assert "not on record: no runtime host" in said.err  # this one does not listen for commands
    assert post_sealed(client).status_code == 401
    assert post_sealed(gateway.client(certificate="integration")).status_code == 401
    entry = own_list(gateway.deployment).get_revoked_certificate_by_serial_number(
        leaf(gateway.deployment, "integration").serial_number
    )
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise
    before = own_list(gateway.deployment)
    sealgate("revoke", root, "integration")
    assert "revoked before" in capsys.readouterr().out
    assert own_list(gateway.deployment) == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: apt install openssl")
def test_the_list_is_what_openssl_takes_for_one(deployment):
    for name in ("integration", "auditor"):
        sealgate("revoke", deployment.root, name)
    crl = deployment.pki / "crl" / "ca.pem"
    assert len(own_list(deployment)) == 2
    assert own_list(deployment).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2
    assert crl.stat().st_mode & 0o777 == 0o644

    def verify(name):
        command = ["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", deployment.pki / "ca.pem"]
        command += ["-CRLfile", crl, deployment.pki / "clients" / f"{name}.pem"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert "certificate revoked" in verify("integration").stderr
    assert verify("operator").returncode == 0


def test_a_client_is_renewed_and_the_old_one_refused_only_if_asked(gateway, capsys):
    root, old = gateway.deployment.root, leaf(gateway.deployment, "integration")
    before = gateway.client(certificate="integration")
    assert post_sealed(before).status_code == 200
    sealgate("renew", root, "integration")
    new = leaf(gateway.deployment, "integration")
    assert pki.certificate_names(new) == pki.certificate_names(old)
    assert new.public_key() != old.public_key()
    assert post_sealed(before).status_code == 200
    assert post_sealed(gateway.client(certificate="integration")).status_code == 200
    said = capsys.readouterr().out
    assert f"certificate revoke {root} {fingerprint_of(old)}" in said
    sealgate("revoke", root, fingerprint_of(old))
    assert post_sealed(before).status_code == 401
    sealgate("renew", root, "integration", "--revoke")
    assert new.serial_number in [entry.serial_number for entry in own_list(gateway.deployment)]
    assert post_sealed(gateway.client(certificate="integration")).status_code == 200


def test_the_servers_certificate_is_renewed_under_a_running_gateway(gateway, capsys):
    import socket

    def shown():
        with (
            socket.create_connection(("127.0.0.1", gateway.port)) as raw,
            gateway.tls().wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))

    before, mode = shown(), (gateway.deployment.pki / "server.key").stat().st_mode
    sealgate("renew", gateway.deployment.root, "server", "--days", "30")
    assert "new connections" in capsys.readouterr().out
    after = shown()
    assert after.serial_number != before.serial_number
    assert pki.certificate_names(after) == pki.certificate_names(before)
    assert (gateway.deployment.pki / "server.key").stat().st_mode == mode


def test_the_list_shows_who_counts_and_why_not(deployment, capsys):
    stranger = Ca("Stranger")
    install(deployment.pki, "stranger", stranger.client("URI:urn:x"))
    sealgate("issue", deployment.root, "robot")
    sealgate("revoke", deployment.root, "auditor")
    sealgate("revoke", deployment.root, fingerprint_of(leaf(deployment, "operator")))
    capsys.readouterr()
    sealgate("list", deployment.root, "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["standing"] for name, row in rows.items()} == {
        "auditor": "certificate-revoked",
        "integration": "good",
        "operator": "certificate-revoked",
        "robot": "good",
        "stranger": "certificate-untrusted",
    }
    assert (rows["integration"]["tenant"], rows["integration"]["subject"]) == ("clinic", "hospital-integration")
    assert rows["robot"]["subject"] is None
    sealgate("list", deployment.root)
    table = capsys.readouterr().out
    assert "clinic/hospital-integration" in table
    assert "nobody" in table


def test_the_list_goes_by_the_policy_in_force_and_what_it_revokes(deployment, capsys):
    """As a gateway does: not by what somebody is still writing."""

    def listed():
        capsys.readouterr()
        sealgate("list", deployment.root, "--json")
        return {row["name"]: (row["standing"], row["subject"]) for row in json.loads(capsys.readouterr().out)}

    history = PolicyHistory(deployment.policy_history)
    tenants = deployment.policy / "tenants.toml"
    history.replace_current(InForce(digest=history.store(deployment.policy)))
    text = tenants.read_text().replace('subject = "hospital-integration"', 'subject = "somebody-else"')
    revoked = fingerprint_of(leaf(deployment, "auditor"))
    tenants.write_text(text.replace("revoked_certificates = []", f'revoked_certificates = ["{revoked}"]'))
    assert (listed()["integration"], listed()["auditor"][0]) == (("good", "hospital-integration"), "good")
    history.replace_current(InForce(digest=history.store(deployment.policy)))
    assert (listed()["integration"], listed()["auditor"][0]) == (("good", "somebody-else"), "certificate-revoked")


def test_a_certificate_of_another_authority_goes_on_the_deny_list(gateway, tmp_path):
    partner = Ca("Partner")
    accept(gateway.deployment.pki, "partner", partner)
    given = partner.client("URI:urn:sealgate:client:integration")
    install(gateway.deployment.pki, "partner", given)
    client = gateway.client(certificate="partner")
    assert post_sealed(client).status_code == 200
    file = tmp_path / "seen.pem"
    file.write_bytes(pem(given[0]))
    (gateway.deployment.pki / "revoked.txt").write_text("# ours, and no newline at its end")
    sealgate("revoke", gateway.deployment.root, file)
    assert not (gateway.deployment.pki / "crl").exists()
    assert post_sealed(client).status_code == 401
    assert post_sealed(gateway.client(certificate="integration")).status_code == 200


@pytest.mark.parametrize("why", ["key away", "lists off"])
def test_without_a_list_the_deny_list_is_used(deployment, why):
    if why == "key away":
        (deployment.pki / "ca.key").unlink()
    else:
        path = deployment.root / "deployment.toml"
        path.write_text(path.read_text().replace("[gateway]\n", '[gateway]\ncrl = "off"\n'))
    sealgate("revoke", deployment.root, "integration")
    assert fingerprint_of(leaf(deployment, "integration")) in (deployment.pki / "revoked.txt").read_text()
    assert not (deployment.pki / "crl").exists()


def test_what_is_wrong_is_said_in_one_line(deployment, capsys):
    root = deployment.root
    assert "there already" in refused(capsys, "issue", root, "integration")
    assert "is not 'server'" in refused(capsys, "issue", root, "server")
    assert "letters, digits" in refused(capsys, "issue", root, "../x")
    assert "1 to 397 days" in refused(capsys, "issue", root, "new", "--days", 4000)
    assert "URI:..., DNS:..." in refused(capsys, "issue", root, "new", "--san", "IP:1.2.3.4")
    assert "URI:..., DNS:..." in refused(capsys, "issue", root, "new", "--san", "DNS:é")
    assert "cannot be read" in refused(capsys, "renew", root, "nobody")
    assert "cannot be read" in refused(capsys, "revoke", root, "nobody")
    assert "there is no certificate" in refused(capsys, "revoke", root, "../ca")
    install(deployment.pki, "stranger", Ca().client("URI:urn:x"))
    assert "where it comes from" in refused(capsys, "renew", root, "stranger")
    (deployment.pki / "crl").mkdir()
    (deployment.pki / "crl" / "ca.pem").write_bytes(b"mine")
    assert "is not a revocation list of pki/ca.pem" in refused(capsys, "revoke", root, "integration")
    (deployment.pki / "ca.key").write_bytes((deployment.pki / "server.key").read_bytes())
    assert "is not the key of ca.pem" in refused(capsys, "issue", root, "new")
    (deployment.pki / "ca.key").unlink()
    assert "needs the key" in refused(capsys, "issue", root, "new")
    assert not list((deployment.pki / "clients").glob("new*"))


def test_the_default_life_is_the_longest():
    assert certificate_commands._DAYS == pki.LEAF_DAYS


def test_files_keep_their_owner_and_mode(deployment):
    path = deployment.pki / "revoked.txt"
    path.write_text("")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 4242, 4243)
    sealgate("revoke", deployment.root, "ab" * 32)
    status = path.stat()
    assert status.st_mode & 0o777 == 0o640
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == (4242, 4243)
    assert "ab" * 32 in path.read_text()
    assert not list(deployment.pki.glob(".*"))


def test_inspecting_says_whether_a_certificate_counts_and_why_not(gateway, capsys, tmp_path):
    root, file = gateway.deployment.root, tmp_path / "shown.pem"

    def inspected(certificate, *, code):
        file.write_bytes(pem(certificate[0]))
        sealgate("inspect", root, file, code=code)
        return capsys.readouterr().out

    partner, stranger, short = Ca("Partner"), Ca("Stranger"), Ca("Partner")
    short.certificate = without_key_usage(short)
    accept(gateway.deployment.pki, "partner", partner)
    said = inspected(partner.client("URI:urn:sealgate:client:integration"), code=0)
    assert said.startswith("counts       yes\n")
    assert "clinic/hospital-integration" in said
    assert "stands for   nobody" in inspected(partner.client("DNS:proxy.internal"), code=1)
    said = inspected(stranger.client("URI:a:b"), code=1)
    assert "certificate-untrusted" in said
    assert "authority partner: is not its issuer" in said
    accept(gateway.deployment.pki, "partner", short)
    assert "authority partner: invalid extension: 2.5.29.15 (key usage)" in inspected(short.client("URI:a:b"), code=1)
    revoked = fingerprint_of(leaf(gateway.deployment, "auditor"))
    sealgate("revoke", root, "auditor")
    capsys.readouterr()
    sealgate("inspect", root, "auditor", code=1)
    said = capsys.readouterr().out
    assert "certificate-revoked" in said
    assert revoked in said, "the whole of it, as settings and lists want it"
    assert "name its file" in refused(capsys, "inspect", root, revoked)
