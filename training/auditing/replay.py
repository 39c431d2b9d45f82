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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sealgate.ambient import Entropy
from training.auditing.lanes import NO_LANE, Canaries, watch
from training.auditing.probes import FALSE_ALARM, Probe, too_unlikely
from training.auditing.subject import Subject
from training.limits import (
    AUDIT_CANARY_SIZE,
    AUDIT_CONSTANT_LANES,
    AUDIT_CONSTANT_ROWS,
    AUDIT_MIN_DRAWS,
    AUDIT_REPLAY_ROWS,
    AUDIT_REPLAY_STEPS,
)

CLIP_TOLERANCE = 1e-4
"""Of a clip norm: rounding of float32 arithmetic in sums that hold noise as well."""

CLIP_SIZES = (0.1, 0.5, 1.0, 1.5, 3.0, 1e3, AUDIT_CANARY_SIZE, 1e15, 1e30, 1e150)


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


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What came through of each canary at each step, in clip norms: [steps, canaries]. `repeats`: noise cancelled."""

    through: NDArray[np.float64]
    repeats: bool


def replay(subject: Subject, sizes: Sequence[float] | NDArray[np.float64], *, steps: int, entropy: Entropy) -> Replayed:
    """Run the trainer on one canary in each lane, on the same without gradients, and on those again."""
    word, count = entropy(32), len(sizes)
    numbers = np.arange(count, dtype=np.int64)

    def run(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
        return watch(
            subject,
            Canaries(lanes=numbers, sizes=magnitudes),
            lanes=count,
            constants=subject.bare(steps=steps),
            entropy=RepeatedRandomness(word),
        )

    nothing = run(np.zeros(count))
    repeats = bool(np.array_equal(nothing, run(np.zeros(count))))
    return Replayed(through=run(np.asarray(sizes, dtype=np.float64)) - nothing, repeats=repeats)


_NO_REPEAT = "the trainer does not repeat itself when its randomness is repeated: it has another source of randomness"


def contributions_are_clipped(subject: Subject, entropy: Entropy) -> Probe:
    """The probe `clipping`: no canary of any size comes through with more than the clip norm."""
    copies = -(-AUDIT_MIN_DRAWS // len(CLIP_SIZES))
    sizes = np.repeat(np.array(CLIP_SIZES), copies)
    rate = float(subject.constants.rate)
    steps = max(1, math.ceil(8 / (rate * copies)))  # each size is drawn at least once, but for one chance in 3000
    found = replay(subject, sizes, steps=steps, entropy=entropy)
    if not found.repeats:
        return Probe(name="clipping", held=False, found=_NO_REPEAT)
    through = np.abs(found.through)
    most = float(through.max()) if bool(np.isfinite(through).all()) else math.inf
    where = CLIP_SIZES[int(through.max(axis=0).argmax()) // copies] if math.isfinite(most) else math.inf
    return Probe(
        name="clipping",
        held=most <= 1.0 + CLIP_TOLERANCE,
        found=f"a gradient of {where:g} clip norms moved the sum by {most:.4f} of them, the most of all sizes",
    )


def sampling_is_poisson(subject: Subject, entropy: Entropy) -> Probe:
    """The probe `sampling`: participation of each canary in each step is independent with the declared rate."""
    rate = float(subject.constants.rate)
    rows = int(min(AUDIT_REPLAY_ROWS, max(256, AUDIT_MIN_DRAWS / rate)))
    steps = max(2, min(subject.constants.steps, AUDIT_REPLAY_STEPS))
    found = replay(subject, np.full(rows, AUDIT_CANARY_SIZE), steps=steps, entropy=entropy)
    if not found.repeats:
        return Probe(name="sampling", held=False, found=_NO_REPEAT)
    drawn = np.abs(found.through) > 0.5
    share = float(drawn.mean())
    if subject.constants.rate == 1:
        return Probe(
            name="sampling",
            held=bool(drawn.all()),
            found=f"{share:.4f} of {drawn.size} chances were taken, all are declared",
        )
    chance = float(stats.binomtest(int(drawn.sum()), drawn.size, rate).pvalue)
    pairs = drawn[: steps // 2 * 2 : 2] & drawn[1 : steps // 2 * 2 : 2]
    pair_chance = float(stats.binomtest(int(pairs.sum()), pairs.size, rate**2).pvalue)
    by_row, by_step = dispersion(drawn.sum(axis=0), steps, rate), dispersion(drawn.sum(axis=1), rows, rate)
    held = (
        min(chance, pair_chance) >= FALSE_ALARM / 4
        and not too_unlikely(by_row, tests=4)
        and not too_unlikely(by_step, tests=4)
    )
    return Probe(
        name="sampling",
        held=held,
        found=f"{share:.4f} of {drawn.size} chances were taken, declared {rate:.4f}; spread over rows {by_row:+.1f}, "
        f"over steps {by_step:+.1f} deviations from a Poisson sampler's; twice in a row {pair_chance:.1e}",
    )


def dispersion(counts: NDArray[np.int64], trials: int, rate: float) -> float:
    """How far the spread of these counts is from that of Binomial(trials, rate), in standard deviations.

    Fixed-size batches give none; the score's own variance includes the binomial's fourth moment.
    """
    variance = trials * rate * (1 - rate)
    squares = (counts - trials * rate) ** 2 / variance
    spread = 2.0 + (1.0 - 6.0 * rate * (1 - rate)) / variance
    return float((squares - 1.0).sum() / math.sqrt(spread * len(counts)))


def constants_are_public(subject: Subject, entropy: Entropy) -> Probe:
    """The probe `constants`: one more row changes no lane but its own.

    The numbers of rows are chosen where a batch size that is cut or rounded to a whole number would change, and the
    step is the first, where both runs draw the same randomness for the rows that they share.
    """
    rate = float(subject.constants.rate)
    wanted = {math.ceil(2 / rate) - 1, math.ceil(2.5 / rate) - 1, math.ceil(5 / rate) - 1, 31}
    lanes = AUDIT_CONSTANT_LANES
    worst, where, own = 0.0, 0, 0.0
    for rows in sorted(number for number in wanted if 0 < number <= AUDIT_CONSTANT_ROWS):
        for _ in range(2):
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
            own = max(own, float(moved[0]))
            if not float(moved[1:].max()) <= worst:
                worst, where = float(moved[1:].max()), rows
    return Probe(
        name="constants",
        held=worst <= CLIP_TOLERANCE and own <= 1.0 + CLIP_TOLERANCE,
        found=f"one row more moved the others by at most {worst:.2g} clip norms"
        + (f" (at {where} rows)" if where else "")
        + f" and its own lane by {own:.4f}",
    )
