"""The comparison with plaintext servers: what it asks, how it reads answers, what it makes of the figures."""

from __future__ import annotations

import itertools
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.serving.__main__ import main
from benchmarks.serving.models import BenchModel
from benchmarks.serving.peers import HERE, PEERS, Peer, RunningPeer, _request, _scores, start, wait_ready
from benchmarks.serving.rounds import Cell, Measured, PeerSystem, disagreement, measure
from benchmarks.serving.table import cost_table, markdown, rates_table, ratio_table, ratios
from sealgate.bench.load import Answer, LoadFailed, Run
from tests.live import wait_until

CELL = Cell("mlp", 2, 4, False)
BY_NAME = {peer.name: peer for peer in PEERS}


@pytest.fixture
def model(tmp_path: Path) -> BenchModel:
    """A perceptron of random weights, as the peers read it."""
    drawn = np.random.default_rng(5)
    arrays = {
        "layers.0.weight": drawn.normal(size=(64, 30)),
        "layers.0.bias": drawn.normal(size=64),
        "layers.1.weight": drawn.normal(size=(1, 64)),
        "layers.1.bias": drawn.normal(size=1),
        **{key: np.full(30, value) for key, value in (("low", -1.0), ("high", 1.0), ("center", 0.1), ("scale", 2.0))},
    }
    path = tmp_path / "mlp.npz"
    shape = np.array([30])
    np.savez(
        path, name=np.array("mlp"), input=np.array("features"), shape=shape,
        **{key: value.astype(np.float32) for key, value in arrays.items()},
    )  # fmt: skip
    items = drawn.uniform(-2, 2, (8, 30)).astype(np.float32)
    return BenchModel(name="mlp", input="features", datatype="FP32", items=items, weights=path)


def by_hand(model: BenchModel, rows: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The scores in numpy alone, float64."""
    weights = {
        key: value.astype(np.float64) for key, value in np.load(model.weights).items() if value.dtype.kind == "f"
    }
    values = (model.items[:rows].clip(-1, 1) - 0.1) / 2.0
    hidden = np.maximum(values @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
    logits = hidden @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    second = 1 / (1 + np.exp(-logits))
    return np.concatenate([1 - second, second], axis=1).ravel()


@pytest.fixture
def litestar(model: BenchModel, tmp_path: Path):
    """The real bare Litestar server, in this interpreter's environment."""
    home = tmp_path / "peers" / "litestar"
    (home / "bin").mkdir(parents=True)
    (home / "installed.txt").write_text("")
    python = home / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    running = start(BY_NAME["litestar"], model, into=tmp_path / "peers", folder=tmp_path)
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


def test_a_real_peer_answers_what_the_model_says_and_is_measured(litestar: RunningPeer) -> None:
    system = PeerSystem(litestar)
    for binary in (False, True):
        cell = Cell("mlp", 3, 2, binary)
        np.testing.assert_allclose(system.scores(cell), by_hand(litestar.model, 3), atol=1e-6)
        (one,) = measure([system], cell, rounds=1, seconds=1.5, warm_s=0.0)
        assert (one.error, one.refused) == ("", 0)
        assert one.rate > 0
        assert one.cpu_us["server"] > 0
    assert disagreement(system, system, CELL) == ""
    stat = Path("/proc") / str(litestar.process.pid) / "stat"
    stopped = "while others are measured it is stopped"  # once it has had a processor to stop on
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", within_s=60, what=stopped)
    assert not system.takes(Cell("cnn", 1, 2, False))


def test_a_peer_that_is_not_there_or_ends_says_why(model: BenchModel, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"not installed: benchmarks/peers/install\.sh"):
        start(BY_NAME["fastapi"], model, into=tmp_path, folder=tmp_path)
    home = tmp_path / "broken"
    (home / "bin").mkdir(parents=True)
    (home / "installed.txt").write_text("")
    (home / "bin" / "python").write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    (home / "bin" / "python").chmod(0o755)
    peer = Peer(name="broken", env="broken", command=("litestar_server.py", "{port}"), batching="none")
    running = start(peer, model, into=tmp_path, folder=tmp_path)
    with pytest.raises(LoadFailed, match="it ended with 3; its last words: no such module"):
        wait_ready(running)
    running.stop()


def test_a_difference_excludes_a_server() -> None:
    class Fixed:
        name = "fixed"

        def __init__(self, *scores: float) -> None:
            self._scores = np.array(scores, np.float32)

        def takes(self, cell: Cell) -> bool:
            return True

        def run(self, cell: Cell, *, seconds: float, warm_s: float) -> tuple[Run, dict[str, float]]:
            raise LoadFailed("it hangs")

        def scores(self, cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
            return self._scores

    assert disagreement(Fixed(0.25, 0.75), Fixed(0.25, 0.75), CELL) == ""
    assert "differ by 0.01" in disagreement(Fixed(0.25, 0.75), Fixed(0.26, 0.74), CELL)
    assert "1 scores, expected 2" in disagreement(Fixed(0.25), Fixed(0.26, 0.74), CELL)
    found = list(measure([Fixed(0.0)], CELL, rounds=2, seconds=0.1, warm_s=0))
    assert [(one.round, one.rate, one.error) for one in found] == [(0, 0, "it hangs"), (1, 0, "it hangs")]


def test_requests_and_answers_of_each_style(model: BenchModel) -> None:
    items = model.items[:2]
    plain = _request(BY_NAME["mlserver"], model, items, binary=False).partition(b"\r\n\r\n")[2]
    (described,) = msgspec.json.decode(plain)["inputs"]
    assert described["shape"] == [2, 30]
    np.testing.assert_allclose(described["data"], items.ravel())
    head, _, body = _request(BY_NAME["pytriton"], model, items, binary=True).partition(b"\r\n\r\n")
    length = int(head.lower().split(b"inference-header-content-length: ")[1].split(b"\r")[0])
    document = msgspec.json.decode(body[:length])
    assert document["inputs"][0]["parameters"] == {"binary_data_size": items.nbytes}
    assert body[length:] == items.tobytes()
    assert _request(BY_NAME["ray"], model, items, binary=True).endswith(b"\r\n\r\n" + items.tobytes())

    scores = np.array([0.25, 0.75, 0.5, 0.5], np.float32)
    label = {"name": "label", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}}
    described = {"name": "scores", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}
    meta = msgspec.json.encode({"outputs": [label, described]})
    said = Answer(
        0, 200, f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {len(meta)}\r\n\r\n".encode(),
        meta + bytes(16) + scores.tobytes(), 1.0,
    )  # fmt: skip
    np.testing.assert_array_equal(_scores(BY_NAME["pytriton"], model, said, binary=True), scores)
    text = msgspec.json.encode([[0.25, 0.75], [0.5, 0.5]])
    chunks = b"%x\r\n" % 5 + text[:5] + b"\r\n%x\r\n" % len(text[5:]) + text[5:] + b"\r\n0\r\n\r\n"
    said = Answer(0, 200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunks, 1.0)
    np.testing.assert_array_equal(_scores(BY_NAME["bentoml"], model, said, binary=False), scores)
    raw = Answer(0, 200, b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n", scores.tobytes() + bytes(16), 1.0)
    np.testing.assert_array_equal(_scores(BY_NAME["litestar"], model, raw, binary=True), scores)


def test_every_peer_has_its_server_and_its_pins() -> None:
    for peer in PEERS:
        assert (HERE / peer.command[0]).exists()
        pins = (HERE / "requirements" / f"{peer.env}.txt").read_text().splitlines()
        assert all("==" in line for line in pins if line and not line.startswith("#"))
    assert {peer.env for peer in PEERS} == {path.stem for path in (HERE / "requirements").glob("*.txt")}


def _figure(system: str, number: int, rate: float) -> Measured:
    ours = {"gateway": 10.0, "host": 20.0, "worker": 30.0}
    cpu_us = ours if system == "sealgate" else {"server": 40.0}
    more = {"p50_ms": 1.0, "p99_ms": 2.0, "answered": 10, "refused": 0}
    return Measured(system=system, cell=CELL, round=number, rate=rate, cpu_us=cpu_us, **more)


def _figures(rates: dict[str, list[float]]) -> list[Measured]:
    return [_figure(system, number, rate) for system, found in rates.items() for number, rate in enumerate(found)]


def test_ratios_are_taken_within_a_round() -> None:
    figures = _figures({"sealgate": [100, 300, 200], "litestar": [50, 100, 0]})
    assert ratios(figures, "litestar", CELL) == [2.0, 3.0], "the round in which the peer failed has no ratio"
    assert "2.50 (2.00 - 3.00)" in ratio_table(figures, ["sealgate", "litestar"], [CELL])
    table = rates_table(figures, ["sealgate", "litestar", "ray"], [CELL])
    assert "200 (100 - 300)" in table
    assert table.splitlines()[-1].split("|")[2].strip() == "-"
    assert "gateway 10 + host 20 + worker 30" in cost_table(figures, ["sealgate"], [CELL])


def test_markdown_is_a_table() -> None:
    lines = markdown(["a", "b"], [["1", "22"], ["333", "4"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].replace("-", "") == "|||"
    assert [line.count("|") for line in lines] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--cells", "rnn:1"], "no model 'rnn'"), (["--peers", "nginx"], "there is no nginx")],
)
def test_wrong_arguments(arguments: list[str], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", *arguments])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match=why):
            main()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_the_whole_command_without_peers(tmp_path: Path) -> None:
    import json
    import subprocess

    written = tmp_path / "figures.json"
    arguments = ["--peers", "-", "--cells", "mlp:1", "--quick", "--rounds", "1", "--seconds", "0.3", "--json", written]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| sealgate " in done.stdout
    found = json.loads(written.read_text())
    assert found["missing"] == []
    systems = {one["system"] for one in found["figures"]}
    assert systems == {"sealgate", "sealgate, TLS"}
    assert all(one["rate"] > 0 for one in found["figures"])
    assert list(itertools.chain(*(one["cpu_us"] for one in found["figures"])))
