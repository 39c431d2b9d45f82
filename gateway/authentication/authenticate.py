"""Step 3: what a request shows of its sender becomes one `Principal`, or the one uniform 401.

    token                    the token's subject; it must be bound to nothing that the caller does not show
    token and proof          the same, for a token that names a key (RFC 9449); then the scheme is DPoP, else Bearer
    token and certificate    the token's subject; mtls only if the certificate stands for a client of the same tenant
    certificate              the client that tenants.toml says it stands for
    neither, or anything wrong with any of them    nobody

Trusts: `TokenVerifier`, `CertificateReader`, `Possession`. Never: falls back from a bad token to a good certificate,
takes a bound token without what it is bound to, or lets the caller see why it was refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import MutableMapping
from typing import Any

import msgspec

from gateway.authentication.certificates import CertificateIdentity, CertificateReader
from gateway.authentication.possession import Possession
from gateway.authentication.tokens import Confirmation, TokenVerifier, VerifiedToken
from gateway.errors import Unauthenticated
from gateway.fields import values_of
from policy.entities import Principal, Role
from sealgate.protocol.binding import bind_certificate, bind_token

_ROLES = {role.value: role for role in Role}


class Authenticator:
    """Step 3. One per process."""

    def __init__(self, tokens: TokenVerifier, certificates: CertificateReader, possession: Possession) -> None:
        self._tokens = tokens
        self._certificates = certificates
        self._possession = possession

    def start(self) -> None:
        """Begin what goes on in the background. Needs the running event loop; returns at once."""
        self._tokens.start()

    async def close(self) -> None:
        """End it, and let go of files."""
        self.let_go()
        await self._tokens.close()

    def let_go(self) -> None:
        """Close what is open without `start`: for who only wanted to know whether everything can be made."""
        self._possession.close()

    def key_for(self, purpose: bytes) -> bytes:
        """A key that all gateway processes of the deployment share, for one purpose."""
        return self._possession.key_for(purpose)

    def details(self) -> tuple[str, ...]:
        """What operators should know; nothing if all is well."""
        return self._tokens.details()

    async def authenticate(self, scope: MutableMapping[str, Any]) -> Principal:
        """The caller of a request (an ASGI scope); raises Unauthenticated with the reason for the log."""
        try:
            return await self._authenticate(scope)
        except Unauthenticated:
            self._possession.challenge(scope)
            raise

    async def _authenticate(self, scope: MutableMapping[str, Any]) -> Principal:
        certificate = self._certificates.read(scope)
        presented = _presented(scope)
        if presented is not None:
            verified = await self._tokens.verify(presented.token)
            binding = await self._confirm(scope, presented, verified, certificate)
            return _by_token(verified, presented.token, certificate, binding)
        self._possession.require_none(scope)
        if certificate is not None:
            return _by_certificate(certificate)
        raise Unauthenticated("no-credential")

    async def _confirm(
        self,
        scope: MutableMapping[str, Any],
        presented: _Presented,
        verified: VerifiedToken,
        certificate: CertificateIdentity | None,
    ) -> str:
        """What the token is bound to, once all of that was shown (RFC 7800 section 3.1). The proof is last: it counts
        once, and nothing may fail for another reason after it was used."""
        confirmation = verified.confirmation or Confirmation()
        if confirmation.x5t_s256 is not None:
            _require_certificate(confirmation.x5t_s256, certificate)
        if (confirmation.jkt is not None) != presented.as_dpop:  # RFC 9449 section 7.2: no way down to Bearer
            raise Unauthenticated("scheme-mismatch")
        if confirmation.jkt is None:
            self._possession.require_none(scope)
            return "none" if confirmation.x5t_s256 is None else "mtls"
        await self._possession.require(scope, jkt=confirmation.jkt, access_token=presented.token)
        return "dpop" if confirmation.x5t_s256 is None else "mtls+dpop"


class _Presented(msgspec.Struct, frozen=True):
    """What the Authorization field says. Proves nothing."""

    token: str
    as_dpop: bool


def _presented(scope: MutableMapping[str, Any]) -> _Presented | None:
    found = values_of(scope, b"authorization")
    if not found:
        return None
    if len(found) > 1:
        raise Unauthenticated("credential-repeated")
    said, _, token = found[0].decode("latin-1").partition(" ")
    scheme = said.lower()
    if scheme not in ("bearer", "dpop"):
        raise Unauthenticated("scheme-unknown")
    return _Presented(token.strip(" "), scheme == "dpop")


def _by_token(
    claims: VerifiedToken, token: str, certificate: CertificateIdentity | None, token_binding: str
) -> Principal:
    client = certificate.client if certificate else None
    mtls = client is not None and client.tenant == claims.tenant
    known = claims.principals.get((mtls, token_binding))
    if known is None:
        known = claims.principals[mtls, token_binding] = _principal_of(claims, token, mtls, token_binding)
    return known


def _principal_of(claims: VerifiedToken, token: str, mtls: bool, token_binding: str) -> Principal:
    return Principal(
        tenant=claims.tenant,
        subject=claims.subject,
        roles=frozenset(_ROLES[name] for name in claims.roles if name in _ROLES),
        purposes=frozenset(claims.purposes),
        authn="jwt+mtls" if mtls else "jwt",
        mtls=mtls,
        credential_binding=bind_token(token),
        expires_us=claims.expires_us,
        token_binding=token_binding,
    )


def _require_certificate(thumbprint: str, certificate: CertificateIdentity | None) -> None:
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
        token_binding="certificate",  # noqa: S106  # a kind of binding
    )
