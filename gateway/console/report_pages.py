"""Reports as pages, and the form by which an auditor states that somebody looked.

The same reports as `/audit/v1/reports`, asked with the same parameters and under the same rules. Trusts: the permit.
Never: calls proven what comes from the database; a review says which tree its reader was shown, not that it was sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from audit.query import AuditReader
from gateway.audit_reading import own_question, read_log
from gateway.console.frame import Console
from gateway.console.presentation import minute_of, table_of, time_of
from gateway.errors import Problem
from gateway.gate import Asking
from gateway.limits import MAX_AUDIT_TEXT
from policy.decide import Permit
from sealgate.errors import DecodeError
from sealgate.transparency.reports.catalogue import REPORTS
from sealgate.transparency.reports.form import Report
from sealgate.transparency.reports.question import Question
from sealgate.transparency.reports.reviewing import ReviewStatement

_TOO_WIDE = "report-needs-every-tenant"
_TIMES = {"from": "from_us", "to": "to_us", "at": "at_us"}
_LABELS = {"from": "From (UTC)", "to": "Until (UTC)", "at": "At (UTC)", "first": "First record", "last": "Last record"}
_NUMBERS = ("first", "last", "size")


@get("/console/reports", include_in_schema=False)
async def reports(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """Which there are."""
    may = await console.may_read(request, "reports", {})
    return console.page("reports.html", may, title="Reports", reports=REPORTS)


@get("/console/reports/{name:str}", include_in_schema=False)
async def report(request: Asking, console: NamedDependency[Console], name: FromPath[str]) -> Response[bytes]:
    """One report, with the form of its parameters."""
    known = REPORTS.get(name)
    if known is None:
        raise Problem("not-found")
    fields = [_field_of(parameter) for parameter in known.parameters]
    query = dict(request.query_params)
    if not set(query) <= set(fields) or any(len(value) > MAX_AUDIT_TEXT for value in query.values()):
        raise Problem("malformed-request", detail="This report does not know one of the parameters.")
    asked = _question(query)
    too_wide = "" if known.of_one_tenant else _TOO_WIDE
    may = await console.may_read(request, "report", {"name": name, **asked.given()}, too_wide=too_wide)

    def read(reader: AuditReader, permit: Permit) -> Report:
        return reader.report(name, own_question(asked, permit))

    found = await read_log(console.gate, may, read)
    return console.page(
        "report.html",
        may,
        title=f"Report: {name}",
        name=name,
        summary=known.summary,
        fields=[(field, _LABELS.get(field, field.capitalize()), query.get(field, "")) for field in fields],
        now=minute_of(console.clock()),
        report=found,
        tables=[table_of(table) for table in found.tables],
    )


@post("/console/reviews", include_in_schema=False, status_code=200)
async def review(request: Asking, console: NamedDependency[Console]) -> Response[bytes]:
    """Put on record that somebody looked."""
    form = await console.read_form(request)

    async def state() -> dict[str, str]:
        return _statement(form).detail()

    may = await console.may_read(request, "review", {}, kind="audit.review", too_wide=_TOO_WIDE, state=state)
    return console.page("reviewed.html", may, title="On record", receipt=may.receipt.decode("utf-8", "replace"))


ROUTES: tuple[Any, ...] = (reports, report, review)


def _field_of(parameter: str) -> str:
    return next((field for field, name in _TIMES.items() if name == parameter), parameter)


def _question(query: Mapping[str, str]) -> Question:
    """The question in a page's query; what was left empty was not asked."""
    given: dict[str, Any] = {name: value for name, value in query.items() if value and name not in _TIMES}
    given |= {_TIMES[name]: time_of(value) for name, value in query.items() if value and name in _TIMES}
    try:
        return msgspec.convert(given, Question, strict=False)
    except msgspec.ValidationError:
        raise Problem("malformed-request", detail="A record's number is a whole number from 0.") from None


def _statement(form: Mapping[str, str]) -> ReviewStatement:
    fields: dict[str, Any] = {name: value for name, value in form.items() if name != "form_token"}
    try:
        fields |= {name: int(fields[name]) for name in _NUMBERS}
        statement = msgspec.convert(fields, ReviewStatement)
        statement.require_range()
    except (KeyError, ValueError, msgspec.ValidationError, DecodeError):
        raise Problem("malformed-request", detail="The form is no statement of a review.") from None
    return statement
