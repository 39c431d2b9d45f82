"""A trade-off curve in plain words: what the best attacker could find out about who was in the training data.

Trusts: the curve. Never: says that an attack is likely; these are bounds for whoever knows everything else.
"""

from __future__ import annotations

from sealgate.certificate.tradeoff import TradeOff

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
_UNITS = {"example": "row", "user": "person"}


def unit_word(unit: str) -> str:
    """What people call a unit of privacy: row, person, graph, node, edge."""
    return _UNITS.get(unit, unit)


def rate_text(rate: float) -> str:
    """A share in per cent, with as many digits as it needs and never rounded down to certainty's other side."""
    per_cent = rate * 100
    if per_cent >= 99.95:
        return "up to 100 %" if rate >= 1 else "more than 99.9 %"
    return f"{per_cent:.1f} %" if per_cent >= 1 else f"{per_cent:.2g} %"


def attack_lines(curve: TradeOff, *, unit: str) -> list[str]:
    """One line per false-positive rate, for `sealgate models show` and the card."""
    return [
        f"who wrongly accuses {rate_text(rate)} of the {unit_word(unit)}s that were not in the data finds at most "
        f"{rate_text(curve.tpr_at(rate))} of those that were (guessing finds {rate_text(rate)})"
        for rate in FALSE_POSITIVE_RATES
    ]
