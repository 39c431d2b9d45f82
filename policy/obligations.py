"""What a permit demands of the answer, merged so that the strictest demand of every determining permit holds."""

from __future__ import annotations

from collections.abc import Iterable

from sealgate.protocol.frames import Obligations


def merge(demands: Iterable[Obligations]) -> Obligations:
    """The strictest of each: fewest digits, fewest scores, most noise on fewest rows, whatever any demands besides.

    Order does not matter. A permit without noise beside one with noise loosens nothing.
    """
    items = tuple(demands)
    digits = [item.round_digits for item in items if item.round_digits is not None]
    scores = [item.top_k for item in items if item.top_k is not None]
    epsilons = [item.noise_epsilon_micro for item in items if item.noise_epsilon_micro]
    rows = [item.noise_rows for item in items if item.noise_epsilon_micro]
    return Obligations(
        round_digits=min(digits, default=None),
        top_k=min(scores, default=None),
        hide_scores=any(item.hide_scores for item in items),
        noise_epsilon_micro=min(epsilons, default=0),
        noise_rows=min(rows, default=0),
        receipt_required=any(item.receipt_required for item in items),
        single_use=any(item.single_use for item in items),
    )
