"""The command `sealgate runtime`. Light: the host is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command


def _configure_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the deployment's directory (see `sealgate init`)")


def _run_runtime(arguments: argparse.Namespace) -> int:
    from sealgate.deployment import open_deployment
    from secure_runtime.host.runtime import run_host

    return run_host(open_deployment(arguments.state), tell=lambda text: print(text, flush=True))


RUNTIME = Command(
    summary="run the runtime host and its sandboxed worker (`sealgate serve` does this and more)",
    description=(
        "Starts the sandboxed worker, keeps it alive, and writes the audit log. Serves gateways over the deployment's "
        "UNIX socket until SIGTERM. Run it under its own user in production; see docs/operations.md."
    ),
    configure=_configure_runtime,
    run=_run_runtime,
    extra="server",
)
