"""The whole sealed path against plaintext servers: one command, one table.

    python -m benchmarks.serving                      everything that is installed, 15 to 20 minutes
    python -m benchmarks.serving --quick              a minute or two, fewer cells and rounds
    python -m benchmarks.serving --peers litestar,litestar-2 --cells cnn:1 --connections 32 --bodies binary

Ours is the whole path: token, policy, key exchange (X-Wing), replay check, batching, sealed padded answer, two durable
records, receipt. The peers answer in plain, without authentication and without records. All serve the same model;
answers are compared before anything is measured. Rounds are interleaved and every figure is a median with its range.

Install the peers first: benchmarks/peers/install.sh [--into FOLDER]. A peer that is not there, does not come up or
answers something else is named below the table with its reason. Prints Markdown; --json FILE keeps every single figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.serving.models import BenchModel, train_models
from benchmarks.serving.ours import Ours, make_deployment
from benchmarks.serving.peers import PEERS, Peer, RunningPeer, adopt_orphans, end_all, start, wait_ready
from benchmarks.serving.rounds import Cell, Measured, OurSystem, PeerSystem, System, disagreement, measure
from benchmarks.serving.table import cost_table, rates_table, ratio_table
from sealgate.ambient import monotonic_ns
from sealgate.errors import SealgateError

_DEFAULT_CELLS = "cnn:1,cnn:32,mlp:1"
_PEERS_HOME = Path(os.environ.get("SEALGATE_PEERS", Path.home() / ".cache" / "sealgate-peers"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ",".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", default=names, help=f"which, by comma (default: all: {names}); none: '-'")
    parser.add_argument("--peers-home", type=Path, default=_PEERS_HOME, help=f"their environments ({_PEERS_HOME})")
    parser.add_argument("--cells", default=_DEFAULT_CELLS, help=f"MODEL:ITEMS, by comma ({_DEFAULT_CELLS})")
    parser.add_argument("--connections", help="by comma (32,64; with --quick 32)")
    parser.add_argument("--bodies", default="json,binary", help="by comma (json,binary)")
    parser.add_argument("--rounds", type=int, default=5, help="of every cell and server (5)")
    parser.add_argument("--seconds", type=float, default=0.7, help="that one run counts (0.7)")
    parser.add_argument("--warm", type=float, default=0.2, help="seconds before that, not counted (0.2)")
    parser.add_argument("--minutes", type=float, default=19.0, help="take fewer rounds than to last longer (19)")
    parser.add_argument("--workers", type=int, default=1, help="of ours: processes that run the model (1)")
    parser.add_argument("--no-tls", action="store_true", help="leave out ours over TLS")
    parser.add_argument("--quick", action="store_true", help="unless said otherwise 32 connections; 3 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there and leave it (logs, models)")
    given = parser.parse_args()
    given.connections = given.connections or ("32" if given.quick else "32,64")
    if given.quick:
        given.rounds = min(3, given.rounds)
    return given


def _cells(given: argparse.Namespace) -> list[Cell]:
    made = []
    for model, items in (text.split(":") for text in given.cells.split(",")):
        if model not in ("cnn", "mlp"):
            raise SystemExit(f"--cells: there is no model {model!r}; there are cnn and mlp")
        for connections in map(int, given.connections.split(",")):
            for body in given.bodies.split(","):
                made.append(Cell(model, int(items), connections, body == "binary"))
    return made


def _chosen(given: argparse.Namespace) -> list[Peer]:
    known = {peer.name: peer for peer in PEERS}
    names = [name for name in given.peers.split(",") if name and name != "-"]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--peers: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Comparison:
    """One run of the command."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given = given
        self.folder = folder
        self.cells = _cells(given)
        self.peers = _chosen(given)
        self.measured: list[Measured] = []
        self.missing: list[str] = []
        self.opened = 0
        self._deadline = monotonic_ns() + int(given.minutes * 60e9)
        self._left = len(self.cells)
        self._start_ns = 0  # what starting all peers took, the last time
        self._models_left = 0
        self._round_ns = 0  # what a round of a cell took, the last time

    def run(self) -> None:
        """Train, start ours, then one model after the other with all peers."""
        deployment = make_deployment(self.folder / "state", workers=self.given.workers)
        names = tuple(dict.fromkeys(cell.model for cell in self.cells))
        self._models_left = len(names)
        _say(f"training {', '.join(names)} for a moment, and starting our own service")
        models = train_models(names, self.folder, state=deployment.root)
        ours = Ours(deployment)
        try:
            ours.start()
            for name in names:
                self._model(ours, models[name])
        finally:
            ours.stop()

    def _model(self, ours: Ours, model: BenchModel) -> None:
        running: list[RunningPeer] = []
        mine: list[OurSystem] = []
        try:
            began = monotonic_ns()
            for peer in self.peers:
                self._start(peer, model, running)
            self._start_ns = monotonic_ns() - began
            self._models_left -= 1
            cells = [cell for cell in self.cells if cell.model == model.name]
            mine.append(OurSystem(ours, {model.name: model}, tls=False, tls_connections=0))
            if not self.given.no_tls:
                mine.append(OurSystem(ours, {model.name: model}, tls=True, tls_connections=cells[0].connections))
            systems: list[System] = [*mine, *(PeerSystem(one) for one in running)]
            for cell in cells:
                self._cell(systems, cell)
            self.opened += sum(one.opened for one in mine)
        finally:
            for one in mine:
                one.close()
            for peer in running:
                peer.stop()

    def _start(self, peer: Peer, model: BenchModel, running: list[RunningPeer]) -> None:
        """One after the other: a start is the heaviest thing that these servers do."""
        _say(f"starting {peer.name} with {model.name}")
        try:
            started = start(peer, model, into=self.given.peers_home, folder=self.folder)
        except (SealgateError, OSError) as error:
            self._miss(f"{peer.name}: {error}")
            return
        try:
            wait_ready(started)
        except (SealgateError, OSError) as error:
            self._miss(f"{peer.name} with {model.name}: {error}")
            started.stop()
            return
        started.pause()
        running.append(started)

    def _rounds(self) -> int:
        """How many rounds of the next cell there is time for: as many as were asked for, or fewer, but one."""
        asked: int = self.given.rounds
        if not self._round_ns:
            return asked
        time_left = self._deadline - monotonic_ns() - self._start_ns * self._models_left
        rounds = max(1, min(asked, time_left // (self._round_ns * self._left)))
        if rounds < asked:
            _say(f"time is short: {rounds} of {asked} rounds")
        return rounds

    def _miss(self, text: str) -> None:
        _say(f"not measured: {text}")
        self.missing.append(text)

    def _cell(self, systems: list[System], cell: Cell) -> None:
        ours = systems[0]
        fit = []
        for system in systems:
            if not system.takes(cell):
                continue
            why = "" if system is ours else disagreement(system, ours, cell)
            if why:
                self._miss(f"{system.name} in {cell}: {why}")
            else:
                fit.append(system)
        given, began, rounds = self.given, monotonic_ns(), self._rounds()
        found = list(measure(fit, cell, rounds=rounds, seconds=given.seconds, warm_s=given.warm))
        self._round_ns = (monotonic_ns() - began) // rounds
        self._left -= 1
        self.measured += found
        for one in found:
            if one.error:
                self._miss(f"{one.system} in {cell}, round {one.round}: {one.error}")
        rates = {one.system: one.rate for one in found if one.round == rounds - 1}
        _say(f"{cell}: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))

    def report(self, elapsed_s: float) -> str:
        """The tables and what is missing."""
        names = ["sealgate", *([] if self.given.no_tls else ["sealgate, TLS"]), *(peer.name for peer in self.peers)]
        singles = [cell for cell in self.cells if cell.connections == self.cells[0].connections]
        parts = [
            f"{platform.python_version()}, {os.cpu_count()} cores, up to {self.given.rounds} interleaved rounds of "
            f"{self.given.seconds:g} s, {elapsed_s / 60:.1f} minutes; {self.opened} of our answers opened and verified",
        ]
        for connections in dict.fromkeys(cell.connections for cell in self.cells):
            some = [cell for cell in self.cells if cell.connections == connections]
            parts.append(f"### {connections} connections\n\n{ratio_table(self.measured, names, some)}")
            parts.append(rates_table(self.measured, names, some))
        parts.append(f"### What a request costs\n\n{cost_table(self.measured, names, singles)}")
        parts.append("### How each peer batches\n\n" + "\n".join(f"- {one.name}: {one.batching}" for one in self.peers))
        if self.missing:
            parts.append("### Not measured, and why\n\n" + "\n".join(f"- {line}" for line in self.missing))
        return "\n\n".join(parts)


def main() -> int:
    """Measure, print Markdown; the exit code is 1 if our own service was not measured."""
    given = _arguments()
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    folder = given.keep or Path(tempfile.mkdtemp(prefix="sg-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = monotonic_ns()
    comparison = Comparison(given, folder)
    try:
        comparison.run()
    except SealgateError as error:
        _say(f"benchmarks.serving: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted; what was measured until now:")
    finally:
        end_all()
        if given.json:
            figures = [{**asdict(one), "cell": asdict(one.cell)} for one in comparison.measured]
            text = json.dumps({"figures": figures, "missing": comparison.missing}, indent=1)
            given.json.write_text(text + "\n")
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(comparison.report((monotonic_ns() - began) / 1e9))
    return 0 if any(one.system == "sealgate" and one.rate for one in comparison.measured) else 1


if __name__ == "__main__":
    sys.exit(main())
