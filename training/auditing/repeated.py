"""Mechanisms that release once (AdaSSP, objective perturbation): run again and again on neighbouring data.

There are no steps to watch, so the mechanism is run many times, each time with one example or without it, by a fresh
coin; a few made-up examples are always there. A part of the runs, the pilot, teaches the attacker where to look
(Fisher's linear discriminant on the released weights) and where to draw the line; on the others it must guess the coin.
Under the claim the number of right guesses is binomial with a chance of at most (1 + advantage) / 2, the advantage that
the claimed trade-off curve allows. This sees faults of the size of a forgotten factor, not of ten per cent: a release
is one look, where a run of DP-SGD gives an attacker thousands.

`freshness`   does nothing repeat, whatever is seeded?
`neighbours`  is the coin guessed better than the claim allows, for an example at the edge of the public ranges?
`outliers`    and for one that is a thousand times beyond them, as no checked row can be?

Trusts: nothing. Never: sees private rows.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.accounting.account import Account
from sealgate.certificate.accounting.curves import curve_of
from sealgate.certificate.architectures import Spec
from sealgate.certificate.audits import REPEATED_RUNS
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.tradeoff import TradeOff
from training.auditing.gate import Findings
from training.auditing.probes import BOUND_ALPHA, Probe, asked, binomial_tail, lower, upper
from training.auditing.specimens import made_up_inputs, made_up_targets
from training.limits import AUDIT_OTHERS, AUDIT_PILOT_RUNS, AUDIT_RUNS
from training.randomness import Keystream

_FAR = 1000.0  # how much too large the example in question is

Release = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor, Entropy], object]
"""Trains the module in place, once, with this randomness."""
Run = Callable[[bool], NDArray[np.float64]]
"""What one run releases, with or without the unit in question: [numbers]."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What the runs gave: [runs, numbers] and the coins [runs]."""

    released: NDArray[np.float64]
    included: NDArray[np.bool_]


def audit_release(
    release: Release,
    account: Account,
    spec: Spec,
    module: nn.Module,
    *,
    entropy: Entropy = random_bytes,
    on_probe: Callable[[Probe], None] = lambda _probe: None,
) -> Findings:
    """All three probes. `module` is one of the architecture `spec`; copies of it are trained."""

    def runs_of(size: float) -> Run:
        inputs, targets = _neighbours(spec, size, next(module.parameters()).dtype, Keystream(entropy))

        def weights(included: bool) -> NDArray[np.float64]:
            made, rows = copy.deepcopy(module), slice(None) if included else slice(-1)
            release(made, tuple(one[rows] for one in inputs), targets[rows], entropy)
            released = torch.cat([one.detach().ravel() for one in made.parameters() if one.requires_grad])
            return released.numpy().astype(np.float64)

        return weights

    return audit_runs(runs_of, account, entropy=entropy, on_probe=on_probe)


def audit_runs(
    runs_of: Callable[[float], Run],
    account: Account,
    *,
    entropy: Entropy = random_bytes,
    on_probe: Callable[[Probe], None] = lambda _probe: None,
) -> Findings:
    """All three probes of whatever can be run with or without one unit, where the unit is of a given size."""
    found: list[Probe] = []

    def note(probe: Probe) -> None:
        found.append(probe)
        on_probe(probe)

    best, curve = 0, curve_of(account)
    for name, size in (("neighbours", 1.0), ("outliers", _FAR)):
        run = runs_of(size)
        if not found:
            note(_is_fresh(run))
        probe, bound = _told_apart(name, run, curve=curve, delta=float(account.delta), entropy=entropy)
        note(probe)
        best = max(best, bound)
    return Findings(
        method=REPEATED_RUNS, probes=tuple(found), epsilon_lower_micro=best, canaries=2 * AUDIT_RUNS, steps=1
    )


def _told_apart(name: str, run: Run, *, curve: TradeOff, delta: float, entropy: Entropy) -> tuple[Probe, int]:
    """The probe of this name, and the lower bound on epsilon of its first look: of one that was fixed beforehand."""
    bounds: list[int] = []

    def look(alarm: float) -> Probe:
        included = Keystream(entropy).uniform(AUDIT_RUNS) < 0.5
        trials = Trials(released=np.stack([run(bool(one)) for one in included]), included=included)
        scores, line = discriminate(trials, AUDIT_PILOT_RUNS)
        later = included[AUDIT_PILOT_RUNS:]
        bounds.append(_lower_micro(scores, later, line=line, delta=delta))
        return guesses_of_neighbours(name, scores, later, line=line, curve=curve, alarm=alarm)

    return asked(look), bounds[0]


def _neighbours(
    spec: Spec, size: float, dtype: torch.dtype, stream: Keystream
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """A few made-up examples, and last the one in question: all its numbers `size`, of the highest target.

    Where there are numbers, those of the others are zero: then nothing but the one in question pulls at the weights,
    and how well it can be told does not depend on the others that the dice gave.
    """
    inputs = made_up_inputs(spec, AUDIT_OTHERS + 1, stream, dtype=dtype)
    targets = made_up_targets(spec, AUDIT_OTHERS + 1, stream, dtype=dtype)
    if inputs[0].is_floating_point():
        inputs[0][:-1] = 0.0
        inputs[0][-1] = size
    targets[-1] = max(1, spec.classes - 1)
    return inputs, targets


def _is_fresh(weights: Run) -> Probe:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    runs = []
    try:
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            runs.append(weights(True))
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
    alike = int((runs[0] == runs[1]).sum())
    return Probe(
        name="freshness",
        held=alike == 0,
        found=f"{alike} of {len(runs[0])} weights were the same in two runs with all generators seeded alike",
    )


def discriminate(trials: Trials, pilot: int) -> tuple[NDArray[np.float64], float]:
    """Fisher's discriminant of the first `pilot` runs, on the others: their scores, and the line between the means.

    The released numbers are replaced by their ranks among the pilot's first: some mechanisms have heavy tails.
    """
    ranked = np.empty_like(trials.released)
    for column in range(ranked.shape[1]):
        known = np.sort(trials.released[:pilot, column])
        ranked[:, column] = np.searchsorted(known, trials.released[:, column]) / pilot - 0.5
    first, coins = ranked[:pilot], trials.included[:pilot]
    inside, outside = first[coins], first[~coins]
    spread = (np.cov(inside.T) + np.cov(outside.T)).reshape(ranked.shape[1], -1)
    apart = inside.mean(axis=0) - outside.mean(axis=0)
    direction = np.linalg.solve(spread + 1e-6 * np.eye(len(spread)), apart)
    line = float((inside.mean(axis=0) + outside.mean(axis=0)) @ direction / 2)
    return ranked[pilot:] @ direction, line


def guesses_of_neighbours(
    name: str,
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    *,
    line: float,
    curve: TradeOff,
    alarm: float,
) -> Probe:
    """The probes `neighbours` and `outliers`: an exact one-sided binomial test of the guesses."""
    right, allowed = int(((scores > line) == included).sum()), (1.0 + curve.advantage()) / 2
    chance = binomial_tail(right, len(included), rate=min(1.0, allowed))
    return Probe(
        name=name,
        held=chance >= alarm,
        found=f"{right} of {len(included)} runs were told from their neighbours, the claim allows {allowed:.4f} of "
        f"them (chance {chance:.1e} under the claim)",
    )


def _lower_micro(scores: NDArray[np.float64], included: NDArray[np.bool_], *, line: float, delta: float) -> int:
    """The greatest epsilon that these guesses exclude, with confidence 1 - BOUND_ALPHA; 0 if they exclude none."""
    best, alpha = 0.0, BOUND_ALPHA / 4
    for said, truly in ((scores > line, included), (scores <= line, ~included)):
        true_rate = lower(int((said & truly).sum()), int(truly.sum()), alpha=alpha)
        false_rate = upper(int((said & ~truly).sum()), int((~truly).sum()), alpha=alpha)
        if true_rate > delta:
            best = max(best, math.log((true_rate - delta) / false_rate))
    return int(best * MICRO)
