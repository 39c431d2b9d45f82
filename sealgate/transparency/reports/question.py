"""What a report is asked: its name and parameters, checked once, on the way into every report.

Times are microseconds since 1970, `from_us` included and `to_us` not. Trusts nothing. Never: lets a parameter pass that
its report would ignore: an auditor who filters by what does not filter would believe a wrong answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import MAX_NAME
from sealgate.transparency.record import Record

FILTERS = ("tenant", "actor", "model", "purpose")
SPAN = ("from_us", "to_us")
RANGE = ("first", "last")
MOMENT = ("at_us",)
SHARD = ("shard",)


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The parameters of a report; None is "not asked"."""

    tenant: str | None = None
    actor: str | None = None
    model: str | None = None
    purpose: str | None = None
    from_us: int | None = None
    to_us: int | None = None
    at_us: int | None = None
    first: int | None = None
    last: int | None = None
    shard: str | None = None  # of the log, by its origin

    def given(self) -> dict[str, str]:
        """What was asked, as text."""
        everything = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: str(value) for name, value in everything.items() if value is not None}

    def require_only(self, allowed: tuple[str, ...], *, report: str) -> None:
        """Raises DecodeError for a parameter that this report does not know, or for one that cannot be."""
        for name in self.given():
            if name not in allowed:
                raise DecodeError(f"the report '{report}' has no parameter '{name}'", code="report-parameter")
        for name in (*FILTERS, *SHARD):
            value = getattr(self, name)
            if value is not None and (len(value) > MAX_NAME or "\0" in value):
                raise DecodeError(f"{name} is no value that the log can hold", code="report-parameter")
        for name in (*SPAN, *MOMENT, *RANGE):
            number = getattr(self, name)
            if number is not None and not 0 <= number < 2**53:
                raise DecodeError(f"{name} is out of bounds", code="report-parameter")
        for low, high, gap in (("from_us", "to_us", 1), ("first", "last", 0)):
            first, last = getattr(self, low), getattr(self, high)
            if first is not None and last is not None and last < first + gap:
                raise DecodeError(f"{low} must come before {high}", code="report-parameter")

    def covers_time(self, ts_us: int) -> bool:
        """Whether a moment lies in the span that was asked for."""
        return (self.from_us is None or self.from_us <= ts_us) and (self.to_us is None or ts_us < self.to_us)

    def matches(self, record: Record | Any) -> bool:
        """Whether a record has the names that were asked for (its time aside)."""
        return all(getattr(self, name) in (None, getattr(record, name)) for name in FILTERS)
