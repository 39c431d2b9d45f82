"""`budgets.toml`: how much each tenant or caller may ask, and how much epsilon noised answers may cost whom.

A request budget counts requests and units. A privacy budget counts the epsilon that noised answers spend about the
people whose data some models were trained on. One without tenant and subject is the whole of it for a population; with
them it is a share, which must lie within such a whole: many shares, added up, bound nothing.

Trusts: whoever may write the file. Never: accepts an unknown field, a repeated name, a budget that limits nothing, or a
share of a budget that is not there.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from enum import Enum
from typing import Annotated

import msgspec

from policy.errors import PolicyFileError
from policy.limits import MAX_AMOUNT, MAX_BUDGET_MODELS, MAX_BUDGETS, MAX_EPSILON_MICRO, UNITS_PER_REQUEST
from policy.tenants import micro
from policy.toml import Name, Subject, parse_toml

FILE = "budgets.toml"

_Limit = Annotated[int, msgspec.Meta(ge=0, le=MAX_AMOUNT)]


class Window(Enum):
    """Calendar windows, in UTC. FOREVER never renews."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    YEAR = "year"
    FOREVER = "forever"


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


class PrivacyBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One privacy budget: the epsilon that noised answers of `models` may spend in a window about `population`.

    Every budget that applies to a request is spent. Epsilons add up (sequential composition), so each window that
    begins anew allows as much again: only FOREVER bounds what is learned in all.
    """

    name: Name
    population: Name
    models: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=MAX_BUDGET_MODELS)]
    epsilon: Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,6})(\.[0-9]{1,6})?\Z")]
    window: Window
    tenant: Name | None = None
    subject: Subject | None = None

    @property
    def epsilon_micro(self) -> int:
        """The whole of it, in millionths."""
        return micro(self.epsilon)

    @property
    def is_share(self) -> bool:
        """Whether it is part of a population's budget rather than the whole."""
        return self.tenant is not None or self.subject is not None

    def applies(self, *, tenant: str, subject: str, model: str) -> bool:
        """Whether a noised answer of `model` for this caller is spent from this budget."""
        return model in self.models and self.tenant in (None, tenant) and self.subject in (None, subject)


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `budgets.toml`."""

    requests: tuple[Budget, ...] = ()
    privacy: tuple[PrivacyBudget, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    budget: Annotated[tuple[Budget, ...], msgspec.Meta(max_length=MAX_BUDGETS)] = ()
    privacy_budget: Annotated[tuple[PrivacyBudget, ...], msgspec.Meta(max_length=MAX_BUDGETS)] = ()


def parse_budgets(data: bytes, *, known_tenants: Container[str], name: str = FILE) -> Budgets:
    """Parse the file's bytes; `name` is what errors call it. Raises PolicyFileError."""
    file = parse_toml(data, _File, name=name)
    seen: set[str] = set()
    for index, budget in enumerate(file.budget):
        where = f"{name}: budget[{index}]"
        _check_common(budget, known_tenants, seen, where=where)
        if budget.requests is None and budget.units is None:
            raise PolicyFileError(f"{where}: needs a limit, 'requests' or 'units'")
        if budget.units is not None and budget.units < budget.units_per_request:
            raise PolicyFileError(
                f"{where}.units: below units_per_request ({budget.units_per_request}), so no request would ever fit"
            )
        if budget.window is Window.FOREVER:
            raise PolicyFileError(f"{where}.window: requests and units renew; 'forever' is for privacy budgets")
    for index, share in enumerate(file.privacy_budget):
        where = f"{name}: privacy_budget[{index}]"
        _check_common(share, known_tenants, seen, where=where)
        _check_privacy(share, file.privacy_budget, where=where)
    return Budgets(requests=file.budget, privacy=file.privacy_budget)


def _check_common(budget: Budget | PrivacyBudget, known_tenants: Container[str], seen: set[str], *, where: str) -> None:
    """Both kinds share one space of names: a refusal names its budget and nothing else."""
    if budget.name in seen:
        raise PolicyFileError(f"{where}.name: '{budget.name}' is there twice")
    seen.add(budget.name)
    if budget.tenant is not None and budget.tenant not in known_tenants:
        raise PolicyFileError(f"{where}.tenant: there is no tenant '{budget.tenant}'")


def _check_privacy(budget: PrivacyBudget, every: Sequence[PrivacyBudget], *, where: str) -> None:
    if budget.window in (Window.MINUTE, Window.HOUR):
        raise PolicyFileError(f"{where}.window: a privacy budget's window is day, month, year or forever")
    if not 0 < budget.epsilon_micro <= MAX_EPSILON_MICRO:
        raise PolicyFileError(f"{where}.epsilon: above 0 and at most {MAX_EPSILON_MICRO // 1_000_000}")
    if len(set(budget.models)) != len(budget.models):
        raise PolicyFileError(f"{where}.models: a model is there twice")
    if budget.subject is not None and budget.tenant is None:
        raise PolicyFileError(f"{where}.subject: name the tenant too; subjects are a tenant's own")
    if not budget.is_share:
        return
    wholes = [one for one in every if one.population == budget.population and not one.is_share]
    for model in budget.models:
        if not any(model in one.models for one in wholes):
            raise PolicyFileError(
                f"{where}: a share of population '{budget.population}' for model '{model}', but no privacy budget "
                "without tenant and subject is the whole of it"
            )
