"""Moments as people write and read them; microseconds since 1970 everywhere else. Text without a zone is UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from sealgate.client.errors import UsageError

_AGE = re.compile(r"([0-9]{1,6})([smhdw])\Z")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_moment(text: str, *, now_us: int) -> int:
    """`2030-01-31`, `2030-01-31T12:00:00+01:00`, or an age as `90m`, `12h`, `7d`; raises UsageError."""
    age = _AGE.match(text)
    if age is not None:
        return max(0, now_us - int(age[1]) * _UNITS[age[2]] * 1_000_000)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0, (moment - _EPOCH) // timedelta(microseconds=1))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"'{text[:40]}' is not a time; write 2030-01-31T12:00, or an age as 90m, 12h, 7d") from error


def utc_text(time_us: int) -> str:
    """To the millisecond, in UTC; a number that is no time of ours stays a number."""
    try:
        moment = _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return str(time_us)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def rfc3339(time_us: int) -> str:
    """To the second, in UTC, as RFC 3339 writes it."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
