"""Rules without a check decay: one home per clock and random source, no pickle, no test doubles in the packages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sealgate", "gateway", "secure_runtime", "training", "policy", "audit")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

# pattern -> files where it may stand, with the reason
HOMES: dict[str, dict[str, str]] = {
    r"\bos\.urandom\(|\bgetrandbits\(|\bsecrets\.token": {"sealgate/ambient.py": "the random source"},
    r"\btime\.time\(|\btime\.time_ns\(|datetime\.now\(|utcnow\(": {"sealgate/ambient.py": "the clock"},
    r"\bpickle\.|torch\.load\(|yaml\.load\(|marshal\.": {},
    r"(?<![.\w])eval\(|(?<![.\w])exec\(|shell=True": {},
    r"verify=False|CERT_NONE|check_hostname = False": {
        "gateway/tls_identity.py": "the setting client_certificates = none",
        "gateway/supervise.py": "asks its own gateway at the address that it binds, under its own authority",
    },
}


@cache
def tree_of(path: Path) -> ast.Module:
    """The code as it stands, parsed once; nobody changes it."""
    return ast.parse(path.read_text())


@cache
def text_of(path: Path) -> str:
    """The code without its strings and comments."""
    return ast.unparse(_without_docstrings(ast.parse(path.read_text())))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return tree


@pytest.mark.parametrize("pattern", HOMES)
def test_each_dangerous_call_has_one_home(pattern: str) -> None:
    found = {str(path.relative_to(ROOT)) for path in SOURCES if re.search(pattern, text_of(path))}
    assert found <= set(HOMES[pattern]), f"{pattern} outside its home"


def test_only_the_worker_opens_requests_and_holds_request_keys() -> None:
    allowed = re.compile(r"(secure_runtime/worker/|sealgate/protocol/)")
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        code = text_of(path)
        if not allowed.match(name):
            assert "open_request" not in code, name
            assert "KemPrivateKey" not in code, name


def test_nothing_in_the_packages_reaches_the_tests() -> None:
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in {"tests", "benchmarks", "pytest", "unittest"} for name in names), path


def test_no_environment_variable_is_read_but_the_listed() -> None:
    allowed = {"SEALGATE_TOKEN", "PATH", "TZ", "LANG", "HOME"}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            is_get = isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.environ.get", "os.getenv"}
            is_item = (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Load)  # what is set is for torch, and read by nobody here
                and ast.unparse(node.value) == "os.environ"
            )
            if is_get or is_item:
                key = node.args[0] if isinstance(node, ast.Call) else node.slice  # type: ignore[attr-defined]
                value = key.value if isinstance(key, ast.Constant) else ast.unparse(key)
                assert value in allowed or value.endswith("VARIABLE"), f"{path}: reads {value}"


def test_every_module_says_what_it_is_for() -> None:
    for path in SOURCES:
        assert ast.get_docstring(tree_of(path)), path


def test_nothing_named_verify_returns_a_boolean() -> None:
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.lstrip("_").startswith("verify"):
                assert node.returns is None or ast.unparse(node.returns) != "bool", f"{path}: {node.name}"
