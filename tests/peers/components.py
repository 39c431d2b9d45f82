"""Foreign programs that tests meet. What is missing is a loud skip that says how to get it, never a silent pass."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PEERS = Path(__file__).parent
INSTALL = "tests/peers/install.sh"
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


@functools.cache
def _is_modern(node: str) -> bool:
    return subprocess.run([node, "-e", _MODERN_NODE], check=False).returncode == 0
