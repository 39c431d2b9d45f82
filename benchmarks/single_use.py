"""A request in a process of its own against the same request in the shared worker: time of one, and how many a second.

One real, sealed worker that offers both; interleaved rounds over its socket, without gateway, host and log.

    one       one request at a time: from writing the frame to having read the signed completion
    rate      eight in flight

`python -m benchmarks.single_use [--rounds 10] [--requests 50] [--rows 1]`. Prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from gateway.provisioning import provision
from sealgate.ambient import monotonic_ns, now_us
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import (
    BootPlan,
    Done,
    FrameReader,
    Grant,
    Hello,
    Obligations,
    Work,
    WorkerToHost,
    encode_frame,
)
from sealgate.protocol.ohttp import decode_key_configs, seal_request
from sealgate.terminal import render_table
from secure_runtime.doctor import best_profile
from secure_runtime.host import spawn
from secure_runtime.limits import WORKER_UID
from tests.live import MODEL, heldout_rows, train_bundle

_AUDIENCE, _IN_FLIGHT, _LIFE_US = "localhost:1", 8, 60_000_000


class Bench:
    """A worker, and the host's end of its socket."""

    def __init__(self, folder: Path, rows: list[list[float]]) -> None:
        plan = BootPlan(
            profile=best_profile(),
            audience=_AUDIENCE,
            models_dir=str(folder / "models"),
            publishers_file=str(folder / "publishers.toml"),
            sys_path=spawn.python_paths(),
            uid=WORKER_UID,
            gid=WORKER_UID,
            torch_threads=1,
            memory_limit_bytes=4 << 30,
            single_use=True,
        )
        self._rows = rows
        self._worker = spawn.spawn_worker(plan)
        self._reader = FrameReader(WorkerToHost)
        self._count = 0
        (hello,) = self._read()
        if not isinstance(hello, Hello):
            raise SystemExit(f"the worker did not start: {hello}")
        self._key = decode_key_configs(hello.facts.key_configs)[0]

    def _read(self) -> list[object]:
        while True:
            data = self._worker.sock.recv(1 << 20)
            if not data:
                raise SystemExit("the worker ended")
            if frames := self._reader.feed(data):
                return [frame for frame, _ in frames]

    def prepare(self, count: int, *, single_use: bool) -> list[bytes]:
        """Frames, ready to be written."""
        values = [value for row in self._rows for value in row]
        tensor = inference.tensor_from_list("features", "FP32", (len(self._rows), len(self._rows[0])), values)
        fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(tensor,)), binary=True)
        date = format_datetime(datetime.fromtimestamp(now_us() // 1_000_000, UTC), usegmt=True)
        fixed = (("date", date), ("purpose", "treatment"), ("credential-binding", "binding"))
        path = f"/v2/models/{MODEL}/infer"
        inner = bhttp.encode_request(
            bhttp.Request(
                method="POST", scheme="https", authority=_AUDIENCE, path=path, fields=(*fixed, *fields), body=body
            )
        )
        made = []
        for _ in range(count):
            self._count += 1
            raw, media_type, _ = seal_request(self._key, inner)
            grant = Grant(
                id=f"grant-{self._count}",
                model=MODEL,
                operation="infer",
                purpose="treatment",
                actor="a",
                credential_binding="binding",
                obligations=Obligations(single_use=single_use),
                expires_us=now_us() + _LIFE_US,
            )
            work = Work(id=self._count, grant=grant, media_type=media_type)
            made.append(b"".join(bytes(part) for part in encode_frame(work, raw)))
        return made

    def one(self, works: list[bytes]) -> list[float]:
        """Milliseconds of each."""
        times = []
        for work in works:
            began = monotonic_ns()
            self._worker.sock.sendall(work)
            _require_completed(self._read())
            times.append((monotonic_ns() - began) / 1e6)
        return times

    def rate(self, works: list[bytes]) -> float:
        """Requests a second."""
        began = monotonic_ns()
        self._worker.sock.sendall(b"".join(works[:_IN_FLIGHT]))
        sent, ended = min(_IN_FLIGHT, len(works)), 0
        while ended < len(works):
            frames = self._read()
            _require_completed(frames)
            ended += len(frames)
            self._worker.sock.sendall(b"".join(works[sent : sent + len(frames)]))
            sent += len(frames)
        return len(works) / ((monotonic_ns() - began) / 1e9)

    def close(self) -> None:
        """End the worker."""
        self._worker.sock.close()
        self._worker.kill()
        self._worker.wait()


def _require_completed(frames: list[object]) -> None:
    for frame in frames:
        if not isinstance(frame, Done) or frame.completion.statement.outcome != "completed":
            raise SystemExit(f"not an answer: {frame}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--rows", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sg-") as made:
        folder = Path(made) / "publisher"
        provision(folder, audience=_AUDIENCE, origin="localhost/bench", profile="strict")
        train_bundle(folder, folder / "publisher.key")
        bench = Bench(folder, (heldout_rows(folder, 1) * given.rows)[: given.rows])
        times: dict[bool, list[float]] = {False: [], True: []}
        rates: dict[bool, list[float]] = {False: [], True: []}
        try:
            for _ in range(given.rounds):
                for single_use in (False, True):
                    times[single_use] += bench.one(bench.prepare(given.requests, single_use=single_use))
                    rates[single_use].append(bench.rate(bench.prepare(given.requests, single_use=single_use)))
        finally:
            bench.close()
    rows = []
    for single_use, name in ((False, "shared"), (True, "single-use")):
        cuts = statistics.quantiles(times[single_use], n=100)
        figures = [f"{value:.2f}" for value in (min(times[single_use]), cuts[49], cuts[94])]
        rows.append((name, *figures, f"{statistics.median(rates[single_use]):.0f}", f"{max(rates[single_use]):.0f}"))
    print(render_table(("worker", "one: least ms", "p50", "p95", "rate: median /s", "best"), rows))


if __name__ == "__main__":
    main()
