"""The commands `sealgate runtime` and `sealgate doctor`. Light: the work is imported when they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command


def _configure_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the deployment's directory (see `sealgate init`)")


def _run_runtime(arguments: argparse.Namespace) -> int:
    from sealgate.deployment import open_deployment
    from sealgate.terminal import say
    from secure_runtime.host.runtime import run_host

    return run_host(open_deployment(arguments.state), tell=say)


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


def _configure_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "state", metavar="STATE", type=Path, nargs="?", help="also what the runtime host of this deployment says"
    )
    parser.add_argument("--json", action="store_true", help="the same for machines")


def _run_doctor(arguments: argparse.Namespace) -> int:
    """0 when a profile that isolates holds here, 1 when only `dev` would start; with STATE, also 1 when the runtime
    host says of itself that something is wrong."""
    from sealgate.deployment import open_deployment
    from secure_runtime import doctor
    from secure_runtime.running import read_state, troubles

    state = None if arguments.state is None else read_state(open_deployment(arguments.state))
    diagnosis = doctor.with_single_use(doctor.examine())
    print(doctor.as_json(diagnosis, state) if arguments.json else doctor.as_text(diagnosis, state))
    return 0 if diagnosis.profile != "dev" and not (state and troubles(state)) else 1


DOCTOR = Command(
    summary="show which isolation layers this machine allows, and what to do about the others",
    description=(
        "Closes a real sandbox in a process of its own, tries what a worker must not be able to do, and prints every "
        "layer and probe, and the profile that holds for the present user. Exit code 0 when 'strict' or 'container' "
        "holds, 1 otherwise. Run it as the user that will run the runtime. With STATE, it also asks the runtime host "
        "that runs there whether it serves, how its audit log is, whether witnesses cosign (exit code 1 if not), and "
        "which layers its workers have, those of their single-use processes included."
    ),
    configure=_configure_doctor,
    run=_run_doctor,
    extra="server",
)
