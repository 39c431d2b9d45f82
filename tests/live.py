"""A real deployment of real processes for the story and adversary tests: host, sandboxed worker, gateway, TLS, disk.

Nothing here is a double. A model is trained once per test run (few steps: what it answers does not matter here).
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from audit.query import AuditReader, RecordFilter
from gateway.provisioning import issue_token, provision
from sealgate.ambient import now_us
from sealgate.client.session import Session
from sealgate.client.transport import open_trust, tls_context
from sealgate.demo.stage import free_port
from sealgate.deployment import Deployment, open_deployment
from sealgate.transparency.record import Record
from secure_runtime.doctor import best_profile

MODEL = "breast-cancer"
READY_S = 120.0
CONFIG = Path(__file__).parents[1] / "sealgate" / "demo" / "breast_cancer.toml"


def run_sealgate(*arguments: Any, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """`sealgate ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "sealgate", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **more,
    )
    if check and done.returncode:
        raise AssertionError(f"sealgate {arguments[0]} said {done.returncode}: {done.stdout}{done.stderr}")
    return done


def train_bundle(folder: Path, key: Path, *, steps: int = 12) -> Path:
    """A certified bundle of the demo's model, trained for a moment; the held-out rows stand beside it."""
    text = CONFIG.read_text()
    lines = [f"steps = {steps}" if line.startswith("steps = ") else line for line in text.splitlines()]
    lines = ["average_steps = 6" if line.startswith("average_steps = ") else line for line in lines]
    config = folder / "breast_cancer.toml"
    config.write_text("\n".join(lines))
    run_sealgate(
        "train", config, "--out", folder / "models", "--key", key, "--heldout-csv", folder / "heldout.csv", "--replace"
    )
    return folder / "models" / MODEL


def heldout_rows(folder: Path, count: int) -> list[list[float]]:
    with (folder / "heldout.csv").open() as file:
        return [[float(value) for value in line[:-1]] for line in list(csv.reader(file))[1 : count + 1]]


def wait_until(holds: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """The first true value; other processes' progress has no event to wait on, so this asks again and again."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        pause.wait(0.02)
    return found


class Live:
    """One deployment and its processes. `start` and `stop` what a test needs; `stop` kills what does not leave."""

    def __init__(self, root: Path, rows: list[list[float]]) -> None:
        self.root = root
        self.deployment: Deployment = open_deployment(root)
        self.rows = rows
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, *names: str, env: dict[str, str] | None = None, module: str = "sealgate") -> None:
        """Start `runtime` and/or `gateway`; `module` is what stands for the command `sealgate`."""
        for name in names or ("runtime", "gateway"):
            with (self.root / "run" / f"{name}.log").open("a") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", module, name, str(self.root)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    text=True,
                    env={**os.environ, **(env or {})},
                )

    def said(self, name: str) -> str:
        return (self.root / "run" / f"{name}.log").read_text()

    def ready(self) -> None:
        """Wait until the gateway says that the runtime serves."""
        verify = tls_context(open_trust(self.trust), None, trust_env=False)
        with httpx.Client(verify=verify, trust_env=False, timeout=5) as client:

            def asks() -> bool:
                for name, process in self.processes.items():
                    if process.poll() is not None:
                        raise AssertionError(f"{name} ended with {process.returncode}: {self.said(name)[-2000:]}")
                try:
                    return client.get(f"{self.url}/health/ready").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(asks, within_s=READY_S, what="readiness")
        self.token()  # msgspec learns types at their first use: not in several threads of a test at once

    def kill(self, name: str) -> None:
        """SIGKILL one of our processes, or the worker."""
        if name == "worker":
            for process in self.worker_processes():
                process.send_signal(signal.SIGKILL)
        else:
            self.processes[name].kill()
            self.processes.pop(name).wait()

    def worker_processes(self) -> list[psutil.Process]:
        """The worker's processes: everything under the host."""
        try:
            return psutil.Process(self.processes["runtime"].pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> dict[str, int]:
        """SIGTERM, gateway first; returns the exit codes."""
        codes: dict[str, int] = {}
        for name in ("gateway", "runtime"):
            process = self.processes.pop(name, None)
            if process is None:
                continue
            process.terminate()
            try:
                codes[name] = process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                codes[name] = -9
        return codes

    @property
    def url(self) -> str:
        return f"https://{self.deployment.settings.deployment.audience}"

    @property
    def trust(self) -> Path:
        return self.deployment.trust

    def token(self, **changes: Any) -> str:
        values: dict[str, Any] = {
            "subject": "triage-app",
            "tenant": "clinic",
            "roles": ["client"],
            "purposes": ["treatment"],
            "lifetime_s": 3600,
            "now": now_us(),
            **changes,
        }
        return issue_token(self.deployment, **values)

    def session(self, **changes: Any) -> Session:
        values: dict[str, Any] = {"purpose": "treatment", "trust_env": False, "timeout": 60.0, **changes}
        if "token" not in values and "certificate" not in values:
            values["token"] = self.token()
        return Session(self.trust, **values)

    def certificate(self, name: str) -> tuple[Path, Path]:
        clients = self.root / "pki" / "clients"
        return clients / f"{name}.pem", clients / f"{name}.key"

    def http(self, *, certificate: str | None = None, **more: Any) -> httpx.Client:
        """A plain HTTPS client of the gateway."""
        context = tls_context(open_trust(self.trust), None, trust_env=False)
        if certificate:
            context.load_cert_chain(*self.certificate(certificate))
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=30, **more)

    def records(self) -> list[Record]:
        """Every record, in order, as the reader sees them."""
        with reader(self.deployment) as found:
            return all_records(found)


@contextmanager
def reader(deployment: Deployment) -> Iterator[AuditReader]:
    found = AuditReader(deployment.log_url, origin=deployment.settings.deployment.origin)
    try:
        yield found
    finally:
        found.close()


def all_records(found: AuditReader) -> list[Record]:
    entries = []
    cursor: str | None = None
    while True:
        page = found.records(RecordFilter(oldest_first=True), cursor, 1000)
        entries.extend(page.records)
        cursor = page.cursor
        if cursor is None:
            return [entry.record for entry in entries]


def clone(template: Path, rows: list[list[float]]) -> Live:
    """A deployment of its own for one test: new keys, new port, the template's bundle."""
    folder = Path(tempfile.mkdtemp(prefix="sg-"))
    root = folder / "d"
    provision(root, audience=f"localhost:{free_port()}", origin="localhost/test", profile=best_profile())
    shutil.copytree(template / "models" / MODEL, root / "models" / MODEL)
    shutil.copy(template / "publishers.toml", root / "publishers.toml")
    return Live(root, rows)
