"""Who the client is: a token, a client certificate, or both; and what ties a sealed request to it.

Trusts: the caller for the token and the files. Never: prints a token, takes one that would break a header line.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from sealgate.client.dpop import Prover, wants_nonce
from sealgate.client.errors import UsageError
from sealgate.errors import ConfigurationError
from sealgate.protocol.binding import bind_certificate, bind_token
from sealgate.protocol.dpop import SCHEME

TokenSource: TypeAlias = "str | Callable[[], str]"
"""A bearer token, or a function that returns one when a request is made (for tokens that are renewed)."""

MAX_TOKEN = 16 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*\Z")  # RFC 6750 section 2.1


@dataclass(frozen=True, init=False)
class ClientCertificate:
    """PEM files of a client certificate (leaf first) and its private key, given as texts or paths."""

    certificate: Path
    key: Path

    def __init__(self, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "certificate", Path(certificate))
        object.__setattr__(self, "key", Path(key))

    def leaf(self) -> bytes:
        """The leaf certificate, DER; raises ConfigurationError."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        try:
            found = x509.load_pem_x509_certificates(self.certificate.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"certificate {self.certificate} cannot be read: {error.strerror}") from error
        except (ValueError, x509.InvalidVersion) as error:
            raise ConfigurationError(f"{self.certificate} is not a PEM certificate") from error
        return found[0].public_bytes(Encoding.DER)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Show it on connections of this context; raises ConfigurationError."""
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"client certificate {self.certificate} or its key {self.key} cannot be used"
            ) from error


CertificateSource: TypeAlias = "ClientCertificate | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None"
"""A client certificate and its key: PEM paths."""


def take_certificate(source: CertificateSource) -> ClientCertificate | None:
    """What it names, if anything."""
    return ClientCertificate(*source) if isinstance(source, tuple) else source


@runtime_checkable
class RenewingSource(Protocol):
    """A source of tokens that sometimes waits for the network: programs with an event loop ask it in a thread then."""

    def held(self) -> str | None:
        """The token, if none has to be waited for."""

    def __call__(self) -> str: ...


def check_token(token: str) -> None:
    """Raises UsageError for what cannot stand in a header line as a token."""
    if len(token) > MAX_TOKEN or not _TOKEN.match(token):
        raise UsageError("the token is empty, too long, or has characters that a bearer token may not have")


class Credential:
    """The credential of one request. Its representation never shows the token. With a `prover` the token goes as DPoP
    (RFC 9449), with a new proof each time that `headers` is asked."""

    __slots__ = ("_certificate", "_prover", "_token")

    def __init__(self, *, token: str | None, certificate: bytes | None, prover: Prover | None = None) -> None:
        if token is not None:
            check_token(token)
        self._token = token
        self._certificate = certificate
        self._prover = prover

    def __repr__(self) -> str:
        return f"Credential(token={'yes' if self._token else 'no'}, certificate={'yes' if self._certificate else 'no'})"

    def headers(self, method: str, url: str) -> tuple[tuple[str, str], ...]:
        """What the gateway reads, for one request to an absolute URL."""
        if self._token is None:
            return ()
        if self._prover is None:
            return (("authorization", f"Bearer {self._token}"),)
        proof = self._prover.proof(method, url, token=self._token)
        return (("authorization", f"{SCHEME} {self._token}"), ("dpop", proof))

    def wants_again(self, status: int, headers: Mapping[str, str]) -> bool:
        """Take what an answer says of nonces; whether the same request, sent once more, may pass."""
        if self._token is None or self._prover is None:
            return False
        self._prover.learn(headers)
        return wants_nonce(status, headers)

    @property
    def binding(self) -> str:
        """What goes inside the seal. Raises UsageError when there is no credential at all."""
        if self._token is not None:
            return bind_token(self._token)
        if self._certificate is not None:
            return bind_certificate(self._certificate)
        raise UsageError("no credential: give a token (a file or SEALGATE_TOKEN) or a client certificate and key")


def take_token(source: TokenSource | None) -> str | None:
    """The token of now."""
    found = source() if callable(source) else source
    return None if found is None else found.strip()


def read_token_file(path: Path) -> str:
    """The token in a file, without its line end; raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN + 2).decode("ascii").strip()
    except OSError as error:
        hint = "make one with: sealgate token issue STATE --tenant T --subject S --purpose P --out FILE"
        raise ConfigurationError(f"token file {path} cannot be read: {error.strerror}; {hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"token file {path} does not hold a token") from error
