"""The commands of the gateway: init, serve, gateway. Light at import; the work is imported inside `run`.

`sealgate token` stands in `gateway.token_commands`.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from gateway.token_commands import TOKEN
from sealgate.command import Command

__all__ = ["GATEWAY", "INIT", "SERVE", "TOKEN"]


def _state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")


# init ----------------------------------------------------------------------------------------------------------------


def _configure_init(parser: argparse.ArgumentParser) -> None:
    _state(parser)
    parser.add_argument(
        "--audience", default="localhost:8443", help="host:port that clients use (default: %(default)s)"
    )
    parser.add_argument("--origin", default="", help="name of the audit log (default: HOST/sealgate)")
    parser.add_argument(
        "--profile",
        choices=("auto", "strict", "container", "dev"),
        default="auto",
        help="isolation that the runtime must reach (default: the strongest of this machine); see `sealgate doctor`",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="set a deployment that is there aside and make a new one"
    )


def _init(arguments: argparse.Namespace) -> int:
    from gateway.provisioning import provision

    origin = arguments.origin or f"{arguments.audience.rpartition(':')[0] or arguments.audience}/sealgate"
    set_aside = arguments.overwrite and (arguments.state / "deployment.toml").exists()
    deployment = provision(
        arguments.state,
        audience=arguments.audience,
        origin=origin,
        profile=_profile(arguments.profile),
        require_audit=True,
        overwrite=arguments.overwrite,
    )
    settings = deployment.settings.gateway
    print(f"A deployment is ready in {deployment.root}")
    if set_aside:
        print(f"  the old one   {deployment.root}.replaced-TIME (its log may be needed)")
    print(f"  audience      {deployment.settings.deployment.audience}")
    print(f"  audit log     {deployment.settings.deployment.origin}")
    print(f"  listens on    {settings.host} port {settings.port} (change [gateway] in deployment.toml to serve others)")
    print(f"  isolation     {deployment.settings.runtime.profile} (see `sealgate doctor`)")
    print(f"  policy        {deployment.policy} (tenants, budgets, Cedar policies: edit these)")
    print(f"  for clients   {deployment.trust.parent} (trust.toml, ca.pem: hand these out)")
    print("Go on with:")
    models, key = shlex.quote(str(deployment.models)), shlex.quote(str(deployment.root / "publisher.key"))
    print(f"  sealgate train CONFIG.toml --out {models} --key {key}")
    print(f"  sealgate serve {shlex.quote(str(arguments.state))}")
    return 0


def _profile(wanted: str) -> str:
    """The profile to write down: `auto` is the strongest that holds on this machine now."""
    if wanted != "auto":
        return wanted
    from secure_runtime.doctor import best_profile

    return best_profile()


INIT = Command(
    summary="make a deployment: certificates, keys, policies, settings",
    description="Writes a complete deployment into the folder STATE: a certificate authority with server and client "
    "certificates, a token issuer for trials, policies, budgets, and keys of the log. Private files are 0600.",
    configure=_configure_init,
    run=_init,
    extra="server",
)

# serve ---------------------------------------------------------------------------------------------------------------


def _configure_serve(parser: argparse.ArgumentParser) -> None:
    _state(parser)
    parser.add_argument("--ready-file", type=Path, help="write the address here once requests are served")
    parser.add_argument("--ready-fd", type=int, help="write a line to this file descriptor once requests are served")


def _serve(arguments: argparse.Namespace) -> int:
    from gateway.supervise import supervise
    from sealgate.deployment import open_deployment

    return supervise(
        open_deployment(arguments.state), ready_file=arguments.ready_file, ready_descriptor=arguments.ready_fd
    )


SERVE = Command(
    summary="run the whole service: runtime and gateway",
    description="Starts the runtime host (with its sandboxed worker) and the gateway of the deployment in STATE, says "
    "when they are ready, and stops both on Ctrl-C or SIGTERM. If one of them ends, the other is stopped too.",
    configure=_configure_serve,
    run=_serve,
    extra="server",
)

# gateway -------------------------------------------------------------------------------------------------------------


def _gateway(arguments: argparse.Namespace) -> int:
    from gateway.serve import serve
    from sealgate.deployment import open_deployment

    return serve(open_deployment(arguments.state))


GATEWAY = Command(
    summary="run the gateway alone",
    description="Runs only the network side of the deployment in STATE; `sealgate runtime STATE` runs the other. Logs "
    "are JSON lines on standard error.",
    configure=_state,
    run=_gateway,
    extra="server",
)
