"""`manifest.toml`: what a policy directory calls itself. It decides nothing, and stands in the record of every change.

Trusts: whoever may write the file. Never: accepts an unknown field or text that could not be shown in one line.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from policy.limits import MAX_MANIFEST_TEXT
from policy.toml import Name, parse_toml

FILE = "manifest.toml"

_Text = Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{0,{MAX_MANIFEST_TEXT}}}\Z")]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of `manifest.toml`. `version` is the writer's own; the digest is what identifies."""

    name: Name
    version: Name
    description: _Text = ""
    owner: _Text = ""


NAMELESS = Manifest(name="unnamed", version="0")
"""What a directory without the file is taken for: it may be in force already, but it cannot be applied."""


def parse_manifest(data: bytes, *, name: str = FILE) -> Manifest:
    """Parse the file's bytes; `name` is what errors call it. Raises PolicyFileError."""
    return parse_toml(data, Manifest, name=name)
