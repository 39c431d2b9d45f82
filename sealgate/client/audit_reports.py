"""`sealgate audit report` and `review`: what the log says, from a bundle or from the service, and that somebody looked.

With `--bundle` there is no network and no credential: the bundle is verified, and only what is proven is reported. The
service's own answer is its word, and says so. Never: prints a report over a bundle that does not hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.client.audit_logs import EVERY, add_log, add_shard, asked_log, every_log
from sealgate.client.audit_output import JSON_HELP, finish, format_json, open_client, read_bounded

if TYPE_CHECKING:
    from sealgate.transparency.reports.form import Basis, Cell, Column, Report, Table
    from sealgate.transparency.reports.joint import JointReport
    from sealgate.transparency.reports.question import Question

_FILTERS = ("tenant", "actor", "model", "purpose")
_TIMES = {"since": "from_us", "until": "to_us", "at": "at_us"}
_NAMES = "access, denials, budget, usage, in-force, reconcile, completeness, break-glass, review"
_FINDINGS = ("nothing", "questions", "problems")
MAX_REPORT = 64 * 1024 * 1024


def configure(commands: Any) -> None:
    """Add them."""
    report = commands.add_parser("report", help="what auditors ask, over many records", description=_report.__doc__)
    report.add_argument("name", metavar="NAME", help=_NAMES)
    report.add_argument(
        "--bundle",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="answer from an evidence bundle, proven; offline. Several: of several logs",
    )
    for name in _FILTERS:
        report.add_argument(f"--{name}", metavar="TEXT", help=f"only records with this {name}")
    report.add_argument(
        "--since", metavar="TIME", help="from this time on: 2030-01-31T12:00, or an age as 90m, 12h, 7d"
    )
    report.add_argument("--until", metavar="TIME", help="before this time")
    report.add_argument("--at", metavar="TIME", help="the moment that in-force is asked for (default: now)")
    report.add_argument("--first", type=int, metavar="N", help="first record, for reconcile and completeness")
    report.add_argument("--last", type=int, metavar="N", help="last record")
    report.add_argument("--json", action="store_true", help=JSON_HELP)
    add_log(report, every=True)
    add_shard(report)
    finish(report, _report, online=True)

    review = commands.add_parser("review", help="put on record that you looked", description=_review.__doc__)
    review.add_argument("--bundle", type=Path, required=True, metavar="FILE", help="what you looked at; verified first")
    review.add_argument("--finding", required=True, choices=_FINDINGS, help="what you found")
    review.add_argument("--note", default="", metavar="TEXT", help="one line about it, for everybody who reads the log")
    review.add_argument("--report", type=Path, metavar="FILE", help="a report that you looked at (--json), to name it")
    review.add_argument("--receipt-out", type=Path, metavar="FILE", help="keep the receipt of the review's record")
    finish(review, _review, online=True)


def _report(arguments: argparse.Namespace) -> int:
    """Answer a report. From a bundle it is proven (--bundle, offline); from the service it is the service's word."""
    question = _question(arguments)
    report: Report | JointReport
    report = _from_bundles(arguments, question) if arguments.bundle else _from_service(arguments, question)
    if arguments.json:
        print(format_json(report))
    else:
        _print(report)
    return 0 if report.ok else 1


def _question(arguments: argparse.Namespace) -> Question:
    from sealgate.ambient import now_us
    from sealgate.client.errors import UsageError
    from sealgate.client.times import parse_moment
    from sealgate.errors import DecodeError
    from sealgate.transparency.reports.catalogue import REPORTS, require_report
    from sealgate.transparency.reports.question import Question

    now = now_us()
    given: dict[str, Any] = {name: getattr(arguments, name) for name in (*_FILTERS, "first", "last", "shard")}
    for option, name in _TIMES.items():
        text = getattr(arguments, option)
        given[name] = None if text is None else parse_moment(text, now_us=now)
    kind = REPORTS.get(arguments.name)
    for option, name in _TIMES.items():
        if kind is not None and given[name] is not None and name not in kind.parameters:
            raise UsageError(f"the report '{arguments.name}' does not take --{option}")
    if None not in (given["from_us"], given["to_us"]) and given["from_us"] >= given["to_us"]:
        raise UsageError("--since must come before --until")
    question = Question(**given)
    try:
        require_report(arguments.name, question)
    except DecodeError as error:
        raise UsageError(str(error)) from error
    return question


def _from_service(arguments: argparse.Namespace, question: Question) -> Report | JointReport:
    from sealgate.client.errors import UsageError
    from sealgate.errors import DecodeError, LogError
    from sealgate.transparency.reports.joint import join_reports, require_joint

    with open_client(arguments) as client:
        if arguments.log != EVERY:
            return asked_log(client, arguments).report(arguments.name, question)
        try:
            require_joint(arguments.name, question)
        except DecodeError as error:
            raise UsageError(str(error)) from error
        clients, missing = every_log(client)
        if not clients:
            raise LogError("no log can be read now", code="not-covered")
        return join_reports([one.report(arguments.name, question) for one in clients], missing=missing)


def _from_bundles(arguments: argparse.Namespace, question: Question) -> Report | JointReport:
    from sealgate.client.errors import UsageError
    from sealgate.errors import DecodeError
    from sealgate.evidence.trust import load_trust
    from sealgate.transparency.reports.bundles import report_from_bundle
    from sealgate.transparency.reports.joint import report_from_bundles
    from sealgate.transparency.verifier import LogTrust

    if arguments.log is not None:
        raise UsageError("bundles say themselves which log they are of: leave --log away")
    trust = load_trust(arguments.trust)
    log_trust = LogTrust(verifiers=trust.log_keys, mldsa_keys=trust.log_mldsa_keys)
    if len(arguments.bundle) == 1:
        return report_from_bundle(arguments.bundle[0], log_trust, name=arguments.name, question=question)
    try:
        return report_from_bundles(arguments.bundle, log_trust, name=arguments.name, question=question)
    except DecodeError as error:
        raise UsageError(str(error)) from error


# Printing -------------------------------------------------------------------------------------------------------------


def _print(report: Report | JointReport) -> None:
    from sealgate.terminal import printable
    from sealgate.transparency.reports.form import Report

    for table in report.tables:
        print(_table(table))
        print()
    for finding in report.findings:
        print(printable(f"WRONG: {finding}"))
    for limit in report.limits:
        print(printable(f"note: {limit}"))
    for name in () if isinstance(report, Report) else report.missing:
        print(printable(f"MISSING: the log {name} did not answer: what it holds is in none of this"))
    for basis in (report.basis,) if isinstance(report, Report) else report.bases:
        print(printable(_basis(basis)))


def _basis(basis: Basis) -> str:
    if basis.proven:
        return (
            f"PROVEN from records {basis.first} to {basis.last} of the {basis.size} of {basis.origin}, "
            f"under the signed root {basis.root}"
        )
    looked = f"records {basis.first} to {basis.last}" if basis.last >= basis.first else "no record"
    return (
        f"NOT PROVEN: the word of the database of {basis.origin} over {looked} of {basis.size}; to prove it, export "
        "the range and ask with --bundle"
    )


def _table(table: Table) -> str:
    from sealgate.terminal import printable, render_table

    if not table.rows:
        return printable(f"{table.title}: none")
    headings = [column.name for column in table.columns]
    rows = [[cell_text(column, cell) for column, cell in zip(table.columns, row, strict=True)] for row in table.rows]
    more = f"\n... and {table.left_out} more that do not fit" if table.left_out else ""
    return printable(f"{table.title}:") + "\n" + render_table(headings, rows) + more


def cell_text(column: Column, cell: Cell) -> str:
    """A cell as people read it."""
    from sealgate.client.times import utc_text

    if cell is None or (cell == "" and column.unit != "text"):
        return ""
    if column.unit == "time":
        return utc_text(int(cell))
    if column.unit == "epsilon":
        whole, part = divmod(abs(int(cell)), 1_000_000)
        sign = "-" if int(cell) < 0 else ""
        return f"{sign}{whole}.{part:06d}".rstrip("0").rstrip(".")
    return str(cell)


# Reviews --------------------------------------------------------------------------------------------------------------


def _review(arguments: argparse.Namespace) -> int:
    """Verify a bundle, then put on record that you looked at its records, what you found, and a report you relied on.
    The record is your word under your own credential; its receipt proves later that you gave it, and when."""
    from sealgate.client.audit_output import replace_file
    from sealgate.client.errors import UsageError
    from sealgate.evidence.trust import load_trust
    from sealgate.transparency.reports.reviewing import ReviewStatement
    from sealgate.transparency.verifier import LogTrust, verify_bundle

    trust = load_trust(arguments.trust)
    held = verify_bundle(arguments.bundle, LogTrust(verifiers=trust.log_keys, mldsa_keys=trust.log_mldsa_keys))
    if not held.ok and arguments.finding != "problems":
        raise UsageError("the bundle does not verify (see `sealgate audit verify`): that is a finding of 'problems'")
    if held.checkpoint is None:
        raise UsageError("the bundle's checkpoint is not signed by a trusted log key: there is nothing to name")
    report = _read_report(arguments.report) if arguments.report is not None else None
    statement = ReviewStatement(
        first=held.first,
        last=held.last,
        size=held.checkpoint.size,
        root=held.checkpoint.root.hex(),
        finding=arguments.finding,
        note=arguments.note,
        report=report.name if report is not None else "",
        report_digest=report.digest() if report is not None else "",
    )
    with open_client(arguments) as client:
        index, receipt = client.review(statement)
    if arguments.receipt_out is not None:
        replace_file(arguments.receipt_out, receipt)
    print(f"on record as {index}: records {held.first} to {held.last} were looked at, finding {arguments.finding}")
    return 0


def _read_report(path: Path) -> Report:
    import msgspec

    from sealgate.errors import ConfigurationError
    from sealgate.transparency.reports.form import Report

    try:
        return msgspec.json.decode(read_bounded(path, MAX_REPORT), type=Report)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ConfigurationError(f"{path} is no report; make one with: sealgate audit report NAME --json") from error
