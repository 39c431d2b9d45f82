"""`sealgate serve`: the runtime and the gateway as two children, started, watched and stopped together.

Trusts: the two commands to say by their exit and by /health/ready how they are. Never: restarts one without the other
(whoever supervises this process restarts both), or says ready before a request would be served.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from threading import Event

from gateway.limits import SHUTDOWN_S
from gateway.parent_death import end_with_parent
from sealgate.ambient import monotonic_ns
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError, SealgateError
from sealgate.terminal import say

READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = SHUTDOWN_S + 10.0
_POLL_S = 0.1
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


@dataclass
class Child:
    """One of the two commands."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        # In this process there is one thread, so a function may run between fork and exec.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def ended(self) -> int | None:
        """The exit code, None while it runs."""
        return None if self.process is None else self.process.poll()

    def stop(self) -> None:
        """Ask it to stop, wait, and insist."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _say(f"the {self.name} did not stop in time and is killed")
            self.process.kill()
            self.process.wait()


def supervise(
    deployment: Deployment,
    *,
    ready_file: Path | None = None,
    ready_descriptor: int | None = None,
    program: tuple[str, ...] = (sys.executable, "-m", "sealgate"),
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> int:
    """Run both until a signal or until one ends; returns 0 if asked to stop, raises SealgateError otherwise."""
    runtime = Child("runtime", [*program, "runtime", str(deployment.root)])
    gateway = Child("gateway", [*program, "gateway", str(deployment.root)])
    began = monotonic_ns()
    probe = _Probe(deployment)
    probe.require_silence()
    if ready_file is not None:
        if not ready_file.parent.is_dir():
            raise ConfigurationError(f"--ready-file {ready_file}: name a file in a folder that exists")
        ready_file.unlink(missing_ok=True)  # of a service that was killed: it must not speak for this one
    with _stop_signals() as stop:
        try:
            _say("starting the runtime (it verifies its models and closes its sandbox) and the gateway")
            runtime.start()
            gateway.start()
            if _watch((runtime, gateway), stop, until=probe.ready, timeout_s=ready_timeout_s, waiting_for=probe):
                address = f"https://{deployment.settings.deployment.audience}"
                _say(f"ready after {(monotonic_ns() - began) / 1e9:.1f} s: {address} (Ctrl-C stops)")
                _announce(address, ready_file, ready_descriptor)
                _watch((runtime, gateway), stop)
        finally:
            # The gateway first: what it has in flight still gets its answer from the runtime.
            gateway.stop()
            runtime.stop()
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)
    _say("stopped")
    return 0


def _watch(
    children: tuple[Child, ...],
    stop: Event,
    *,
    until: Callable[[], bool] = lambda: False,
    timeout_s: float | None = None,
    waiting_for: object = "",
) -> bool:
    """True when `until` holds, False when asked to stop; raises SealgateError when a child ends or time is up."""
    deadline = None if timeout_s is None else monotonic_ns() + int(timeout_s * 1e9)
    while not stop.wait(_POLL_S):
        for child in children:
            code = child.ended()
            if code is not None:
                raise SealgateError(f"the {child.name} {_ending(code)}; its last lines above say why. Stopping.")
        if until():
            return True
        if deadline is not None and monotonic_ns() > deadline:
            raise SealgateError(f"not ready after {timeout_s:.0f} s: {waiting_for}")
    return False


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class _Probe:
    """Asks /health/ready over TLS, with the deployment's own authority as the only trust."""

    def __init__(self, deployment: Deployment) -> None:
        settings = deployment.settings.gateway
        self._context = ssl.create_default_context(cafile=deployment.pki / "ca.pem")
        self._context.check_hostname = False  # asked at the address it binds; the authority is this deployment's alone
        with contextlib.suppress(OSError):
            clients = deployment.pki / "clients"
            self._context.load_cert_chain(clients / "operator.pem", clients / "operator.key")
        self._address = (_LOOPBACK.get(settings.host, settings.host), settings.port)
        self._last = "the gateway does not listen yet"

    def require_silence(self) -> None:
        """Raise ConfigurationError if somebody answers already: its readiness would be taken for that of ours."""
        with contextlib.suppress(OSError), socket.create_connection(self._address, timeout=5):
            raise ConfigurationError(
                f"something listens on {self._address[0]} port {self._address[1]} already; is this deployment being "
                "served? Stop that, or choose another port in deployment.toml, section [gateway]"
            )

    def ready(self) -> bool:
        connection = HTTPSConnection(*self._address, context=self._context, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
            self._last = answer.read(4096).decode("utf-8", "replace")
            return answer.status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def __str__(self) -> str:
        return self._last


@contextlib.contextmanager
def _stop_signals() -> Iterator[Event]:
    """An event that SIGTERM and SIGINT set, instead of ending this process."""
    stop = Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(address: str, ready_file: Path | None, descriptor: int | None) -> None:
    try:
        if ready_file is not None:
            draft = ready_file.with_name(ready_file.name + ".new")
            draft.unlink(missing_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:  # follows no link
                file.write(address + "\n")
            draft.replace(ready_file)
        if descriptor is not None:
            os.write(descriptor, b"ready\n")
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"cannot say that the service is ready: {error.strerror}") from error


def _say(line: str) -> None:
    say(f"sealgate: {line}")
