"""What every client command asks for: the trust file, and who asks. Tokens come from a file or the environment only.

Never: a token on the command line, where other users of the machine can read it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sealgate.client.credentials import ClientCertificate
    from sealgate.client.dpop import DpopKey
    from sealgate.evidence.trust import Trust

TOKEN_VARIABLE = "SEALGATE_TOKEN"  # noqa: S105  # the name of a variable, not a token


@dataclass(frozen=True)
class Connection:
    """Where to ask and as whom."""

    trust: Trust
    token: str | None
    certificate: ClientCertificate | None
    dpop_key: DpopKey | None
    proxy: str | None
    timeout_s: float

    def __repr__(self) -> str:
        return f"Connection({self.trust.url})"


def add_trust(parser: argparse.ArgumentParser) -> None:
    """`--trust`."""
    parser.add_argument(
        "--trust",
        type=Path,
        required=True,
        metavar="PATH",
        help="the trust file that the service's operator handed out, or the directory with trust.toml and ca.pem",
    )


def add_connection(parser: argparse.ArgumentParser) -> None:
    """`--trust`, the credential, and how to get there."""
    add_trust(parser)
    group = parser.add_argument_group(
        "credential", f"a bearer token (a file, or the variable {TOKEN_VARIABLE}), or mTLS"
    )
    group.add_argument("--token-file", type=Path, metavar="FILE", help="file that holds the token")
    group.add_argument("--dpop-key", type=Path, metavar="PEM", help="private key that the token is bound to (DPoP)")
    group.add_argument("--client-cert", type=Path, metavar="PEM", help="client certificate, for mTLS")
    group.add_argument("--client-key", type=Path, metavar="PEM", help="its private key")
    group = parser.add_argument_group("network")
    group.add_argument("--proxy", metavar="URL", help="HTTP proxy; HTTPS_PROXY and NO_PROXY are respected anyway")
    group.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="longest silence of the service (default 60)"
    )


def read_connection(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Connection:
    """The connection that the arguments ask for; raises ConfigurationError that says what is missing."""
    from sealgate.client.credentials import ClientCertificate, read_token_file
    from sealgate.client.dpop import DpopKey
    from sealgate.client.errors import UsageError
    from sealgate.evidence.trust import load_trust

    certificate, key = arguments.client_cert, arguments.client_key
    if (certificate is None) != (key is None):
        raise UsageError("--client-cert and --client-key go together: give both")
    if not 0 < arguments.timeout <= 3600:
        raise UsageError("--timeout must be between 0 and 3600 seconds")
    token = read_token_file(arguments.token_file) if arguments.token_file else environment.get(TOKEN_VARIABLE) or None
    if token is None and certificate is None:
        raise UsageError(
            f"no credential: give --token-file, set {TOKEN_VARIABLE}, or give --client-cert and --client-key"
        )
    if arguments.dpop_key is not None and token is None:
        raise UsageError("--dpop-key goes with a token that is bound to it: give --token-file too")
    return Connection(
        trust=load_trust(arguments.trust),
        token=token,
        certificate=ClientCertificate(certificate, key) if certificate else None,
        dpop_key=DpopKey.load(arguments.dpop_key) if arguments.dpop_key else None,
        proxy=arguments.proxy,
        timeout_s=arguments.timeout,
    )
