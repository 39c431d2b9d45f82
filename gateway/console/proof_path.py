"""An inclusion proof as a picture: from the record at the bottom, past its neighbours' hashes, up to the signed root.

`climb` recomputes the path (RFC 9162 section 2.1.3.2), so what is drawn is what was checked; `draw` says where each box
and line of it goes. Every box names the records that it stands for. Trusts nothing but the numbers it is given; it
proves nothing to whoever looks at it: the browser's own check and the offline verifier do. Never: makes markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sealgate.errors import LogError
from sealgate.transparency.merkle import node_hash, split

WIDTH = 360
_BOX_WIDTH, _BOX_HEIGHT, _ROW = 104, 40, 72
_MIDDLE, _LEFT, _RIGHT = (WIDTH - _BOX_WIDTH) // 2, 0, WIDTH - _BOX_WIDTH
_MARGIN = 4


@dataclass(frozen=True, kw_only=True)
class Step:
    """One hash of the path joined with one of the proof. Ranges are records, both ends included."""

    sibling: bytes
    sibling_left: bool
    sibling_range: tuple[int, int]
    parent: bytes
    parent_range: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A hash in the picture. `role` is leaf, node, sibling or root; `step` counts from the leaf, 0."""

    role: str
    step: int
    hash: str
    first: int
    last: int
    x: int
    y: int
    width: int = _BOX_WIDTH
    height: int = _BOX_HEIGHT

    @property
    def middle(self) -> int:
        return self.x + self.width // 2

    @property
    def records(self) -> str:
        """Which records it stands for."""
        return f"{self.first}" if self.first == self.last else f"{self.first}\u2013{self.last}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """From a box below to the one above it."""

    x1: int
    y1: int
    x2: int
    y2: int
    on_path: bool


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Boxes and lines, root on top."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def climb(hashed_leaf: bytes, *, index: int, size: int, proof: Sequence[bytes]) -> tuple[Step, ...]:
    """The steps from leaf to root. Raises LogError for a proof that is not as long as this tree's is."""
    halves: list[tuple[tuple[int, int], bool, tuple[int, int]]] = []  # whole, whether the sibling is left, sibling
    low, high = 0, size
    while high - low > 1:
        middle = split(low, high)
        whole = (low, high - 1)
        if index < middle:
            halves.append((whole, False, (middle, high - 1)))
            high = middle
        else:
            halves.append((whole, True, (low, middle - 1)))
            low = middle
    if len(halves) != len(proof):
        raise LogError("the proof is not as long as this tree's is", code="proof-wrong")
    steps: list[Step] = []
    running = hashed_leaf
    for sibling, (whole, left, beside) in zip(proof, reversed(halves), strict=True):
        running = node_hash(sibling, running) if left else node_hash(running, sibling)
        steps.append(Step(sibling=sibling, sibling_left=left, sibling_range=beside, parent=running, parent_range=whole))
    return tuple(steps)


def draw(hashed_leaf: bytes, *, index: int, steps: Sequence[Step]) -> Drawing:
    """Where everything goes."""
    height = len(steps) * _ROW + _BOX_HEIGHT + 2 * _MARGIN
    bottom = height - _BOX_HEIGHT - _MARGIN
    role = "leaf" if steps else "root"
    below = Box(role=role, step=0, hash=hashed_leaf.hex(), first=index, last=index, x=_MIDDLE, y=bottom)
    boxes, lines = [below], []
    for number, step in enumerate(steps, 1):
        beside = Box(
            role="sibling",
            step=number,
            hash=step.sibling.hex(),
            first=step.sibling_range[0],
            last=step.sibling_range[1],
            x=_LEFT if step.sibling_left else _RIGHT,
            y=below.y,
        )
        above = Box(
            role="root" if number == len(steps) else "node",
            step=number,
            hash=step.parent.hex(),
            first=step.parent_range[0],
            last=step.parent_range[1],
            x=_MIDDLE,
            y=bottom - number * _ROW,
        )
        boxes += [beside, above]
        for box in (below, beside):
            lines.append(
                Line(x1=box.middle, y1=box.y, x2=above.middle, y2=above.y + above.height, on_path=box is below)
            )
        below = above
    return Drawing(width=WIDTH, height=height, boxes=tuple(boxes), lines=tuple(lines))
