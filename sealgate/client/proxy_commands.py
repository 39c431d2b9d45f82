"""`sealgate proxy`: programs on this machine ask in plain HTTP, and what leaves the machine is sealed."""

from __future__ import annotations

import argparse

from sealgate.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    from sealgate.client.arguments import add_connection

    parser.add_argument("--purpose", required=True, metavar="P", help="what is asked for; the policy decides by it")
    parser.add_argument("--model", metavar="NAME", help="one that may be read, for questions about the server itself")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="a loopback address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0: any that is free")
    add_connection(parser)


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.client.arguments import read_connection
    from sealgate.client.errors import UsageError
    from sealgate.client.local_proxy import Asker, LocalProxy
    from sealgate.client.transport import SealedTransport
    from sealgate.errors import ConfigurationError
    from sealgate.terminal import say

    connection = read_connection(arguments)
    if not 0 <= arguments.port < 65536:
        raise UsageError("--port must be between 0 and 65535")
    transport = SealedTransport(
        connection.trust,
        purpose=arguments.purpose,
        token=connection.token,
        certificate=connection.certificate,
        dpop_key=connection.dpop_key,
        proxy=connection.proxy,
        timeout=connection.timeout_s,
    )
    asker = Asker(transport, model=arguments.model, timeout_s=connection.timeout_s)
    try:
        server = LocalProxy(arguments.host, arguments.port, asker)
    except OSError as error:
        taken = f"{arguments.host}:{arguments.port}: {error.strerror}"
        raise ConfigurationError(f"{taken}; stop what listens there, or choose another --port") from error
    say(f"{server.url} asks {connection.trust.url}, sealed, for {arguments.purpose}; Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        asker.close()
    return 0


PROXY = Command(
    summary="let programs on this machine ask in plain HTTP, sealed from here on",
    description="Listens on a loopback address for the Open Inference Protocol (tritonclient, KServe's client, curl), "
    "seals each request, and hands on answers whose evidence, receipt and seal hold. Whoever may connect to the port "
    "asks with the credential that is given here.",
    configure=_configure,
    run=_run,
)
