"""Interleaved rounds: in each, every server is measured once, in an order that turns; then the next round.

So whatever else the machine does meets all servers alike, and a ratio is taken within a round before it is summed up.
Trusts: nothing that a server says; answers were compared before. Never: counts an answer that was not status 200.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Protocol

import numpy as np

from benchmarks.serving.models import BenchModel
from benchmarks.serving.ours import Ours
from benchmarks.serving.peers import RunningPeer
from sealgate.bench.accounting import CpuTimer
from sealgate.bench.load import Load, LoadFailed, Run, percentile
from sealgate.bench.sealing import Sealer
from sealgate.errors import SealgateError
from sealgate.protocol import inference

_FIRST_GUESS = 1500.0  # requests a second, until the first run says better
_OPENED = 8  # answers of each of our runs that are verified and opened
_TOLERANCE = 1e-5


@dataclass(frozen=True, order=True)
class Cell:
    """What is measured: a model, items in a request, connections, and how numbers are written."""

    model: str
    items: int
    connections: int
    binary: bool

    def __str__(self) -> str:
        body = "binary" if self.binary else "JSON"
        return (
            f"{self.model.upper()}, {self.items} item{'s' if self.items > 1 else ''}, {self.connections} conn., {body}"
        )


@dataclass(kw_only=True)
class Measured:
    """One run of one server in one cell."""

    system: str
    cell: Cell
    round: int
    rate: float
    p50_ms: float
    p99_ms: float
    answered: int
    refused: int
    cpu_us: dict[str, float] = field(default_factory=dict)  # per answer, by part
    error: str = ""


class System(Protocol):
    """A server that can be measured."""

    name: str

    def takes(self, cell: Cell) -> bool:
        """Whether the cell can be asked of it."""

    def run(self, cell: Cell, *, seconds: float, warm_s: float) -> tuple[Run, dict[str, float]]:
        """Apply the load; returns what it came to and the processor time in microseconds by part."""

    def scores(self, cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The scores of the first items, for comparison."""


class OurSystem:
    """The sealed path: requests are sealed before each run, some answers verified and opened after it."""

    def __init__(self, ours: Ours, models: dict[str, BenchModel], *, tls: bool, tls_connections: int) -> None:
        self.name = "sealgate, TLS" if tls else "sealgate"
        self._ours = ours
        self._models = models
        self._tls = tls
        self._only = tls_connections if tls else 0
        self._sealer: Sealer = ours.sealer(tls=tls)
        self._rates: dict[Cell, float] = {}
        self.opened = 0

    def takes(self, cell: Cell) -> bool:
        """Over TLS one number of connections is measured."""
        return cell.model in self._models and (not self._only or cell.connections == self._only)

    def _seal(self, cell: Cell, count: int) -> None:
        model = self._models[cell.model]
        items = np.ascontiguousarray(model.items[: cell.items])
        tensor = inference.Tensor(name=model.input, datatype=model.datatype, shape=items.shape, data=items.tobytes())
        request = inference.InferRequest(inputs=(tensor,))
        fields, body = inference.encode_infer_request(request, binary=cell.binary)
        self._sealer.seal(f"/v2/models/{cell.model}/infer", fields, body, count=count)

    def _load(self, connections: int) -> Load:
        if self._tls:
            return Load("localhost", self._ours.tls_port, connections=connections, tls=self._ours.tls)
        return Load(port=self._ours.clear_port, connections=connections)

    def run(self, cell: Cell, *, seconds: float, warm_s: float) -> tuple[Run, dict[str, float]]:
        """Seal as many as may be needed, send, verify."""
        guess = self._rates.get(cell, _FIRST_GUESS / (1 if cell.items == 1 else 6))
        self._seal(cell, int(guess * (seconds + warm_s) * 1.3) + 4 * cell.connections)
        with self._load(cell.connections) as load:
            timer, own = CpuTimer(self._ours.processes(tls=self._tls)), CpuTimer({os.getpid(): "load"})
            run = load.run(self._sealer.requests(), seconds=seconds, warm_s=warm_s, keep_every=97)
            spent = {**timer.spent_us(), **own.spent_us()}
        self._rates[cell] = run.rate or guess
        for answer in run.kept[:_OPENED]:
            self._sealer.open(answer)
            self.opened += 1
        return run, spent

    def scores(self, cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """One request, verified and opened."""
        self._seal(cell, 1)
        with self._load(1) as load:
            run = load.run(self._sealer.requests(), seconds=30, keep_every=1)
        if not run.kept:
            why = run.first_refusal
            raise LoadFailed(f"our own service refused: {why.status if why else ''} {why.body[:300] if why else b''!r}")
        response = self._sealer.open(run.kept[0]).response
        decoded = inference.decode_infer_response(response.fields, response.body)
        (found,) = (tensor for tensor in decoded.outputs if tensor.name == "scores")
        return np.frombuffer(bytes(found.data), np.float32)

    def close(self) -> None:
        """Close what evidence comes by."""
        self._sealer.close()


class PeerSystem:
    """A plaintext peer: the same request again and again."""

    def __init__(self, running: RunningPeer) -> None:
        self.name = running.peer.name
        self.running = running

    def takes(self, cell: Cell) -> bool:
        """Raw tensors only where the peer takes them."""
        return cell.model == self.running.model.name and (not cell.binary or bool(self.running.peer.binary))

    def run(self, cell: Cell, *, seconds: float, warm_s: float) -> tuple[Run, dict[str, float]]:
        """Wake it, send, put it back to sleep."""
        items = np.ascontiguousarray(self.running.model.items[: cell.items])
        request = self.running.request(items, binary=cell.binary)
        self.running.resume()
        try:
            with Load(port=self.running.port, connections=cell.connections) as load:
                timer = CpuTimer({**dict.fromkeys(self.running.pids(), "server"), os.getpid(): "load"})
                run = load.run(repeat(request), seconds=seconds, warm_s=warm_s, keep_every=0)
                return run, timer.spent_us()
        finally:
            self.running.pause()

    def scores(self, cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """One request."""
        items = np.ascontiguousarray(self.running.model.items[: cell.items])
        self.running.resume()
        try:
            with Load(port=self.running.port, connections=1) as load:
                request = self.running.request(items, binary=cell.binary)
                run = load.run(iter([request]), seconds=30, keep_every=1)
        finally:
            self.running.pause()
        if not run.kept:
            why = run.first_refusal
            raise LoadFailed(f"it answers {why.status if why else 'nothing'}: {why.body[:200] if why else b''!r}")
        return self.running.scores(run.kept[0], binary=cell.binary)


def disagreement(system: System, reference: System, cell: Cell) -> str:
    """Why the system may not be compared in this cell: it fails, or answers something else. "" if it may."""
    try:
        found, wanted = system.scores(cell), reference.scores(cell)
    except (SealgateError, OSError) as error:
        return str(error)
    if found.shape != wanted.shape:
        return f"{found.size} scores, expected {wanted.size}"
    difference = float(np.abs(found - wanted).max())
    return "" if difference < _TOLERANCE else f"its scores differ by {difference:.3g}"


def measure(systems: list[System], cell: Cell, *, rounds: int, seconds: float, warm_s: float) -> Iterator[Measured]:
    """All rounds of one cell. A server that fails in a round is asked again in the next."""
    for number in range(rounds):
        turned = systems[number % len(systems) :] + systems[: number % len(systems)]
        for system in turned:
            try:
                run, spent = system.run(cell, seconds=seconds, warm_s=warm_s)
            except (SealgateError, OSError) as error:
                yield Measured(
                    system=system.name, cell=cell, round=number, rate=0, p50_ms=0, p99_ms=0, answered=0, refused=0,
                    error=str(error),
                )  # fmt: skip
                continue
            refusal = run.first_refusal
            yield Measured(
                system=system.name,
                cell=cell,
                round=number,
                rate=run.rate if not run.refused else 0.0,
                p50_ms=percentile(run.latencies_us, 0.5) / 1000,
                p99_ms=percentile(run.latencies_us, 0.99) / 1000,
                answered=run.answered,
                refused=run.refused,
                cpu_us={part: us / max(1, run.answered) for part, us in spent.items()},
                error=f"{run.refused} refused: {refusal.status} {refusal.body[:200]!r}" if refusal else "",
            )
