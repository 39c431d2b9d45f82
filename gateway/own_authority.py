"""What is behind `sealgate certificate`: the deployment's own authority issues, renews and revokes on disk.

A revocation is in force when its file is written, because gateways look at it on every request. A certificate of the
own authority goes on its revocation list (`pki/crl/ca.pem`); any other, or any at all once `ca.key` was moved away, on
the deny list (`pki/revoked.txt`).

Trusts: whoever may write the state directory. Never: prints a key, or overwrites one that was not asked to be renewed.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import pki
from gateway.authentication.authorities import Authorities, fingerprint_of, judge, objections
from gateway.authentication.certificates import DenyList
from gateway.errors import AUTHENTICATION_FAILURES, Unauthenticated
from policy.clients import CertificateClient
from policy.history import PolicyHistory
from policy.store import load_files
from policy.tenants import Tenants
from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.client.times import rfc3339
from sealgate.deployment import Deployment
from sealgate.durable_files import locked, make_folder, replace_file
from sealgate.errors import ConfigurationError
from sealgate.terminal import printable

SERVER = "server"  # the name that means pki/server.pem
OWN_LIST = "ca.pem"  # below pki/crl

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_HEADER = b"# Client certificates that are refused: one SHA-256 of the DER form (lowercase hex) a line.\n"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One certificate of the deployment, for people. `standing` is "good", or why it does not count."""

    name: str
    names: tuple[str, ...]
    fingerprint: str
    until: datetime.datetime
    standing: str
    client: CertificateClient | None


@dataclass(frozen=True, kw_only=True)
class Revoked:
    """What was revoked and where. `before`: it was there already."""

    fingerprint: str
    place: Path
    before: bool


def issue(
    deployment: Deployment,
    name: str,
    *,
    names: tuple[str, ...],
    days: int,
    clock: Clock = now_us,
    entropy: Entropy = random_bytes,
) -> Shown:
    """A new client certificate in pki/clients, with its key. Raises ConfigurationError."""
    if not _NAME.fullmatch(name) or name == SERVER:
        raise ConfigurationError(f"a certificate's name is letters, digits and ._- and is not '{SERVER}': {name!r}")
    _check_days(days)
    authority, now = _own(deployment), clock()
    path = deployment.pki / "clients" / f"{name}.pem"
    try:
        leaf = pki.make_client(authority, name, names=names, days=days, now_us=now, entropy=entropy)
    except ValueError as error:
        raise ConfigurationError(f"a name of a certificate is URI:..., DNS:... or email:..., not {names!r}") from error
    with _changing(deployment.pki):
        make_folder(path.parent)
        if path.exists() or path.with_suffix(".key").exists():
            raise ConfigurationError(f"{path} is there already; to replace it: sealgate certificate renew")
        _write_leaf(path, leaf)
    return _show(deployment, name, leaf[0], clock=clock)


def renew(
    deployment: Deployment, name: str, *, days: int, clock: Clock = now_us, entropy: Entropy = random_bytes
) -> tuple[Shown, x509.Certificate]:
    """A new certificate and key in the place of the old ones, which are given back. Raises ConfigurationError."""
    _check_days(days)
    authority, path = _own(deployment), _path(deployment, name)
    with _changing(deployment.pki):
        old = _read_certificate(path)
        try:
            leaf = pki.renew(authority, old, days=days, now_us=clock(), entropy=entropy)
        except ValueError as error:
            raise ConfigurationError(f"{path} was not issued by pki/ca.pem: renew it where it comes from") from error
        _write_leaf(path, leaf)
    return _show(deployment, name, leaf[0], clock=clock), old


def find(deployment: Deployment, target: str) -> x509.Certificate | str:
    """What a person means: a certificate by its name or its file, or a fingerprint."""
    if _FINGERPRINT.fullmatch(target):
        return target
    path = Path(target)
    return _read_certificate(path if path.is_file() else _path(deployment, target))


def revoke(
    deployment: Deployment,
    what: x509.Certificate | str,
    *,
    reason: x509.ReasonFlags | None = None,
    clock: Clock = now_us,
) -> Revoked:
    """Refuse a certificate from now on; in force when this returns. Raises ConfigurationError."""
    fingerprint = what if isinstance(what, str) else fingerprint_of(what)
    with _changing(deployment.pki):
        if not isinstance(what, str) and deployment.settings.gateway.crl != "off" and _is_own(deployment, what):
            return _list(deployment, what, reason, now=clock())
        return _deny(deployment, fingerprint, now=clock())


def certificates(deployment: Deployment, *, clock: Clock = now_us) -> list[Shown]:
    """Every certificate in pki/clients, judged as a gateway that starts now would."""
    folder = deployment.pki / "clients"
    shown: list[Shown] = []
    for path in sorted(folder.glob("*.pem")):
        shown.append(_show(deployment, path.stem, _read_certificate(path), clock=clock))
    return shown


def explain(
    deployment: Deployment, certificate: x509.Certificate, *, clock: Clock = now_us
) -> tuple[Shown, tuple[str, ...]]:
    """How a gateway that starts now would judge this certificate, and in words why it does not count."""
    shown = _show(deployment, "", certificate, clock=clock)
    if shown.standing == "good":
        return shown, ()
    reasons = [AUTHENTICATION_FAILURES[shown.standing]]
    if shown.standing == "certificate-untrusted":
        generation = Authorities(deployment.pki, crl="off", clock=clock).current()
        found = objections(generation, certificate, now_us=clock())
        reasons += [f"authority {name}: {printable(why)}" for name, why in found.items()]
    return shown, tuple(reasons)


def _show(deployment: Deployment, name: str, certificate: x509.Certificate, *, clock: Clock) -> Shown:
    names = pki.certificate_names(certificate)
    standing, client = "server", None
    if name != SERVER:
        try:
            generation = Authorities(deployment.pki, crl=deployment.settings.gateway.crl, clock=clock).current()
            judgement = judge(generation, certificate, (), now_us=clock())
            DenyList(deployment.pki / "revoked.txt", clock=clock).require_accepted(judgement.path)
            tenants = _tenants(deployment)
            if not tenants.revoked_certificates.isdisjoint(judgement.path):
                raise Unauthenticated("certificate-revoked")
            client = tenants.client_of(names, judgement.authorities)
            standing = "good"
        except Unauthenticated as refusal:
            standing = refusal.code
    return Shown(
        name=name,
        names=names,
        fingerprint=fingerprint_of(certificate),
        until=certificate.not_valid_after_utc,
        standing=standing,
        client=client,
    )


# The two lists -------------------------------------------------------------------------------------------------------


def _list(
    deployment: Deployment, certificate: x509.Certificate, reason: x509.ReasonFlags | None, *, now: int
) -> Revoked:
    authority = _own(deployment)
    path = deployment.pki / "crl" / OWN_LIST
    old = _read_list(path, authority)
    listed = list(old) if old is not None else []
    fingerprint = fingerprint_of(certificate)
    if any(entry.serial_number == certificate.serial_number for entry in listed):
        return Revoked(fingerprint=fingerprint, place=path, before=True)
    listed.append(pki.revoked_entry(certificate.serial_number, reason, now_us=now))
    made = pki.make_revocation_list(authority, listed, number=_number(old) + 1, now_us=now)
    make_folder(path.parent)
    replace_file(path, made.public_bytes(serialization.Encoding.PEM), new_mode=0o644)
    return Revoked(fingerprint=fingerprint, place=path, before=False)


def _read_list(path: Path, authority: pki.Authority) -> x509.CertificateRevocationList | None:
    try:
        found = x509.load_pem_x509_crl(path.read_bytes())
        if found.is_signature_valid(authority.key.public_key()):
            return found
    except FileNotFoundError:
        return None
    except (ValueError, x509.InvalidVersion):
        pass
    raise ConfigurationError(f"{path} is not a revocation list of pki/ca.pem: mend or remove it first")


def _number(old: x509.CertificateRevocationList | None) -> int:
    if old is None:
        return 0
    try:
        return old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _deny(deployment: Deployment, fingerprint: str, *, now: int) -> Revoked:
    path = deployment.pki / "revoked.txt"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = _HEADER
    if any(line.split(b"#")[0].strip() == fingerprint.encode() for line in data.splitlines()):
        return Revoked(fingerprint=fingerprint, place=path, before=True)
    between = b"" if data.endswith(b"\n") or not data else b"\n"
    replace_file(path, data + between + f"{fingerprint}  # {rfc3339(now)}\n".encode(), new_mode=0o644)
    return Revoked(fingerprint=fingerprint, place=path, before=False)


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    try:
        with locked(folder):
            yield
    except OSError as error:
        raise ConfigurationError(f"{error.filename or folder} cannot be changed: {error.strerror}") from error


def _own(deployment: Deployment) -> pki.Authority:
    certificate = _read_certificate(deployment.pki / "ca.pem")
    path = deployment.pki / "ca.key"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror}): this needs the key of the deployment's own authority"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError(f"{path} is not the key of ca.pem")
    return pki.Authority(certificate, key)


def _is_own(deployment: Deployment, certificate: x509.Certificate) -> bool:
    """Whether the own authority issued it and can still sign."""
    if not (deployment.pki / "ca.key").exists():
        return False
    try:
        pki.require_issued(_own(deployment), certificate)
    except ValueError:
        return False
    return True


def _path(deployment: Deployment, name: str) -> Path:
    if name == SERVER:
        return deployment.pki / "server.pem"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"there is no certificate {name!r}")
    return deployment.pki / "clients" / f"{name}.pem"


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigurationError(f"{path} is not a certificate in PEM form") from error


def _write_leaf(path: Path, leaf: pki.Leaf) -> None:
    """The key first: a gateway that looks in between finds a pair that does not fit, and keeps the one that it has."""
    certificate, key = leaf
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace_file(path.with_suffix(".key"), private, new_mode=0o600)
    replace_file(path, pki.certificate_pem(certificate), new_mode=0o644)


def _check_days(days: int) -> None:
    if not 1 <= days <= pki.LEAF_DAYS:
        raise ConfigurationError(f"a certificate lives 1 to {pki.LEAF_DAYS} days, not {days}")


def _tenants(deployment: Deployment) -> Tenants:
    """Those of the policy in force, which the working copy may be ahead of; its own before the first start."""
    history = PolicyHistory(deployment.policy_history)
    stated = history.current()
    return (load_files(deployment.policy) if stated is None else history.load_files(stated.digest)).tenants
