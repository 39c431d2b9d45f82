"""Records over time as bars, with the same figures for a table: what a chart shows, everybody can read.

Bars are days, or as many days as make no more than BARS of them; each is a stack, in the same order everywhere. Heights
are whole numbers of a picture HEIGHT high, rounded so that anything counted shows. Pure. Trusts nothing; never makes
markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit.activity import Activity
from gateway.console.presentation import VERDICTS, moment

DAY_US = 24 * 3600 * 1_000_000
BARS = 62  # two months of days
HEIGHT, SLOT, GAP = 120, 12, 2

Series = tuple[str, str, tuple[str, ...]]
"""How it looks, what it is called, which kinds it counts."""

REQUESTS: tuple[Series, ...] = (
    ("allowed", "Answered", ("inference.completed",)),
    ("denied", "Denied", ("inference.denied",)),
    ("failed", "Failed or cut off", ("inference.failed", "inference.aborted")),
    ("stranger", "Not authenticated", ("auth.failed",)),
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One colour of a bar, and where it stands."""

    look: str
    x: int
    y: int
    height: int
    width: int = SLOT - GAP


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Some days: `since` and `until` (not included) as links say them, `days` for people, a count for each series."""

    days: str
    since: str
    until: str
    counts: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The whole picture. `top` is what a bar of full height stands for."""

    series: tuple[Series, ...]
    bars: tuple[Bar, ...]
    top: int
    days_a_bar: int
    first: str
    last: str
    days: int
    cut: bool  # more days were asked for
    height: int = HEIGHT

    @property
    def width(self) -> int:
        return len(self.bars) * SLOT

    @property
    def totals(self) -> tuple[int, ...]:
        """Of each series, over all bars."""
        return tuple(sum(column) for column in zip(*(bar.counts for bar in self.bars), strict=True))

    @property
    def spoken(self) -> str:
        """The picture in a sentence."""
        said = ", ".join(
            f"{total:,} {name.lower()}" for (_, name, _), total in zip(self.series, self.totals, strict=True)
        )
        most = max(self.bars, key=lambda bar: sum(bar.counts))
        return f"{said}. Most on {most.days}: {sum(most.counts):,}."


def series_of(kind: str | None) -> tuple[Series, ...]:
    """What is drawn: the ends of requests, or the one kind that was asked for."""
    if not kind:
        return REQUESTS
    found = next((one for one in REQUESTS if kind in one[2]), None)
    look, word = VERDICTS.get(kind, ("other", kind))
    return ((found[0] if found else look, word, (kind,)),)


def kinds_of(series: Sequence[Series]) -> list[str]:
    """Every kind that these count."""
    return [kind for _, _, kinds in series for kind in kinds]


def chart_of(activity: Activity, series: tuple[Series, ...]) -> Chart:
    """Where everything goes."""
    span = activity.last_day - activity.first_day + 1
    wide = -(-span // BARS)
    place = {kind: number for number, (_, _, kinds) in enumerate(series) for kind in kinds}
    sums = [[0] * len(series) for _ in range(-(-span // wide))]
    for day, kind, count in activity.counts:
        sums[(day - activity.first_day) // wide][place[kind]] += count
    top = _round_up(max(sum(counts) for counts in sums))
    bars = []
    for number, counts in enumerate(sums):
        since = activity.first_day + number * wide
        until = min(since + wide, activity.last_day + 1)
        bars.append(
            Bar(
                days=_day(since) if until == since + 1 else f"{_day(since)} to {_day(until - 1)}",
                since=f"{_day(since)}T00:00",
                until=f"{_day(until)}T00:00",
                counts=tuple(counts),
                pieces=_stack(number, counts, series, top=top),
            )
        )
    return Chart(
        series=series,
        bars=tuple(bars),
        top=top,
        days_a_bar=wide,
        first=_day(activity.first_day),
        last=_day(activity.last_day),
        days=span,
        cut=activity.cut,
    )


def _stack(number: int, counts: Sequence[int], series: Sequence[Series], *, top: int) -> tuple[Piece, ...]:
    """From the ground up. What is rounded up is taken from above, so that no bar leaves the picture."""
    pieces, ground = [], HEIGHT
    for (look, _, _), count in zip(series, counts, strict=True):
        height = min(ground, -(-count * HEIGHT // top))
        if height:
            ground -= height
            pieces.append(Piece(look=look, x=number * SLOT + GAP // 2, y=ground, height=height))
    return tuple(pieces)


def _round_up(most: int) -> int:
    """The next 1, 2 or 5 with zeros behind it."""
    power = 1
    while power * 10 < most:
        power *= 10
    return next(step * power for step in (1, 2, 5, 10) if step * power >= most)


def _day(day: int) -> str:
    return moment(day * DAY_US)[:10]
