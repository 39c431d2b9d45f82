"""Revocation lists of makers (RFC 5280, 5 and 6.3.3), as they come with evidence: which certificates count no more.

A list is its issuer's signed word until a date, so it may travel with the evidence like the certificates, and no
network is asked. Taken are whole lists of one issuer about its own certificates, as makers publish them; a list of
changes, of a part or of others' certificates is refused, and so is one with a critical extension: it might say that it
is not what it looks like.

Trusts: the issuer, whose certificate its caller verified. Never: takes a list that has run out, or one without an end.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from sealgate.errors import EvidenceError
from sealgate.evidence.endorsements.certificate_chains import STRANGE

_OF_A_PART = (x509.DeltaCRLIndicator, x509.IssuingDistributionPoint)


def require_unrevoked(
    listed: bytes, issuer: x509.Certificate, issued: Sequence[x509.Certificate], *, of: str, now_us: int
) -> datetime.datetime:
    """Until when the list (DER) is in force, if it holds and names none of `issued`, which `issuer` signed. `of` says
    in errors whose chain it is. Raises EvidenceError."""
    now = datetime.datetime.fromtimestamp(now_us / 1e6, datetime.UTC)
    try:
        found = x509.load_der_x509_crl(listed)
        until = found.next_update_utc
        _require_signed(found, issuer, of=of)
        _require_whole(found, of=of)
        if until is None or not found.last_update_utc <= now < until:
            raise _refused(f"the {of}'s revocation list is not in force now")
        for certificate in issued:
            if found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                raise _refused(f"a certificate of the {of}'s chain was revoked by its maker")
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, OverflowError, *STRANGE) as error:
        raise _refused(f"the {of}'s revocation list is none of its root's") from error
    return until


def _require_signed(found: x509.CertificateRevocationList, issuer: x509.Certificate, *, of: str) -> None:
    """By the issuer itself, which may sign lists; raises EvidenceError, or what `require_unrevoked` catches."""
    try:
        may_sign = issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        may_sign = True
    if found.issuer != issuer.subject or not may_sign:
        raise _refused(f"the {of}'s revocation list is none of its root's")
    key, how = issuer.public_key(), found.signature_algorithm_parameters
    if isinstance(key, rsa.RSAPublicKey) and isinstance(how, padding.PSS | padding.PKCS1v15):
        digest = found.signature_hash_algorithm
        if digest is None:
            raise ValueError("a signature without a digest")
        key.verify(found.signature, found.tbs_certlist_bytes, how, digest)
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(how, ec.ECDSA):
        key.verify(found.signature, found.tbs_certlist_bytes, how)
    else:
        raise TypeError("a signature of another kind")


def _require_whole(found: x509.CertificateRevocationList, *, of: str) -> None:
    """All that the issuer revoked, and nothing that changes what entries mean."""
    of_entries = (extension for entry in found for extension in entry.extensions)
    if any(isinstance(one.value, _OF_A_PART) for one in found.extensions):
        raise _refused(f"the {of}'s revocation list is of a part only")
    if any(one.critical for one in found.extensions) or any(one.critical for one in of_entries):
        raise _refused(f"the {of}'s revocation list says something that is not understood")


def _refused(why: str) -> EvidenceError:
    return EvidenceError(why, code="endorsement-signature")
