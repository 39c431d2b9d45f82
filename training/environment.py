"""What ran: a digest of the code that trains, and the versions of the packages that do the arithmetic."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import sealgate.certificate
import secure_runtime.models
import training
from sealgate.certificate.schema import Environment
from sealgate.protocol.canonical import canonical_json

_PACKAGES = ("torch", "opacus", "dp-accounting", "numpy", "scipy", "cryptography", "safetensors")


def code_digest() -> str:
    """SHA-256 over names and contents of the source files that decide what a training run does."""
    found: dict[str, str] = {}
    for package in (sealgate.certificate, secure_runtime.models, training):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            found[f"{package.__name__}/{path.relative_to(folder).as_posix()}"] = hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
    return hashlib.sha256(canonical_json(found)).hexdigest()


def environment(*, gradients: str = "") -> Environment:
    """The environment part of the certificate."""
    return Environment(
        code_digest=code_digest(),
        packages={name: version(name) for name in _PACKAGES},
        python=platform.python_version(),
        gradients=gradients,
    )
