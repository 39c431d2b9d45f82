"""Lanes under fresh randomness: an attacker who sees every step guesses which canaries were in the training data.

Every lane's canary is in the data with probability one half, drawn afresh. The attacker computes, for each lane, the
logarithm of the likelihood ratio of what the lane did under the claimed mechanism: by Neyman and Pearson no attack on
that mechanism does better. Three questions:

`lanes`          is any guessing rule better than the claimed trade-off curve allows? For each slope e^s of the curve,
                 the lanes that were in are thinned to e^-s of them; then guessing "in" above s (and the mirror image)
                 is right with probability at most (1 + delta(s) e^-s) / (1 + e^-s), and the number of right guesses
                 is binomial: an exact test, one-sided.
`noise`          do the lanes without canary move as independent normal values of the declared deviation?
`contributions`  do the lanes with canary move by rate times clip norm a step on average?

The lower bound on epsilon comes from the same guesses by Clopper-Pearson bounds on the rates of false and true
accusations, at thresholds that were fixed beforehand (Jagielski, Ullman and Oprea 2020; Nasr et al. 2023).
Trusts: nothing. Never: uses a threshold that was chosen on the lanes it judges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealgate.ambient import Entropy
from sealgate.certificate.decimals import MICRO, parse_decimal
from sealgate.certificate.tradeoff import TradeOff
from training.auditing.claimed import delta_at
from training.auditing.lanes import NO_LANE, Canaries, watch
from training.auditing.probes import (
    BOUND_ALPHA,
    Probe,
    binomial_tail,
    lower,
    squares_score,
    too_unlikely,
    upper,
)
from training.auditing.subject import Subject
from training.limits import (
    AUDIT_CANARY_SIZE,
    AUDIT_CONSTANT_LANES,
    AUDIT_LANE_STEPS,
    AUDIT_LANES,
    AUDIT_MAX_LANES,
    AUDIT_REPLAY_STEPS,
    AUDIT_WORK,
)
from training.randomness import Keystream

SLOPES = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Where the claimed curve is tried: natural logarithms of likelihood ratios, fixed for every run."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What became of all lanes. One entry for each lane, whatever run it was in."""

    included: NDArray[np.bool_]
    ratio: NDArray[np.float64]  # log likelihood ratio of "in" against "out" over all steps
    moved: NDArray[np.float64]  # sum over steps, in clip norms
    squares: NDArray[np.float64]  # sum over steps of squares
    products: NDArray[np.float64]  # sum over steps of products with the step before
    steps: int


def observe(subject: Subject, entropy: Entropy) -> Observed:
    """Train on lanes until enough were seen. Several runs of some hundred lanes cost less than one of all."""
    steps = min(subject.constants.steps, AUDIT_LANE_STEPS)
    lanes = min(AUDIT_MAX_LANES, max(64, math.isqrt(int(AUDIT_WORK / float(subject.constants.rate)))))
    runs = -(-AUDIT_LANES // lanes)
    coin = Keystream(entropy)
    parts: list[Observed] = []
    for _ in range(runs):
        included = coin.uniform(lanes) < 0.5
        chosen = np.flatnonzero(included).astype(np.int64)
        canaries = Canaries(lanes=chosen, sizes=np.full(len(chosen), AUDIT_CANARY_SIZE))
        moved = watch(subject, canaries, lanes=lanes, constants=subject.bare(steps=steps), entropy=entropy)
        parts.append(
            Observed(
                included=included,
                ratio=log_ratios(moved, rate=float(subject.constants.rate), sigma=subject.constants.sigma),
                moved=moved.sum(axis=0),
                squares=(moved**2).sum(axis=0),
                products=(moved[1:] * moved[:-1]).sum(axis=0),
                steps=steps,
            )
        )
    return Observed(
        included=np.concatenate([part.included for part in parts]),
        ratio=np.concatenate([part.ratio for part in parts]),
        moved=np.concatenate([part.moved for part in parts]),
        squares=np.concatenate([part.squares for part in parts]),
        products=np.concatenate([part.products for part in parts]),
        steps=steps,
    )


def log_ratios(moved: NDArray[np.float64], *, rate: float, sigma: float) -> NDArray[np.float64]:
    """[steps, lanes] in clip norms -> [lanes]: log of (1-q) N(0, sigma) + q N(1, sigma) over N(0, sigma), summed."""
    tilted = math.log(rate) + (moved - 0.5) / sigma**2
    if rate >= 1:
        total: NDArray[np.float64] = tilted.sum(axis=0)
    else:
        total = np.logaddexp(math.log1p(-rate), tilted).sum(axis=0)
    return total


def guesses_within_the_claim(curve: TradeOff, observed: Observed, entropy: Entropy, *, alarm: float) -> Probe:
    """The probe `lanes`: no guessing rule of a fixed list beats the claimed curve (the one for the steps observed)."""
    coin = Keystream(entropy)
    worst = 1.0
    text = ""
    for mirrored in (False, True):
        for slope in SLOPES:
            delta = delta_at(curve, slope)
            kept_share = math.exp(-slope)
            accused = -observed.ratio > slope if mirrored else observed.ratio > slope
            truly = ~observed.included if mirrored else observed.included
            kept = ~truly | (coin.uniform(len(truly)) < kept_share)
            right, trials = int((accused == truly)[kept].sum()), int(kept.sum())
            allowed = min(1.0, (1.0 + delta * kept_share) / (1.0 + kept_share))
            chance = binomial_tail(right, trials, rate=allowed)
            if chance <= worst:
                worst = chance
                text = f"{right} of {trials} guesses right at slope {slope:g}, the claim allows {allowed:.4f} of them"
    return Probe(
        name="lanes",
        held=worst >= alarm / (2 * len(SLOPES)),
        found=f"{text} (chance {worst:.1e} under the claim)",
    )


def noise_as_declared(subject: Subject, observed: Observed, entropy: Entropy, *, alarm: float) -> Probe:
    """The probe `noise`: variance, mean and independence from step to step of lanes that no canary touched, and the
    variance where nobody was drawn: of a data set with one row, which has no gradient."""
    out = ~observed.included
    count = int(out.sum()) * observed.steps
    pairs = int(out.sum()) * (observed.steps - 1)
    sigma = subject.constants.sigma
    variance = float(observed.squares[out].sum()) / (count * sigma**2)
    alone = watch(
        subject,
        Canaries(lanes=np.array([NO_LANE]), sizes=np.zeros(1)),
        lanes=AUDIT_CONSTANT_LANES,
        constants=subject.bare(steps=AUDIT_REPLAY_STEPS),
        entropy=entropy,
    )
    variance_alone = float((alone**2).mean()) / sigma**2
    scores = [
        squares_score(variance * count, mean=count, variance=2 * count),  # chi-squared with so many degrees
        squares_score(variance_alone * alone.size, mean=alone.size, variance=2 * alone.size),
        float(observed.moved[out].sum()) / (sigma * math.sqrt(count)),
    ]
    if pairs:
        scores.append(float(observed.products[out].sum()) / (sigma**2 * math.sqrt(pairs)))
    held = not any(too_unlikely(score, tests=len(scores), alarm=alarm) for score in scores)
    return Probe(
        name="noise",
        held=held,
        found=f"deviation {math.sqrt(max(variance, 0.0)):.4f} of the declared one over {count} values, "
        f"{math.sqrt(max(variance_alone, 0.0)):.3f} where nobody takes part"
        + ("" if held else f"; scores {', '.join(f'{score:.1f}' for score in scores)}"),
    )


def contributions_as_declared(subject: Subject, observed: Observed, *, alarm: float) -> Probe:
    """The probe `contributions`: what comes through of a canary is the clip norm times the rate, on average."""
    rate, sigma = float(subject.constants.rate), subject.constants.sigma
    count = int(observed.included.sum()) * observed.steps
    mean = float(observed.moved[observed.included].sum()) / count
    score = (mean - rate) / math.sqrt((sigma**2 + rate * (1 - rate)) / count)
    return Probe(
        name="contributions",
        held=not too_unlikely(score, tests=1, alarm=alarm),
        found=f"{mean:.4f} clip norms a step of each canary, declared {rate:.4f}, score {score:.1f}",
    )


def epsilon_lower_micro(observed: Observed, *, delta: str) -> int:
    """The greatest epsilon that these guesses exclude, with confidence 1 - BOUND_ALPHA; 0 if they exclude none."""
    alpha = BOUND_ALPHA / (4 * len(SLOPES))
    allowance = float(parse_decimal(delta))
    best = 0.0
    for truly, score in ((observed.included, observed.ratio), (~observed.included, -observed.ratio)):
        for slope in SLOPES:
            accused = score > slope
            true_rate = lower(int((accused & truly).sum()), int(truly.sum()), alpha=alpha)
            false_rate = upper(int((accused & ~truly).sum()), int((~truly).sum()), alpha=alpha)
            if true_rate > allowance and false_rate > 0:
                best = max(best, math.log((true_rate - allowance) / false_rate))
    return int(best * MICRO)
