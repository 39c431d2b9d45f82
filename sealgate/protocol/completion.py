"""The worker's signed statement that one grant came to one end.

The worker signs it with the instance key that its evidence names; the host copies its fields into the log record
unchanged, so a client or auditor rebuilds the statement from the record and checks the signature without the host.
The counter `seq` is contiguous per instance: a completion that the host drops leaves a visible gap.

Trusts: nothing. Never: contains payload, caller identity or floats.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealgate.errors import VerificationError
from sealgate.protocol.canonical import canonical_json

_CONTEXT = b"sealgate completion v1\x00"


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the worker says about one grant. Digests are lowercase hex SHA-256, "" where there is none.

    `outcome` is `completed`, `failed` (the request was opened but could not be answered as asked) or `refused`
    (the gatekeeper turned it away). `reason` is "" or a stable reason code. `eps_micro` is the epsilon, in millionths,
    that noised answers of this grant spent.
    """

    instance: str
    seq: int
    grant: str
    outcome: str
    reason: str
    model: str
    model_digest: str
    certificate_digest: str
    units: int
    req_commit: str
    resp_commit: str
    eps_micro: int = 0

    def signed_bytes(self) -> bytes:
        """Domain-separated canonical bytes."""
        return _CONTEXT + canonical_json(self)


class Completion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A statement with its Ed25519 signature (base64url without padding)."""

    statement: Statement
    signature: str


def sign_completion(statement: Statement, key: Ed25519PrivateKey) -> Completion:
    """Sign with the worker instance's key."""
    raw = key.sign(statement.signed_bytes())
    return Completion(statement=statement, signature=base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


def verify_completion(completion: Completion, key: Ed25519PublicKey) -> Statement:
    """Return the statement if the signature holds; raises VerificationError."""
    try:
        raw = base64.b64decode(completion.signature + "==", altchars=b"-_", validate=True)
        key.verify(raw, completion.statement.signed_bytes())
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise VerificationError(
            "the worker's completion signature does not hold", code="completion-signature"
        ) from error
    return completion.statement
