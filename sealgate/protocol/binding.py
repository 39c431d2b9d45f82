"""How a sealed request is tied to the credential that it travels with.

The client puts the binding inside the seal (`Credential-Binding` field); the gateway computes it from the credential it
verified and hands it on with the grant; the worker compares. So a captured sealed request cannot be submitted by
somebody else. The value is a hash: the worker learns no identity from it.
"""

from __future__ import annotations

import base64
import hashlib

_TOKEN = b"sealgate credential binding v1 token\x00"
_CERTIFICATE = b"sealgate credential binding v1 certificate\x00"


def _encode(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def bind_token(token: str) -> str:
    """Binding to a bearer token (its compact text, as in the Authorization header)."""
    return _encode(hashlib.sha256(_TOKEN + token.encode("ascii", "replace")).digest())


def bind_certificate(der: bytes) -> str:
    """Binding to the client certificate (DER) of an mTLS connection that carries no token."""
    return _encode(hashlib.sha256(_CERTIFICATE + der).digest())
