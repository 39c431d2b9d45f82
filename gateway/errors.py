"""The errors of the gateway, and the one table of what callers may be told.

    SealgateError
    └── GatewayError
        ├── Problem            a refusal as the caller sees it (RFC 9457); `code` is a key of PROBLEMS
        ├── Unauthenticated    no principal; `code` is the reason for the log, which callers never learn
        ├── RuntimeAway        the runtime cannot be reached, or went away before it answered
        ├── RuntimeBusy        the runtime has as much in flight as it may
        ├── PolicyChanged      another policy came into force before this decision was recorded: decide anew
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
    "privacy-budget-exhausted": ProblemKind(
        403, "Privacy budget exhausted", "The privacy budget for this use is spent and does not renew."
    ),
    "header-too-large": ProblemKind(431, "Header too large", "The request's header fields are too large."),
    "internal": ProblemKind(500, "Internal error", "The request failed; nothing was released."),
    "unavailable": ProblemKind(503, "Unavailable", "The service cannot answer now. Try again later.", retry=True),
    "busy": ProblemKind(503, "Busy", "More requests are in flight than fit. Try again soon.", retry=True),
    "timed-out": ProblemKind(504, "Timed out", "The runtime did not answer in time."),
}


AUTHENTICATION_FAILURES: dict[str, str] = {
    "no-credential": "neither a token nor a client certificate",
    "credential-repeated": "more than one Authorization field",
    "scheme-unknown": "an Authorization scheme other than Bearer and DPoP",
    "scheme-mismatch": "a token bound to a key that did not come as DPoP, or one that is not bound that did",
    "token-too-large": "a token larger than MAX_TOKEN",
    "token-malformed": "not three base64url parts of strict JSON without repeated names",
    "header-forbidden": "a token header that brings a key, an extension or a transformation",
    "type-mismatch": "a token that is not an access token of a type that its issuer may use",
    "algorithm-refused": "an algorithm that no issuer may use, such as none or HS256",
    "algorithm-mismatch": "an algorithm other than the key's own",
    "issuer-unknown": "an issuer that is not in issuers.toml",
    "key-unknown": "a key that the issuer does not have",
    "keys-unavailable": "the issuer's keys have not come yet, or could not be renewed for too long",
    "signature-invalid": "a signature that does not hold",
    "claims-invalid": "a required claim is missing, or a claim is of the wrong type",
    "audience-mismatch": "a token for somebody else",
    "tenant-not-of-issuer": "an issuer that may not speak for this tenant",
    "lifetime-too-long": "a token that lives longer than its issuer may grant, or ends before it begins",
    "token-expired": "a token whose time is over",
    "token-not-yet-valid": "a token from the future",
    "token-revoked": "a token that is refused by revoked.toml",
    "revocations-unreadable": "revoked.toml cannot be read, so no token is accepted",
    "token-bound-elsewhere": "a token bound to a certificate that the caller did not show",
    "proof-missing": "no proof of possession beside a token that is bound to a key",
    "proof-repeated": "more than one DPoP field",
    "proof-unexpected": "a proof of possession beside a token that is bound to no key, or beside none",
    "proof-too-large": "a proof larger than MAX_PROOF",
    "proof-malformed": "a proof that is not three base64url parts of strict JSON without repeated names",
    "proof-header-forbidden": "a proof whose header brings more than its type, its algorithm and a key",
    "proof-type-mismatch": "a proof that is not dpop+jwt",
    "proof-algorithm-refused": "an algorithm that is refused, or that does not fit the proof's key",
    "proof-key-refused": "a key in a proof that is private, malformed, too weak or too large",
    "proof-key-mismatch": "a proof by another key than the one that the token names",
    "proof-signature-invalid": "a proof whose signature does not hold",
    "proof-claims-invalid": "a proof in which a claim is missing or of the wrong type",
    "proof-method-mismatch": "a proof for another method",
    "proof-url-mismatch": "a proof for another URL",
    "proof-token-mismatch": "a proof for another token",
    "proof-expired": "a proof that was made too long ago",
    "proof-not-yet-valid": "a proof from the future",
    "proof-nonce-stale": "a proof that is good but for its nonce, which is missing or too old",
    "proof-replayed": "a proof that was used before",
    "proof-store-full": "no room to remember one more proof, so none is accepted; the caller gets 503",
    "proof-store-unavailable": "used proofs cannot be remembered, so none is accepted; the caller gets 503",
    "certificate-missing": "no client certificate behind a proxy, where client_certificates requires one",
    "session-invalid": "a session of the console that does not open here, or whose time is over",
    "sign-in-failed": "a sign-in at the console whose answer from the provider is missing, wrong or another's",
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


_NO_FAULT_OF_THE_CALLER = frozenset({"proof-store-full", "proof-store-unavailable"})

_ALGORITHMS = "ES256 ES384 EdDSA PS256 RS256"
CHALLENGE = f'Bearer, DPoP algs="{_ALGORITHMS}"'
CHALLENGE_NONCE = f'Bearer, DPoP error="use_dpop_nonce", algs="{_ALGORITHMS}"'
"""RFC 9449 sections 7.1 and 9: what a caller may authenticate with."""


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
            self.headers.setdefault("WWW-Authenticate", CHALLENGE)

    @property
    def type(self) -> str:
        """The problem type URI (RFC 9457 section 3.1.1)."""
        return OHTTP_KEY if self.code == "unknown-key" else f"urn:sealgate:problem:{self.code}"

    def document(self) -> dict[str, object]:
        """The members of the problem document."""
        return {"type": self.type, "title": self.title, "status": self.status, "detail": str(self), **self.members}


class Unauthenticated(GatewayError):
    """No principal. `code` is one of AUTHENTICATION_FAILURES; the caller gets the one uniform 401.

    There are two exceptions, and only who holds a good token and its key ever meets them. A proof that lacks nothing
    but a current nonce gets the same 401 with the challenge of RFC 9449 section 9. Where used proofs cannot be
    remembered it is 503, because a new credential would not help.

    `detail` says what about the reason in words (which claim, never what it holds), for the operator's own commands.
    """

    code = "unauthenticated"

    def __init__(self, reason: str, *, detail: str = "") -> None:
        super().__init__("the caller could not be authenticated", code=reason)
        self.detail = detail

    def problem(self) -> Problem:
        """What the caller is told."""
        if self.code in _NO_FAULT_OF_THE_CALLER:
            return Problem("unavailable")
        headers = {"WWW-Authenticate": CHALLENGE_NONCE} if self.code == "proof-nonce-stale" else {}
        return Problem("unauthenticated", headers=headers)


class RuntimeAway(GatewayError):
    """The runtime cannot be reached, or its connection ended before the answer came."""

    code = "runtime-away"


class RuntimeBusy(GatewayError):
    """As many requests are in flight to the runtime as may be."""

    code = "runtime-busy"


class PolicyChanged(GatewayError):
    """What was decided no longer counts, and nothing was recorded or done: see `Gate.under_one_policy`."""

    code = "policy-changed"

    def __init__(self) -> None:
        super().__init__("another policy came into force")


class CallerGone(GatewayError):
    """The caller closed the connection before its answer was there."""

    code = "caller-gone"

    def __init__(self) -> None:
        super().__init__("the caller went away")
