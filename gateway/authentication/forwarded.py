"""Client certificates that a proxy forwards: `Client-Cert` and `Client-Cert-Chain` (RFC 9440), and whom to believe.

A proxy that ends TLS says in these fields which certificate its client proved to hold. Two kinds of sender are
believed: whoever may connect to the gateway's UNIX socket, and a TLS client whose own certificate is one of
`trusted_proxies`. `gateway.tls_identity` takes the fields out of every request before anything else sees it; here they
are read only when their sender is believed. Nothing else that a proxy may say about its client is read at all.

Trusts: a trusted proxy to have verified its client's handshake, and to drop these fields where a client sent them.
Never: believes a forwarded certificate more than one that was shown here, or a proxy's own in the place of a client's.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

import msgspec

from gateway.authentication.authorities import BUILT_IN
from gateway.errors import Unauthenticated
from gateway.limits import MAX_CERTIFICATE, MAX_CHAIN, MAX_TRUSTED_PROXIES
from sealgate.errors import ConfigurationError

EXTENSION = "proxy"  # where a `Forwarded` stands in an ASGI scope's extensions
CERTIFICATE_FIELD = b"client-cert"
CHAIN_FIELD = b"client-cert-chain"

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(?:([A-Za-z0-9._-]{1,128})/)?((?:URI|DNS|email|CN):[\x21-\x7e]{1,512})")
_BYTE_SEQUENCE = re.compile(rb":([A-Za-z0-9+/]+={0,2}):")  # RFC 8941 section 3.3.5, and no parameters
_BETWEEN = re.compile(rb"[ \t]*,[ \t]*")


class Forwarded(msgspec.Struct, frozen=True):
    """The two fields of one request, as they came. An allegation: it says nothing of whether its sender is believed.

    `local`: it came over the UNIX socket.
    """

    local: bool
    certificate: tuple[bytes, ...] = ()
    chain: tuple[bytes, ...] = ()


class TrustedProxies:
    """Certificates of proxies, by the setting `trusted_proxies`.

    "64 hex digits" is a fingerprint; "DNS:proxy.internal" a name in a certificate of the authority "ca", and
    "partner/DNS:proxy.internal" one in a certificate of that authority: else any authority could name itself a proxy.
    """

    def __init__(self, settings: Iterable[str] = ()) -> None:
        listed = tuple(settings)
        if len(listed) > MAX_TRUSTED_PROXIES:
            raise ConfigurationError(f"gateway.trusted_proxies: more than {MAX_TRUSTED_PROXIES}")
        self._fingerprints = frozenset(item for item in listed if _FINGERPRINT.fullmatch(item))
        names: set[tuple[str, str]] = set()
        for item in listed:
            match = _NAME.fullmatch(item)
            if match:
                names.add((match[1] or BUILT_IN, match[2]))
            elif item not in self._fingerprints:
                raise ConfigurationError(
                    f"gateway.trusted_proxies: {item!r} is neither a fingerprint (64 hex digits) nor a name of a "
                    "certificate, as in 'DNS:proxy.internal'"
                )
        self._names = frozenset(names)

    def include(self, *, fingerprint: str, names: Iterable[str], authorities: frozenset[str]) -> bool:
        """Whether a certificate that was judged good is a trusted proxy's."""
        if fingerprint in self._fingerprints:
            return True
        return bool(self._names) and any(
            (authority, name) in self._names for name in names for authority in authorities
        )


def parse_forwarded(forwarded: Forwarded) -> tuple[bytes, ...]:
    """The DER forms of the client's certificate and of those above it, in the proxy's order; empty if there is none.

    Raises Unauthenticated for anything but what RFC 9440 section 2 writes.
    """
    if not forwarded.certificate and not forwarded.chain:
        return ()
    if len(forwarded.certificate) != 1:
        raise Unauthenticated("forwarded-malformed")
    members = [member for line in forwarded.chain for member in _BETWEEN.split(line.strip(b" "))]
    if len(members) >= MAX_CHAIN:
        raise Unauthenticated("forwarded-malformed")
    return tuple(_parse_bytes(item) for item in (forwarded.certificate[0].strip(b" "), *members))


def _parse_bytes(item: bytes) -> bytes:
    match = _BYTE_SEQUENCE.fullmatch(item)
    if match is None or len(match[1]) > 4 * (MAX_CERTIFICATE // 3 + 1):
        raise Unauthenticated("forwarded-malformed")
    try:
        der = base64.b64decode(match[1], validate=True)
    except binascii.Error as error:
        raise Unauthenticated("forwarded-malformed") from error
    if base64.b64encode(der) != match[1]:  # other spellings of the same bytes
        raise Unauthenticated("forwarded-malformed")
    return der
