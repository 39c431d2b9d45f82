"""The names of a log's shards: a new tree each half-year (UTC), under a name that says which, signed by one key.

    example.com/log            the log, and its first shard
    example.com/log/2027h1     the shard that began in January 2027

Whoever trusts the log's key under its own name trusts it for every shard. Half-years are counted, two to a year, so
that they compare. Pure. Trusts nothing. Never: says that a name is trusted: the key under it decides.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SUFFIX = re.compile(r"/([0-9]{4})h([12])\Z")


def half_year_of(ts_us: int) -> int:
    """Which half-year a moment (microseconds since 1970) is in."""
    moment = _EPOCH + timedelta(microseconds=ts_us)
    return moment.year * 2 + (moment.month > 6)


def shard_name(base: str, half_year: int) -> str:
    """The origin of the shard of a log that begins in this half-year."""
    return f"{base}/{half_year // 2:04d}h{half_year % 2 + 1}"


def half_year_in(origin: str) -> int | None:
    """The half-year that an origin names; None for one that names none."""
    match = _SUFFIX.search(origin)
    return None if match is None else int(match[1]) * 2 + int(match[2]) - 1


def belongs_to(origin: str, base: str) -> bool:
    """Whether an origin is a log's own name or that of one of its shards."""
    return origin == base or (origin.startswith(f"{base}/") and _SUFFIX.fullmatch(origin, len(base)) is not None)


def is_later(origin: str, than: str) -> bool:
    """Whether one shard of a log can have come after another one of it: a first shard names no half-year."""
    one, other = half_year_in(origin), half_year_in(than)
    return one is not None and (other is None or one > other)


def log_of(origin: str) -> str:
    """The name of the log that an origin which names a half-year is a shard of; other names as they are."""
    return _SUFFIX.sub("", origin)
