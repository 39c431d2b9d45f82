"""A policy directory on disk: which files count, their digest, and their contents, read exactly once.

    manifest.toml        see policy.manifest; a directory without it loads, but cannot be applied
    schema.cedarschema   what policies may speak about
    *.cedar              the policies; all of them are in force
    tenants.toml         see policy.tenants
    budgets.toml         see policy.budgets
    scenarios/*.toml     see policy.scenarios: they decide nothing, and have a digest of their own
    MANIFEST.json        in a stored version only (policy.history): the listing that the digest is of
    examples/, .*        never read

Any other name is refused: a policy in a file with a misspelt name would silently not be in force. The digest covers the
very bytes that are parsed, so that what a record names is what decided.

Trusts: whoever may write the directory. Never: looks outside it (a symbolic link in it is refused), waits for a file
that is no plain one, or reads a file twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from policy import budgets, manifest, tenants
from policy.budgets import Budget, PrivacyBudget
from policy.errors import PolicyFileError
from policy.limits import MAX_POLICY_FILE, MAX_POLICY_FILES
from policy.manifest import NAMELESS, Manifest
from policy.tenants import Tenants
from sealgate.protocol.canonical import canonical_json

SCHEMA_FILE = "schema.cedarschema"
LISTING_FILE = "MANIFEST.json"
SCENARIOS = "scenarios"
_REQUIRED = (SCHEMA_FILE, tenants.FILE, budgets.FILE)
_KNOWN = (*_REQUIRED, manifest.FILE)
_POLICY_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.cedar")
_SCENARIO_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.toml")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IGNORED_FOLDERS = ("examples", SCENARIOS)


@dataclass(frozen=True, kw_only=True)
class PolicyFiles:
    """Everything that a policy directory says. The policies are text that nobody has judged yet: see policy.cedar."""

    path: Path
    digest: str  # lowercase hex SHA-256
    manifest: Manifest
    schema: str
    policies: dict[str, str]  # file name to text, in order of name
    tenants: Tenants
    budgets: tuple[Budget, ...]
    privacy_budgets: tuple[PrivacyBudget, ...]


def load_files(path: Path, *, digest: str | None = None) -> PolicyFiles:
    """Read and parse a policy directory; raises PolicyFileError with one line that names the file and the field.

    With `digest`, the directory must be the one of that digest, to the byte.
    """
    contents = read_contents(path, stored=digest is not None)
    if digest is not None and digest_of(contents) != digest:
        raise PolicyFileError(f"{path}: has been changed since it was stored; its digest is not {digest[:16]}...")
    for name in _REQUIRED:
        if name not in contents:
            raise PolicyFileError(f"{path / name} is missing; every policy directory needs it")
    found_tenants = tenants.parse_tenants(contents[tenants.FILE], name=str(path / tenants.FILE))
    found_budgets = budgets.parse_budgets(
        contents[budgets.FILE], known_tenants=found_tenants.tenants, name=str(path / budgets.FILE)
    )
    texts = {
        name: _text(path / name, data) for name, data in contents.items() if name.endswith((".cedar", SCHEMA_FILE))
    }
    schema = texts.pop(SCHEMA_FILE)
    return PolicyFiles(
        path=path,
        digest=digest_of(contents),
        manifest=_manifest(path / manifest.FILE, contents.get(manifest.FILE)),
        schema=schema,
        policies=dict(sorted(texts.items())),
        tenants=found_tenants,
        budgets=found_budgets.requests,
        privacy_budgets=found_budgets.privacy,
    )


def read_contents(path: Path, *, stored: bool = False) -> dict[str, bytes]:
    """The files of a policy directory that its digest covers, by name, none of them judged. Raises PolicyFileError.

    A `stored` version has its listing beside them; a folder that is called as one is taken for one.
    """
    ignored = (LISTING_FILE,) if stored or _DIGEST.fullmatch(path.name) else ()
    hint = "policies are named NAME.cedar"
    return _read_folder(path, known=_KNOWN, pattern=_POLICY_FILE, ignored=ignored, hint=hint)


def read_scenarios(path: Path) -> dict[str, bytes]:
    """The scenario files of a policy directory, by name; none if it has no such folder. Raises PolicyFileError."""
    folder = path / SCENARIOS
    if folder.is_symlink():
        raise PolicyFileError(f"{folder}: a symbolic link; a policy directory has its scenarios in itself")
    return read_scenario_folder(folder) if folder.is_dir() else {}


def read_scenario_folder(folder: Path) -> dict[str, bytes]:
    """The scenario files in `folder`, by name, none of them judged. Raises PolicyFileError."""
    return _read_folder(folder, known=(), pattern=_SCENARIO_FILE, hint="scenarios are named NAME.toml")


def listing(contents: dict[str, bytes]) -> bytes:
    """The canonical listing of files: their names and the digests of their bytes."""
    return canonical_json({"files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}})


def digest_of(contents: dict[str, bytes]) -> str:
    """The digest of a policy directory: of the canonical listing of its files."""
    return hashlib.sha256(b"sealgate policy v1\x00" + listing(contents)).hexdigest()


def digest_of_scenarios(contents: dict[str, bytes]) -> str:
    """The digest of scenario files; "" where there are none."""
    return hashlib.sha256(b"sealgate scenarios v1\x00" + listing(contents)).hexdigest() if contents else ""


def _manifest(path: Path, data: bytes | None) -> Manifest:
    return NAMELESS if data is None else manifest.parse_manifest(data, name=str(path))


def _read_folder(
    path: Path, *, known: tuple[str, ...], pattern: re.Pattern[str], hint: str, ignored: tuple[str, ...] = ()
) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        for item in sorted(path.iterdir()):
            if item.name.startswith(".") or item.name in ignored:
                continue
            if item.name in _IGNORED_FOLDERS and item.is_dir():
                continue
            if item.name not in known and not pattern.fullmatch(item.name):
                raise PolicyFileError(f"{item}: not a file of a policy directory; {hint}. Rename or move it")
            if len(contents) == MAX_POLICY_FILES:
                raise PolicyFileError(f"{path}: more than {MAX_POLICY_FILES} files")
            contents[item.name] = _read_plain(item)
    except OSError as error:
        raise PolicyFileError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return contents


def _read_plain(path: Path) -> bytes:
    """A plain file's bytes. Opened without following links or waiting, then judged by what was opened."""
    if path.is_symlink():
        raise PolicyFileError(f"{path}: a symbolic link; a policy directory has its files in itself")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PolicyFileError(f"{path}: not a plain file")
        data = file.read(MAX_POLICY_FILE + 1)
    if len(data) > MAX_POLICY_FILE:
        raise PolicyFileError(f"{path}: larger than {MAX_POLICY_FILE} bytes")
    return data


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyFileError(f"{path}: not UTF-8 text") from error
