"""Proofs of possession (DPoP, RFC 9449) as the gateway meets them: the field, the check, the memory, the next nonce.

A deployment is reached under its audience's name and, where proxies give it others, under `[gateway] dpop_urls`. Which
of them a proof may name is read from the deployment: a Host field is whatever the sender says. The query of a URL is
not part of a proof (section 4.2), so a proof for a path is a proof for every query of it.

Trusts: the deployment, the token's verifier. Never: lets a proof count twice, or tells a caller why it did not count,
but that a fresh nonce is needed, and that only to who has the token and its key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, MutableMapping
from typing import Any

from gateway.authentication.dpop import accepted_targets, verify_proof
from gateway.authentication.nonces import Nonces
from gateway.authentication.proofs import ProofStore
from gateway.errors import Unauthenticated
from gateway.fields import values_of
from sealgate.ambient import Clock, now_us
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.protocol.dpop import target_url

NONCE = "gateway.dpop_nonce"
"""In an ASGI scope: the nonce that the answer tells its caller."""

_HELD = "gateway.dpop_held"
_FIELD = b"dpop"


class Possession:
    """Who holds the key that a token names. One per process, used from its event loop."""

    def __init__(self, store: ProofStore, *, base_urls: Collection[str], clock: Clock = now_us) -> None:
        self._store = store
        self._base_urls = tuple(base_urls)
        self._nonces = Nonces(store.nonce_key, clock=clock)
        self._shared_key: bytes = store.nonce_key
        self._clock = clock

    def key_for(self, purpose: bytes) -> bytes:
        """A key for another purpose that all gateway processes of the deployment have, and nobody else."""
        return hmac.digest(self._shared_key, purpose, hashlib.sha256)

    def close(self) -> None:
        self._store.close()

    def challenge(self, scope: MutableMapping[str, Any]) -> None:
        """Have the answer carry the present nonce."""
        scope[NONCE] = self._nonces.current()

    def require_none(self, scope: MutableMapping[str, Any]) -> None:
        """Raises Unauthenticated if the request carries a proof: it would prove nothing."""
        if values_of(scope, _FIELD):
            raise Unauthenticated("proof-unexpected")

    async def require(self, scope: MutableMapping[str, Any], *, jkt: str, access_token: str) -> None:
        """Raises Unauthenticated unless the request carries a proof by the key `jkt`, for it and unused.

        A request that is authenticated again, because the policy changed under it, has used its proof itself.
        """
        if scope.get(_HELD) == (jkt, access_token):
            return
        found = values_of(scope, _FIELD)
        if len(found) != 1:  # section 4.3, the first check
            raise Unauthenticated("proof-repeated" if found else "proof-missing")
        path = scope.get("raw_path") or scope["path"].encode("ascii", "replace")
        proof = verify_proof(
            found[0].decode("latin-1"),
            jkt=jkt,
            method=scope["method"],
            targets=accepted_targets(self._base_urls, path.partition(b"?")[0].decode("latin-1")),
            access_token=access_token,
            nonces=self._nonces,
            now_us=self._clock(),
        )
        await self._store.remember(jkt=proof.jkt, jti=proof.jti, expires_us=proof.expires_us)
        scope[_HELD] = (jkt, access_token)
        if proof.nonce != self._nonces.current():  # section 8.2: told in time, it costs the client no extra request
            self.challenge(scope)


async def tell_nonce(message: Any, scope: Any) -> None:
    """Before an answer's head is sent: put the nonce into it that `challenge` chose (section 8)."""
    nonce = scope.get(NONCE)
    if nonce is not None and message["type"] == "http.response.start":
        # Section 8.2: kept in a cache, it would be told when it no longer counts.
        more = [(b"dpop-nonce", nonce.encode("ascii")), (b"cache-control", b"no-store")]
        message["headers"] = [*message.get("headers", ()), *more]


def open_possession(deployment: Deployment, *, clock: Clock = now_us) -> Possession:
    """For one gateway process of a deployment. Raises ConfigurationError that says what to mend."""
    settings = deployment.settings
    for url in settings.gateway.dpop_urls:
        try:
            target_url(url)
        except DecodeError as error:
            raise ConfigurationError(f"deployment.toml: gateway.dpop_urls: '{url}' is not an https:// URL") from error
        if "?" in url or "#" in url:
            raise ConfigurationError(f"deployment.toml: gateway.dpop_urls: '{url}' has more than a host and a path")
    urls = (f"https://{settings.deployment.audience}", *settings.gateway.dpop_urls)
    return Possession(ProofStore(deployment.proofs, clock=clock), base_urls=urls, clock=clock)
