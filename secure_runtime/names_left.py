"""Where else in a state directory a person's name stands, once the log has erased it.

Budgets of one caller, mappings of certificates and policies name people, versions of the policy are kept for good, and
revocations name whom they refuse. Erasing the log's row changes none of them: whoever erases must be told of each.

Trusts: the state directory. Never: changes a file, or prints the name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sealgate.deployment import Deployment

_MAX_FILE = 4 * 1024 * 1024


def files_that_name(deployment: Deployment, subject: str) -> list[Path]:
    """Files of policies and tokens that hold the name as a text of its own, and those that could not be read."""
    found = []
    for root in (deployment.policy, deployment.policy_history, deployment.tokens):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".toml", ".cedar", ".json") and path.is_file() and _names(path, subject):
                found.append(path)
    return found


def _names(path: Path, subject: str) -> bool:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE).decode()
        if path.suffix == ".toml":
            return subject in _texts(tomllib.loads(text))
    except (OSError, ValueError, RecursionError):
        return True  # nobody can say that it does not
    return json.dumps(subject) in text or json.dumps(subject, ensure_ascii=False) in text


def _texts(value: Any) -> Iterator[str]:
    """Every text in a document, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
