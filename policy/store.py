"""A policy directory on disk: which files count, their digest, and their contents, read exactly once.

    schema.cedarschema   what policies may speak about
    *.cedar              the policies; all of them are in force
    tenants.toml         see policy.tenants
    budgets.toml         see policy.budgets
    examples/, .*        never read

Any other name is refused: a policy in a file with a misspelt name would silently not be in force. The digest covers the
very bytes that are parsed, so that what a record names is what decided.

Trusts: whoever may write the directory. Never: looks outside it, or reads a file twice.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from policy import budgets, tenants
from policy.budgets import Budget, PrivacyBudget
from policy.errors import PolicyFileError
from policy.limits import MAX_POLICY_FILE, MAX_POLICY_FILES
from policy.tenants import Tenants
from sealgate.protocol.canonical import canonical_json

SCHEMA_FILE = "schema.cedarschema"
_REQUIRED = (SCHEMA_FILE, tenants.FILE, budgets.FILE)
_POLICY_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.cedar")
_IGNORED_FOLDERS = ("examples",)


@dataclass(frozen=True, kw_only=True)
class PolicyFiles:
    """Everything that a policy directory says. The policies are text that nobody has judged yet: see policy.cedar."""

    path: Path
    digest: str  # lowercase hex SHA-256
    schema: str
    policies: dict[str, str]  # file name to text, in order of name
    tenants: Tenants
    budgets: tuple[Budget, ...]
    privacy_budgets: tuple[PrivacyBudget, ...]


def load_files(path: Path) -> PolicyFiles:
    """Read and parse a policy directory; raises PolicyFileError with one line that names the file and the field."""
    contents = _read_folder(path)
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
        schema=schema,
        policies=dict(sorted(texts.items())),
        tenants=found_tenants,
        budgets=found_budgets.requests,
        privacy_budgets=found_budgets.privacy,
    )


def digest_of(contents: dict[str, bytes]) -> str:
    """The digest of a policy directory: of its file names and the digests of their bytes, in canonical form."""
    listing = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    return hashlib.sha256(b"sealgate policy v1\x00" + canonical_json({"files": listing})).hexdigest()


def _read_folder(path: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        for item in sorted(path.iterdir()):
            if item.name.startswith(".") or (item.name in _IGNORED_FOLDERS and item.is_dir()):
                continue
            if item.name not in _REQUIRED and not _POLICY_FILE.fullmatch(item.name):
                raise PolicyFileError(
                    f"{item}: not a file of a policy directory; policies are named NAME.cedar. Rename or move it"
                )
            if len(contents) == MAX_POLICY_FILES:
                raise PolicyFileError(f"{path}: more than {MAX_POLICY_FILES} files")
            with item.open("rb") as file:
                contents[item.name] = file.read(MAX_POLICY_FILE + 1)
            if len(contents[item.name]) > MAX_POLICY_FILE:
                raise PolicyFileError(f"{item}: larger than {MAX_POLICY_FILE} bytes")
    except OSError as error:
        raise PolicyFileError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return contents


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyFileError(f"{path}: not UTF-8 text") from error
