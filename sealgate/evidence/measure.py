"""What a runtime says of the software that it is: digests of code, packages, interpreter, configuration, environment.

Each value is the SHA-256, lowercase hex, of a list of lines that anybody can make again from an installation:

    code           every source and data file of the packages that a worker runs from, which are all that it can see
    host-code      the same of the packages that only the host needs: policy and log
    packages       for each installed distribution that they stand on: its name, version, and the digest of its RECORD,
                   the installer's own list of files with their digests
    interpreter    the version of Python and the bytes of its executable
    configuration  the boot plan of the worker, without paths of the machine, key numbers and keys of models
    environment    every variable that the worker is given, by name and value: a list of what is allowed, nothing else
    publishers     whose signature on a bundle counts
    bundles        each loaded model with the digests of its weights and its certificate, which names the manifest

Trusts: the file system; the code that computes a digest is itself among what it describes, so that this is worth what
the grade of the evidence says. Never: reads a package's files where the installer's list names their digests; imports
anything of the worker's libraries.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from sealgate.protocol.canonical import canonical_json
from sealgate.protocol.frames import BootPlan, ModelFacts

CODE_PACKAGES = ("sealgate", "secure_runtime")
HOST_PACKAGES = ("policy", "audit")
DISTRIBUTIONS = (
    "torch",
    "numpy",
    "cryptography",
    "msgspec",
    "cedarpy",
    "dp-accounting",
    "safetensors",
    "scipy",
    "sqlalchemy",
    "uvloop",
    "hvac",
    "requests",
    "boto3",
    "botocore",
    "nvidia-ml-py",
)
"""What answers, opens, accounts, decides, asks a key service or a device; what is not installed is passed over."""

_SUFFIXES = frozenset({".py", ".sql", ".cedar", ".cedarschema", ".toml", ".txt"})
_NOT_CONFIGURED = frozenset(
    {"models_dir", "publishers_file", "sys_path", "model_keys", "avoid_key_ids", "bundles", "number"}
)
"""Paths and secrets; and what is loaded, which `bundles` states."""
_ABSENT = hashlib.sha256(b"absent").hexdigest()


def measure_code(packages: Sequence[str] = CODE_PACKAGES) -> str:
    """`code`, from the packages as they are found here; the same for a checkout and for what was installed from it."""
    lines: list[str] = []
    for name in packages:
        spec = importlib.util.find_spec(name)
        for place in spec.submodule_search_locations or () if spec else ():
            root = Path(place)
            files = (path for path in root.rglob("*") if path.suffix in _SUFFIXES and "__pycache__" not in path.parts)
            lines += [f"{name}/{path.relative_to(root).as_posix()} {_file_digest(path)}" for path in files]
    return _digest(lines)


def measure_packages(names: Iterable[str] = DISTRIBUTIONS) -> str:
    """`packages`: what the installer wrote down about each distribution. Compiled files (.pyc) are made later, and do
    not count."""
    lines = []
    for name in names:
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        record = sorted(line for line in (found.read_text("RECORD") or "").splitlines() if _is_lasting(line))
        lines.append(f"{name} {found.version} {_digest(record)}")
    return _digest(lines)


def measure_interpreter() -> str:
    """`interpreter`: what Python this process, and with it every worker, runs in."""
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return _digest([version, _file_digest(Path(sys.executable).resolve())])


def measure_configuration(plan: BootPlan) -> str:
    """`configuration` of a worker that is started with this plan."""
    settings = {name: value for name, value in msgspec.to_builtins(plan).items() if name not in _NOT_CONFIGURED}
    return hashlib.sha256(canonical_json(settings)).hexdigest()


def measure_environment(environment: Mapping[str, str]) -> str:
    """`environment` of a process that has exactly these variables."""
    return hashlib.sha256(canonical_json(dict(environment))).hexdigest()


def measure_models(models: Iterable[ModelFacts]) -> str:
    """`bundles`: what is served, whatever else lies in the folder of models."""
    return _digest(f"{one.name} {one.version} {one.model_digest} {one.certificate_digest}" for one in models)


def measure_host(plan: BootPlan, *, environment: Mapping[str, str]) -> dict[str, str]:
    """Everything that stands before the worker runs; `measure_models` comes when it has spoken."""
    publishers = Path(plan.publishers_file)
    return {
        "code": measure_code(),
        "host-code": measure_code(HOST_PACKAGES),
        "packages": measure_packages(),
        "interpreter": measure_interpreter(),
        "configuration": measure_configuration(plan),
        "environment": measure_environment(environment),
        "publishers": _file_digest(publishers) if publishers.exists() else _ABSENT,
    }


def _is_lasting(line: str) -> bool:
    """Whether a line of a RECORD is about a file that two installations of the same wheel have in common."""
    path = line.split(",", 1)[0]
    own = path.rsplit("/", 1)[-1] in ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")
    return bool(path) and not path.endswith(".pyc") and not own and not path.startswith("..")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()
