"""`budgets.toml`: how much each tenant or caller may ask in a window of time.

Trusts: whoever may write the file. Never: accepts an unknown field, a repeated name, or a budget that limits nothing.
"""

from __future__ import annotations

from collections.abc import Container
from enum import Enum
from typing import Annotated

import msgspec

from policy.errors import PolicyFileError
from policy.limits import MAX_AMOUNT, MAX_BUDGETS, UNITS_PER_REQUEST
from policy.toml import Name, Subject, parse_toml

FILE = "budgets.toml"

_Limit = Annotated[int, msgspec.Meta(ge=0, le=MAX_AMOUNT)]


class Window(Enum):
    """Calendar windows, in UTC."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One budget. It applies to a request of `tenant` whose subject and model match, where they are given.

    A unit limit can hold only if no request costs more than was held back for it, so `units_per_request` must be at
    least what one request may cost.
    """

    name: Name
    tenant: Name
    window: Window
    subject: Subject | None = None
    model: Name | None = None
    requests: _Limit | None = None
    units: _Limit | None = None
    units_per_request: Annotated[int, msgspec.Meta(ge=1, le=MAX_AMOUNT)] = UNITS_PER_REQUEST

    def applies(self, *, tenant: str, subject: str, model: str) -> bool:
        """Whether a request counts against this budget."""
        return self.tenant == tenant and self.subject in (None, subject) and self.model in (None, model)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    budget: Annotated[tuple[Budget, ...], msgspec.Meta(max_length=MAX_BUDGETS)] = ()


def parse_budgets(data: bytes, *, known_tenants: Container[str], name: str = FILE) -> tuple[Budget, ...]:
    """Parse the file's bytes; `name` is what errors call it. Raises PolicyFileError."""
    budgets = parse_toml(data, _File, name=name).budget
    seen: set[str] = set()
    for index, budget in enumerate(budgets):
        where = f"{name}: budget[{index}]"
        if budget.name in seen:
            raise PolicyFileError(f"{where}.name: '{budget.name}' is there twice")
        seen.add(budget.name)
        if budget.tenant not in known_tenants:
            raise PolicyFileError(f"{where}.tenant: there is no tenant '{budget.tenant}'")
        if budget.requests is None and budget.units is None:
            raise PolicyFileError(f"{where}: needs a limit, 'requests' or 'units'")
        if budget.units is not None and budget.units < budget.units_per_request:
            raise PolicyFileError(
                f"{where}.units: below units_per_request ({budget.units_per_request}), so no request would ever fit"
            )
    return budgets
