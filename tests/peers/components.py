"""Foreign programs that tests meet. What is missing is a loud skip that says how to get it, never a silent pass."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PEERS = Path(__file__).parent
INSTALL = "tests/peers/install.sh"
GO_PACKAGES = Path("/usr/share/gocode")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_MODERN_NODE = "process.exit(URL.parse && require('node:crypto').hash ? 0 : 1)"


def require_program(name: str) -> str:
    """The path of a program, or a skip of the test that asks."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"SKIPPED FOR WANT OF {name}: it is not on this machine; run {INSTALL}")
    return found


def require_provider() -> str:
    """The path of a Node.js that can run the OpenID provider beside us, or a skip."""
    node = require_program("node")
    if not (PEERS / "node_modules" / "oidc-provider" / "package.json").exists():
        pytest.skip(f"SKIPPED FOR WANT OF oidc-provider: its npm packages are not here; run {INSTALL}")
    if not _is_modern(node):
        pytest.skip("SKIPPED FOR WANT OF Node.js 20.16 or later: the OpenID provider needs it, this one is older")
    return node


def require_sigstore() -> str:
    """The path of a Node.js that finds Sigstore's verifier beside us, or a skip."""
    node = require_program("node")
    if not (PEERS / "node_modules" / "@sigstore" / "verify" / "package.json").exists():
        pytest.skip(f"SKIPPED FOR WANT OF @sigstore/verify: its npm packages are not here; run {INSTALL}")
    return node


def require_tlog_checker(folder: Path) -> Path:
    """The checker in Go, built into `folder` from what Debian packages, or a skip."""
    go = require_program("go")
    if not (GO_PACKAGES / "src" / "golang.org" / "x" / "mod" / "sumdb" / "tlog").is_dir():
        pytest.skip(f"SKIPPED FOR WANT OF golang-golang-x-mod-dev: its packages are not here; run {INSTALL}")
    program = folder / "tlog-check"
    environment = {"GO111MODULE": "off", "GOPATH": str(GO_PACKAGES), "GOCACHE": str(folder / "cache"), "PATH": _PATH}
    command = [go, "build", "-o", str(program), "."]
    built = subprocess.run(command, cwd=PEERS / "tlog", env=environment, capture_output=True, check=False)
    assert built.returncode == 0, built.stderr.decode()
    return program


def require_aics_tlog() -> str:
    """The path of aics-tlog in the environment of its own that `install.sh` makes, or a skip."""
    program = PEERS / ".aics-tlog" / "bin" / "aics-tlog"
    if not program.exists():
        pytest.skip(f"SKIPPED FOR WANT OF aics-tlog: it needs Python 3.12 or newer; with one on PATH run {INSTALL}")
    return str(program)


@functools.cache
def _is_modern(node: str) -> bool:
    return subprocess.run([node, "-e", _MODERN_NODE], check=False).returncode == 0


def require_browser() -> str:
    """The path of Chromium, or a skip; Playwright, which drives it, must be importable too."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("SKIPPED FOR WANT OF playwright: it is not installed here; pip install playwright")
    return require_program("chromium")


def require_accessibility_checker() -> str:
    """The text of axe-core, or a skip."""
    script = PEERS / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.skip(f"SKIPPED FOR WANT OF axe-core: its npm package is not here; run {INSTALL}")
    return script.read_text()
