"""`sealgate token`: tokens for trials, what a token says, and which tokens are refused from now on.

Light at import; the work is imported when it is done. Trusts: whoever may write the state directory. Never: prints a
token that it was shown, takes one from the command line, or says that a revocation is on record when it is not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.command import Command
from sealgate.errors import ConfigurationError

if TYPE_CHECKING:
    from sealgate.client.dpop import DpopKey

_ISSUE = "issue"


def _state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")


# issue ---------------------------------------------------------------------------------------------------------------


def _configure_issue(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="bind it to this client certificate (RFC 8705)")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--jkt", metavar="THUMBPRINT", help="bind it to the DPoP key of this RFC 7638 thumbprint")
    key.add_argument(
        "--dpop-key", type=Path, metavar="PEM", help="bind it to this DPoP key (RFC 9449); made if it is not there"
    )
    parser.add_argument("--out", type=Path, help="write to this file (0600) instead of printing")


def _issue(arguments: argparse.Namespace) -> int:
    from gateway.provisioning import issue_token, purposes_of
    from sealgate.ambient import now_us
    from sealgate.deployment import open_deployment

    deployment = open_deployment(arguments.state)
    token = issue_token(
        deployment,
        subject=arguments.subject,
        tenant=arguments.tenant,
        roles=arguments.role or ["client"],
        purposes=arguments.purpose,
        lifetime_s=arguments.lifetime,
        now=now_us() - arguments.issued_ago * 1_000_000,
        confirmation=_confirmation(arguments),
    )
    known = purposes_of(deployment, arguments.tenant)
    for purpose in arguments.purpose:
        if purpose not in known:
            has = ", ".join(known) or "none"
            print(
                f"note: the policy gives tenant {arguments.tenant!r} no purpose {purpose!r}, so requests for it are "
                f"refused; it has: {has}",
                file=sys.stderr,
            )
    if arguments.out is None:
        print(token)
    else:
        _write_private(arguments.out, token + "\n")
        print(f"wrote {arguments.out}", file=sys.stderr)
    return 0


def _confirmation(arguments: argparse.Namespace) -> dict[str, str]:
    members: dict[str, str] = {}
    if arguments.certificate is not None:
        import hashlib

        from sealgate.client.credentials import ClientCertificate
        from sealgate.protocol.dpop import to_base64url

        leaf = ClientCertificate(arguments.certificate, arguments.certificate).leaf()
        members["x5t#S256"] = to_base64url(hashlib.sha256(leaf).digest())
    if arguments.jkt is not None:
        members["jkt"] = arguments.jkt
    if arguments.dpop_key is not None:
        members["jkt"] = _dpop_key(arguments.dpop_key).jkt
    return members


def _dpop_key(path: Path) -> DpopKey:
    from sealgate.client.dpop import DpopKey

    if path.exists():
        return DpopKey.load(path)
    key = DpopKey.generate()
    key.write(path)
    print(f"wrote {path}", file=sys.stderr)
    return key


def _write_private(path: Path, text: str) -> None:
    import os

    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


# revoke, restore, revocations ----------------------------------------------------------------------------------------


def _configure_selection(parser: argparse.ArgumentParser) -> None:
    _state(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--jti", help="one token, by its id")
    what.add_argument("--token-file", type=Path, metavar="FILE", help="one token, by its text in a file")
    what.add_argument("--subject", help="every token of this caller; needs --tenant")
    what.add_argument(
        "--every", action="store_true", help="every token (of --tenant, --issuer) that --issued-before is true of"
    )
    parser.add_argument("--tenant", help="only tokens of this tenant")
    parser.add_argument("--issuer", help="only tokens of this issuer, named as in issuers.toml")
    parser.add_argument(
        "--issued-before", metavar="TIME", help="only tokens issued before: `now`, 2030-01-31T12:00, or an age as 90m"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the file and the record")


def _configure_revoke(parser: argparse.ArgumentParser) -> None:
    _configure_selection(parser)
    parser.add_argument("--until", metavar="TIME", help="when the revocation ends (default: when it cannot matter)")


def _revoke(arguments: argparse.Namespace) -> int:
    from gateway.token_revocation import revoke

    return revoke(arguments)


def _restore(arguments: argparse.Namespace) -> int:
    from gateway.token_revocation import restore

    return restore(arguments)


def _configure_revocations(parser: argparse.ArgumentParser) -> None:
    _state(parser)
    parser.add_argument("--json", action="store_true", help="the same for machines")


def _revocations(arguments: argparse.Namespace) -> int:
    from gateway.token_revocation import show

    return show(arguments)


# inspect -------------------------------------------------------------------------------------------------------------


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    _state(parser)
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="where the token is (default: the variable SEALGATE_TOKEN)"
    )
    parser.add_argument("--json", action="store_true", help="the same for machines")


def _inspect(arguments: argparse.Namespace) -> int:
    from gateway.token_inspection import inspect

    return inspect(arguments)


# The command ---------------------------------------------------------------------------------------------------------

_ACTIONS = {
    _ISSUE: Command(
        summary="issue a token for trials; `sealgate token STATE ...` is the same",
        description="Signs a token with the local issuer of the deployment in STATE. A real deployment lists its "
        "identity provider in tokens/issuers.toml instead. A token gets what the policy allows, not what it claims.",
        configure=_configure_issue,
        run=_issue,
    ),
    "inspect": Command(
        summary="what a token says, and whether the gateway would take it now",
        description="Verifies a token as the gateway of STATE would, and says what came out: 0 if it would be taken, "
        "1 if not, with the reason that callers never see. Keys of issuers are fetched if they have to be.",
        configure=_configure_inspect,
        run=_inspect,
    ),
    "revoke": Command(
        summary="refuse tokens from now on",
        description="Effective at once, for requests on open connections too, and put on record by the runtime host "
        "if it runs. Certificates are revoked by `sealgate certificate revoke`.",
        configure=_configure_revoke,
        run=_revoke,
    ),
    "restore": Command(
        summary="take a revocation back",
        description="Name what was revoked in the same words as it was revoked.",
        configure=_configure_selection,
        run=_restore,
    ),
    "revocations": Command(
        summary="list what is revoked",
        description="Everything in tokens/revoked.toml, also what is over by now.",
        configure=_configure_revocations,
        run=_revocations,
    ),
}


class _ActionOrIssue(argparse._SubParsersAction):  # type: ignore[type-arg]
    """An action and its arguments, or the arguments of `issue` alone, as in `sealgate token STATE --tenant ...`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.nargs = argparse.REMAINDER  # unlike PARSER it lets any word come first

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        words = list(values or ())
        if not words:
            parser.error(f"say what to do: {', '.join(self.choices or ())}, or STATE to issue a token")
        if words[0] in ("-h", "--help"):
            parser.print_help()
            parser.exit()
        issue = () if words[0] in (self.choices or ()) else (_ISSUE,)
        super().__call__(parser, namespace, [*issue, *words], option_string)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"%(prog)s [-h] {{{','.join(_ACTIONS)}}} STATE ..."
    actions = parser.add_subparsers(
        action=_ActionOrIssue,
        dest="token_action",
        metavar="ACTION",
        required=True,
        title="actions",
        prog="sealgate token",
    )
    for name, command in _ACTIONS.items():
        command.configure(actions.add_parser(name, help=command.summary, description=command.description))


def _run(arguments: argparse.Namespace) -> int:
    return _ACTIONS[arguments.token_action].run(arguments)


TOKEN = Command(
    summary="issue tokens for trials; look at, revoke and restore tokens",
    description="`sealgate token ACTION --help` explains each action. `sealgate token STATE ...` issues a token.",
    configure=_configure,
    run=_run,
    extra="server",
)
