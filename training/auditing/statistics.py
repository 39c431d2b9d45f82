"""The part of the gate for what is computed of the private rows before training: columns' centers, names, a mean.

Each release is a sum with noise, so three questions are enough, asked of the code that will make it, on made-up rows:

`statistics: sensitivity`   does no row, however far outside its ranges, move a sum by more than was declared?
`statistics: noise`         is the noise at least as large as declared? (20,000 values of each; three per cent are seen)
`statistics: freshness`     does noise repeat, whatever is seeded?

Sums are compared without noise, or under the same randomness, so the first is exact. Trusts: nothing. Never: sees
private rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from sealgate.ambient import Entropy
from sealgate.certificate.decimals import MICRO
from training.auditing.probes import Probe, asked
from training.centering import Centering
from training.columns import Columns
from training.configuration import Configuration
from training.limits import AUDIT_OTHERS, AUDIT_STATISTIC_VALUES
from training.preprocessing.counting import COUNT_UNITS, UNITS, Release
from training.preprocessing.statistics import Categories, Spending, Standardise, Vocabulary
from training.randomness import Keystream

Values = NDArray[np.float64]
_FAR = 1000.0  # how much too large the row in question is
_ROUNDING = 1e-9  # of a bound that is compared in floating point


def audit_statistics(spending: Spending, configuration: Configuration, *, entropy: Entropy) -> tuple[Probe, ...]:
    """The three probes over all releases that the run will make before its first step; none if it makes none."""
    if not spending.parts:
        return ()
    moved = [*(_most(step, configuration, entropy) for step in spending.steps)]
    makers = [_noise_of(step.release) for step in spending.steps]
    kinds = [(step.release.what, step.release.statistic.mechanism.startswith("laplace")) for step in spending.steps]
    if spending.centering is not None:
        moved.append(_most_of_mean(spending.centering, entropy))
        makers.append(_noise_of_mean(spending.centering))
        kinds.append(("the centre", False))
    names = [name for name, _ in kinds]

    def noise(alarm: float) -> Probe:
        found = [
            _chance(maker(Keystream(entropy)), laplace=kind) for maker, (_, kind) in zip(makers, kinds, strict=True)
        ]
        return Probe(
            name="statistics: noise",
            held=all(chance >= alarm / len(found) for chance, _ in found),
            found="; ".join(
                f"{name}: {size:.3f} of the declared size (chance {chance:.1e})"
                for name, (chance, size) in zip(names, found, strict=True)
            ),
        )

    alike = [_alike(maker, entropy) for maker in makers]
    return (
        Probe(
            name="statistics: sensitivity",
            held=all(share <= 1.0 + _ROUNDING for share in moved),
            found="; ".join(
                f"{name}: one row moves it by {share:.4f} of the declared bound at most"
                for name, share in zip(names, moved, strict=True)
            ),
        ),
        asked(noise),
        Probe(
            name="statistics: freshness",
            held=not any(alike),
            found=f"{sum(alike)} of {len(alike)} noises were the same twice with all generators seeded alike",
        ),
    )


# Sensitivity ---------------------------------------------------------------------------------------------------------


def _most(step: object, configuration: Configuration, entropy: Entropy) -> float:
    """The most that one row moves the sums, as a share of the declared norm."""
    stream = Keystream(entropy)
    if isinstance(step, Standardise):
        return _most_of_columns(step, configuration, stream)
    assert isinstance(step, Categories | Vocabulary)
    column = step.name if isinstance(step, Categories) else configuration.text.get("column", "text")
    others = [f"name{place} other{place}" for place in range(AUDIT_OTHERS)]
    many = " ".join(f"word{place}" for place in range(step.release.contributions + 1000))
    worst = 0.0
    for row in ("name0", "name0 " * 50, many, many * 2):
        before = step.counts(configuration, {column: np.array(others)})
        after = step.counts(configuration, {column: np.array([*others, row])})
        worst = max(worst, _share(step.release, _difference(after, before), units=1))
    return worst


def _most_of_columns(step: Standardise, configuration: Configuration, stream: Keystream) -> float:
    ranges = {name: tuple(map(float, configuration.columns[name][:2])) for name in step.names}
    others = {
        name: low + (high - low) * stream.uniform(AUDIT_OTHERS) for name, (low, high) in ranges.items()
    }  # a few rows that are as they should be
    before, worst = step.sums(configuration, others), 0.0
    places = [0.0, 0.5, 1.0, -_FAR, _FAR, *stream.uniform(AUDIT_OTHERS).tolist()]
    for place in places:
        one = {name: low + (high - low) * place for name, (low, high) in ranges.items()}
        rows: Columns = {name: np.append(values, one[name]) for name, values in others.items()}
        moved = (step.sums(configuration, rows) - before).astype(np.float64)
        worst = max(worst, _share(step.release, moved, units=UNITS))
    return worst


def _difference(after: Counter[str], before: Counter[str]) -> Values:
    return np.array([after[name] - before[name] for name in {*after, *before}], dtype=np.float64)


def _share(release: Release, moved: Values, *, units: int) -> float:
    """Both norms count: which of them the noise is for, the release knows."""
    return max(
        float(np.abs(moved).sum()) / (release.norm_l1 * units),
        float(np.linalg.norm(moved)) / (release.norm_l2 * units),
    )


def _most_of_mean(centering: Centering, entropy: Entropy) -> float:
    """A row's share in the sum, under the same randomness with and without it."""
    width, population, worst = 6, 100, 0.0
    others = torch.from_numpy(Keystream(entropy).uniform(AUDIT_OTHERS * width).reshape(-1, width).copy())
    drawn = {size: entropy(size) for size in (32, 12)}  # of a keystream: its key and its nonce

    def mean(rows: torch.Tensor) -> torch.Tensor:
        return centering.mean(rows, population=population, stream=Keystream(lambda size: drawn[size]))

    before = mean(others)
    for value in (centering.norm, _FAR * centering.norm, float("inf"), float("nan")):
        row = torch.full((1, width), value, dtype=torch.float64)
        moved = float(torch.linalg.vector_norm((mean(torch.cat((others, row))) - before) * population))
        worst = max(worst, moved / centering.norm if moved == moved else float("inf"))
    return worst


# Noise ---------------------------------------------------------------------------------------------------------------


def _noise_of(release: Release) -> Callable[[Keystream], Values]:
    """Its noise alone, in units of the declared scale (Laplace) or deviation (Gaussian): what is added to zeros."""
    units = COUNT_UNITS if release.contributions else UNITS
    laplace = release.statistic.mechanism.startswith("laplace")
    scale = release.multiplier_micro / MICRO * (release.norm_l1 if laplace else release.norm_l2) * units

    def make(stream: Keystream) -> Values:
        noisy = release.noisy(np.zeros(AUDIT_STATISTIC_VALUES, dtype=np.int64), units=units, stream=stream)
        return noisy.astype(np.float64) / scale

    return make


def _noise_of_mean(centering: Centering) -> Callable[[Keystream], Values]:
    scale = centering.multiplier_micro / MICRO * centering.norm

    def make(stream: Keystream) -> Values:
        nobody = torch.zeros((0, AUDIT_STATISTIC_VALUES), dtype=torch.float64)
        found: Values = centering.mean(nobody, population=1, stream=stream).numpy() / scale
        return found

    return make


def _chance(values: Values, *, laplace: bool) -> tuple[float, float]:
    """The chance of so little noise if it is as declared, and its size beside the declared one.

    The sizes of n Laplace values add up to half a chi-squared of 2 n, the squares of n Gaussian ones to one of n.
    """
    count = len(values)
    if laplace:
        total = float(np.abs(values).sum())
        return float(stats.chi2.cdf(2.0 * total, 2 * count)), total / count
    total = float(np.square(values).sum())
    return float(stats.chi2.cdf(total, count)), float(np.sqrt(total / count))


def _alike(maker: Callable[[Keystream], Values], entropy: Entropy) -> bool:
    """Whether the noise is the same twice with every seedable generator seeded alike."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    found = []
    try:
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            found.append(maker(Keystream(entropy)))
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
    return bool(np.array_equal(found[0], found[1]))
