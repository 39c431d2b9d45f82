"""The tables: requests a second with ranges, our rate divided by each peer's within each round, processor time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.serving.rounds import Cell, Measured

OURS = "sealgate"

# What we set out to reach: our rate divided by the peer's, at least (docs/performance.md tells why).
GOALS: dict[str, dict[tuple[str, int], float]] = {
    "litestar": {("cnn", 1): 3.0, ("cnn", 32): 1.8, ("mlp", 1): 1.0},
    "litestar-2": {("cnn", 1): 1.4, ("cnn", 32): 1.0, ("mlp", 1): 0.7},
    "pytriton": {("cnn", 1): 1.5, ("cnn", 32): 2.0, ("mlp", 1): 1.0},
    "mlserver": {("cnn", 1): 2.5, ("cnn", 32): 1.8, ("mlp", 1): 2.5},
    "fastapi": {("cnn", 1): 4.5, ("cnn", 32): 2.0, ("mlp", 1): 2.0},
    "litserve": {("cnn", 1): 4.5, ("cnn", 32): 2.0, ("mlp", 1): 2.0},
    "kserve": {("cnn", 1): 4.5, ("cnn", 32): 2.0, ("mlp", 1): 2.0},
    "bentoml": {("cnn", 1): 5.5, ("cnn", 32): 2.8, ("mlp", 1): 5.0},
    "ray": {("cnn", 1): 12.0, ("cnn", 32): 4.0, ("mlp", 1): 10.0},
}


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it reads well as text too."""
    table = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(headings))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    """`median (least - most)`"""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} - {high:{form}})"


def _of(measured: Sequence[Measured], system: str, cell: Cell) -> dict[int, Measured]:
    return {one.round: one for one in measured if one.system == system and one.cell == cell and one.rate > 0}


def ratios(measured: Sequence[Measured], peer: str, cell: Cell) -> list[float]:
    """Our rate divided by the peer's, for every round that has both."""
    ours, theirs = _of(measured, OURS, cell), _of(measured, peer, cell)
    return [ours[number].rate / theirs[number].rate for number in sorted(set(ours) & set(theirs))]


def rates_table(measured: Sequence[Measured], systems: Sequence[str], cells: Sequence[Cell]) -> str:
    """Requests a second, one row per server, one column per cell."""
    rows = []
    for system in systems:
        row = [system]
        for cell in cells:
            found = [one.rate for one in _of(measured, system, cell).values()]
            row.append(_spread(found, ".0f") if found else "-")
        rows.append(row)
    return markdown(["requests/s: median (least - most)", *map(str, cells)], rows)


def ratio_table(measured: Sequence[Measured], systems: Sequence[str], cells: Sequence[Cell]) -> str:
    """Our rate divided by each peer's; behind it the goal, where there is one."""
    rows = []
    for peer in systems:
        if peer.startswith(OURS):
            continue
        row = [peer]
        for cell in cells:
            found = ratios(measured, peer, cell)
            goal = GOALS.get(peer, {}).get((cell.model, cell.items))
            text = _spread(found, ".2f") if found else "-"
            row.append(f"{text} [{goal:g}]" if found and goal is not None else text)
        rows.append(row)
    return markdown(["ours / peer's: median (least - most) [goal]", *map(str, cells)], rows)


def cost_table(measured: Sequence[Measured], systems: Sequence[str], cells: Sequence[Cell]) -> str:
    """Latency and processor time per request, one row per cell and server."""
    rows = []
    for cell in cells:
        for system in systems:
            found = list(_of(measured, system, cell).values())
            if not found:
                continue
            parts = {part for one in found for part in one.cpu_us}
            spent = {part: statistics.median(one.cpu_us.get(part, 0.0) for one in found) for part in parts}
            load = spent.pop("load", 0.0)
            order = [part for part in ("gateway", "host", "worker", "server") if part in spent]
            split = " + ".join(f"{part} {spent[part]:.0f}" for part in order) if len(order) > 1 else ""
            rows.append(
                [
                    str(cell),
                    system,
                    f"{statistics.median(one.p50_ms for one in found):.1f}",
                    f"{statistics.median(one.p99_ms for one in found):.1f}",
                    f"{sum(spent.values()):.0f}",
                    split,
                    f"{load:.0f}",
                ]
            )
    return markdown(["cell", "server", "p50 ms", "p99 ms", "CPU us/request", "of it", "load generator us"], rows)
