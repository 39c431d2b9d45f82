"""Revocation lists: what they say, and when they cannot say. Some are made by OpenSSL, which shares no code with us."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.authentication.authorities import Authorities, judge
from gateway.authentication.revocation_lists import RevocationList, parse_lists
from gateway.errors import Unauthenticated
from gateway.limits import MAX_CERTIFICATES
from sealgate.ambient import now_us
from sealgate.errors import ConfigurationError
from sealgate.protocol import frames
from tests.gateway.conftest import post_sealed
from tests.gateway.issuing import DAY, Ca, accept, install, key_pem, map_any_authority, now, pem, publish

URI = "URI:urn:sealgate:client:integration"
HOUR = DAY / 24


def why(authorities, leaf, *above, at=datetime.timedelta(0)):
    try:
        judge(authorities.current(), leaf, above, now_us=now_us() + int(at.total_seconds()) * 10**6)
    except Unauthenticated as error:
        return error.code
    return "good"


@pytest.fixture
def root():
    return Ca("Root")


@pytest.fixture
def make(tmp_path, root):
    """The authorities of a folder that accepts `root`, under a setting."""
    accept(tmp_path, "root", root)
    return lambda crl="if-present": Authorities(tmp_path, crl=crl)


# What a list says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["root.crl", "ROOT.CRL"])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_who_is_listed_is_revoked_at_once(make, tmp_path, root, encoding, name):
    lost, kept = root.client(URI)[0], root.client(URI)[0]
    authorities = make()
    assert why(authorities, lost) == "good"
    publish(tmp_path, name, root.crl(lost), encoding=encoding)
    assert why(authorities, lost) == "certificate-revoked"
    assert why(authorities, kept) == "good"


def test_the_newest_list_counts(make, tmp_path, root):
    leaf = root.client(URI)[0]
    publish(tmp_path, "held.pem", root.crl(leaf, begins=now() - 2 * HOUR))
    authorities = make()
    assert why(authorities, leaf) == "certificate-revoked"
    publish(tmp_path, "released.pem", root.crl(begins=now() - HOUR))
    assert why(authorities, leaf) == "good"
    publish(tmp_path, "both.pem", root.crl(leaf, begins=now()), root.crl(begins=now() - 3 * HOUR))
    assert why(authorities, leaf) == "certificate-revoked"


def test_a_list_is_good_until_its_next_update(make, tmp_path, root):
    leaf, lost = root.client(URI)[0], root.client(URI)[0]
    publish(tmp_path, "root.pem", root.crl(lost, begins=now() - HOUR, ends=now() + HOUR))
    authorities = make()
    assert why(authorities, leaf) == "good"
    assert why(authorities, leaf, at=2 * HOUR) == "crl-stale"
    assert why(authorities, lost, at=2 * HOUR) == "certificate-revoked"
    found = judge(authorities.current(), leaf, (), now_us=now_us())
    assert abs(found.until_us - now_us() - 3600 * 10**6) < 60 * 10**6


def test_a_list_from_the_future_says_nothing_yet(make, tmp_path, root):
    leaf = root.client(URI)[0]
    publish(tmp_path, "root.pem", root.crl(leaf, begins=now() + HOUR))
    assert why(make(), leaf) == "crl-missing"
    publish(tmp_path, "root.pem", root.crl(leaf, begins=now() + datetime.timedelta(minutes=1)))
    assert why(make(), leaf) == "certificate-revoked"  # clocks differ


def test_every_step_of_a_path_is_asked(make, tmp_path, root):
    between = Ca("Between", parent=root)
    leaf = between.client(URI)[0]
    authorities = make()
    assert why(authorities, leaf, between.certificate) == "good"
    publish(tmp_path, "root.pem", root.crl(between.certificate))
    assert why(authorities, leaf, between.certificate) == "certificate-revoked"
    publish(tmp_path, "root.pem", root.crl(begins=now()))
    publish(tmp_path, "between.pem", between.crl(leaf))
    assert why(authorities, leaf, between.certificate) == "certificate-revoked"


@pytest.mark.parametrize(
    ("crl", "without", "vanished"),
    [("off", "good", "good"), ("if-present", "good", "crl-missing"), ("required", "crl-missing", "crl-missing")],
)
def test_the_setting_says_what_no_list_means(make, tmp_path, root, crl, without, vanished):
    leaf = root.client(URI)[0]
    authorities = make(crl)
    assert why(authorities, leaf) == without
    publish(tmp_path, "root.pem", root.crl())
    assert why(authorities, leaf) == "good"
    (tmp_path / "crl" / "root.pem").unlink()  # it was there: that it is gone is no amnesty
    assert why(authorities, leaf) == vanished


def test_required_means_every_authority_on_the_path(make, tmp_path, root):
    between = Ca("Between", parent=root)
    leaf = between.client(URI)[0]
    publish(tmp_path, "root.pem", root.crl())
    authorities = make("required")
    assert why(authorities, leaf, between.certificate) == "crl-missing"
    publish(tmp_path, "between.pem", between.crl())
    assert why(authorities, leaf, between.certificate) == "good"


# Lists that are not what they should be ------------------------------------------------------------------------------


def test_a_list_that_another_signed_closes_its_authority(make, tmp_path, root):
    leaf = root.client(URI)[0]
    publish(tmp_path, "root.pem", root.crl(key=ec.generate_private_key(ec.SECP256R1())))
    assert why(make(), leaf) == "crl-unusable"
    publish(tmp_path, "root.pem", root.crl(key=ec.generate_private_key(ec.SECP256R1()), identified=False))
    assert why(make(), leaf) == "crl-unusable"


def test_another_authority_of_the_same_name_has_its_own_list(make, tmp_path, root):
    other = Ca("Root")
    accept(tmp_path, "other", other)
    leaf, theirs = root.client(URI)[0], other.client(URI, serial=77)[0]
    same_serial = root.client(URI, serial=77)[0]
    publish(tmp_path, "other.pem", other.crl(theirs))
    publish(tmp_path, "root.pem", root.crl())
    authorities = make()
    assert [why(authorities, item) for item in (leaf, theirs, same_serial)] == ["good", "certificate-revoked", "good"]


def test_lists_for_one_kind_of_certificate_or_one_place(make, tmp_path, root):
    point = "http://crl.example.org/2"
    between = Ca("Between", parent=root)

    def scope(**more):
        fields = dict.fromkeys(("full_name", "relative_name", "only_some_reasons"))
        fields |= dict.fromkeys(
            ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs"),
            False,
        )
        return (x509.IssuingDistributionPoint(**(fields | more)), True)

    def sharded(place):
        return root.client(
            URI,
            more=[
                x509.CRLDistributionPoints(
                    [x509.DistributionPoint([x509.UniformResourceIdentifier(place)], None, None, None)]
                )
            ],
        )[0]

    leaf = between.client(URI)[0]
    publish(tmp_path, "users.pem", root.crl(between.certificate, more=[scope(only_contains_user_certs=True)]))
    assert why(make(), leaf, between.certificate) == "crl-missing"  # nothing is said of authorities
    publish(tmp_path, "cas.pem", root.crl(between.certificate, more=[scope(only_contains_ca_certs=True)]))
    assert why(make(), leaf, between.certificate) == "certificate-revoked"
    shutil.rmtree(tmp_path / "crl")
    here, elsewhere = sharded(point), sharded("http://crl.example.org/1")
    name = [x509.UniformResourceIdentifier(point)]
    publish(tmp_path, "shard.pem", root.crl(here, elsewhere, more=[scope(full_name=name)]))
    assert why(make("required"), here) == "certificate-revoked"
    assert why(make("required"), elsewhere) == "crl-missing"
    publish(tmp_path, "shard.pem", root.crl(more=[scope(indirect_crl=True)]))
    with pytest.raises(ConfigurationError, match="indirect or partial"):
        make()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n",
        "half",
        "delta",
        "cut",
        "certificate",
        "large",
    ],
)
def test_what_is_no_list_closes_the_door_until_it_is_mended(make, tmp_path, root, content):
    whole = root.crl().public_bytes(Encoding.PEM)
    given = {
        "half": whole + whole[:200],
        "delta": root.crl(more=[(x509.DeltaCRLIndicator(1), True)]).public_bytes(Encoding.PEM),
        "certificate": pem(root.certificate),
        "cut": root.crl().public_bytes(Encoding.DER)[:-3],
        "large": b"x" * (8 * 1024 * 1024 + 1),
    }
    leaf = root.client(URI)[0]
    authorities = make()
    assert why(authorities, leaf) == "good"
    (tmp_path / "crl").mkdir()
    (tmp_path / "crl" / "a.pem").write_bytes(given.get(content, content))
    for _ in range(2):
        assert why(authorities, leaf) == "crl-unreadable"
    with pytest.raises(ConfigurationError, match="revocation lists"):
        make()
    (tmp_path / "crl" / "a.pem").write_bytes(whole)
    assert why(authorities, leaf) == "good"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_list_that_may_not_be_read_closes_the_door(make, tmp_path, root):
    leaf = root.client(URI)[0]
    publish(tmp_path, "root.pem", root.crl())
    authorities = make()
    (tmp_path / "crl" / "root.pem").chmod(0)
    assert why(authorities, leaf) == "crl-unreadable"
    (tmp_path / "crl" / "root.pem").chmod(0o600)
    assert why(authorities, leaf) == "good"


def test_a_folder_in_the_place_of_a_list_closes_the_door(make, tmp_path, root):
    leaf = root.client(URI)[0]
    publish(tmp_path, "root.pem", root.crl())
    authorities = make()
    (tmp_path / "crl" / "more.pem").mkdir()
    assert why(authorities, leaf) == "crl-unreadable"
    (tmp_path / "crl" / "more.pem").rmdir()
    assert why(authorities, leaf) == "good"  # and what could be read before is read again


def test_a_fault_while_lists_are_read_leaves_the_door_closed(make, tmp_path, root, monkeypatch):
    """What nobody expected must not leave the lists before in force: they may lack what the new ones say."""
    leaf = root.client(URI)[0]
    publish(tmp_path, "root.pem", root.crl())
    authorities = make()
    assert why(authorities, leaf) == "good"
    with monkeypatch.context() as patch:
        patch.setattr("gateway.authentication.authorities.parse_lists", lambda data: 1 // 0)
        publish(tmp_path, "root.pem", root.crl(leaf))
        with pytest.raises(ZeroDivisionError):
            authorities.current()
    assert why(authorities, leaf) == "crl-unreadable"
    publish(tmp_path, "root.pem", root.crl(leaf, begins=now()))
    assert why(authorities, leaf) == "certificate-revoked"


def test_an_authority_that_may_not_sign_lists(tmp_path):
    """The key usage of an authority says whether it may (RFC 5280 section 6.3.3 (f))."""
    root = Ca("Root", signs_lists=False)
    accept(tmp_path, "root", root)
    publish(tmp_path, "root.pem", root.crl())
    assert why(Authorities(tmp_path, crl="if-present"), root.client(URI)[0]) == "crl-unusable"


# By OpenSSL ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: apt install openssl")
def test_lists_made_by_openssl(make, tmp_path, root):
    kept, lost = root.client(URI)[0], root.client(URI)[0]
    work = tmp_path / "openssl"
    work.mkdir()
    (work / "ca.pem").write_bytes(pem(root.certificate))
    (work / "ca.key").write_bytes(key_pem(root.key))
    (work / "lost.pem").write_bytes(pem(lost))
    (work / "index.txt").touch()
    (work / "number").write_text("01\n")
    (work / "ca.cnf").write_text(
        "[ca]\ndefault_ca=x\n[x]\ndatabase=index.txt\ncrlnumber=number\ncertificate=ca.pem\nprivate_key=ca.key\n"
        "default_md=sha256\ndefault_crl_days=1\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid:always\n"
    )

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=work, check=True, capture_output=True, timeout=30)

    openssl("ca", "-config", "ca.cnf", "-revoke", "lost.pem")
    openssl("ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem")
    (tmp_path / "crl").mkdir()
    shutil.copy(work / "crl.pem", tmp_path / "crl")
    authorities = make("required")
    assert (why(authorities, kept), why(authorities, lost)) == ("good", "certificate-revoked")
    assert why(authorities, kept, at=2 * DAY) == "crl-stale"


def test_a_file_may_hold_several_lists(root):
    data = root.crl().public_bytes(Encoding.PEM)
    assert len(parse_lists(data + b"a comment\n" + data)) == 2
    assert len(parse_lists(root.crl().public_bytes(Encoding.DER))) == 1


def test_a_long_list_is_looked_through_once_for_each_certificate(root):
    """A revoked client that goes on asking must not make the others wait for it each time."""

    class Counted:
        def __init__(self, parsed):
            self.parsed, self.asked = parsed, []

        def __getattr__(self, name):
            return getattr(self.parsed, name)

        def get_revoked_certificate_by_serial_number(self, serial):
            self.asked.append(serial)
            return self.parsed.get_revoked_certificate_by_serial_number(serial)

    bad, good = root.client("URI:urn:a")[0], root.client("URI:urn:b")[0]
    counted = Counted(root.crl(bad))
    found = RevocationList(counted)
    for _ in range(5):
        assert (found.lists(bad), found.lists(good)) == (True, False)
    assert counted.asked == [bad.serial_number, good.serial_number]
    for serial in range(MAX_CERTIFICATES + 5):
        found.lists(SimpleNamespace(serial_number=serial))
    assert len(found._answers) <= MAX_CERTIFICATES


@pytest.fixture
def mapped(deployment):
    map_any_authority(deployment)


# At a gateway --------------------------------------------------------------------------------------------------------


def test_a_list_is_effective_on_an_open_connection(mapped, gateway):
    pki = gateway.deployment.pki
    partner = Ca("Partner")
    accept(pki, "partner", partner)
    leaf = partner.client(URI)
    install(pki, "partner", leaf)
    client, token = gateway.client(certificate="partner"), gateway.token()
    with_both = gateway.client(certificate="partner", token=token)
    assert post_sealed(client).status_code == post_sealed(with_both).status_code == 200
    publish(pki, "partner.pem", partner.crl(leaf[0]))
    answers = [post_sealed(client), post_sealed(with_both), post_sealed(gateway.client(certificate="partner"))]
    assert [answer.status_code for answer in answers] == [401] * 3
    assert {frame.reason for frame in gateway.host.heard(frames.AuthFailed, 3)} == {"certificate-revoked"}
    assert post_sealed(gateway.client(token=token)).status_code == 200
    assert post_sealed(gateway.client(certificate="integration")).status_code == 200
    (pki / "crl" / "broken.pem").write_bytes(b"half")
    assert post_sealed(gateway.client(certificate="integration")).status_code == 401
    assert "broken.pem" in gateway.events("client-certificates")[0]["detail"]
    assert post_sealed(gateway.client(token=token)).status_code == 200
