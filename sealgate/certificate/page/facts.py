"""What the page shows beside the certificate's own words, computed once from a verified bundle.

Trusts: a verified bundle. Never: reads another file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sealgate.certificate.accounting.account import Account, WithStatistics
from sealgate.certificate.accounting.curves import curve_of
from sealgate.certificate.accounting.described import account_of
from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.recomputation import Line, recomputation_lines
from sealgate.certificate.recompute import COARSE, GaussianSteps, epsilon_micro
from sealgate.certificate.schema import Measured
from sealgate.certificate.tradeoff import TradeOff

_POINTS = 12  # of the line over steps: each costs about a tenth of a second
_DRAWN = 100  # points of the curve of attacks


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that costs time to compute."""

    curve: TradeOff
    over_steps: tuple[tuple[int, float], ...]  # (steps, epsilon after them); empty where the mechanism takes none
    at_start: float  # epsilon spent before the first step, on statistics
    lines: tuple[Line, ...]


def facts_of(bundle: VerifiedBundle) -> Facts:
    """Compute them; a few seconds for long runs."""
    account = account_of(bundle.certificate)
    return Facts(
        curve=curve_of(account),
        over_steps=tuple(_over_steps(account)),
        at_start=account.statistics_micro / MICRO if isinstance(account, WithStatistics) else 0.0,
        lines=tuple(recomputation_lines(bundle.certificate)),
    )


def _over_steps(account: Account) -> Iterator[tuple[int, float]]:
    """Epsilon after so many steps, closer together at the beginning, where it grows fastest."""
    beside = account.statistics_micro if isinstance(account, WithStatistics) else 0
    steps = account.account if isinstance(account, WithStatistics) else account
    if not isinstance(steps, GaussianSteps):
        return
    places = {max(1, round(steps.steps * (index / _POINTS) ** 2)) for index in range(1, _POINTS + 1)}
    for place in sorted(places):
        found = epsilon_micro(replace(steps, steps=place), discretisation=COARSE)
        yield place, (found + beside) / MICRO


@dataclass(frozen=True, kw_only=True)
class Point:
    """The runs at one epsilon: their mean, the interval of one run of that mean, and each run's own value."""

    epsilon: float
    mean: float
    low: float
    high: float
    runs: tuple[float, ...]
    rows: int
    ours: float | None  # the certified model's own value, if it is among them


def points_of(measured: tuple[Measured, ...]) -> list[Point]:
    """One point per epsilon, in order; the runs of a sweep state epsilons that differ by less than they are shown."""
    groups: dict[str, list[tuple[int, Measured]]] = {}
    for index, one in enumerate(measured):
        groups.setdefault(f"{one.epsilon_micro / MICRO:.2f}", []).append((index, one))
    points = []
    for group in groups.values():
        runs = [one for _, one in group]
        mean = sum(one.value_micro for one in runs) / len(runs) / MICRO
        # All runs are measured on the same rows, so these do not average out: the interval stays that of one run.
        below = sum(one.value_micro - one.low_micro for one in runs) / len(runs) / MICRO
        above = sum(one.high_micro - one.value_micro for one in runs) / len(runs) / MICRO
        points.append(
            Point(
                epsilon=sum(one.epsilon_micro for one in runs) / len(runs) / MICRO,
                mean=mean,
                low=mean - below,
                high=mean + above,
                runs=tuple(one.value_micro / MICRO for one in runs),
                rows=runs[0].rows,
                ours=next((one.value_micro / MICRO for index, one in group if index == 0), None),
            )
        )
    return sorted(points, key=lambda point: point.epsilon)


def curve_points(curve: TradeOff, *, least: float) -> list[tuple[float, float]]:
    """(FPR, largest TPR) from `least` to one, evenly spaced by ratio."""
    rates = [least ** (1 - index / _DRAWN) for index in range(_DRAWN + 1)]
    return [(rate, curve.tpr_at(min(1.0, rate))) for rate in rates]
