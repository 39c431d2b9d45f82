"""Where a training run will write, checked before it begins: training spends time and privacy.

Trusts: the paths it is given. Never: lets a run write over what it reads (rows, configuration, signing key), nor over a
private file that is there already, unless told to replace it.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sealgate.certificate.architectures.spec import Spec
from sealgate.certificate.manifest import Manifest, manifest_bytes
from sealgate.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a run writes beside its bundle; None: not wanted."""

    heldout_csv: Path | None
    commitment_key: Path | None


def check_outputs(outputs: Outputs, *, models_dir: Path, inputs: tuple[Path, ...], replace: bool) -> None:
    """Raise ConfigurationError, naming the file and what to do, unless every file can be written and none is lost."""
    _check_folder(models_dir)
    read = {path.resolve(): path for path in inputs}
    taken: set[Path] = set()
    for path in (outputs.heldout_csv, outputs.commitment_key):
        if path is None:
            continue
        place = path.resolve()
        if place in read:
            raise ConfigurationError(f"{path} is what this run reads from, and would be lost; name another file")
        if place in taken:
            raise ConfigurationError(f"{path} is named for two files; name another one for each")
        taken.add(place)
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder; name a file")
        if os.path.lexists(path) and not replace:
            raise ConfigurationError(f"{path} exists; move it away or name another file, or say --replace")
        _check_folder(path.parent)


def require_space(folder: Path, manifest: Manifest, *, checkpoints: bool) -> None:
    """Raise ConfigurationError if the disk of `folder` has not the room that the bundle takes at least: its weights and
    manifest, and with `checkpoints` the trained weights once more. What others write meanwhile is said at the end."""
    needed = len(manifest_bytes(manifest)) + _weights_size(manifest.architecture)
    needed += _weights_size(manifest.architecture.trained_part()) if checkpoints else 0
    free = shutil.disk_usage(_nearest(folder)).free
    if free < needed:
        raise ConfigurationError(
            f"the bundle takes at least {needed:,} bytes, and {free:,} are free where {folder} is; make room, or name "
            f"another --out"
        )


def _weights_size(architecture: Spec) -> int:
    return sum(4 * math.prod(shape) for shape in architecture.tensors().values())  # FP32


def _nearest(folder: Path) -> Path:
    """The nearest folder that is there."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    return there


def _check_folder(folder: Path) -> None:
    """The nearest folder that is there must be one, and writable: the ones below it are made when needed."""
    there = _nearest(folder)
    if not there.is_dir():
        raise ConfigurationError(f"nothing can be written to {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"nothing can be written to {folder}: no permission")
