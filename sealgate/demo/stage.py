"""What the demonstration stands on: a narrator with a clock, and the product's own command line as child processes.

Never: imports the server. Whatever the story does, a user can do with the same commands.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sealgate.ambient import monotonic_ns
from sealgate.errors import SealgateError

_READY_TIMEOUT_S = 120
_STOP_TIMEOUT_S = 30


class Narrator:
    """Prints acts and lines with the time that each act took."""

    def __init__(self) -> None:
        self._start = self._act_start = monotonic_ns()
        self._act = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the story began."""
        return (monotonic_ns() - self._start) / 1e9

    def act(self, title: str) -> None:
        """Begin an act."""
        self._end()
        self._act += 1
        self._act_start = monotonic_ns()
        print(f"\n{self._act}. {title}", flush=True)

    def say(self, text: str) -> None:
        """One line of the story."""
        for line in text.splitlines():
            print(f"   {line}", flush=True)

    def _end(self) -> None:
        if self._act:
            print(f"   ({(monotonic_ns() - self._act_start) / 1e9:.1f} s)", flush=True)

    def close(self) -> None:
        """Print the last act's time and the whole."""
        self._end()
        print(f"\nDone in {self.elapsed_s:.1f} s.", flush=True)


def sealgate(*arguments: str | Path, show: bool = False) -> str:
    """Run `sealgate ARGUMENTS` as a user would; returns its output. Raises SealgateError with its own words."""
    done = subprocess.run(
        [sys.executable, "-m", "sealgate", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout or "").strip().splitlines()
        why = said[-1].removeprefix("sealgate: ") if said else f"exit code {done.returncode}"
        raise SealgateError(f"`sealgate {arguments[0]}` failed: {why}")
    return done.stdout or ""


def sealgate_fails(*arguments: str | Path) -> str:
    """Run a command that must be refused; returns what it said. Raises SealgateError if it succeeds."""
    done = subprocess.run(
        [sys.executable, "-m", "sealgate", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.returncode:
        raise SealgateError(f"`sealgate {arguments[0]}` accepted what it must refuse")
    return done.stdout + done.stderr


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`sealgate serve STATE` as a child process. A context manager: leaving it stops the server in order."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._log = state / "run" / "serve.log"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Server:
        command: Sequence[str] = [sys.executable, "-m", "sealgate", "serve", str(self._state)]
        ready, said = os.pipe()
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, "--ready-fd", str(said)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(said,),
                text=True,
            )
        os.close(said)
        try:
            self._wait(ready)
        except BaseException:
            self._stop()
            raise
        finally:
            os.close(ready)
        return self

    def _wait(self, ready: int) -> None:
        import select

        readable, _, _ = select.select([ready], [], [], _READY_TIMEOUT_S)
        if not readable or os.read(ready, 16) == b"":
            tail = self._log.read_text().strip().splitlines()[-3:]
            raise SealgateError("the server did not become ready: " + " | ".join(tail))

    def wait(self) -> None:
        """Block until the server ends."""
        assert self._process is not None
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
