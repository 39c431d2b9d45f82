"""The same randomness twice: what a trainer does with its rows, seen exactly, because the noise cancels.

The trainer gets its randomness from an injected source. Here that source repeats itself, and the trainer is run on
canaries and on as many rows without any gradient: both runs draw the same rows and the same noise, so what differs is
what came through of each canary at each step, to the last digits. Three questions:

`clipping`   does every canary, from a tenth of the clip norm to a million of them and beyond what floating point can
             hold, move the sum by at most the clip norm?
`sampling`   is each canary in each step with the declared rate, independently of the others and of other steps?
             Shuffled batches, batches of fixed size and other rates have the wrong counts or the wrong spread.
`constants`  does one row more change anything but that row's lane? A divisor, a rate or noise that depends on the
             number of rows changes all of them.

Trusts: nothing; a trainer that does not repeat itself under repeated randomness has other randomness, and fails. Never:
lets the repeated randomness near a model that is published.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from sealgate.ambient import Entropy
from training.auditing.lanes import NO_LANE, Canaries, watch
from training.auditing.probes import Probe, binomial_score, squares_score, too_unlikely
from training.auditing.subject import Subject
from training.dp_sgd.noise import ROUNDED_BITS
from training.limits import (
    AUDIT_CANARY_SIZE,
    AUDIT_CONSTANT_LANES,
    AUDIT_CONSTANT_ROWS,
    AUDIT_CONSTANT_TIMES,
    AUDIT_MIN_DRAWS,
    AUDIT_MIN_REPLAY_ROWS,
    AUDIT_REPLAY_ROWS,
    AUDIT_REPLAY_STEPS,
)

CLIP_TOLERANCE = 1e-4
"""Of a clip norm: rounding of float32 arithmetic in sums that hold noise as well."""

CLIP_SIZES = (0.1, 0.5, 1.0, 1.5, 3.0, 1e3, AUDIT_CANARY_SIZE, 1e15, 1e30)
HUGE_SIZES = (1e150, 1e200)
"""Gradients whose squares no float64 holds: added where the arithmetic is float64."""


class RepeatedRandomness:
    """An `Entropy` that can be had twice: SHA-256 of a word and a counter. For audits, never for training."""

    def __init__(self, word: bytes) -> None:
        self._word = word
        self._count = 0

    def __call__(self, size: int) -> bytes:
        """The next `size` bytes."""
        out = b""
        while len(out) < size:
            out += hashlib.sha256(self._word + self._count.to_bytes(8, "big")).digest()
            self._count += 1
        return out[:size]


def replay(
    subject: Subject, sizes: NDArray[np.float64], *, steps: int, entropy: Entropy, idle: int = 0
) -> NDArray[np.float64]:
    """What came through of each canary at each step, in clip norms: [steps, canaries].

    The trainer is run on one canary in each lane, and on as many rows without gradients, under the same randomness.
    `idle` rows that belong to no lane and have no gradient come after them.
    """
    word, count = entropy(32), len(sizes)
    numbers = np.concatenate([np.arange(count, dtype=np.int64), np.full(idle, NO_LANE, dtype=np.int64)])

    def run(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
        return watch(
            subject,
            Canaries(lanes=numbers, sizes=np.concatenate([magnitudes, np.zeros(idle)])),
            lanes=count,
            constants=subject.quiet(steps=steps),
            entropy=RepeatedRandomness(word),
        )

    return run(sizes) - run(np.zeros(count))


def contributions_are_clipped(subject: Subject, entropy: Entropy) -> Probe:
    """The probe `clipping`: no canary of any size comes through with more than the clip norm."""
    kinds = CLIP_SIZES + (HUGE_SIZES if subject.dtype == torch.float64 else ())
    copies = -(-AUDIT_MIN_DRAWS // len(kinds))
    sizes = np.repeat(np.array(kinds), copies)
    steps = max(1, math.ceil(8 / (float(subject.constants.rate) * copies)))  # all sizes are drawn, almost surely
    if bool(replay(subject, np.zeros(8), steps=2, entropy=entropy).any()):
        return Probe(
            name="clipping",
            held=False,
            found="the trainer does not repeat itself when its randomness is repeated: it has another source of it",
        )
    through = np.nan_to_num(np.abs(replay(subject, sizes, steps=steps, entropy=entropy)), nan=np.inf)
    most = float(through.max())
    held = most <= 1.0 + CLIP_TOLERANCE
    where = kinds[int(through.max(axis=0).argmax()) // copies]
    return Probe(
        name="clipping",
        held=held,
        found=f"gradients of {kinds[0]:g} to {kinds[-1]:g} clip norms moved the sum by at most {most:.4f} of them"
        + ("" if held else f" (at {where:g})"),
    )


def sampling_is_poisson(subject: Subject, entropy: Entropy, *, alarm: float) -> Probe:
    """The probe `sampling`: participation of each canary in each step is independent with the declared rate.

    Asked with the canaries alone and among twice as many idle rows: the rate must not follow the number of rows.
    """
    rate = float(subject.constants.rate)
    rows = int(min(AUDIT_REPLAY_ROWS, max(AUDIT_MIN_REPLAY_ROWS, AUDIT_MIN_DRAWS / rate)))
    sizes = np.full(rows, AUDIT_CANARY_SIZE)
    held, words = True, []
    for idle in (0, 2 * rows):
        through = replay(subject, sizes, steps=AUDIT_REPLAY_STEPS, entropy=entropy, idle=idle)
        scores = participation(np.abs(through) > 0.5, rate)
        held = held and not any(too_unlikely(score, tests=2 * len(scores), alarm=alarm) for score in scores.values())
        shown = ", ".join(f"{name} {score:+.1f}" for name, score in scores.items())
        words.append(f"of {rows + idle} rows: {shown}")
    return Probe(
        name="sampling",
        held=held,
        found=f"deviations from a Poisson sampler of rate {rate:.4g}, in standard ones; {'; '.join(words)}",
    )


def participation(drawn: NDArray[np.bool_], rate: float) -> dict[str, float]:
    """How far [steps, rows] is from independent chances of `rate`, as standard scores: the mean, the spread of each
    row's and of each step's count, and how often a row is drawn in two steps that follow each other."""
    if rate >= 1:
        return {"mean": 0.0 if bool(drawn.all()) else -math.inf}
    steps, rows = drawn.shape
    pairs = drawn[: steps // 2 * 2 : 2] & drawn[1 : steps // 2 * 2 : 2]
    return {
        "mean": binomial_score(int(drawn.sum()), drawn.size, rate=rate),
        "spread of rows": dispersion(drawn.sum(axis=0), steps, rate),
        "spread of steps": dispersion(drawn.sum(axis=1), rows, rate),
        "twice in a row": binomial_score(int(pairs.sum()), pairs.size, rate=rate**2),
    }


def dispersion(counts: NDArray[np.int64], trials: int, rate: float) -> float:
    """How far the spread of these counts is from that of Binomial(trials, rate), as a standard score.

    Fixed-size batches give none; the variance of a square includes the binomial's fourth moment.
    """
    variance = trials * rate * (1 - rate)
    squares = (counts - trials * rate) ** 2 / variance
    spread = 2.0 + (1.0 - 6.0 * rate * (1 - rate)) / variance
    return squares_score(float(squares.sum()), mean=len(counts), variance=spread * len(counts))


def constants_are_public(subject: Subject, entropy: Entropy) -> Probe:
    """The probe `constants`: one more row changes no lane but its own.

    The numbers of rows are chosen where a batch size that is cut or rounded to a whole number would change, and the
    step is the first, where both runs draw the same randomness for the rows that they share. What follows the rows that
    were drawn shows only if the one in question was: each number of rows is tried twice, and until it was.
    """
    rate = float(subject.constants.rate)
    wanted = {math.ceil(2 / rate) - 1, math.ceil(2.5 / rate) - 1, math.ceil(5 / rate) - 1, 31}
    lanes = AUDIT_CONSTANT_LANES
    worst, where, own = 0.0, 0, 0.0
    for rows in sorted(number for number in wanted if 0 < number <= AUDIT_CONSTANT_ROWS):
        taken = 0.0
        for time in range(AUDIT_CONSTANT_TIMES):
            word = entropy(32)
            one, more = (
                watch(
                    subject,
                    Canaries(
                        lanes=np.concatenate([np.full(rows, NO_LANE), np.zeros(extra, dtype=np.int64)]),
                        sizes=np.concatenate([np.zeros(rows), np.full(extra, AUDIT_CANARY_SIZE)]),
                    ),
                    lanes=lanes,
                    constants=subject.bare(steps=1),
                    entropy=RepeatedRandomness(word),
                )
                for extra in (0, 1)
            )
            moved = np.abs(more - one)[0]
            taken = max(taken, float(moved[0]))
            if not float(moved[1:].max()) <= worst:
                worst, where = float(moved[1:].max()), rows
            if time and taken > 0.5:
                break
        own = max(own, taken)
    cells = 2.0 * subject.constants.sigma * 2.0**-ROUNDED_BITS  # what rounding does to a difference
    return Probe(
        name="constants",
        held=worst <= CLIP_TOLERANCE and own <= 1.0 + CLIP_TOLERANCE + cells,
        found=f"one row more moved the others by at most {worst:.2g} clip norms"
        + (f" (at {where} rows)" if where else "")
        + f" and its own lane by {own:.4f}",
    )
