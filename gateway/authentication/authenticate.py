"""Step 3: what a request shows of its sender becomes one `Principal`, or the one uniform 401.

    token                    the token's subject; it must be bound to nothing that the caller does not show
    token and certificate    the token's subject; mtls only if the certificate stands for a client of the same tenant
    certificate              the client that tenants.toml says it stands for
    neither, or anything wrong with either    nobody

Trusts: `TokenVerifier`, `CertificateReader`. Never: falls back from a bad token to a good certificate; lets the caller
see why it was refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.authentication.certificates import CertificateIdentity, CertificateReader
from gateway.authentication.tokens import TokenVerifier, VerifiedToken
from gateway.errors import Unauthenticated
from policy.entities import Principal, Role
from sealgate.protocol.binding import bind_certificate, bind_token

_ROLES = {role.value: role for role in Role}


class Authenticator:
    """Step 3. One per process."""

    def __init__(self, tokens: TokenVerifier, certificates: CertificateReader) -> None:
        self._tokens = tokens
        self._certificates = certificates

    def start(self) -> None:
        """Begin what goes on in the background. Needs the running event loop; returns at once."""
        self._tokens.start()

    async def close(self) -> None:
        await self._tokens.close()

    def details(self) -> tuple[str, ...]:
        """What operators should know; nothing if all is well."""
        return self._tokens.details()

    async def authenticate(self, scope: Mapping[str, Any]) -> Principal:
        """The caller of a request (an ASGI scope); raises Unauthenticated with the reason for the log."""
        certificate = self._certificates.read(scope)
        token = _bearer_token(scope["headers"])
        if token is not None:
            return _by_token(await self._tokens.verify(token), token, certificate)
        if certificate is not None:
            return _by_certificate(certificate)
        raise Unauthenticated("no-credential")


def _bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    found = [value for name, value in headers if name == b"authorization"]
    if not found:
        return None
    if len(found) > 1:
        raise Unauthenticated("credential-repeated")
    scheme, _, token = found[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("scheme-unknown")
    return token.strip(" ")


def _by_token(claims: VerifiedToken, token: str, certificate: CertificateIdentity | None) -> Principal:
    if claims.confirmation is not None:
        if claims.confirmation.x5t_s256 is None or claims.confirmation.jkt is not None:
            raise Unauthenticated("token-bound-elsewhere")
        _require_confirmed(claims.confirmation.x5t_s256, certificate)
    client = certificate.client if certificate else None
    mtls = client is not None and client.tenant == claims.tenant
    return Principal(
        tenant=claims.tenant,
        subject=claims.subject,
        roles=frozenset(_ROLES[name] for name in claims.roles if name in _ROLES),
        purposes=frozenset(claims.purposes),
        authn="jwt+mtls" if mtls else "jwt",
        mtls=mtls,
        credential_binding=bind_token(token),
        expires_us=claims.expires_us,
    )


def _require_confirmed(thumbprint: str, certificate: CertificateIdentity | None) -> None:
    """RFC 8705 section 3.1: the token may be used only over a connection with that very certificate."""
    if certificate is None:
        raise Unauthenticated("token-bound-elsewhere")
    actual = base64.urlsafe_b64encode(hashlib.sha256(certificate.der).digest()).rstrip(b"=")
    if not hmac.compare_digest(actual, thumbprint.encode("utf-8")):
        raise Unauthenticated("token-bound-elsewhere")


def _by_certificate(certificate: CertificateIdentity) -> Principal:
    client = certificate.client
    if client is None:
        raise Unauthenticated("certificate-unmapped")
    return Principal(
        tenant=client.tenant,
        subject=client.subject,
        roles=frozenset(client.roles),
        purposes=frozenset(client.purposes),
        authn="mtls",
        mtls=True,
        credential_binding=bind_certificate(certificate.der),
        expires_us=certificate.expires_us,
    )
