"""The errors of the gateway, and the one table of what callers may be told.

    SealgateError
    └── GatewayError
        ├── Problem            a refusal as the caller sees it (RFC 9457); `code` is a key of PROBLEMS
        ├── Unauthenticated    no principal; `code` is the reason for the log, which callers never learn
        ├── RuntimeAway        the runtime cannot be reached, or went away before it answered
        ├── RuntimeBusy        the runtime has as much in flight as it may
        └── CallerGone         nobody waits for the answer any more

Callers see a `Problem` and nothing else: its texts are fixed here, so no refusal can carry more than its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.limits import RETRY_AFTER_S
from sealgate.errors import SealgateError

OHTTP_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key"
MEDIA_PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class ProblemKind:
    """One row of the table. `detail` says how to mend it, as far as a stranger may know."""

    status: int
    title: str
    detail: str
    retry: bool = False  # worth a Retry-After


PROBLEMS: dict[str, ProblemKind] = {
    "malformed-request": ProblemKind(400, "Malformed request", "The request is not what this resource expects."),
    "sealed-request-refused": ProblemKind(400, "Sealed request refused", "The runtime did not accept the request."),
    "unknown-key": ProblemKind(
        400, "Unknown key", "Sealed to a key that is not held: fetch the key configuration again and seal anew."
    ),
    "unauthenticated": ProblemKind(401, "Not authenticated", "A valid access token or client certificate is needed."),
    "forbidden": ProblemKind(403, "Forbidden", "The policy does not allow this; the refusal is on record."),
    "not-found": ProblemKind(404, "Not found", "There is nothing here."),
    "method-not-allowed": ProblemKind(405, "Method not allowed", "See the Allow field for what is."),
    "too-slow": ProblemKind(408, "Too slow", "The request did not arrive in time."),
    "too-large": ProblemKind(413, "Too large", "The request is larger than this service accepts."),
    "unsupported-media-type": ProblemKind(
        415, "Unsupported media type", "Sealed requests are message/ohttp-req or message/ohttp-chunked-req."
    ),
    "too-many-requests": ProblemKind(429, "Too many requests", "Wait before the next request.", retry=True),
    "budget-exhausted": ProblemKind(429, "Budget exhausted", "The budget for this use is spent.", retry=True),
    "header-too-large": ProblemKind(431, "Header too large", "The request's header fields are too large."),
    "internal": ProblemKind(500, "Internal error", "The request failed; nothing was released."),
    "unavailable": ProblemKind(503, "Unavailable", "The service cannot answer now. Try again later.", retry=True),
    "busy": ProblemKind(503, "Busy", "More requests are in flight than fit. Try again soon.", retry=True),
    "timed-out": ProblemKind(504, "Timed out", "The runtime did not answer in time."),
}


AUTHENTICATION_FAILURES: dict[str, str] = {
    "no-credential": "neither a token nor a client certificate",
    "credential-repeated": "more than one Authorization field",
    "scheme-unknown": "an Authorization scheme other than Bearer",
    "token-too-large": "a token larger than MAX_TOKEN",
    "token-malformed": "not three base64url parts of strict JSON without repeated names",
    "header-forbidden": "a token header that brings a key, an extension or a transformation",
    "type-mismatch": "a token that is not an access token (at+jwt)",
    "algorithm-refused": "an algorithm other than ES256, EdDSA, RS256",
    "algorithm-mismatch": "an algorithm other than the key's own",
    "issuer-unknown": "an issuer that is not in issuers.toml",
    "key-unknown": "a key that the issuer does not have",
    "signature-invalid": "a signature that does not hold",
    "claims-invalid": "a required claim is missing, or a claim is of the wrong type",
    "audience-mismatch": "a token for somebody else",
    "tenant-not-of-issuer": "an issuer that may not speak for this tenant",
    "lifetime-too-long": "a token that lives longer than its issuer may grant, or ends before it begins",
    "token-expired": "a token whose time is over",
    "token-not-yet-valid": "a token from the future",
    "token-bound-elsewhere": "a token bound to a certificate that the caller did not show",
    "certificate-malformed": "a client certificate whose names cannot be read",
    "certificate-expired": "a client certificate outside its time, on a connection that outlived it",
    "certificate-revoked": "a client certificate, or one above it, on the deny list or on a revocation list",
    "certificate-untrusted": "a client certificate that no authority accepted now has signed",
    "certificate-of-proxy": "a client that showed a trusted proxy's own certificate",
    "forwarded-malformed": "a trusted proxy's Client-Cert or Client-Cert-Chain that is not as RFC 9440 writes it",
    "crl-missing": "an authority without a revocation list where one is required, or where there was one",
    "crl-stale": "an authority whose newest revocation list is past its nextUpdate",
    "crl-unusable": "a revocation list that its authority did not sign, or of a kind that is not understood",
    "crl-unreadable": "a file of revocation lists cannot be read, so no certificate is accepted",
    "certificate-unmapped": "a client certificate that stands for nobody in tenants.toml",
    "deny-list-unreadable": "the deny list cannot be read, so no certificate is accepted",
}
"""Every reason that the log counts failed authentications by, with what it means. Callers see none of them."""


class GatewayError(SealgateError):
    """Root of what this package raises."""

    code = "gateway"


class Problem(GatewayError):
    """A refusal as the caller sees it. `log`, `record` and `receipt` are set where the refusal is on record."""

    def __init__(
        self,
        code: str,
        *,
        detail: str = "",
        headers: Mapping[str, str] | None = None,
        retry_after_s: int = 0,
        members: Mapping[str, object] | None = None,
    ) -> None:
        kind = PROBLEMS[code]
        super().__init__(detail or kind.detail, code=code)
        self.status = kind.status
        self.title = kind.title
        self.members = dict(members or {})
        self.headers = dict(headers or {})
        if kind.retry or retry_after_s:
            self.headers["Retry-After"] = str(max(retry_after_s, RETRY_AFTER_S))
        if code == "unauthenticated":
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def type(self) -> str:
        """The problem type URI (RFC 9457 section 3.1.1)."""
        return OHTTP_KEY if self.code == "unknown-key" else f"urn:sealgate:problem:{self.code}"

    def document(self) -> dict[str, object]:
        """The members of the problem document."""
        return {"type": self.type, "title": self.title, "status": self.status, "detail": str(self), **self.members}


class Unauthenticated(GatewayError):
    """No principal. `code` is one of AUTHENTICATION_FAILURES; the caller gets the one uniform 401."""

    code = "unauthenticated"

    def __init__(self, reason: str) -> None:
        super().__init__("the caller could not be authenticated", code=reason)


class RuntimeAway(GatewayError):
    """The runtime cannot be reached, or its connection ended before the answer came."""

    code = "runtime-away"


class RuntimeBusy(GatewayError):
    """As many requests are in flight to the runtime as may be."""

    code = "runtime-busy"


class CallerGone(GatewayError):
    """The caller closed the connection before its answer was there."""

    code = "caller-gone"

    def __init__(self) -> None:
        super().__init__("the caller went away")
