"""Problem documents (RFC 9457) of the gateway, read with suspicion: they come unsealed, from whoever answered.

Trusts nothing: everything is bounded and made printable. Never: follows a URI, renders markup.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from sealgate.limits import MAX_NAME
from sealgate.terminal import printable

MEDIA_TYPE = "application/problem+json"
OHTTP_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key"
MAX_PROBLEM = 64 * 1024
BUDGET_CODES = ("budget-exhausted", "privacy-budget-exhausted")

_URN = re.compile(r"urn:sealgate:problem:([a-z0-9-]{1,64})\Z")
_HINTS = {
    "unauthenticated": "the credential was not accepted; get a new token, or check certificate and DPoP key",
    "forbidden": "the policy does not allow this model for this purpose with this credential",
    "forbidden:explain": "the policy does not allow explanations of this model for this purpose with this credential; "
    "`explain` is an action of its own, which a policy must permit",
    "forbidden:audit": "the policy does not allow this credential to read that of the log; auditors may (the role "
    "'auditor'), of one tenant or of all, and exports and most reports need one who may read every tenant",
    "budget-exhausted": "the budget has too little left; wait for its renewal or ask the operator",
    "privacy-budget-exhausted": "the privacy budget has too little left and never renews; ask the operator",
    "too-many-requests": "slow down and try again",
    "unavailable": "the service cannot infer at the moment; try again later",
    "sealed-request-refused": "the runtime refused the sealed request; check this machine's clock and the credential",
    "unknown-key": "the service changed its keys again; try once more",
    "too-large": "the request is larger than the service allows",
    "timed-out": "the model did not answer in time",
}


class _Document(msgspec.Struct, frozen=True):
    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    budget: str = ""
    renews: str | None = None


@dataclass(frozen=True)
class Problem:
    """A refusal: `code` is the service's stable code, or `http-STATUS` where there was no readable document.

    `budget` names the budget that is used up, if one is, and `renews` when it begins anew; None is never, or not said.
    """

    status: int
    code: str
    type: str
    text: str
    retry_after_s: int | None
    budget: str = ""
    renews: datetime | None = None


def read_problem(status: int, content_type: str, retry_after: str, body: bytes, *, operation: str = "") -> Problem:
    """The problem in an answer to an operation; one that is no problem document becomes a bare status."""
    document = _Document()
    if content_type.split(";")[0].strip().lower() == MEDIA_TYPE and len(body) <= MAX_PROBLEM:
        try:
            document = msgspec.json.decode(body, type=_Document)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            document = _Document()
    match = _URN.match(document.type)
    code = match[1] if match else ("unknown-key" if document.type == OHTTP_KEY else f"http-{status}")
    said = printable(document.detail or document.title, limit=200)
    spent = code in BUDGET_CODES
    budget = printable(document.budget, limit=MAX_NAME) if spent else ""
    renews = _moment(document.renews) if budget else None
    hint = budget_text(budget, renews) if budget else _HINTS.get(f"{code}:{operation}", _HINTS.get(code, ""))
    text = (
        f"the service refused ({status} {code})"
        + (f": {hint}" if hint else "")
        + (f" [it said: {said}]" if said else "")
    )
    seconds = int(retry_after) if re.fullmatch(r"\d{1,6}", retry_after, re.ASCII) else None
    return Problem(status, code, printable(document.type, limit=200), text, seconds, budget, renews)


def budget_text(budget: str, renews: datetime | None) -> str:
    """Which budget, and when to come again."""
    when = f"it renews at {renews:%Y-%m-%d %H:%M:%S} UTC" if renews else "it does not renew; ask the operator"
    return f"the budget '{budget}' has too little left for this request; {when}"


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.strptime(text or "", "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
