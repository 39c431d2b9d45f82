"""The supervisor with a real log and a worker that is a socket in the test's hand: no words of a worker end the host,
get on record unchecked, or make it live when they do not fit what the host planned and reads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit.log import AuditLog
from audit.query import AuditReader, RecordFilter
from sealgate.protocol.frames import (
    BootFailed,
    BootPlan,
    Frame,
    Hello,
    KeysChanged,
    Layer,
    ModelFacts,
    ModelRefusal,
    WorkerFacts,
    encode_frame,
)
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from secure_runtime.errors import RuntimeUnavailable
from secure_runtime.host.key_owners import KeyOwners
from secure_runtime.host.supervisor import Supervisor
from secure_runtime.host.worker_life import Around, Planned
from secure_runtime.limits import MAX_WORKER_EVENTS
from secure_runtime.worker.keys import KeyRing

ORIGIN = "host.test/log"
KEYS = KeyRing(("X25519",), active_s=60, stale_s=60, replay_max=10).published()
MODEL = ModelFacts(
    name="m",
    version="1",
    model_digest="a" * 64,
    certificate_digest="b" * 64,
    epsilon_micro=1,
    delta="0.1",
    privacy_unit="example",
    sensitivity="public",
    purposes=("treatment",),
)
FACTS = WorkerFacts(
    instance="1" * 32,
    completion_key=b"\x05" * 32,
    key_configs=KEYS,
    models=(MODEL,),
    refused=(ModelRefusal(name="folder", reason="publisher-unknown"),),
    profile="strict",
    layers={},
    probes={},
    device="cpu",
    measurements={},
)
ISOLATED = {"seccomp": Layer(state="on")}


def facts(**changes: Any) -> WorkerFacts:
    return msgspec.structs.replace(FACTS, **changes)


@dataclass
class Scripted:
    """Stands where SpawnedWorker stands: the test holds the worker's end."""

    sock: socket.socket
    theirs: socket.socket
    killed: bool = False
    pid: int = 1

    def sealed_pid(self) -> int:
        return 1

    def kill(self) -> None:
        self.killed = True
        self.theirs.close()

    def wait(self) -> int:
        return 0

    def say(self, frame: Frame) -> None:
        self.theirs.sendall(b"".join(encode_frame(frame)))


@dataclass
class Bench:
    """A supervisor whose workers are scripted."""

    log: AuditLog
    folder: Path
    workers: list[Scripted] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    host_layers: dict[str, Layer] = field(default_factory=lambda: dict(ISOLATED))
    profile: str = "strict"
    drain_s: float = 60.0

    def __post_init__(self) -> None:
        self.spawning: Callable[[BootPlan], Any] = self.spawn
        around = Around(
            log=self.log,
            owners=KeyOwners(),
            evidence_digest=lambda published: "e" * 64,
            on_change=lambda: None,
            tell=self.told.append,
            spawn=lambda plan: self.spawning(plan),
            read_layers=lambda pid: self.host_layers,
        )
        self.supervisor = Supervisor(around, self.plan, drain_s=self.drain_s)

    def plan(self, avoid: tuple[int, ...]) -> Planned:
        plan = BootPlan(
            profile=self.profile,
            audience="a",
            models_dir="",
            publishers_file="",
            sys_path=(),
            uid=0,
            gid=0,
            torch_threads=1,
            memory_limit_bytes=0,
            avoid_key_ids=avoid,
        )
        return Planned(plan=plan)

    def spawn(self, plan: BootPlan) -> Scripted:
        ours, theirs = socket.socketpair()
        self.workers.append(Scripted(ours, theirs))
        return self.workers[-1]

    def play(self, act: Callable[[Bench], Awaitable[None]]) -> None:
        """Run the supervisor while `act` plays its workers; the supervisor itself must not have failed."""

        async def both() -> None:
            running = asyncio.create_task(self.supervisor.run())
            async with asyncio.timeout(60):
                await act(self)
            assert not running.done(), "the supervisor ended, and the host with it"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.sleep(0)  # the transport closes its socket a turn later
            for worker in self.workers:
                worker.sock.close()
                worker.theirs.close()

        asyncio.run(both())

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - the supervisor tells nobody
            await asyncio.sleep(0.005)

    def live(self) -> bool:
        try:
            self.supervisor.require_live()
        except RuntimeUnavailable:
            return False
        return True

    async def worker(self, number: int) -> Scripted:
        await self.until(lambda: len(self.workers) > number)
        return self.workers[number]

    def records(self) -> list[Record]:
        self.log.close()
        with closing(AuditReader(f"sqlite:///{self.folder}/audit.sqlite", origin=ORIGIN)) as reader:
            page = reader.records(RecordFilter(oldest_first=True), limit=1000)
        return [entry.record for entry in page.records if not entry.record.kind.startswith("log.")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    log = AuditLog.open(
        f"sqlite:///{tmp_path}/audit.sqlite",
        signer=NoteSigner.from_seed(ORIGIN, b"s" * 32),
        subjects_key=b"k" * 32,
        origin=ORIGIN,
        disk_reserve_bytes=0,
    )
    yield Bench(log, tmp_path)
    log.close()


def test_a_worker_is_live_once_its_start_is_on_record_and_its_end_is_recorded_too(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        worker = await bench.worker(0)
        worker.say(Hello(facts=FACTS))
        await bench.until(bench.live)
        worker.theirs.close()
        await bench.worker(1)
        assert not bench.live()

    bench.play(act)
    kinds = [(record.kind, record.reason) for record in bench.records()]
    assert kinds == [
        ("worker.start", ""),
        ("model.load", ""),
        ("model.refuse", "publisher-unknown"),
        ("key.rotate", ""),
        ("worker.stop", "worker-died"),
    ]
    words = "signed by a key that publishers.toml does not name"
    assert f"model folder was refused: publisher-unknown ({words})" in bench.told


@pytest.mark.parametrize(
    "lie",
    [
        {"key_configs": b"\x00\x01x"},
        {"key_configs": b""},
        {"completion_key": b"short"},
        {"instance": "words of its own"},
        {"profile": "dev"},
        {"models": (MODEL, MODEL)},
        {"refused": (ModelRefusal(name="x", reason="words of its own"),)},
    ],
    ids=str,
)
def test_a_hello_that_does_not_fit_makes_nothing_live_and_no_record(bench: Bench, lie: dict[str, Any]) -> None:
    async def act(bench: Bench) -> None:
        worker = await bench.worker(0)
        worker.say(Hello(facts=facts(**lie)))
        await bench.worker(1)
        assert worker.killed
        assert not bench.live()

    bench.play(act)
    assert bench.records() == []


def test_a_hello_whose_records_cannot_be_written_ends_the_worker_only(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        worker = await bench.worker(0)
        worker.say(Hello(facts=facts(device="d" * 10_000)))
        await bench.worker(1)
        assert worker.killed

    bench.play(act)
    assert "worker.start" not in {record.kind for record in bench.records()}


@pytest.mark.parametrize("host_layers", [{}, {"seccomp": Layer(state="failed")}], ids=["unread", "otherwise"])
def test_a_worker_that_the_host_cannot_read_as_isolated_is_not_live(bench: Bench, host_layers: Any) -> None:
    bench.host_layers = host_layers

    async def act(bench: Bench) -> None:
        (await bench.worker(0)).say(Hello(facts=FACTS))
        await bench.worker(1)

    bench.play(act)
    assert bench.workers[0].killed
    assert "worker.start" not in {record.kind for record in bench.records()}


@pytest.mark.parametrize(
    ("profile", "said", "live"),
    [
        ("container", "failed", True),  # the machine forbids them, and the worker says so
        ("container", "on", False),  # it says that it has what it has not
        ("container", None, False),
        ("strict", "failed", False),
    ],
)
def test_a_missing_namespace_is_no_contradiction_where_the_profile_does_without(
    bench: Bench, profile: str, said: str | None, live: bool
) -> None:
    bench.profile = profile
    bench.host_layers = ISOLATED | {"pid-namespace": Layer(state="failed")}
    layers = {} if said is None else {"pid-namespace": Layer(state=said)}

    async def act(bench: Bench) -> None:
        (await bench.worker(0)).say(Hello(facts=facts(profile=profile, layers=layers)))
        if not live:
            await bench.worker(1)
        else:
            await bench.until(lambda: bench.supervisor.published is not None)

    bench.play(act)
    assert ("worker.start" in {record.kind for record in bench.records()}) == live


@pytest.mark.parametrize(
    "second",
    [
        Hello(facts=facts(instance="2" * 32)),
        KeysChanged(key_configs=b"garbage"),
        BootFailed(reason="words of its own", detail=""),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_what_a_live_worker_may_not_say_ends_it_and_not_the_host(bench: Bench, second: Frame) -> None:
    async def act(bench: Bench) -> None:
        worker = await bench.worker(0)
        worker.say(Hello(facts=FACTS))
        await bench.until(bench.live)
        worker.say(second)
        again = await bench.worker(1)
        assert worker.killed
        again.say(Hello(facts=facts(instance="3" * 32)))
        await bench.until(bench.live)

    bench.play(act)
    found = bench.records()
    assert [record.runtime_instance[:1] for record in found if record.kind == "worker.start"] == ["1", "3"]
    assert next(record.reason for record in found if record.kind == "worker.stop") == "worker-protocol"


def test_a_flood_of_new_keys_fills_neither_memory_nor_the_log(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        worker = await bench.worker(0)
        worker.say(Hello(facts=FACTS))
        await bench.until(bench.live)
        for _ in range(3 * MAX_WORKER_EVENTS):
            try:
                worker.say(KeysChanged(key_configs=KEYS))
            except OSError:
                break
            await asyncio.sleep(0)
        await bench.worker(1)

    bench.play(act)
    assert sum(record.kind == "key.rotate" for record in bench.records()) <= MAX_WORKER_EVENTS + 2


def test_a_failed_boot_is_told_without_the_workers_control_characters(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        worker = await bench.worker(0)
        worker.say(BootFailed(reason="sandbox-refused", detail="\x1b[2J" + "x" * 10_000))
        worker.theirs.close()
        await bench.worker(1)

    bench.play(act)
    assert any("refused to start: ?[2Jxxx" in line for line in bench.told)
    assert max(map(len, bench.told)) < 500
    assert bench.records() == []


def test_a_process_that_cannot_be_made_is_tried_again(bench: Bench) -> None:
    def full(plan: BootPlan) -> Scripted:
        bench.spawning = bench.spawn
        raise BlockingIOError(11, "Resource temporarily unavailable")

    bench.spawning = full

    async def act(bench: Bench) -> None:
        (await bench.worker(0)).say(Hello(facts=FACTS))
        await bench.until(bench.live)

    bench.play(act)
