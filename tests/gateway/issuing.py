"""Authorities of other people, for tests: they issue what ours would not, and publish revocation lists."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


def now():
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def named(common):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def general(name):
    """ "DNS:a" as a general name."""
    kind, _, value = name.partition(":")
    return {"URI": x509.UniformResourceIdentifier, "DNS": x509.DNSName, "email": x509.RFC822Name}[kind](value)


def pem(*certificates):
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Ca:
    """An authority, self-signed or below another."""

    def __init__(self, common="Example CA", *, parent=None, days=3650, signs_lists=True):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = named(common)
        self.parent = parent or self
        usage = x509.KeyUsage(False, False, False, False, False, True, signs_lists, False, False)
        begun = now() - DAY
        self.certificate = (
            x509.CertificateBuilder(self.parent.name, self.name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(begun)
            .not_valid_after(begun + days * DAY)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(self.parent.identifier(), critical=False)
            .sign(self.parent.key, hashes.SHA256())
        )

    @classmethod
    def of(cls, authority):
        """An authority of a deployment, to issue what `sealgate certificate` would not."""
        made = cls.__new__(cls)
        made.key, made.certificate, made.name = authority.key, authority.certificate, authority.certificate.subject
        return made

    def identifier(self):
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())

    def client(self, *names, common="client", begins=None, ends=None, purpose=CLIENT, more=(), serial=None):
        """A certificate with these alternative names, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder(self.name, named(common), key.public_key(), serial or x509.random_serial_number())
            .not_valid_before(begins or now() - DAY)
            .not_valid_after(ends or now() + 90 * DAY)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(self.identifier(), critical=False)
        )
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([general(name) for name in names]), False)
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256()), key

    def crl(self, *revoked, begins=None, ends=None, key=None, more=(), identified=True):
        """A revocation list of these certificates."""
        begins = begins or now() - DAY / 24
        builder = x509.CertificateRevocationListBuilder(self.name, begins, ends or begins + 7 * DAY).add_extension(
            x509.CRLNumber(1), critical=False
        )
        if identified:
            builder = builder.add_extension(self.identifier(), critical=False)
        for extension, critical in more:
            builder = builder.add_extension(extension, critical=critical)
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder(certificate.serial_number, begins).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key or self.key, hashes.SHA256())


def accept(pki: Path, name, *authorities):
    """Put an authority where the gateway finds it."""
    folder = pki / "authorities"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.pem").write_bytes(pem(*(authority.certificate for authority in authorities)))


def publish(pki: Path, name, *lists, encoding=serialization.Encoding.PEM):
    """Put revocation lists where the gateway finds them, in one file that appears whole."""
    folder = pki / "crl"
    folder.mkdir(exist_ok=True)
    draft = folder / f".{name}"
    draft.write_bytes(b"".join(item.public_bytes(encoding) for item in lists))
    draft.rename(folder / name)


def install(pki: Path, name, leaf, *above):
    """Put a client certificate and its key where `Running.client` looks for them, with those above it."""
    certificate, key = leaf
    folder = pki / "clients"
    (folder / f"{name}.pem").write_bytes(pem(certificate, *above))
    (folder / f"{name}.key").write_bytes(key_pem(key))


def map_any_authority(deployment, certificate="URI:urn:sealgate:client:integration"):
    """By the shipped rules only pki/ca.pem makes clients. Here every accepted authority makes this one too."""
    tenants = deployment.policy / "tenants.toml"
    rule = f'certificate = "{certificate}"\n'
    text = tenants.read_text()
    assert rule in text
    tenants.write_text(text.replace(rule, f'{rule}authority = "*"\n'))


def without_key_usage(ca):
    """The authority's certificate as a bare `openssl req -x509` makes it."""
    begun = now() - DAY
    return (
        x509.CertificateBuilder(ca.name, ca.name, ca.key.public_key(), x509.random_serial_number())
        .not_valid_before(begun)
        .not_valid_after(begun + 30 * DAY)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca.key.public_key()), critical=False)
        .add_extension(ca.identifier(), critical=False)
        .sign(ca.key, hashes.SHA256())
    )
