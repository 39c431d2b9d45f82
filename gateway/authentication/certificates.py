"""A client certificate becomes a `CertificateIdentity`: one that counts now, on this request.

A handshake, here or at a trusted proxy, proved once that the peer holds the key. Connections outlive removal of an
authority, revocation and expiry, so all of it is judged again on every request: below an accepted authority and not on
its revocation list (`gateway.authentication.authorities`), not in `revoked_certificates` of tenants.toml, not in
`pki/revoked.txt` (one SHA-256 of the DER form per line), within its time. What was judged is remembered with the files
it was judged by, so most requests cost a few stats.

Trusts: the TLS library for the proof of the key, the files. Never: accepts a certificate while the deny list or the
revocation lists cannot be read; takes a trusted proxy's own certificate for its client's; keeps what else was shown
beside a certificate, which its sender may make as large as a handshake allows.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.authentication.authorities import Authorities, Generation, Judgement, fingerprint_of, judge
from gateway.authentication.forwarded import EXTENSION, Forwarded, TrustedProxies, parse_forwarded
from gateway.authentication.watched_files import WatchedFiles
from gateway.errors import Unauthenticated
from gateway.limits import MAX_CERTIFICATE, MAX_CERTIFICATES, MAX_CHAIN, MAX_DENY_LIST
from gateway.pki import certificate_names
from gateway.telemetry import Telemetry, quoted
from policy.clients import CertificateClient
from policy.tenants import Tenants
from sealgate.ambient import Clock, now_us
from sealgate.deployment import Deployment

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

_NAME = "gateway.name"  # beside a connection's certificates: what they are remembered by
_NOTHING = Forwarded(local=False)
_Shown = tuple[str, ...] | Forwarded  # what a certificate and those above it came as


@dataclass(frozen=True, kw_only=True)
class CertificateIdentity:
    """A client certificate that counts now, with whom it stands for (None: nobody)."""

    der: bytes
    fingerprint: str  # SHA-256 of the DER form, lowercase hex
    client: CertificateClient | None
    expires_us: int


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What was made of a certificate by these very authorities, lists and tenants."""

    generation: Generation
    judgement: Judgement
    tenants: Tenants
    identity: CertificateIdentity
    proxy: bool


class DenyList:
    """Fingerprints that are refused: the lines of a file, which is looked at for every request."""

    def __init__(self, path: Path, *, clock: Clock = now_us) -> None:
        self._file = WatchedFiles(path, files_max=1, bytes_max=MAX_DENY_LIST, clock=clock)
        self._listed: frozenset[str] | None = frozenset()  # None: the list cannot be read
        self._there = self._listed_before = False

    def require_accepted(self, fingerprints: Iterable[str]) -> None:
        """Raises Unauthenticated if one of them is denied, or if the list cannot be read."""
        try:
            contents = self._file.changed()
            if contents is not None:
                self._listed = None
                self._listed = self._parse(b"\n".join(contents.values()), there=bool(contents))
        except (OSError, ValueError):
            self._listed = None
        if self._listed is None:
            raise Unauthenticated("deny-list-unreadable")
        if not self._listed.isdisjoint(fingerprints):
            raise Unauthenticated("certificate-revoked")

    def _parse(self, data: bytes, *, there: bool) -> frozenset[str]:
        if self._there and not there:
            raise ValueError("the deny list was there: its absence now is a fault, not an amnesty")
        if self._listed_before and not data:
            raise ValueError("the deny list was emptied, as an editor that writes in place does for a moment")
        self._there = there
        lines = (line.split("#")[0].strip() for line in data.decode("ascii").splitlines())
        listed = frozenset(line for line in lines if line)
        if not all(_FINGERPRINT.fullmatch(line) for line in listed):
            raise ValueError("the deny list has a line that is not a fingerprint")
        self._listed_before = bool(listed)
        return listed


class CertificateReader:
    """Certificates of requests (ASGI scopes). One per process.

    `tenants` gives those in force now. Of the scope it reads `extensions["tls"]["client_cert_chain"]` and the
    `Forwarded` in `extensions["proxy"]`.
    """

    def __init__(
        self,
        tenants: Callable[[], Tenants],
        authorities: Authorities,
        deny: DenyList,
        *,
        proxies: TrustedProxies,
        clock: Clock = now_us,
        remembered_max: int = MAX_CERTIFICATES,
        required: bool = False,
    ) -> None:
        self._tenants = tenants
        self._authorities = authorities
        self._deny = deny
        self._proxies = proxies
        self._clock = clock
        self._remembered_max = remembered_max
        self._required = required
        self._remembered: OrderedDict[bytes, _Judged] = OrderedDict()

    def read(self, scope: Mapping[str, Any]) -> CertificateIdentity | None:
        """The client's certificate, None if there is none. Raises Unauthenticated if it does not count now."""
        extensions = scope.get("extensions", {})
        forwarded: Forwarded = extensions.get(EXTENSION, _NOTHING)
        if not forwarded.local:
            tls: dict[str, Any] = extensions.get("tls", {})
            chain: tuple[str, ...] = tls.get("client_cert_chain", ())
            if not chain:
                self._allow_none()
                return None
            name = tls.get(_NAME)
            if name is None:  # a connection's, so it is taken once for each
                name = tls[_NAME] = _name_of(chain)
            shown = self._judged(chain, name)
            if not shown.proxy:
                return shown.identity
        if not forwarded.certificate and not forwarded.chain:
            self._allow_none()
            return None
        behind = self._judged(forwarded, _name_of(forwarded))
        if behind.proxy:
            raise Unauthenticated("certificate-of-proxy")
        return behind.identity

    def _allow_none(self) -> None:
        """TLS itself insists on one where one is required; a proxy may have let its client come without."""
        if self._required:
            raise Unauthenticated("certificate-missing")

    def _judged(self, shown: _Shown, name: bytes) -> _Judged:
        found = self._remembered.get(name)
        generation, tenants, now = self._authorities.current(), self._tenants(), self._clock()
        if (
            found is None
            or found.generation is not generation
            or found.tenants is not tenants
            or not found.judgement.from_us <= now < found.judgement.until_us
        ):
            found = self._judge(*_parse(shown), generation, tenants, now)
        self._deny.require_accepted(found.judgement.path)
        if not tenants.revoked_certificates.isdisjoint(found.judgement.path):
            raise Unauthenticated("certificate-revoked")
        self._remembered[name] = found
        self._remembered.move_to_end(name)
        if len(self._remembered) > self._remembered_max:
            self._remembered.popitem(last=False)
        return found

    def _judge(
        self,
        leaf: x509.Certificate,
        others: tuple[x509.Certificate, ...],
        generation: Generation,
        tenants: Tenants,
        now: int,
    ) -> _Judged:
        try:
            names = certificate_names(leaf)
            judgement = judge(generation, leaf, others, now_us=now)
        except (ValueError, x509.UnsupportedGeneralNameType, x509.DuplicateExtension):
            raise Unauthenticated("certificate-malformed") from None
        identity = CertificateIdentity(
            der=leaf.public_bytes(Encoding.DER),
            fingerprint=fingerprint_of(leaf),
            client=tenants.client_of(names, judgement.authorities),
            expires_us=int(leaf.not_valid_after_utc.timestamp()) * 1_000_000,
        )
        proxy = self._proxies.include(fingerprint=identity.fingerprint, names=names, authorities=judgement.authorities)
        return _Judged(
            generation=generation,
            judgement=judgement,
            tenants=tenants,
            identity=identity,
            proxy=proxy,
        )


def make_certificate_reader(
    deployment: Deployment, tenants: Callable[[], Tenants], *, telemetry: Telemetry, clock: Clock = now_us
) -> CertificateReader:
    """The reader of a deployment. Raises ConfigurationError that says what to mend."""
    settings = deployment.settings.gateway

    def report(text: str) -> None:
        telemetry.event("client-certificates", detail=quoted(text))

    return CertificateReader(
        tenants,
        Authorities(deployment.pki, crl=settings.crl, clock=clock, report=report),
        DenyList(deployment.pki / "revoked.txt", clock=clock),
        proxies=TrustedProxies(settings.trusted_proxies),
        clock=clock,
        required=settings.client_certificates == "required",
    )


def _name_of(shown: _Shown) -> bytes:
    return hashlib.sha256(repr(shown).encode("ascii")).digest()


def _parse(shown: _Shown) -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    try:
        if isinstance(shown, Forwarded):
            ders = parse_forwarded(shown)
        else:
            ders = tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in shown)
        if len(ders) > MAX_CHAIN or any(len(der) > MAX_CERTIFICATE for der in ders):
            raise Unauthenticated("certificate-malformed")
        leaf, *others = (x509.load_der_x509_certificate(der) for der in ders)
    except (ValueError, x509.InvalidVersion):
        raise Unauthenticated("certificate-malformed") from None
    return leaf, tuple(others)
