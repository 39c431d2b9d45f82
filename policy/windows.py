"""Calendar windows in UTC: when the one that a moment lies in began, and when the next begins. Pure."""

from __future__ import annotations

import datetime

from policy.budgets import Window

_LENGTH_US = {Window.MINUTE: 60_000_000, Window.HOUR: 3_600_000_000, Window.DAY: 86_400_000_000}


def window_of(window: Window, now_us: int) -> tuple[int, int]:
    """Start and end, in microseconds, of the window that `now_us` lies in. FOREVER is (0, 0): it never ends."""
    if window is Window.FOREVER:
        return 0, 0
    if window in _LENGTH_US:
        length = _LENGTH_US[window]
        starts_us = now_us - now_us % length
        return starts_us, starts_us + length
    now = datetime.datetime.fromtimestamp(now_us // 1_000_000, datetime.UTC)
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    if window is Window.YEAR:
        first = first.replace(month=1)
        following = first.replace(year=first.year + 1)
    else:
        following = (first + datetime.timedelta(days=32)).replace(day=1)
    return int(first.timestamp()) * 1_000_000, int(following.timestamp()) * 1_000_000
