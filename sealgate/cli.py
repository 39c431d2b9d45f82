"""The command `sealgate`. Finds its commands by entry points, so it imports nothing above itself.

Exit codes: 0 done, 1 refused or failed (one line on standard error says what and how to mend it), 2 wrong usage,
130 interrupted. What it needs is imported inside `main`, so that it can be interrupted from its first moment on; and of
the commands only the one that is asked for.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from importlib.metadata import EntryPoint

    from sealgate.command import Command

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
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group="sealgate.commands")}
    known = [found.pop(name) for name in _ORDER if name in found]
    return known + [found[name] for name in sorted(found)]


def build_parser(asked: str = "") -> argparse.ArgumentParser:
    """The command line: of the command that is `asked` for, or, if there is none of that name, of all of them."""
    import argparse
    from importlib.metadata import version

    from sealgate.command import Command

    parser = argparse.ArgumentParser(
        prog="sealgate",
        description="Secure inference whose privacy can be checked: sealed requests, certified models, verifiable log.",
        epilog="`sealgate COMMAND --help` explains each command. Start with `sealgate demo`.",
    )
    parser.add_argument("--version", action="version", version=f"sealgate {version('sealgate')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    points = _registered()
    for point in [one for one in points if one.name == asked] or points:
        command = point.load()
        if not isinstance(command, Command):
            raise TypeError(f"entry point {point.name} is not a Command")
        sub = commands.add_parser(point.name, help=command.summary, description=command.description)
        command.configure(sub)
        sub.set_defaults(_command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        arguments = build_parser(given[0] if given else "").parse_args(given)
        return _run(arguments._command, arguments)
    except KeyboardInterrupt:
        print("sealgate: interrupted", file=sys.stderr)
        return 130


def _run(command: Command, arguments: argparse.Namespace) -> int:
    import errno
    import os

    from sealgate.errors import SealgateError
    from sealgate.terminal import printable

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
