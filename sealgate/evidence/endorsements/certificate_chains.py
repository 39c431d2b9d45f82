"""Chains of certificates from a root that a trust file names by digest down to the key that signed (RFC 5280, 6.1).

Of path validation this is what makers' chains need: names and signatures, dates, who may sign others, how far down.
No network is asked for revocations: where a maker's list comes with evidence, maker_revocations reads it; otherwise a
certificate that is not to count any more is taken out of the trust file with its root.

Trusts: the roots that its caller names. Never: takes a chain for valid because its root signs itself.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from sealgate.errors import EvidenceError
from sealgate.limits import MAX_CHAIN

STRANGE = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
"""What the library raises beside ValueError for certificates and lists that nobody should have made."""


def require_chain(chain: Sequence[bytes], roots: Sequence[bytes], *, of: str, now_us: int) -> x509.Certificate:
    """The first certificate of `chain` (DER, the signer's first and the root last), once all of it holds; `roots` are
    SHA-256 digests, `of` says in errors whose chain it is. Raises EvidenceError."""
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise _refused(f"the {of}'s chain has too few certificates or too many")
    if hashlib.sha256(chain[-1]).digest() not in roots:
        raise _refused(f"the {of}'s root certificate is none that the trust file names")
    try:
        found = [x509.load_der_x509_certificate(der) for der in reversed(chain)]
        now = datetime.datetime.fromtimestamp(now_us / 1e6, datetime.UTC)
        for depth, (issuer, issued) in enumerate(pairwise([found[0], *found])):
            issued.verify_directly_issued_by(issuer)
            if not issued.not_valid_before_utc <= now <= issued.not_valid_after_utc:
                raise _refused(f"a certificate of the {of}'s chain is not valid now")
            _require_authority(issuer, below=len(found) - 1 - max(depth, 1), of=of)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, OverflowError, *STRANGE) as error:
        raise _refused(f"the {of}'s certificates do not chain to their root") from error
    except x509.ExtensionNotFound as error:
        raise _refused(f"a certificate of the {of}'s chain may not sign others") from error
    return found[-1]


def _require_authority(issuer: x509.Certificate, *, below: int, of: str) -> None:
    """That it may sign certificates, with `below` authorities under it (RFC 5280, 4.2.1.3 and 4.2.1.9)."""
    constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    length = constraints.path_length
    try:
        may_sign = issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = True
    if not constraints.ca or not may_sign or (length is not None and below > length):
        raise _refused(f"a certificate of the {of}'s chain may not sign others")


def _refused(why: str) -> EvidenceError:
    return EvidenceError(why, code="endorsement-signature")
