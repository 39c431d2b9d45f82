"""The console's style sheet, scripts and icon: package data, read once, each under an address that names its content.

Open to all: they are the same in every deployment. Trusts: the installed package. Never: serves a file that is not in
the list, or from elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

_TYPES = {
    "console.css": "text/css; charset=utf-8",
    "verify.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """One file as it is served."""

    content: bytes
    media_type: str
    address: str


class Assets:
    """All of them. One per process."""

    def __init__(self) -> None:
        folder = resources.files("gateway.console") / "static"
        self._by_name = {name: _asset(name, (folder / name).read_bytes()) for name in _TYPES}

    def address(self, name: str) -> str:
        """Where pages find a file."""
        return self._by_name[name].address

    def find(self, name: str) -> Asset | None:
        """The file of that name."""
        return self._by_name.get(name)


def _asset(name: str, content: bytes) -> Asset:
    version = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content, _TYPES[name], f"/console/static/{name}?v={version}")
