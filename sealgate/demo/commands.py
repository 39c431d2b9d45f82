"""The command `sealgate demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, help="where to put the deployment (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the deployment there, and running, until Ctrl-C")


def _run(arguments: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from sealgate.demo.story import tell_story

    for needed in ("litestar", "torch", "opacus"):
        if find_spec(needed) is None:
            raise ModuleNotFoundError(f"No module named '{needed}'", name=needed)
    return tell_story(state=arguments.state, keep=arguments.keep)


DEMO = Command(
    summary="watch the whole path: private training to an audited, encrypted answer (under a minute)",
    description=(
        "Trains a model on 569 real patients with differential privacy, starts a complete deployment on this machine, "
        "asks it sealed questions, shows three refusals, and lets an auditor check the log."
    ),
    configure=_configure,
    run=_run,
    extra="all",
)
