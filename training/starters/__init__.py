"""Configurations to begin from, one per family and variant: links to the project's examples, so that there is one text.

`sealgate train --example NAME` writes one of them as a file of one's own. A link's name is what it is called there.
Trusts: the files beside this one. Never: holds a copy, which could drift.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from sealgate.errors import ConfigurationError

_SUFFIX = ".toml"
_COMMAND = re.compile(r"(sealgate train )\S+\.toml")
_ROWS = re.compile(r"(python examples/\S+\.py (?:\w+ )?)examples/\S+/(\S+)")  # a program that makes the rows


def starters() -> dict[str, str]:
    """Every configuration by name."""
    files = (file for file in resources.files(__name__).iterdir() if file.name.endswith(_SUFFIX))
    return {file.name.removesuffix(_SUFFIX): file.read_text(encoding="utf-8") for file in sorted(files, key=str)}


def summary_of(text: str) -> str:
    """The first sentence of a configuration: what it asks."""
    return text.split("\n", 1)[0].removeprefix("#").strip()


def write_starter(name: str, path: Path) -> None:
    """Write it; raises ConfigurationError for a name that there is not, or a file that there is."""
    known = starters()
    if name not in known:
        raise ConfigurationError(f"--example knows no '{name}'; there are: {', '.join(known)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            beside = _ROWS.sub(lambda found: found[1] + str(path.parent / found[2]), known[name])
            file.write(_COMMAND.sub(lambda found: found[1] + str(path), beside))
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists; name another file, as in --example {name} OTHER.toml") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
