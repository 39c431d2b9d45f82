"""`sealgate usage`: what each tenant used, and what it costs by a price list; from the database, or as an auditor.

    sealgate usage STATE                              the operator, on the host's machine: all ends, however many
    sealgate usage https://... --trust PATH ...       an auditor, within his tenant; the asking is on record

Light at import. Trusts: the log's database, or the service's word; to have the sums proven, take a bundle away and ask
`sealgate audit report usage --bundle`. Never: writes to either; rounds before it has added up.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.client.arguments import add_connection
from sealgate.command import Command

if TYPE_CHECKING:
    from fractions import Fraction

    from sealgate.client.prices import PriceList
    from sealgate.deployment import Deployment
    from sealgate.transparency.reports.form import Report
    from sealgate.transparency.reports.question import Question

    Lines = list[tuple[dict[str, Any], Fraction | None]]

_FILTERS = ("tenant", "model", "purpose")
_COUNTED = {
    "requests": "request",
    "rows": "row",
    "units": "unit",
    "epsilon": "epsilon",
    "cpu us": "cpu_second",
    "energy uJ": "kilowatt_hour",
}
"""Columns of the report, and by what they are priced."""
_MICRO = 1_000_000


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="STATE|URL", help="the deployment's folder, or https:// of the service")
    parser.add_argument(
        "--from", dest="since", metavar="TIME", help="from this time on: 2030-01-31T12:00, or an age as 90m, 12h, 7d"
    )
    parser.add_argument("--to", dest="until", metavar="TIME", help="before this time")
    for name in _FILTERS:
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"only usage of this {name}")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="price list (TOML), for what it costs")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="how to print it")
    add_connection(parser)
    for action in parser._actions:
        if action.dest == "trust":  # for a URL only: who has the folder reads the database
            action.required = False


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.client.prices import load_prices

    prices = load_prices(arguments.prices) if arguments.prices is not None else None
    question = _question(arguments)
    report = _from_service(arguments, question) if "://" in arguments.source else _from_state(arguments, question)
    lines = _priced(report, prices)
    printed = {"table": _table, "csv": _csv, "json": _json}[arguments.format](report, lines, prices)
    print(printed)
    return 0


def _question(arguments: argparse.Namespace) -> Question:
    from sealgate.ambient import now_us
    from sealgate.client.errors import UsageError
    from sealgate.client.times import parse_moment
    from sealgate.transparency.reports.question import Question

    now = now_us()
    since, until = (
        None if text is None else parse_moment(text, now_us=now) for text in (arguments.since, arguments.until)
    )
    if since is not None and until is not None and since >= until:
        raise UsageError("--from must come before --to")
    return Question(from_us=since, to_us=until, **{name: getattr(arguments, name) for name in _FILTERS})


def _from_state(arguments: argparse.Namespace, question: Question) -> Report:
    from audit.query import AuditReader
    from sealgate.deployment import open_deployment
    from sealgate.errors import ConfigurationError

    deployment: Deployment = open_deployment(Path(arguments.source))
    if deployment.log_url.startswith("sqlite") and not deployment.database.exists():
        raise ConfigurationError(f"{deployment.database} is not there: this deployment has never run")
    reader = AuditReader(deployment.log_url, origin=deployment.settings.deployment.origin)
    try:
        return reader.usage(question)
    finally:
        reader.close()


def _from_service(arguments: argparse.Namespace, question: Question) -> Report:
    from sealgate.client.audit_output import open_client
    from sealgate.client.errors import UsageError

    if arguments.trust is None:
        raise UsageError("to ask a service, give --trust and a credential")
    with open_client(arguments) as client:
        if client.trust.url.rstrip("/") != arguments.source.rstrip("/"):
            raise UsageError(f"the trust file is for {client.trust.url}, not for the URL that was given")
        return client.report("usage", question)


def _priced(report: Report, prices: PriceList | None) -> Lines:
    """Each row by its columns, and its cost."""
    (table,) = report.tables
    found: Lines = []
    for row in table.rows:
        cells: dict[str, Any] = {column.name: cell for column, cell in zip(table.columns, row, strict=True)}
        counted: dict[str, int | None] = {what: cells[name] for name, what in _COUNTED.items()}
        if cells["not stated"]:  # a part of it is not known: what that would cost is not, either
            counted |= {"row": None, "cpu_second": None, "kilowatt_hour": None}
        names = {name: cells[name] for name in ("tenant", "model", "operation")}
        found.append((cells, prices.cost(names, counted) if prices is not None else None))
    return found


def _table(report: Report, lines: Lines, prices: PriceList | None) -> str:
    from sealgate.terminal import printable, render_table

    if not lines:
        return "Nothing was used in that time."
    headings, rows = _cells(lines, prices)
    notes = [*_said(report), *(printable(limit) for limit in report.limits)]
    return render_table(headings, [*rows, _total(lines, prices)]) + "\n\n" + "\n".join(notes)


def _csv(report: Report, lines: Lines, prices: PriceList | None) -> str:
    from sealgate.transparency.exports.csv_table import guard

    headings, rows = _cells(lines, prices)
    lines_of_cells: list[list[object]] = [list(headings), *rows]
    return "\r\n".join(
        ",".join(f'"{guard(str(cell)).replace(chr(34), chr(34) * 2)}"' for cell in row) for row in lines_of_cells
    )


def _json(report: Report, lines: Lines, prices: PriceList | None) -> str:
    from sealgate.client.audit_output import format_json
    from sealgate.client.prices import shown

    listed = [
        {name.replace(" ", "_"): cell for name, cell in cells.items()}
        | ({} if prices is None else {"price": None if cost is None else shown(cost)})
        for cells, cost in lines
    ]
    document: dict[str, object] = {
        "usage": listed,
        "question": report.question,
        "basis": report.basis,
        "limits": report.limits,
    }
    if prices is not None:
        total = _sum(lines)
        document |= {"currency": prices.currency, "total": None if total is None else shown(total)}
    return format_json(document)


def _cells(lines: Lines, prices: PriceList | None) -> tuple[list[str], list[list[object]]]:
    """Headings and rows in the units that people read: epsilon, seconds, joules."""
    from sealgate.client.prices import shown

    headings = ["tenant", "model", "operation", "purpose", "requests", "completed", "rows", "units", "epsilon", "cpu s"]
    headings += ["energy J", "energy by"] + ([prices.currency] if prices is not None else [])
    rows: list[list[object]] = []
    for cells, cost in lines:
        row: list[object] = [cells[name] for name in ("tenant", "model", "operation", "purpose")]
        row += [cells["requests"], cells["completed"], _known(cells["rows"]), cells["units"]]
        row += [_millionths(cells[name]) for name in ("epsilon", "cpu us", "energy uJ")] + [cells["energy by"]]
        rows.append(row + ([] if prices is None else ["unknown" if cost is None else shown(cost)]))
    return headings, rows


def _total(lines: Lines, prices: PriceList | None) -> list[object]:
    from sealgate.client.prices import shown

    def added(name: str) -> int:
        return sum(cells[name] or 0 for cells, _ in lines)

    row: list[object] = ["total", "", "", "", added("requests"), added("completed"), added("rows"), added("units")]
    row += [_millionths(added(name)) for name in ("epsilon", "cpu us", "energy uJ")] + [""]
    if prices is None:
        return row
    total = _sum(lines)
    return [*row, "unknown" if total is None else shown(total)]


def _sum(lines: Lines) -> Fraction | None:
    """Of all costs; None if one of them is not known."""
    from fractions import Fraction

    total = Fraction(0)
    for _, cost in lines:
        if cost is None:
            return None
        total += cost
    return total


def _said(report: Report) -> list[str]:
    """What of the answer is not there, and on what it rests."""
    (table,) = report.tables
    left_out = [f"{table.left_out} requests of further groups are in no sum"] if table.left_out else []
    return [
        *left_out,
        f"the word of the database of {report.basis.origin}; proven: sealgate audit report usage --bundle FILE",
    ]


def _known(count: int | None) -> object:
    return "" if count is None else count


def _millionths(count: int | None) -> str:
    if count is None:
        return ""
    whole, part = divmod(count, _MICRO)
    return f"{whole}.{part:06d}".rstrip("0").rstrip(".")


USAGE = Command(
    summary="what each tenant used, and what it costs",
    description="Requests, rows, units, epsilon, processor time and energy, added up from the audit log.",
    configure=_configure,
    run=_run,
    extra="server",
)
