"""How much notice a record deserves, for forms that have a severity. A judgement of ours, not part of the record.

Trusts nothing. Never: hides a record; every one is exported whatever it weighs.
"""

from __future__ import annotations

from enum import Enum

from sealgate.transparency.record import Record

_BAD_KINDS = frozenset({"inference.failed", "inference.aborted", "model.refuse"})
_NOTABLE_KINDS = frozenset(
    {
        "inference.denied",
        "auth.failed",
        "budget.exhausted",
        "policy.change",
        "credential.revoke",
        "subject.report",
        "erasure.completed",
    }
    | {"erasure.refused", "retention.pruned", "hold.placed", "hold.released"}
)
_FAILED_KINDS = _BAD_KINDS | {"inference.denied", "auth.failed", "erasure.refused"}
_BAD_OUTCOMES = frozenset({"refused", "denied", "failed", "aborted"})


class Weight(Enum):
    """From the ordinary to what somebody should look at."""

    PLAIN = "plain"
    NOTABLE = "notable"
    BAD = "bad"


def weight_of(record: Record) -> Weight:
    """By kind."""
    if record.kind in _BAD_KINDS:
        return Weight.BAD
    return Weight.NOTABLE if record.kind in _NOTABLE_KINDS else Weight.PLAIN


def succeeded(record: Record) -> bool:
    """Whether what the record is about came about."""
    return record.outcome not in _BAD_OUTCOMES and record.kind not in _FAILED_KINDS
