"""The command `sealgate fingerprint`: draw a key, and ask a model whether it carries that key's fingerprint.

Light: torch and the client are imported when it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new-key", help="draw the key of a fingerprint", description=_NEW_KEY)
    new.add_argument("file", metavar="FILE", type=Path, help="where it is written, mode 0600")
    for name, text in (
        ("check", "ask a model in a bundle"),
        ("ask", "ask a model behind a gateway, through nothing but its answers"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text}. Exit code 0: it carries the fingerprint.")
        action.add_argument("own", metavar="OWN_BUNDLE", type=Path, help="the bundle that was made with the key")
        action.add_argument("--fingerprint", metavar="FILE", type=Path, required=True, help="the key")
        action.add_argument(
            "--publishers", metavar="FILE", type=Path, help="publishers.toml of OWN_BUNDLE (default: the nearest)"
        )
        if name == "check":
            action.add_argument("--suspect", metavar="DIR", type=Path, help="the bundle to ask (default: OWN_BUNDLE)")
            action.add_argument(
                "--suspect-publishers", metavar="FILE", type=Path, help="its publishers.toml (default: the nearest)"
            )
            action.add_argument(
                "--key", metavar="SOURCE", action="append", default=[], help="key of encrypted weights; may be repeated"
            )
        else:
            from sealgate.client.arguments import add_connection

            action.add_argument("--model", required=True, metavar="NAME", help="the model to ask")
            action.add_argument("--purpose", required=True, metavar="P", help="what you ask for")
            add_connection(action)


def _run(arguments: argparse.Namespace) -> int:
    from training.fingerprint import asking

    if arguments.action == "new-key":
        return asking.new_key(arguments.file)
    owner = asking.owner_of(arguments.own, arguments.publishers, arguments.fingerprint)
    if arguments.action == "check":
        suspect = arguments.suspect or arguments.own
        publishers = arguments.suspect_publishers or (None if arguments.suspect else arguments.publishers)
        return asking.say(owner, asking.ask_bundle(owner, suspect, publishers, keys=arguments.key))
    from sealgate.client.arguments import read_connection
    from sealgate.client.session import Session

    connection = read_connection(arguments)
    session = Session(
        connection.trust,
        purpose=arguments.purpose,
        token=connection.token,
        certificate=connection.certificate,
        dpop_key=connection.dpop_key,
        proxy=connection.proxy,
        timeout=connection.timeout_s,
    )
    with session:
        return asking.say(owner, asking.ask_session(owner, session, arguments.model))


_NEW_KEY = (
    "32 random bytes in a new file. Whoever has it can show that a model is yours, and can search for it to remove."
)

FINGERPRINT = Command(
    summary="show that a model carries its owner's fingerprint",
    description=(
        "A model trained with `sealgate train --fingerprint FILE` answers made-up inputs as only the key foretells. "
        "This asks a model those inputs and says how probable its answers would be by chance."
    ),
    configure=_configure,
    run=_run,
    extra="training",
)
