"""`sealgate witness`: be the one who remembers what a log has shown. Run it where the log's operator cannot reach.

Needs the base install only. Light at import. Never: runs with the log's keys; a witness beside the log proves little.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from sealgate.client.arguments import add_connection, read_connection
from sealgate.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="witness_command", metavar="ACTION", required=True)

    init = commands.add_parser("init", help="make a witness with keys of its own", description=_init.__doc__)
    init.add_argument("--name", required=True, help="the witness's name, for example compliance.example/witness")
    _finish(init, _init)

    add = commands.add_parser("add-log", help="cosign for one more log", description=_add_log.__doc__)
    _finish(add, _add_log)
    add.add_argument("key", metavar="VKEY", help="the log's key, as in log_keys of the operator's trust.toml")

    watch = commands.add_parser("watch", help="look at a log and cosign if it only grew", description=_watch.__doc__)
    watch.add_argument("--every", type=float, metavar="SECONDS", help="look again and again (default: once)")
    add_connection(watch)
    _finish(watch, _watch)

    serve = commands.add_parser("serve", help="answer logs that submit checkpoints", description=_serve.__doc__)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    serve.add_argument("--port", type=int, default=8444, help="port to listen on (default %(default)s)")
    serve.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate chain; without one HTTP is in clear")
    serve.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    _finish(serve, _serve)

    show = commands.add_parser("show", help="keys, logs, and what was cosigned last", description=_show.__doc__)
    show.add_argument("--json", action="store_true", help="print JSON instead of text")
    _finish(show, _show)


def _finish(parser: argparse.ArgumentParser, action: Any) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the witness's folder")
    parser.set_defaults(_witness_action=action)


def _run(arguments: argparse.Namespace) -> int:
    return int(arguments._witness_action(arguments))


def _init(arguments: argparse.Namespace) -> int:
    """Make a witness: an Ed25519 and an ML-DSA-44 key, and an empty memory. Hand its keys to those who verify."""
    from sealgate.witness.folder import POLICY, make_folder

    folder = make_folder(arguments.folder, name=arguments.name)
    print(f"A witness is ready in {folder.root}. Its keys, for whoever verifies: {folder.root / POLICY}")
    print("Go on with:")
    print(f"  sealgate witness add-log {shlex.quote(str(folder.root))} VKEY")
    return 0


def _add_log(arguments: argparse.Namespace) -> int:
    """Cosign for one more log. The key comes from the log's operator, over a way that you trust: it is the anchor."""
    from sealgate.witness.folder import add_log

    print(f"this witness knows the log {add_log(arguments.folder, arguments.key).name}")
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    """Fetch the newest checkpoint with an auditor's credential; cosign it if the log only grew since the last look.
    A log that went back or shows another history ends this with exit code 1, and both checkpoints are kept as proof."""
    import threading

    from sealgate.client.audit import AuditClient
    from sealgate.client.errors import UsageError
    from sealgate.terminal import printable, say
    from sealgate.witness.folder import open_folder
    from sealgate.witness.watch import watch_once

    if arguments.every is not None and not 1 <= arguments.every <= 86_400:
        raise UsageError("--every must be from 1 to 86400 seconds")
    folder, connection = open_folder(arguments.folder), read_connection(arguments)
    pause = threading.Event()
    with AuditClient(
        connection.trust,
        token=connection.token,
        certificate=connection.certificate,
        proxy=connection.proxy,
        timeout=connection.timeout_s,
    ) as client:
        while True:
            seen = watch_once(client, folder)
            same = seen.before == seen.checkpoint.size
            grown = "still has" if same else f"grew from {seen.before} to" if seen.before else "first seen with"
            origin = printable(seen.checkpoint.origin)
            say(f"{origin}: {grown} {seen.checkpoint.size} records; cosigned in {seen.cosigned}")
            if arguments.every is None:
                return 0
            pause.wait(arguments.every)


def _serve(arguments: argparse.Namespace) -> int:
    """Answer `POST /add-checkpoint` of the C2SP witness protocol, until Ctrl-C."""
    from sealgate.client.errors import UsageError
    from sealgate.terminal import say
    from sealgate.witness.folder import open_folder
    from sealgate.witness.server import WitnessServer, server_tls

    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together: give both")
    folder = open_folder(arguments.folder)
    tls = server_tls(arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
    server = WitnessServer((arguments.host, arguments.port), folder.witness(tell=say), tls=tls, tell=say)
    scheme = "https" if tls else "http (in clear)"
    logs = "1 log" if len(folder.logs) == 1 else f"{len(folder.logs)} logs"
    say(f"{folder.name} answers for {logs} on {scheme}, {arguments.host} port {server.server_port}")
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    """The witness's keys, the logs that it knows, and the newest checkpoint of each that it cosigned."""
    import datetime
    import json

    from sealgate.terminal import printable, render_table
    from sealgate.witness.folder import open_folder

    folder = open_folder(arguments.folder)
    store = folder.store
    seen = dict.fromkeys(sorted(folder.logs)) | {one.checkpoint.origin: one for one in store.every()}
    times = {
        origin: datetime.datetime.fromtimestamp(one.seen_us / 1e6, datetime.UTC).isoformat(timespec="seconds")
        for origin, one in seen.items()
        if one
    }
    keys = [cosigner.public.vkey for cosigner in folder.cosigners]
    if arguments.json:
        logs = {
            origin: {"size": one.checkpoint.size, "root": one.checkpoint.root.hex(), "seen": times[origin]}
            if one
            else {}
            for origin, one in seen.items()
        }
        print(json.dumps({"name": folder.name, "keys": keys, "logs": logs}, indent=2))
        return 0
    print(
        f"{printable(folder.name)}\n" + "\n".join(f"  {key[:100]}…" if len(key) > 100 else f"  {key}" for key in keys)
    )
    rows = [
        (
            origin,
            one.checkpoint.size if one else 0,
            one.checkpoint.root.hex()[:16] if one else "",
            times.get(origin, "never"),
        )
        for origin, one in seen.items()
    ]
    print("\n" + (render_table(("log", "records", "root", "cosigned"), rows) if rows else "It knows no log yet."))
    return 0


WITNESS = Command(
    summary="remember what a log has shown, and cosign it",
    description="A witness keeps the newest checkpoint of each log that it knows and cosigns only what extends it, so "
    "a log that rewrites or splits its history is found out. Run it where the log's operator has no access.",
    configure=_configure,
    run=_run,
)
