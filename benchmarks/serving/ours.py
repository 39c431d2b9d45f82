"""Our side of the comparison: a deployment of its own, all of it real, with and without TLS at once.

One runtime host with its sandboxed worker, and two gateways before it: one over TLS 1.3 as shipped, and the same one on
a loopback port without TLS (`benchmarks.clear_gateway`), because the peers are measured without. Budgets are raised so
that no request is refused; they are still reserved and settled for every request.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from gateway.provisioning import issue_token, provision
from sealgate.ambient import monotonic_ns, now_us
from sealgate.bench.accounting import children
from sealgate.bench.load import LoadFailed
from sealgate.bench.sealing import Sealer
from sealgate.client.transport import open_trust, tls_context
from sealgate.demo.stage import free_port
from sealgate.deployment import Deployment, open_deployment
from secure_runtime.doctor import best_profile

_READY_S = 120.0
_LIMIT = 1_000_000_000


def make_deployment(root: Path, *, workers: int = 1) -> Deployment:
    """A deployment with budgets that a benchmark does not reach."""
    deployment = provision(root, audience=f"localhost:{free_port()}", origin="localhost/bench", profile=best_profile())
    budgets = deployment.policy / "budgets.toml"
    text = budgets.read_text()
    for amount in ("requests = 1_000_000", "units = 50_000_000", "requests = 60_000"):
        if amount not in text:
            raise RuntimeError(f"{budgets} has changed: it has no {amount}")
        text = text.replace(amount, f"{amount.split(' =')[0]} = {_LIMIT}", 1)
    budgets.write_text(text)
    settings = deployment.root / "deployment.toml"
    said = settings.read_text().replace("require_audit = true", "require_audit = false")
    settings.write_text(said.replace("[runtime]\n", f"[runtime]\nworkers = {workers}\n"))
    return open_deployment(deployment.root)


class Ours:
    """The running deployment. `clear_port` and `tls_port` lead to the two gateways."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.tls_port = deployment.settings.gateway.port
        self.clear_port = free_port()
        self.trust = open_trust(deployment.trust)
        self.tls = tls_context(self.trust, None, trust_env=False)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start everything and wait until it serves; raises LoadFailed with its last words."""
        root = str(self.deployment.root)
        self._spawn("runtime", [sys.executable, "-m", "sealgate", "runtime", root])
        self._spawn("gateway", [sys.executable, "-m", "sealgate", "gateway", root])
        self._spawn("clear", [sys.executable, "-m", "benchmarks.clear_gateway", root, str(self.clear_port)])
        for client in (self.http(tls=True), self.http(tls=False)):
            with client:
                self._wait(client)

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.deployment.root / "run" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(process)

    def _wait(self, client: httpx.Client) -> None:
        deadline = monotonic_ns() + int(_READY_S * 1e9)
        while monotonic_ns() < deadline:
            if any(process.poll() is not None for process in self._processes):
                break
            try:
                if client.get("/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            os.sched_yield()
        words = [
            (self.deployment.root / "run" / f"{name}.log").read_text()[-500:]
            for name in ("runtime", "gateway", "clear")
        ]
        raise LoadFailed("our own service did not come up: " + " | ".join(words))

    def http(self, *, tls: bool) -> httpx.Client:
        """A plain client of one of the gateways."""
        if tls:
            url = f"https://localhost:{self.tls_port}"
            return httpx.Client(base_url=url, verify=self.tls, trust_env=False, timeout=5)
        return httpx.Client(base_url=f"http://127.0.0.1:{self.clear_port}", trust_env=False, timeout=5)

    def sealer(self, *, tls: bool) -> Sealer:
        """A caller that seals beforehand."""
        token = issue_token(
            self.deployment,
            subject="triage-app",
            tenant="clinic",
            roles=["client"],
            purposes=["treatment"],
            lifetime_s=3600,
            now=now_us(),
        )
        host = self.deployment.settings.deployment.audience
        workers = self.deployment.settings.runtime.workers
        return Sealer(self.trust, token, http=self.http(tls=tls), purpose="treatment", host=host, workers=workers)

    def processes(self, *, tls: bool) -> dict[int, str]:
        """Process ids by role; of the two gateways the one that is asked."""
        runtime, secure, clear = (process.pid for process in self._processes)
        gateway = secure if tls else clear
        found = dict.fromkeys((gateway, *children(gateway)), "gateway")
        found[runtime] = "host"
        found.update((pid, "worker") for pid in children(runtime))
        return found

    def stop(self) -> None:
        """Stop in order; kill what does not leave."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
