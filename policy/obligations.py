"""What a permit demands of the answer, merged so that the strictest demand of every determining permit holds."""

from __future__ import annotations

from collections.abc import Iterable

from sealgate.protocol.frames import Obligations


def merge(demands: Iterable[Obligations]) -> Obligations:
    """The strictest of each: fewest digits, fewest scores, hidden if any says so. Order does not matter."""
    items = tuple(demands)
    digits = [item.round_digits for item in items if item.round_digits is not None]
    scores = [item.top_k for item in items if item.top_k is not None]
    return Obligations(
        round_digits=min(digits, default=None),
        top_k=min(scores, default=None),
        hide_scores=any(item.hide_scores for item in items),
    )
