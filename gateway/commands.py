"""The commands of the gateway: init, serve, gateway, token. Light at import; the work is imported inside `run`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from sealgate.command import Command
from sealgate.errors import ConfigurationError


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

# token ---------------------------------------------------------------------------------------------------------------


def _configure_token(parser: argparse.ArgumentParser) -> None:
    _state(parser)
    parser.add_argument("--tenant", required=True, help="tenant of the caller, as in policy/tenants.toml")
    parser.add_argument("--subject", required=True, help="who the caller is")
    parser.add_argument("--role", action="append", help="client (default), auditor or operator; may be repeated")
    parser.add_argument("--purpose", action="append", default=[], help="a purpose the caller may name; may be repeated")
    parser.add_argument("--lifetime", type=int, default=3600, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument(
        "--issued-ago",
        type=int,
        default=0,
        metavar="SECONDS",
        help="date the token back, to try how an expired one is refused",
    )
    parser.add_argument("--out", type=Path, help="write to this file (0600) instead of printing")


def _token(arguments: argparse.Namespace) -> int:
    from gateway.provisioning import issue_token
    from sealgate.ambient import now_us
    from sealgate.deployment import open_deployment

    token = issue_token(
        open_deployment(arguments.state),
        subject=arguments.subject,
        tenant=arguments.tenant,
        roles=arguments.role or ["client"],
        purposes=arguments.purpose,
        lifetime_s=arguments.lifetime,
        now=now_us() - arguments.issued_ago * 1_000_000,
    )
    if arguments.out is None:
        print(token)
    else:
        _write_private(arguments.out, token + "\n")
        print(f"wrote {arguments.out}", file=sys.stderr)
    return 0


def _write_private(path: Path, text: str) -> None:
    import os

    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


TOKEN = Command(
    summary="issue an access token for trials",
    description="Signs a token with the local issuer of the deployment in STATE. A real deployment lists its identity "
    "provider in tokens/issuers.toml instead. What a token claims is not what it gets: the policy decides that.",
    configure=_configure_token,
    run=_token,
    extra="server",
)
