"""What a client can meet beyond the shared tree (sealgate.errors).

SealgateError
├── ConfigurationError
│   └── UsageError             a request that this transport cannot seal: no model in its path, no purpose, bad token
├── TokenUnavailable           no token could be had from the identity provider
├── ServiceUnreachable         no answer at all: refused, timed out, broken off, TLS or proxy failure
├── ProtocolError
│   └── UnsealedAnswer         the gateway answered something that is neither sealed nor a problem document
├── VerificationError
│   ├── EvidenceRefused        sealgate.evidence.transcript: with the transcript of checks
│   └── ReceiptRefused         likewise
└── RemoteError
    ├── ServiceRefused         a problem document, with its verified audit receipt if it came with one
    │   └── BudgetSpent        a budget is used up: which, and when it renews
    └── InferenceFailed        the runtime's own sealed error: the model did not run as asked
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sealgate.errors import ConfigurationError, ProtocolError, RemoteError, SealgateError
from sealgate.evidence.transcript import EvidenceRefused, ReceiptRefused

if TYPE_CHECKING:
    from sealgate.transparency.receipt import VerifiedReceipt

__all__ = [
    "BudgetSpent",
    "EvidenceRefused",
    "InferenceFailed",
    "ReceiptRefused",
    "ServiceRefused",
    "ServiceUnreachable",
    "TokenUnavailable",
    "UnsealedAnswer",
    "UsageError",
]


class UsageError(ConfigurationError):
    """The caller asked for something that cannot be sealed as asked. The text says how to mend it."""

    code = "usage"


class ServiceUnreachable(SealgateError):
    """No answer came. Whether the request was executed is unknown; the service's log knows."""

    code = "unreachable"


class TokenUnavailable(SealgateError):
    """No access token could be had. The text names the provider's error code at most."""

    code = "token-unavailable"


class UnsealedAnswer(ProtocolError):
    """The gateway answered a sealed request with something that is not sealed: never handed on as an answer."""

    code = "unsealed-answer"


class ServiceRefused(RemoteError):
    """The service refused. `code` is its public problem code. The text of the refusal is the gateway's word.

    `receipt` is there when the refusal is on record; it has been verified then, and is about this request. Where a
    receipt came that does not hold, there is none, the text says so and `receipt_refused` says why: then somebody on
    the way altered the request, or is lying about it.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        problem_type: str,
        retry_after_s: int | None,
        receipt: VerifiedReceipt | None = None,
        receipt_bytes: bytes = b"",
        cose_receipt: bytes = b"",
        receipt_refused: ReceiptRefused | None = None,
    ) -> None:
        if receipt_refused is not None:
            message = f"{message}; {receipt_refused}"
        super().__init__(message, status=status, problem_type=problem_type, retry_after_s=retry_after_s)
        self.code = code
        self.receipt_refused = receipt_refused
        self.receipt = receipt
        self.receipt_bytes = receipt_bytes
        self.cose_receipt = cose_receipt


class BudgetSpent(ServiceRefused):
    """A budget of requests, units or epsilon is used up. `renews` is None for one that never begins anew.

    Both are as the record states them where the refusal's receipt verified, and the gateway's word otherwise.
    """

    def __init__(self, message: str, *, budget: str, renews: datetime | None, **rest: Any) -> None:
        super().__init__(message, **rest)
        self.budget = budget
        self.renews = renews


class InferenceFailed(RemoteError):
    """The runtime opened the request and answered with an error, inside the seal: its text is the runtime's word.

    `receipt` is the verified record of the failure.
    """

    code = "inference-failed"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        receipt: VerifiedReceipt,
        receipt_bytes: bytes,
        cose_receipt: bytes = b"",
    ) -> None:
        super().__init__(message, status=status)
        self.receipt = receipt
        self.receipt_bytes = receipt_bytes
        self.cose_receipt = cose_receipt
