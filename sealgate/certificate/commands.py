"""The command `sealgate models`: list, show, verify and report on bundles. Light: work is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("list", "one line per bundle under DIR (a models directory or a state directory)"),
        ("show", "what a bundle says about its model and its training, after verification"),
        ("verify", "check a bundle and recompute its epsilon, one line per step"),
        ("report", "one HTML page about a verified bundle, for people who decide; browsers print it as PDF"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("directory", metavar="DIR", type=Path, help="a bundle, or for `list` what holds bundles")
        action.add_argument(
            "--publishers",
            metavar="FILE",
            type=Path,
            help="publishers.toml with the accepted keys (default: the nearest one above DIR)",
        )
        if name == "report":
            action.add_argument("--out", metavar="FILE.html", type=Path, help="where it is written (NAME.html)")
            action.add_argument("--replace", action="store_true", help="replace a page that is there")


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.certificate import report

    action: str = arguments.action
    if action == "list":
        return report.list_bundles(arguments.directory, arguments.publishers)
    if action == "show":
        return report.show_bundle(arguments.directory, arguments.publishers)
    if action == "report":
        return report.write_report(
            arguments.directory, arguments.publishers, out=arguments.out, replace=arguments.replace
        )
    return report.verify_aloud(arguments.directory, arguments.publishers)


MODELS = Command(
    summary="list, show, verify and report on model bundles",
    description=(
        "Model bundles carry weights, a manifest and a signed privacy certificate. Verification recomputes epsilon "
        "from the stated mechanism and refuses a bundle that claims less than its mechanism gives."
    ),
    configure=_configure,
    run=_run,
    extra="certificate",
)
