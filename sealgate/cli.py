"""The command `sealgate`. Finds its commands by entry points, so it imports nothing above itself.

Exit codes: 0 done, 1 refused or failed (one line on standard error says what and how to mend it), 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version

from sealgate.command import Command
from sealgate.errors import SealgateError
from sealgate.terminal import printable

_ORDER = (
    "demo",
    "init",
    "serve",
    "train",
    "models",
    "infer",
    "explain",
    "attest",
    "audit",
    "token",
    "certificate",
    "policy",
    "gateway",
    "runtime",
    "doctor",
)


def _registered() -> list[EntryPoint]:
    found = {point.name: point for point in entry_points(group="sealgate.commands")}
    known = [found.pop(name) for name in _ORDER if name in found]
    return known + [found[name] for name in sorted(found)]


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Command modules are light, so all of them are loaded here."""
    parser = argparse.ArgumentParser(
        prog="sealgate",
        description="Secure inference whose privacy can be checked: sealed requests, certified models, verifiable log.",
        epilog="`sealgate COMMAND --help` explains each command. Start with `sealgate demo`.",
    )
    parser.add_argument("--version", action="version", version=f"sealgate {version('sealgate')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for point in _registered():
        command = point.load()
        if not isinstance(command, Command):
            raise TypeError(f"entry point {point.name} is not a Command")
        sub = commands.add_parser(point.name, help=command.summary, description=command.description)
        command.configure(sub)
        sub.set_defaults(_command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    command: Command = arguments._command
    try:
        return command.run(arguments)
    except SealgateError as error:
        # What is wrong may quote what was read from elsewhere.
        print(f"sealgate: {printable(str(error))}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not command.extra or package in {"sealgate", "gateway", "secure_runtime", "training", "policy", "audit"}:
            raise
        print(
            f"sealgate: this command needs the package '{package}'; install it, in a checkout of Sealgate, with: "
            f"pip install -c constraints.txt '.[{command.extra}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("sealgate: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (as `| head` does): not an error worth a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A file that another user owns, a disk that is full: to be mended by a person. Anything else is a fault.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        name = f"{error.filename}: " if error.filename is not None else ""
        print(f"sealgate: {printable(f'{name}{error.strerror}')}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
