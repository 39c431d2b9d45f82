"""`sealgate bench` against a real deployment: its tables, its figures, and what it says to wrong arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from sealgate.bench import measures, sealing
from sealgate.bench.figures import mean_us, read_steps
from sealgate.bench.floor import floor
from sealgate.bench.load import LoadFailed, Run
from sealgate.bench.measures import Asked, Caller
from sealgate.bench.soak import Watched, soak
from sealgate.bench.stand import Stand, _read_rows, running
from sealgate.cli import main
from sealgate.client.errors import UsageError
from sealgate.errors import SealgateError
from tests.live import MODEL, Live


@pytest.fixture
def stand(live: Live, tmp_path: Path) -> Stand:
    """The shared deployment, as somebody who may ask it sees it."""
    return as_seen(live, tmp_path)


def as_seen(live: Live, tmp_path: Path) -> Stand:
    (tmp_path / "token").write_text(live.token())
    rows = tmp_path / "rows.csv"
    heading = ",".join(f"c{number}" for number in range(len(live.rows[0])))
    rows.write_text("\n".join([heading, *(",".join(map(str, row)) for row in live.rows[:8])]) + "\n")
    return running(
        trust=live.root / "client",
        token_file=tmp_path / "token",
        model=MODEL,
        purpose="treatment",
        rows=rows,
        state=live.root,
        metrics="",
    )


def test_latency_steps_and_floor_of_a_deployment_that_runs(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "CALLERS", (1, 4))
    monkeypatch.setattr(measures, "_CLIENT_TIMES", 4)
    before = len(stand.processes())
    with Caller(stand) as caller:
        table, asked = measures.latency(caller, seconds=0.3)
        client_us = caller.client_steps()
    assert [row[0] for row in table.rows] == [1, 4]
    assert all(one.run.refused == 0 and one.run.answered > 0 for one in asked.values())
    assert before >= 3
    for one in asked.values():
        assert {"gateway", "host", "worker"} <= set(one.cpu_us)
        assert all(one.cpu_us[role] > 0 for role in ("gateway", "host", "worker"))
    assert set(client_us) == {"evidence", "seal", "open-answer"}
    assert all(us > 0 for us in client_us.values())
    told = measures.steps(client_us, asked)
    assert [row[0] for row in told.rows if row[0]] == [str(number) for number in range(1, 13)]
    assert any("metrics" in note for note in told.notes), "it says why the server's steps are missing"
    least = floor(asked, stand.state / "log" if stand.state else Path()).numbers
    assert 0 < least["fsync_us"] < least["floor_us"]
    assert least["measured_us"] == pytest.approx(measures.percentile(asked[1].run.latencies_us, 0.5))


def test_memory_payloads_and_soak(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "PAYLOADS", (1024, 64 * 1024, 32 << 20))
    monkeypatch.setattr("sealgate.bench.soak._RUN_S", 0.2)
    with Caller(stand) as caller:
        found = measures.payloads(caller).numbers
        table = soak(caller, minutes=0.02, say=lambda _: None, busy=0.5)
    shown = measures.memory(stand, title="m")
    assert {row[0] for row in shown.rows} >= {"gateway", "host", "worker"}
    assert all(one["resident"] >= one["proportional"] > 0 for one in shown.numbers)
    assert [bool(one.get("us")) for one in found] == [True, True, False]
    assert "this service takes 16 MiB at most" in found[2]["refused"]
    assert all(set(one["peak"]) >= {"gateway", "host", "worker"} for one in found[:2])
    assert table.numbers["answered"] > 0
    assert {row[0] for row in table.rows} >= {"gateway", "host", "worker"}


def test_a_soak_names_a_process_that_ended(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealgate.bench.soak._RUN_S", 0.2)
    monkeypatch.setattr("sealgate.bench.soak.monotonic_ns", count(0, 10_000_000_000).__next__)  # ten seconds a look
    said: list[str] = []
    with Caller(stand) as caller, subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as brief:
        ask, look, times = caller.ask, stand.processes, 0

        def asks(callers: int, *, seconds: float) -> Asked:
            nonlocal times
            times += 1
            if times == 3:
                brief.kill()
                brief.wait()
            return ask(callers, seconds=seconds)

        monkeypatch.setattr(caller, "ask", asks)
        monkeypatch.setattr(stand, "processes", lambda: look() | ({brief.pid: "brief"} if brief.poll() is None else {}))
        table = soak(caller, minutes=4, say=said.append)
    ended = said.index(f"2 min: brief {brief.pid} has ended")
    assert all("brief" in line for line in said[:ended])
    assert len(said) > ended + 1
    assert not any("brief" in line for line in said[ended + 1 :])
    verdicts = {row[0]: str(row[-1]) for row in table.rows}
    assert verdicts["brief"] == "ended after 2 min"
    assert verdicts["host"] in ("flat", "grows", "shrinks")


def test_a_refused_request_ends_the_measuring(stand: Stand, live: Live) -> None:
    with Caller(stand) as caller:
        stand.token = live.token(purposes=["research"])  # and asks for treatment
        caller.sealer.close()
        caller.sealer = stand.sealer()
        with pytest.raises(SealgateError, match=r"refused .* 403"):
            caller.ask(2, seconds=0.2)


def test_two_workers_are_asked_in_turn(fresh: Callable[[], Live], tmp_path: Path) -> None:
    live = fresh()
    settings = live.root / "deployment.toml"
    settings.write_text(settings.read_text().replace("[runtime]\n", "[runtime]\nworkers = 2\n"))
    live.start()
    live.ready()
    stand = as_seen(live, tmp_path)
    stand.workers = 2
    with Caller(stand) as caller:
        caller.ask(2, seconds=0.2)
    live.stop()
    asked = Counter(record.runtime_instance for record in live.records() if record.kind == "inference.completed")
    assert len(asked) == 2
    assert max(asked.values()) - min(asked.values()) <= 3  # what was under way at the end


def test_workers_that_do_not_show_themselves_are_not_measured(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_TRIES", 3)
    stand.workers = 2
    with pytest.raises(LoadFailed, match="2 workers are to be measured, and 1 showed evidence"):
        stand.sealer()


def test_the_figures_of_a_page() -> None:
    page = {"open": (2.0, 10.0), "run": (1.0, 4.0)}
    assert mean_us(page, {"open": (5.0, 16.0), "run": (1.0, 4.0), "seal": (0.003, 3.0)}) == {
        "open": pytest.approx(500_000),
        "seal": pytest.approx(1000),
    }
    assert read_steps("") == {}
    assert read_steps("http://127.0.0.1:9/metrics") == {}


def test_each_step_of_the_server_has_its_row() -> None:
    from sealgate.protocol.figures import STEPS

    told = {"authenticate", "parse", "decide", "authorise", "queue", "open", "run", "seal", "record", "release"}
    assert told == set(STEPS)
    asked = {callers: Asked(Run(), {}, dict.fromkeys(STEPS, 7.0)) for callers in (1, 64)}
    table = measures.steps({"evidence": 1.0, "seal": 2.0, "open-answer": 3.0}, asked)
    assert [row[3] for row in table.rows if row[2] != "client"] == ["7"] * len(STEPS)


def test_the_slope_of_memory() -> None:
    flat, growing = Watched("a"), Watched("b")
    for at in range(20):
        flat.at_s.append(float(at))
        flat.bytes.append(100)
        growing.at_s.append(float(at))
        growing.bytes.append(5000 + 3 * at)
    assert flat.slope() == 0
    assert growing.slope() == pytest.approx(3)
    assert Watched("c", [1.0], [1]).slope() == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--only", "speed"], "there is no speed; there are steps"),
        (["--seconds", "0"], "--seconds must be"),
        (["--soak", "-1"], "--soak must be"),
        (["--soak", "1", "--busy", "0"], "--busy must be"),
        (["--trust", "x"], "give these too: --token-file, --model, --purpose, --rows"),
        (["--folder", "."], "is not empty"),
    ],
)
def test_wrong_arguments_get_one_line(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 1
    said = capsys.readouterr()
    assert why in said.err
    assert said.err.count("\n") == 1


def test_rows_that_cannot_be_asked(tmp_path: Path) -> None:
    for text in ("a,b\n1,2\n3\n", "a\nx\n", ""):
        (tmp_path / "rows.csv").write_text(text)
        with pytest.raises(UsageError, match="must be a CSV file"):
            _read_rows(tmp_path / "rows.csv")


@pytest.mark.slow
def test_the_whole_command_with_a_deployment_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "figures.json"
    assert main(["bench", "--seconds", "0.5", "--json", str(written)]) == 0
    said = capsys.readouterr().out
    numbers = json.loads(written.read_text())
    assert set(numbers) >= {"start", "latency", "steps", "floor", "memory_idle", "memory_loaded", "payloads", "workers"}
    assert [name for name, found in numbers["steps"].items() if not found] == [], "the server's own figures fill them"
    shown = {name for _, name, _, what in measures.STEPS if what in said}
    assert shown == set(numbers["steps"]) == {name for _, name, _, _ in measures.STEPS}
