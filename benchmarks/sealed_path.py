"""One sealed, authenticated, authorised, audited request against the same request without any of it.

Interleaved rounds against bare Litestar + uvicorn with the same model and TLS, one caller, one row:

    plain        POST of the tensor, answer read
    wire         the sealed request was made beforehand: what the service adds, seen from the network
    sealed       the whole client call: seal, send, verify the receipt (log signature, proof, worker), open

`python -m benchmarks.sealed_path [--rounds 20] [--requests 50]`. Prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from gateway.provisioning import provision
from sealgate.ambient import monotonic_ns
from sealgate.client.transport import open_trust, tls_context
from sealgate.demo.stage import free_port
from sealgate.protocol import inference
from tests.adversary.test_sealed_requests import Attacker
from tests.live import MODEL, Live, clone, heldout_rows, train_bundle, wait_until


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the sorted values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def timed(call: Callable[[], None]) -> float:
    """Milliseconds."""
    start = monotonic_ns()
    call()
    return (monotonic_ns() - start) / 1e6


class _Bench:
    """The two services and the three ways to ask."""

    def __init__(self, live: Live, plain_url: str) -> None:
        self._session = live.session()
        self._row = live.rows[:1]
        context = tls_context(open_trust(live.trust), None, trust_env=False)
        self._plain = httpx.Client(base_url=plain_url, verify=context, trust_env=False, timeout=30)
        self._wire = live.http()
        self._attacker = Attacker(live, self._wire, live.token())
        name = self._session.metadata(MODEL).inputs[0].name
        self._tensor = inference.tensor_from_list(name, "FP32", (1, 30), self._row[0])
        request = inference.InferRequest(inputs=(self._tensor,))
        self._fields, self._body = inference.encode_infer_request(request, binary=True)
        self._sealed: list[tuple[bytes, str]] = []

    def prepare(self, count: int) -> None:
        """Seal requests for the wire series outside the measured time."""
        self._sealed = [self._attacker.seal(body=self._body, fields=tuple(self._fields))[:2] for _ in range(count)]

    def plain(self) -> None:
        answer = self._plain.post(f"/v2/models/{MODEL}/infer", content=self._body, headers=dict(self._fields))
        assert answer.status_code == 200, answer.text

    def wire(self) -> None:
        raw, media_type = self._sealed.pop()
        answer = self._attacker.submit(raw, media_type)
        assert answer.status_code == 200, answer.text

    def sealed(self) -> None:
        self._session.infer(MODEL, [self._tensor])


def run(live: Live, folder: Path, *, rounds: int, requests: int) -> dict[str, list[list[float]]]:
    """Milliseconds of every request, by series and round."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.plain_server", str(live.root), str(folder), str(port)]
    peer = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        live.start()
        live.ready()
        bench = _Bench(live, f"https://localhost:{port}")

        def answers() -> bool:
            try:
                bench.plain()
            except httpx.TransportError:
                return False
            return True

        wait_until(answers, within_s=60, what="the plain server")
        series = {"plain": bench.plain, "wire": bench.wire, "sealed": bench.sealed}
        found: dict[str, list[list[float]]] = {name: [] for name in series}
        for number in range(rounds + 1):
            bench.prepare(requests)
            for name, ask in series.items():
                times = [timed(ask) for _ in range(requests)]
                if number:  # the first round warms up
                    found[name].append(times)
        return found
    finally:
        peer.kill()
        peer.wait()
        live.stop()


def main() -> None:
    """Train for a moment, start both services, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=50)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sealgate-bench-"))
    try:
        publisher = folder / "publisher"
        provision(publisher, audience="localhost:1", origin="localhost/bench", profile="strict")
        bundle = train_bundle(publisher, publisher / "publisher.key")
        live = clone(publisher, heldout_rows(publisher, 8))
        found = run(live, bundle, rounds=arguments.rounds, requests=arguments.requests)
        shutil.rmtree(live.root.parent, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{arguments.rounds} interleaved rounds of {arguments.requests} requests, one caller, one row, TLS 1.3")
    print(f"{'':8} {'p50 ms':>8} {'p99 ms':>8}  {'p50 of rounds':>15}  {'p50 / plain':>11}")
    base = statistics.median(statistics.median(times) for times in found["plain"])
    for name, rounds in found.items():
        every = [value for times in rounds for value in times]
        medians = [statistics.median(times) for times in rounds]
        print(
            f"{name:8} {percentile(every, 0.5):8.2f} {percentile(every, 0.99):8.2f}  "
            f"{min(medians):6.2f} - {max(medians):6.2f}  {statistics.median(medians) / base:11.2f}"
        )


if __name__ == "__main__":
    main()
