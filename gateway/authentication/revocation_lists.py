"""Certificate revocation lists (RFC 5280 section 5), and what they say about one certificate (section 6.3).

Complete lists only, signed by the authority that issued the certificate. Delta lists, indirect lists and lists for some
reasons only are refused where they are read: to pass over them would be to pass over revocations.

Trusts: nothing in a list before its authority's signature held. Never: takes a list past its nextUpdate for an answer.
"""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.errors import Unauthenticated
from gateway.limits import CRL_SKEW_S, MAX_CERTIFICATES

_PEM = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_BEGIN = b"-----BEGIN "
_STRANGE = (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion)
_UNDERSTOOD = frozenset({x509.IssuingDistributionPoint.oid, x509.AuthorityKeyIdentifier.oid, x509.CRLNumber.oid})


class RevocationList:
    """One list, parsed. Its signature is checked when it is asked about a certificate of its authority."""

    def __init__(self, parsed: x509.CertificateRevocationList) -> None:
        """Raises ValueError for a list of a kind that is not understood."""
        until = parsed.next_update_utc
        if until is None:
            raise ValueError("holds a revocation list without nextUpdate")
        for extension in parsed.extensions:
            if extension.critical and extension.oid not in _UNDERSTOOD:
                raise ValueError("holds a revocation list with a critical extension that is not understood")
        self._parsed = parsed
        self._scope = _scope(parsed)
        self._key = _key_identifier(parsed)
        self._signed_by: dict[bytes, bool] = {}
        self._answers: dict[int, bool] = {}
        self.issuer = parsed.issuer.public_bytes()
        self.from_us = _us(parsed.last_update_utc)
        self.until_us = _us(until)

    def covers(self, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        """Whether this list is the place where a revocation of the certificate would stand."""
        if self.issuer != issuer.subject.public_bytes():
            return False
        if self._key is not None and self._key != _subject_key(issuer):
            return False  # an authority of the same name with another key
        if self._scope is None:
            return True
        authority = is_authority(certificate)
        if (self._scope.only_contains_user_certs and authority) or (
            self._scope.only_contains_ca_certs and not authority
        ):
            return False
        return self._scope.full_name is None or not _points(certificate).isdisjoint(self._scope.full_name)

    def require_signed(self, issuer: x509.Certificate) -> None:
        """Raises Unauthenticated unless the issuer may sign lists and signed this one."""
        der = issuer.public_bytes(Encoding.DER)
        if der not in self._signed_by:
            self._signed_by[der] = _may_sign(issuer) and self._holds(issuer)
        if not self._signed_by[der]:
            raise Unauthenticated("crl-unusable")

    def lists(self, certificate: x509.Certificate) -> bool:
        """The library looks through the whole list, which takes milliseconds for a long one. Whoever is on it may ask
        as often as it likes, so answers are kept."""
        serial = certificate.serial_number
        if serial not in self._answers:
            if len(self._answers) >= MAX_CERTIFICATES:
                self._answers.clear()
            self._answers[serial] = self._parsed.get_revoked_certificate_by_serial_number(serial) is not None
        return self._answers[serial]

    def _holds(self, issuer: x509.Certificate) -> bool:
        try:
            return self._parsed.is_signature_valid(cast(CertificateIssuerPublicKeyTypes, issuer.public_key()))
        except (TypeError, ValueError, UnsupportedAlgorithm):
            return False


class RevocationLists:
    """All lists of one reading. `expected` names issuers that had a list before, by their encoded names."""

    def __init__(
        self, lists: Iterable[RevocationList] = (), *, required: bool, expected: frozenset[bytes] = frozenset()
    ) -> None:
        self._by_issuer: dict[bytes, list[RevocationList]] = defaultdict(list)
        for item in lists:
            self._by_issuer[item.issuer].append(item)
        self._required = required
        self.expected = expected | frozenset(self._by_issuer)

    def until_us(self, certificate: x509.Certificate, issuer: x509.Certificate, *, now_us: int) -> int | None:
        """Until when the newest list says that the certificate is not revoked; None: there is no list to ask.

        Raises Unauthenticated if it is revoked, or if the lists that there should be cannot say.
        """
        name = issuer.subject.public_bytes()
        covering = [item for item in self._by_issuer.get(name, ()) if item.covers(certificate, issuer)]
        for item in covering:
            item.require_signed(issuer)
        begun = [item for item in covering if item.from_us <= now_us + CRL_SKEW_S * 1_000_000]
        if not begun:
            if self._required or name in self.expected:
                raise Unauthenticated("crl-missing")
            return None
        newest = max(begun, key=lambda item: item.from_us)
        if newest.lists(certificate):
            raise Unauthenticated("certificate-revoked")
        if now_us >= newest.until_us:
            raise Unauthenticated("crl-stale")
        return newest.until_us


def parse_lists(data: bytes) -> tuple[RevocationList, ...]:
    """The lists of one file, PEM or DER. Raises ValueError unless every one of them can be used."""
    if _BEGIN not in data:
        return (_parse(x509.load_der_x509_crl, data),)
    blocks: list[bytes] = _PEM.findall(data)
    if len(blocks) != data.count(_BEGIN):
        raise ValueError("holds something other than whole revocation lists")
    return tuple(_parse(x509.load_pem_x509_crl, block) for block in blocks)


def _parse(load: Callable[[bytes], x509.CertificateRevocationList], data: bytes) -> RevocationList:
    try:
        parsed = load(data)
        _ = parsed.extensions, parsed.issuer, parsed.next_update_utc  # what is parsed when it is asked for
    except (ValueError, x509.InvalidVersion) as error:
        raise ValueError("is not a revocation list") from error
    return RevocationList(parsed)


def _scope(parsed: x509.CertificateRevocationList) -> x509.IssuingDistributionPoint | None:
    try:
        point = parsed.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return None
    if point.indirect_crl or point.only_some_reasons or point.only_contains_attribute_certs or point.relative_name:
        raise ValueError("holds a revocation list that is indirect or partial")
    return point


def _key_identifier(parsed: x509.CertificateRevocationList) -> bytes | None:
    try:
        return parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None


def _subject_key(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _points(certificate: x509.Certificate) -> set[x509.GeneralName]:
    """The full names of the certificate's distribution points."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return set()
    return {name for point in points for name in point.full_name or ()}


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate may issue others (RFC 5280 section 4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _may_sign(issuer: x509.Certificate) -> bool:
    try:
        return issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _us(moment: datetime.datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
