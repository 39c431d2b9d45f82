"""Where bundles lie in a folder of models, and which version of a model comes before which.

    models/NAME/              a bundle: one version of a model
    models/NAME/VERSION/      bundles of one model, each folder named by the version that its manifest states
    .../members/MEMBER/       bundles inside a bundle: it is a pipeline, and these are its members

A folder is a bundle if it holds a file `manifest.json`, and otherwise a folder of versions if it holds folders. What is
neither is still named, so that a worker refuses it aloud. Names that begin with a dot are passed over.

Trusts: nothing that a folder says; that a bundle is what its folder is called is checked when it is loaded. Never:
reads a bundle, follows a link out of the folder of models, or lists more than it may.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sealgate.certificate.files import MANIFEST, open_folder
from sealgate.errors import CertificateError
from sealgate.limits import MAX_BUNDLES

MEMBERS = "members"
_PARTS = re.compile(r"[0-9]+|[A-Za-z]+")


@dataclass(frozen=True)
class Place:
    """One bundle's place. `called` is its path below the folder of models, "NAME" or "NAME/VERSION"."""

    called: str
    path: Path

    @property
    def model(self) -> str:
        """The first folder's name; of a folder of versions, the model's."""
        return self.called.partition("/")[0]

    @property
    def version(self) -> str:
        """The version that the manifest must state; "" where the layout says none."""
        return self.called.partition("/")[2]


def is_pipeline(directory: Path) -> bool:
    """Whether the folder is to be verified as a pipeline. A bundle with such a folder in it is none of the two."""
    return (directory / MEMBERS).is_dir() and not directory.is_symlink()


def places_of(models: Path, *, most: int = MAX_BUNDLES) -> list[Place]:
    """Every place below `models`, by name, so many at most; raises OSError if `models` cannot be listed."""
    found: list[Place] = []
    for name in _folders(models):
        folder = models / name
        versions = [] if os.path.lexists(folder / MANIFEST) else _versions(folder)
        if versions:
            found += [Place(f"{name}/{version}", folder / version) for version in versions]
        else:
            found.append(Place(name, folder))
        if len(found) >= most:
            break
    return found[:most]


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def _versions(folder: Path) -> list[str]:
    """The real folders in a folder; a link is none, and in a link there are none: who can only write into `models` is
    not told, by what is listed and refused, what other folders hold. Nor in a bundle without its manifest."""
    try:
        with open_folder(folder) as opened:
            place = folder if opened.descriptor is None else opened.descriptor
            with os.scandir(place) as entries:
                return sorted(
                    (entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."),
                    key=version_order,
                )
    except (OSError, CertificateError):
        return []


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """What to sort versions by: number by number, and a number comes after a word ("1.0" after "1.0rc1")."""
    parts = [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in _PARTS.findall(version)]
    return (*parts, (1, -1, ""))
