"""The deployment's own figures, read from its metrics page: how long each step took, between two moments.

Trusts: the page for what it says of itself. Never: needs more of the Prometheus text format than one histogram.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import httpx

_LINE = re.compile(r'sealgate_step_seconds_(sum|count)\{step="([a-z]+)"\} ([0-9.eE+-]+)')

Totals = Mapping[str, tuple[float, float]]
"""By step: seconds in all, and how often."""


def read_steps(url: str) -> dict[str, tuple[float, float]]:
    """The totals now; empty where there is no page, or none that tells of steps."""
    if not url:
        return {}
    try:
        page = httpx.get(url, trust_env=False, timeout=10)
    except httpx.HTTPError:
        return {}
    totals: dict[str, list[float]] = {}
    for kind, step, value in _LINE.findall(page.text if page.status_code == 200 else ""):
        totals.setdefault(step, [0.0, 0.0])[kind == "count"] = float(value)
    return {step: (seconds, count) for step, (seconds, count) in totals.items()}


def mean_us(before: Totals, after: Totals) -> dict[str, float]:
    """Microseconds of one, by step, of what came between."""
    found = {}
    for step, (seconds, count) in after.items():
        earlier_s, earlier = before.get(step, (0.0, 0.0))
        if count > earlier:
            found[step] = (seconds - earlier_s) / (count - earlier) * 1e6
    return found
