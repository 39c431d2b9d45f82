"""The reports by name: what each answers, what it may be asked, and the fold that answers it.

Trusts nothing. Never: begins a report with a parameter that it would ignore.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sealgate.errors import DecodeError
from sealgate.transparency.reports.access import Access, Denials
from sealgate.transparency.reports.budget import Budget
from sealgate.transparency.reports.form import Fold
from sealgate.transparency.reports.in_force import InForce
from sealgate.transparency.reports.oversight import BreakGlass, Review
from sealgate.transparency.reports.question import FILTERS, MOMENT, RANGE, SHARD, SPAN, Question
from sealgate.transparency.reports.ranges import Completeness, Reconciled
from sealgate.transparency.reports.usage import Usage


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A report. `of_one_tenant`: an auditor who may read one tenant's records only may ask for it, about that one."""

    summary: str
    parameters: tuple[str, ...]
    begin: Callable[[Question], Fold]
    of_one_tenant: bool = False


REPORTS: dict[str, Kind] = {
    "access": Kind(
        summary="who used which model for which purpose, and how it ended",
        parameters=(*FILTERS, *SPAN),
        begin=Access,
        of_one_tenant=True,
    ),
    "denials": Kind(
        summary="what was refused and why",
        parameters=(*FILTERS, *SPAN),
        begin=Denials,
        of_one_tenant=True,
    ),
    "budget": Kind(
        summary="what was spent, what is left, what the policies granted, and whether it adds up",
        parameters=(*FILTERS, *SPAN, *SHARD),
        begin=Budget,
    ),
    "usage": Kind(
        summary="what was used, for a bill: requests, rows, units, epsilon, processor time and energy",
        parameters=(*FILTERS, *SPAN),
        begin=Usage,
        of_one_tenant=True,
    ),
    "in-force": Kind(
        summary="policy, worker, models, their epsilon and keys at a moment",
        parameters=(*MOMENT, *SHARD),
        begin=InForce,
    ),
    "reconcile": Kind(
        summary="every authorized request has exactly one end, and workers signed it",
        parameters=(*RANGE, *SHARD),
        begin=Reconciled,
    ),
    "completeness": Kind(
        summary="nothing is missing in a range",
        parameters=(*RANGE, *SHARD),
        begin=Completeness,
    ),
    "break-glass": Kind(
        summary="administrative and key operations, and auditors' own reads",
        parameters=("tenant", "actor", *SPAN, *SHARD),
        begin=BreakGlass,
    ),
    "review": Kind(
        summary="who looked at which records, and what nobody looked at",
        parameters=("tenant", "actor", *SPAN, *SHARD),
        begin=Review,
    ),
}


def require_report(name: str, question: Question) -> Kind:
    """The report of this name, if it may be asked that; raises DecodeError."""
    kind = REPORTS.get(name)
    if kind is None:
        raise DecodeError(f"there is no such report; there are: {', '.join(REPORTS)}", code="report-unknown")
    question.require_only(kind.parameters, report=name)
    return kind
