"""A TPM 2.0 that is a program (swtpm), with a UNIX socket for commands; and Debian's tpm2-tools to ask it too."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.components import require_program


class SoftTpm:
    """One swtpm and its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "tpm.sock"
        state = folder / "state"
        state.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [
                require_program("swtpm"),
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={state}",
                "--server",
                f"type=unixio,path={self.socket}",
                "--ctrl",
                f"type=unixio,path={self.socket}.ctrl",
                "--flags",
                "not-need-init,startup-clear",
            ],
            stdin=subprocess.DEVNULL,
        )
        deadline, pause = time.monotonic() + 60, threading.Event()
        while not self.socket.exists():
            assert self.process.poll() is None, "swtpm did not start"
            assert time.monotonic() < deadline, "swtpm has no socket"
            pause.wait(0.01)

    def tool(self, name: str, *words: str) -> str:
        """Run one of tpm2-tools against it."""
        environment = {"TPM2TOOLS_TCTI": f"swtpm:path={self.socket}", "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [require_program(name), *words],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return done.stdout

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def soft_tpm(tmp_path: Path) -> Iterator[SoftTpm]:
    tpm = SoftTpm(tmp_path)
    yield tpm
    tpm.stop()
