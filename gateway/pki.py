"""X.509 for a deployment of its own: one certificate authority, a server certificate, client certificates.

ECDSA P-256 throughout, with every extension that a strict verifier (RFC 5280, Python's VERIFY_X509_STRICT) asks for.
The authority signs end certificates only (path length 0); a server certificate cannot stand for a client, nor the
other way round. Pure: makes and reads certificates, touches no file.

Trusts: the clock and entropy it is given. Never: prints or logs a key.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sealgate.ambient import Entropy

AUTHORITY_DAYS = 3650
LEAF_DAYS = 397  # the longest that public verifiers ever accepted; renew by making new certificates
BACKDATE_S = 300  # clocks of clients differ a little
CLIENT_URI = "urn:sealgate:client:"  # alternative name of the client certificates made here

Leaf = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(name: str, *, now_us: int, entropy: Entropy) -> Authority:
    """A fresh self-signed authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(subject, subject, key.public_key(), days=AUTHORITY_DAYS, now_us=now_us, entropy=entropy)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def make_server(authority: Authority, hosts: tuple[str, ...], *, now_us: int, entropy: Entropy) -> Leaf:
    """A server certificate for DNS names and IP addresses; the first host is its common name."""
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return _leaf(
        authority, hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, days=LEAF_DAYS, now_us=now_us, entropy=entropy
    )


def make_client(
    authority: Authority,
    name: str,
    *,
    names: tuple[str, ...] = (),
    days: int = LEAF_DAYS,
    now_us: int,
    entropy: Entropy,
) -> Leaf:
    """A client certificate; what it stands for is decided by its alternative names in `tenants.toml`.

    `names` are these, as `certificate_names` writes them ("URI:...", "DNS:...", "email:..."); ValueError if one cannot
    stand in a certificate. Left out, the certificate gets a URI of this project's with `name` in it.
    """
    alternative = [_general_name(item) for item in names or (f"URI:{CLIENT_URI}{name}",)]
    return _leaf(
        authority, name, alternative, ExtendedKeyUsageOID.CLIENT_AUTH, days=days, now_us=now_us, entropy=entropy
    )


def renew(authority: Authority, old: x509.Certificate, *, days: int = LEAF_DAYS, now_us: int, entropy: Entropy) -> Leaf:
    """A certificate with a new key for the same names and use as one that this authority issued.

    Raises ValueError for a certificate of somebody else's, or one that has no alternative names.
    """
    require_issued(authority, old)
    try:
        names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        (purpose,) = old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        common = old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    except (x509.ExtensionNotFound, IndexError) as error:
        raise ValueError("not a certificate as this authority issues them") from error
    return _leaf(authority, str(common), names, purpose, days=days, now_us=now_us, entropy=entropy)


def require_issued(authority: Authority, certificate: x509.Certificate) -> None:
    """Raises ValueError unless this authority signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, TypeError) as error:
        raise ValueError("not issued by this authority") from error


def make_revocation_list(
    authority: Authority, revoked: Iterable[x509.RevokedCertificate], *, number: int, now_us: int
) -> x509.CertificateRevocationList:
    """A complete revocation list (RFC 5280 section 5). Good until the authority ends: it is not fetched from afar, its
    place is beside the authority, where a newer one takes effect at once."""
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = x509.CertificateRevocationListBuilder(
        authority.certificate.subject,
        datetime.datetime.fromtimestamp(now_us // 1_000_000, datetime.UTC),
        authority.certificate.not_valid_after_utc,
        revoked_certificates=list(revoked),
    )
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    return builder.sign(authority.key, hashes.SHA256())


def revoked_entry(serial: int, reason: x509.ReasonFlags | None, *, now_us: int) -> x509.RevokedCertificate:
    """One line of a revocation list; `unspecified` is said by saying nothing (section 5.3.1)."""
    moment = datetime.datetime.fromtimestamp(now_us // 1_000_000, datetime.UTC)
    builder = x509.RevokedCertificateBuilder(serial, moment)
    if reason is not None and reason is not x509.ReasonFlags.unspecified:
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


def certificate_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names by which `tenants.toml` may know a certificate: "URI:...", "DNS:...", "email:...".

    "CN:..." only if there is no alternative name at all: a common name must never outrank what the issuer wrote into
    the extension made for it.
    """
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(f"CN:{item.value}" for item in common if isinstance(item.value, str))
    names = [f"URI:{value}" for value in alternative.get_values_for_type(x509.UniformResourceIdentifier)]
    names += [f"DNS:{value}" for value in alternative.get_values_for_type(x509.DNSName)]
    names += [f"email:{value}" for value in alternative.get_values_for_type(x509.RFC822Name)]
    return tuple(names)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """PEM text of a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _leaf(
    authority: Authority,
    common_name: str,
    names: list[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    *,
    days: int,
    now_us: int,
    entropy: Entropy,
) -> Leaf:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(_name(common_name), issuer.subject, key.public_key(), days=days, now_us=now_us, entropy=entropy)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    return builder.sign(authority.key, hashes.SHA256()), key


def _general_name(name: str) -> x509.GeneralName:
    kind, _, value = name.partition(":")
    if not value:
        raise ValueError("a name without a value")
    if kind == "URI":
        return x509.UniformResourceIdentifier(value)
    if kind == "DNS":
        return x509.DNSName(value)
    if kind == "email":
        return x509.RFC822Name(value)
    raise ValueError("a name of a certificate is URI:..., DNS:... or email:...")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    days: int,
    now_us: int,
    entropy: Entropy,
) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(now_us // 1_000_000, datetime.UTC)
    serial = int.from_bytes(entropy(19), "big") | 1 << 151  # positive, never zero, at most 20 bytes
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(now - datetime.timedelta(seconds=BACKDATE_S))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sealgate deployment"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )
