"""Pictures as SVG: plain shapes with classes, coloured by the page's style sheet.

Every picture has a title and a description in words, and stands beside a table of the same figures. Lengths are in
units of the picture's own box. Trusts: its figures. Never: carries a script or a style of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sealgate.certificate.page.markup import Markup, element, joined

WIDTH, HEIGHT = 640.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 24.0, 30.0, 50.0
Label = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From `low` to `high`, with ticks and what they mean; `logarithmic` if the distances are ratios."""

    name: str
    low: float
    high: float
    ticks: Sequence[float]
    label: Label
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where on the axis the value lies, 0 to 1; values outside lie at its ends."""
        if self.logarithmic:
            low, high, at = math.log(self.low), math.log(self.high), math.log(max(value, self.low))
        else:
            low, high, at = self.low, self.high, value
        return min(1.0, max(0.0, (at - low) / (high - low)))


@dataclass(frozen=True)
class Frame:
    """Two axes and the way from figures to places in the picture."""

    across: Axis
    up: Axis
    height: float = HEIGHT

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * self.across.share(value)

    def y(self, value: float) -> float:
        return self.floor - (self.floor - _TOP) * self.up.share(value)

    @property
    def floor(self) -> float:
        """Where the axis across lies."""
        return self.height - _BOTTOM

    def line(self, points: Sequence[tuple[float, float]], *, kind: str) -> Markup:
        """A line through the points."""
        path = " ".join(f"{self.x(across):.1f},{self.y(up):.1f}" for across, up in points)
        return element("polyline", class_=kind, points=path)

    def area(self, points: Sequence[tuple[float, float]]) -> Markup:
        """What lies below the points."""
        floor = self.floor
        path = " L".join(f"{self.x(across):.1f} {self.y(up):.1f}" for across, up in points)
        last, first = self.x(points[-1][0]), self.x(points[0][0])
        return element("path", class_="area", d=f"M{path} L{last:.1f} {floor:.1f} L{first:.1f} {floor:.1f} Z")

    def dot(self, across: float, up: float, *, kind: str = "dot", radius: float = 4.5) -> Markup:
        """A point."""
        return element("circle", class_=kind, cx=self.x(across), cy=self.y(up), r=radius)

    def whisker(self, across: float, low: float, high: float) -> Markup:
        """An interval, upright."""
        x, bottom, top = self.x(across), self.y(low), self.y(high)
        ends = (element("line", class_="whisker", x1=x - 6, x2=x + 6, y1=place, y2=place) for place in (bottom, top))
        return joined([element("line", class_="whisker", x1=x, x2=x, y1=bottom, y2=top), *ends])

    def note(self, across: float, up: float, words: str, *, anchor: str = "start", lift: float = -9.0) -> Markup:
        """Words beside a point."""
        shift = {"start": 9.0, "end": -9.0, "middle": 0.0}[anchor]
        return element("text", words, class_="note", x=self.x(across) + shift, y=self.y(up) + lift, text_anchor=anchor)


def picture(frame: Frame, *shapes: Markup, title: str, description: str, name: str) -> Markup:
    """The whole picture with its axes; `name` makes its ids unique on the page."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *_axes(frame),
        *shapes,
        viewBox=f"0 0 {WIDTH:.0f} {frame.height:.0f}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _axes(frame: Frame) -> list[Markup]:
    floor, right = frame.floor, WIDTH - _RIGHT
    parts = []
    for tick in frame.up.ticks:
        y = frame.y(tick)
        parts.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=y, y2=y))
        parts.append(element("text", frame.up.label(tick), class_="tick", x=_LEFT - 8, y=y + 4, text_anchor="end"))
    for tick in frame.across.ticks:
        x = frame.x(tick)
        parts.append(element("line", class_="mark", x1=x, x2=x, y1=floor, y2=floor + 5))
        parts.append(element("text", frame.across.label(tick), class_="tick", x=x, y=floor + 19, text_anchor="middle"))
    parts.append(element("line", class_="axis", x1=_LEFT, x2=right, y1=floor, y2=floor))
    middle = (_LEFT + right) / 2
    parts.append(
        element("text", frame.across.name, class_="axis-name", x=middle, y=frame.height - 8, text_anchor="middle")
    )
    upright = f"translate(14 {(_TOP + floor) / 2:.1f}) rotate(-90)"
    parts.append(element("text", frame.up.name, class_="axis-name", transform=upright, text_anchor="middle"))
    return parts


def steps_to(high: float, *, most: int = 6) -> list[float]:
    """Round ticks from zero to at least `high`: 1, 2, 2.5 or 5 times a power of ten apart."""
    if high <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(high))
    for factor in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0):
        step = factor * power
        count = math.ceil(high / step - 1e-9)
        if count <= most:
            return [step * index for index in range(count + 1)]
    return [0.0, high]
