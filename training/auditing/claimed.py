"""What the claim allows an attacker, as tests of it need it: the curve, and delta at one slope of it. Pure."""

from __future__ import annotations

import bisect

from sealgate.certificate.recompute import COARSE
from sealgate.certificate.tradeoff import TradeOff, of_steps
from training.auditing.subject import Subject


def claimed_curve(subject: Subject, *, steps: int) -> TradeOff:
    """The trade-off curve that the certificate would claim for so many steps; raises CertificateError."""
    return of_steps(subject.claim(steps=steps), discretisation=COARSE)


def delta_at(curve: TradeOff, epsilon: float) -> float:
    """The least delta of the curve's pairs that holds at this epsilon: delta only falls as epsilon grows."""
    pairs = sorted(curve.pairs)
    place = bisect.bisect_right(pairs, (epsilon, 1.0))
    return min((delta for _, delta in pairs[:place]), default=1.0)
