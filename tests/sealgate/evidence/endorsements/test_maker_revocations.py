"""Makers' revocation lists, by the public test suite of path validation (NIST PKITS, section 4.4 and others)."""

from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sealgate.errors import EvidenceError
from sealgate.evidence.endorsements.maker_revocations import require_unrevoked

_found = importlib.util.find_spec("cryptography_vectors")
pytestmark = pytest.mark.skipif(_found is None, reason="SKIPPED FOR WANT OF cryptography-vectors")
PKITS = Path(_found.origin or "").parent / "x509" / "PKITS_data" if _found else Path()
NOW_US = int(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).timestamp()) * 1_000_000


def certificate(name: str) -> x509.Certificate:
    return x509.load_der_x509_certificate((PKITS / "certs" / f"{name}.crt").read_bytes())


def judged(issuer: str, listed: bytes, issued: str, now_us: int = NOW_US) -> datetime.datetime:
    return require_unrevoked(listed, certificate(issuer), [certificate(issued)], of="report", now_us=now_us)


def of(name: str) -> bytes:
    return (PKITS / "crls" / f"{name}.crl").read_bytes()


@pytest.mark.parametrize(
    ("issuer", "crl", "issued"),
    [
        ("GoodCACert", "GoodCACRL", "ValidCertificatePathTest1EE"),
        ("TwoCRLsCACert", "TwoCRLsCAGoodCRL", "ValidTwoCRLsTest7EE"),
        (
            "GeneralizedTimeCRLnextUpdateCACert",
            "GeneralizedTimeCRLnextUpdateCACRL",
            "ValidGeneralizedTimeCRLnextUpdateTest13EE",
        ),
        ("LongSerialNumberCACert", "LongSerialNumberCACRL", "ValidLongSerialNumberTest16EE"),
        ("LongSerialNumberCACert", "LongSerialNumberCACRL", "ValidLongSerialNumberTest17EE"),
        ("TrustAnchorRootCertificate", "TrustAnchorRootCRL", "GoodCACert"),
    ],
)
def test_who_is_on_no_list_passes(issuer: str, crl: str, issued: str) -> None:
    assert judged(issuer, of(crl), issued).year > 2020


@pytest.mark.parametrize(
    ("issuer", "crl", "issued", "says"),
    [
        ("GoodCACert", "GoodCACRL", "RevokedsubCACert", "revoked by its maker"),  # 4.4.2
        ("GoodCACert", "GoodCACRL", "InvalidRevokedEETest3EE", "revoked by its maker"),
        ("BadCRLSignatureCACert", "BadCRLSignatureCACRL", "InvalidBadCRLSignatureTest4EE", "none of its root's"),
        ("BadCRLIssuerNameCACert", "BadCRLIssuerNameCACRL", "InvalidBadCRLIssuerNameTest5EE", "none of its root's"),
        ("WrongCRLCACert", "WrongCRLCACRL", "InvalidWrongCRLTest6EE", "none of its root's"),
        ("TwoCRLsCACert", "TwoCRLsCABadCRL", "ValidTwoCRLsTest7EE", "none of its root's"),
        (
            "UnknownCRLEntryExtensionCACert",
            "UnknownCRLEntryExtensionCACRL",
            "InvalidUnknownCRLEntryExtensionTest8EE",
            "understood",
        ),
        ("UnknownCRLExtensionCACert", "UnknownCRLExtensionCACRL", "InvalidUnknownCRLExtensionTest9EE", "understood"),
        ("OldCRLnextUpdateCACert", "OldCRLnextUpdateCACRL", "InvalidOldCRLnextUpdateTest11EE", "not in force"),
        (
            "pre2000CRLnextUpdateCACert",
            "pre2000CRLnextUpdateCACRL",
            "Invalidpre2000CRLnextUpdateTest12EE",
            "not in force",
        ),
        ("LongSerialNumberCACert", "LongSerialNumberCACRL", "InvalidLongSerialNumberTest18EE", "revoked by its maker"),
        (
            "keyUsageCriticalcRLSignFalseCACert",
            "keyUsageCriticalcRLSignFalseCACRL",
            "InvalidkeyUsageCriticalcRLSignFalseTest4EE",
            "none of its root's",
        ),
        (
            "keyUsageNotCriticalcRLSignFalseCACert",
            "keyUsageNotCriticalcRLSignFalseCACRL",
            "InvalidkeyUsageNotCriticalcRLSignFalseTest5EE",
            "none of its root's",
        ),
        ("deltaCRLCA1Cert", "deltaCRLCA1deltaCRL", "ValiddeltaCRLTest2EE", "of a part"),
        (
            "onlyContainsUserCertsCACert",
            "onlyContainsUserCertsCACRL",
            "InvalidonlyContainsUserCertsTest11EE",
            "of a part",
        ),
        ("indirectCRLCA1Cert", "indirectCRLCA1CRL", "ValidIDPwithindirectCRLTest22EE", "of a part"),
    ],
)
def test_whoever_is_on_a_list_and_lists_that_do_not_hold_are_refused(
    issuer: str, crl: str, issued: str, says: str
) -> None:
    with pytest.raises(EvidenceError, match=says) as failure:
        judged(issuer, of(crl), issued)
    assert failure.value.code == "endorsement-signature"


def test_a_list_is_in_force_between_its_two_dates_only() -> None:
    found = x509.load_der_x509_crl(of("GoodCACRL"))
    assert found.next_update_utc is not None
    first, last = (int(moment.timestamp()) * 1_000_000 for moment in (found.last_update_utc, found.next_update_utc))
    for now_us in (first, last - 1):
        judged("GoodCACert", of("GoodCACRL"), "ValidCertificatePathTest1EE", now_us)
    for now_us in (first - 1, last):
        with pytest.raises(EvidenceError, match="not in force"):
            judged("GoodCACert", of("GoodCACRL"), "ValidCertificatePathTest1EE", now_us)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
@example(place=8, change=1)  # the version, for which the library has an error of its own
def test_any_altered_byte_of_a_list_is_noticed(place: int, change: int) -> None:
    listed = bytearray(of("GoodCACRL"))
    place %= len(listed)
    assume(
        place != len(listed) - 257
    )  # says how many bits of the signature's last byte are not of it: of its coding only
    listed[place] ^= change
    with pytest.raises(EvidenceError):
        judged("GoodCACert", bytes(listed), "ValidCertificatePathTest1EE")
