"""A client certificate that the TLS handshake verified becomes a `CertificateIdentity`.

The handshake proved that the peer holds the key and that our authority signed the certificate, once. Connections
outlive both revocation and expiry, so both are checked here on every request: against `revoked_certificates` of
tenants.toml, and against `pki/revoked.txt` (one SHA-256 of the DER form per line), which is read again whenever it
changes. Trusts: the TLS library, the two lists. Never: accepts a certificate while the deny list cannot be read.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from gateway.errors import Unauthenticated
from gateway.limits import MAX_CERTIFICATES, MAX_DENY_LIST
from gateway.pki import certificate_names
from policy.tenants import CertificateClient, Tenants
from sealgate.ambient import Clock, now_us

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class CertificateIdentity:
    """A client certificate that is within its time and not revoked, with whom it stands for (None: nobody)."""

    der: bytes
    fingerprint: str  # SHA-256 of the DER form, lowercase hex
    client: CertificateClient | None
    expires_us: int


class DenyList:
    """Fingerprints that are refused. Looks at the file on every question; a stat costs about a microsecond."""

    def __init__(self, path: Path, *, always: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._always = always
        self._listed: frozenset[str] = frozenset()
        self._stamp: tuple[int, int, int] | None = None

    def require_accepted(self, fingerprint: str) -> None:
        """Raises Unauthenticated if the certificate is denied, or if the list cannot be read."""
        try:
            self._refresh()
        except (OSError, ValueError):
            raise Unauthenticated("deny-list-unreadable") from None
        if fingerprint in self._always or fingerprint in self._listed:
            raise Unauthenticated("certificate-revoked")

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            if self._stamp is not None:
                raise  # it was there: its absence now is a fault, not an amnesty
            return
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        if status.st_size > MAX_DENY_LIST:
            raise ValueError("the deny list is too large")
        self._stamp = (0, 0, 0)  # until the new list is read whole, every question reads it again
        lines = (line.split("#")[0].strip() for line in self._path.read_text("ascii").splitlines())
        listed = frozenset(line for line in lines if line)
        if not all(_FINGERPRINT.fullmatch(line) for line in listed):
            raise ValueError("the deny list has a line that is not a fingerprint")
        self._listed, self._stamp = listed, stamp


class CertificateReader:
    """Certificates by what `scope["extensions"]["tls"]` holds. One per process; parsed ones are remembered."""

    def __init__(
        self, tenants: Tenants, deny: DenyList, *, clock: Clock = now_us, remembered_max: int = MAX_CERTIFICATES
    ) -> None:
        self._tenants = tenants
        self._deny = deny
        self._clock = clock
        self._remembered_max = remembered_max
        self._remembered: OrderedDict[str, tuple[CertificateIdentity, int]] = OrderedDict()

    def read(self, scope: Mapping[str, Any]) -> CertificateIdentity | None:
        """The peer's certificate, None if it showed none. Raises Unauthenticated if it does not count any more."""
        chain = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain", ())
        if not chain:
            return None
        identity, not_before_us = _remember(self._remembered, chain[0], self._parse, self._remembered_max)
        self._deny.require_accepted(identity.fingerprint)
        if not not_before_us <= self._clock() < identity.expires_us:
            raise Unauthenticated("certificate-expired")
        return identity

    def _parse(self, pem: str) -> tuple[CertificateIdentity, int]:
        try:
            der = ssl.PEM_cert_to_DER_cert(pem)
            certificate = x509.load_der_x509_certificate(der)
            names = certificate_names(certificate)
            identity = CertificateIdentity(
                der=der,
                fingerprint=hashlib.sha256(der).hexdigest(),
                client=self._tenants.client_of(names),
                expires_us=int(certificate.not_valid_after_utc.timestamp()) * 1_000_000,
            )
            return identity, int(certificate.not_valid_before_utc.timestamp()) * 1_000_000
        except (ValueError, x509.UnsupportedGeneralNameType, x509.DuplicateExtension):
            raise Unauthenticated("certificate-malformed") from None


def _remember(
    memory: OrderedDict[str, tuple[CertificateIdentity, int]],
    pem: str,
    parse: Callable[[str], tuple[CertificateIdentity, int]],
    most: int,
) -> tuple[CertificateIdentity, int]:
    found = memory.get(pem)
    if found is None:
        found = memory[pem] = parse(pem)
        if len(memory) > most:
            memory.popitem(last=False)
    else:
        memory.move_to_end(pem)
    return found
