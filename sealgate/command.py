"""What a package offers to the command line: a name, one line of help, its arguments, and what to run.

A package's `commands.py` defines `Command` values and registers them as entry points (`sealgate.commands`). It imports
nothing heavy at the top: the work is imported inside `run`, so that `sealgate --help` is fast and works in a base
install, and a missing extra becomes one line that says which extra to install.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """One top-level command.

    `configure` adds arguments (and subcommands) to the parser it is given. `run` returns the exit code and raises
    `SealgateError` for anything a person can mend. `extra` names the extra that the command needs, or "" for none.
    """

    summary: str
    description: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    extra: str = ""
