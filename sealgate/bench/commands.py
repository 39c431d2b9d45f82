"""The command `sealgate bench`: what the service costs on this machine, as tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command

PARTS = ("steps", "memory", "payloads", "workers", "floor")
_EPILOG = """\
examples:
  sealgate bench                          a deployment of its own, all tables; two to four minutes
  sealgate bench --only steps,floor       only these
  sealgate bench --soak 60                an hour of steady load: does memory stay flat?
  sealgate bench --trust STATE/client --token-file token --model NAME --purpose P --rows rows.csv --state STATE
                                          against a deployment that runs already

Requests are sealed before the clock starts and every answer must be 200; some are verified and opened after it.
Measuring a deployment that runs asks it thousands of real requests: they count against budgets and stand in its log.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--only", metavar="PARTS", default=",".join(PARTS), help=f"by comma, of: {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each run (default: 3)")
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="a steady load for so long, instead of the tables"
    )
    parser.add_argument(
        "--busy", type=float, default=1.0, metavar="SHARE", help="of the time of a soak; it rests between (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--folder", type=Path, help="where its own deployment is made and left (default: removed again)"
    )
    other = parser.add_argument_group("a deployment that runs already (all of the first five)")
    other.add_argument("--trust", type=Path, help="trust file, or its folder")
    other.add_argument("--token-file", type=Path, metavar="FILE", help="the access token")
    other.add_argument("--model", metavar="NAME", help="a model over a table of numbers")
    other.add_argument("--purpose", metavar="P", help="what is asked for")
    other.add_argument("--rows", type=Path, metavar="CSV", help="rows to ask about")
    other.add_argument("--state", type=Path, help="its folder, if it is on this machine: processor time and memory")
    other.add_argument("--metrics", default="", metavar="URL", help="its metrics page: the server's steps")


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.bench.report import report

    return report(arguments)


BENCH = Command(
    summary="measure what the service costs here: each step, latency, memory, payloads, soak",
    description="Measures a deployment, its own or one that runs, and prints tables.",
    configure=_configure,
    run=_run,
    extra="all",
)
