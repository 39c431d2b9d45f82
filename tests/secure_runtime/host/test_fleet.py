"""Workers that take over from each other, and several side by side, with a real log and workers that are sockets in the
test's hand: what fails before the moment of change changes nothing, and requests follow the keys that they are sealed
to."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit.log import AuditLog
from audit.query import AuditReader, RecordFilter
from sealgate.ambient import random_bytes
from sealgate.protocol.frames import (
    BootPlan,
    FrameReader,
    Hello,
    HostToWorker,
    KeysChanged,
    Rotate,
    Shutdown,
    WorkerFacts,
)
from sealgate.protocol.ohttp import decode_key_configs
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from secure_runtime.errors import RuntimeUnavailable, SwitchRefused
from secure_runtime.host import fleet as module
from secure_runtime.host import supervisor
from secure_runtime.host.choice import Choice
from secure_runtime.host.fleet import Fleet, Lane
from secure_runtime.host.key_owners import KeyOwners
from secure_runtime.host.worker_life import Around, Planned
from secure_runtime.worker.keys import KeyRing
from tests.secure_runtime.host.test_supervisor import FACTS, ISOLATED, MODEL, ORIGIN, Scripted

ALL = Choice(places=("m/1",))
BOTH = Choice(places=("m/1", "m/2"))


_NUMBERS = count(step=16)


def apart(size: int) -> bytes:
    """Randomness of a played worker. Its keys are numbered apart from those of the others: two that are started at the
    same time choose the same number once in 256 times, and are asked for another one."""
    return bytes([next(_NUMBERS) % 256]) if size == 1 else random_bytes(size)


class Played(Scripted):
    """A worker of which the test knows the plan, and reads what the host says to it."""

    def __init__(self, plan: BootPlan) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        super().__init__(ours, theirs)
        self.plan = plan
        self.keys = KeyRing(
            ("X25519",), active_s=60, stale_s=60, replay_max=10, avoid_ids=plan.avoid_key_ids, entropy=apart
        )
        self._reader = FrameReader(HostToWorker)
        self._heard: list[Any] = []

    @property
    def number(self) -> int:
        """Of its newest key."""
        return decode_key_configs(self.keys.published())[0].key_id

    def hello(self, instance: str, **changes: Any) -> None:
        models = tuple(
            msgspec.structs.replace(
                MODEL, name=name, version=version, certificate_digest=f"{name}{version}".ljust(64, "0")
            )
            for name, _, version in (place.partition("/") for place in self.plan.bundles or ())
        )
        values = {"models": models, "refused": (), "key_configs": self.keys.published(), **changes}
        self.say(Hello(facts=msgspec.structs.replace(FACTS, instance=instance * 32, **values)))

    def heard(self, kind: type) -> list[Any]:
        try:
            data = self.theirs.recv(1 << 16)
        except OSError:
            data = b""
        self._heard += [frame for frame, _ in self._reader.feed(data)]
        return [frame for frame in self._heard if isinstance(frame, kind)]


class Bench:
    def __init__(self, log: AuditLog, folder: Path) -> None:
        self.log = log
        self.folder = folder
        self.workers: list[Played] = []
        self.told: list[str] = []
        self.changes = 0
        self.owners = KeyOwners()
        self.committed: list[str] = []

    def spawn(self, plan: BootPlan) -> Played:
        self.workers.append(Played(plan))
        return self.workers[-1]

    def changed(self) -> None:
        self.changes += 1

    def make(self, choice: Choice = ALL, **options: Any) -> Fleet:
        around = Around(
            log=self.log,
            owners=self.owners,
            evidence_digest=lambda published: "e" * 64,
            on_change=self.changed,
            tell=self.told.append,
            spawn=self.spawn,  # type: ignore[arg-type]
            read_layers=lambda pid: dict(ISOLATED),
        )

        def plan(lane: Lane, choice: Choice, avoid: tuple[int, ...]) -> Planned:
            made = BootPlan(
                profile="strict", audience="a", models_dir="", publishers_file="", sys_path=(), uid=0, gid=0,
                torch_threads=1, memory_limit_bytes=0, avoid_key_ids=avoid, bundles=lane.places(choice),
                number=lane.number,
            )  # fmt: skip
            return Planned(plan=made)

        self.fleet = Fleet(around, plan, choice, **{"drain_s": 0.0, "request_timeout_s": 1.0, **options})
        return self.fleet

    def play(self, act: Callable[[Bench], Awaitable[None]]) -> None:
        async def both() -> None:
            running = asyncio.create_task(self.fleet.run())
            async with asyncio.timeout(60):
                await act(self)
            assert not running.done(), "the fleet ended, and the host with it"
            stopping = asyncio.create_task(self.fleet.stop())
            for worker in self.workers:
                worker.theirs.close()
            async with asyncio.timeout(60):
                await asyncio.gather(stopping, running)
            await asyncio.sleep(0)

        asyncio.run(both())

    def play_until_stopped(self, act: Callable[[Bench], Awaitable[None]]) -> None:
        """The same for a part that stops the fleet itself."""

        async def both() -> None:
            running = asyncio.create_task(self.fleet.run())
            async with asyncio.timeout(30):
                await act(self)
                for worker in self.workers:
                    worker.theirs.close()
                await running
            await asyncio.sleep(0)

        asyncio.run(both())

    async def until(self, holds: Callable[[], Any]) -> None:
        while not holds():  # noqa: ASYNC110 - the fleet tells nobody
            await asyncio.sleep(0.005)

    async def worker(self, number: int) -> Played:
        await self.until(lambda: len(self.workers) > number)
        return self.workers[number]

    async def live(self, number: int, instance: str) -> Played:
        """Let a worker say Hello and be published."""
        worker = await self.worker(number)
        worker.hello(instance)
        await self.until(lambda: instance in self.instances())
        return worker

    def instances(self) -> str:
        return "".join(one.facts.instance[0] for one in self.fleet.published)

    def switch(self, choice: Choice, **options: Any) -> asyncio.Task[None]:
        async def commit() -> None:
            self.committed.append("".join(r.runtime_instance[0] for r in self.records() if r.kind == "worker.start"))

        values = {"accept": lambda facts: None, "commit": commit, **options}
        return asyncio.create_task(self.fleet.switch(choice, **values))

    def records(self) -> list[Record]:
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
    made = Bench(log, tmp_path)
    yield made
    for worker in made.workers:
        worker.sock.close()
        worker.theirs.close()
    log.close()


def test_a_new_worker_takes_over_in_one_moment_and_the_old_one_keeps_its_keys_until_it_has_answered(
    bench: Bench,
) -> None:
    fleet = bench.make(drain_s=0.2)

    async def act(bench: Bench) -> None:
        old = await bench.live(0, "1")
        asked = fleet.worker("m", old.number)
        asked.footing.expected += 1  # a request of his is on its way
        switching = bench.switch(BOTH)
        new = await bench.worker(1)
        assert bench.instances() == "1"
        new.hello("2")
        await switching
        assert bench.instances() == "2"
        assert {model.version for model in fleet.models} == {"1", "2"}
        assert fleet.worker("m", old.number).instance[0] == "1", "sealed to the old one's key"
        assert fleet.worker("m", new.number).instance[0] == "2"
        await bench.until(lambda: bench.owners.owner(old.number) is None)  # the drain is over
        assert fleet.worker("m", old.number).instance[0] == "2", "which refuses it: its client takes new evidence"
        assert not old.heard(Shutdown), "it still owes an answer"
        asked.footing.expected -= 1
        await bench.until(lambda: old.heard(Shutdown))
        old.theirs.close()
        await bench.until(lambda: any(record.kind == "worker.stop" for record in bench.records()))

    bench.play(act)
    assert bench.committed == ["12"], "it is committed once the new worker's start is on record"
    assert [r.reason for r in bench.records() if r.kind == "worker.stop"] == ["replaced", "stopped"]
    assert len(bench.workers) == 2


def test_who_asks_for_a_model_that_was_unloaded_is_told_so_at_once(bench: Bench) -> None:
    fleet = bench.make(Choice(places=("m/1", "n")), drain_s=60.0)

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")
        switching = bench.switch(ALL)
        (await bench.worker(1)).hello("2")
        await switching
        assert {model.name for model in fleet.models} == {"m", "n"}, "what is sealed to the old one's key is decided on"
        given = fleet.next_published("n")
        assert given is not None, "not an outage"
        assert given.facts.instance[0] == "2", "its evidence names what there is"

    bench.play(act)


def test_a_worker_that_was_replaced_and_does_not_leave_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WORKER_GRACE_S", 0.0)
    bench.make(drain_s=0.0, request_timeout_s=0.0)

    async def act(bench: Bench) -> None:
        old = await bench.live(0, "1")
        switching = bench.switch(BOTH)
        (await bench.worker(1)).hello("2")
        await switching
        await bench.until(lambda: old.killed)  # it was asked to leave, and its socket never closed
        await bench.until(lambda: any(record.kind == "worker.stop" for record in bench.records()))
        assert bench.instances() == "2"

    bench.play(act)
    assert [r.reason for r in bench.records() if r.kind == "worker.stop"] == ["worker-hung", "stopped"]


def _refuse(facts: Sequence[WorkerFacts]) -> None:
    raise SwitchRefused("bundle m/2 is refused: weights-digest", code="bundle-refused")


async def _no_commit() -> None:
    raise SwitchRefused("cannot be written", code="choice-not-kept")


@pytest.mark.parametrize(
    ("failing", "code", "starts"),
    [("dies", "switch-failed", "1"), ("lies", "switch-failed", "1"), ("refused", "bundle-refused", "1"),
     ("uncommitted", "choice-not-kept", "12")],
)  # fmt: skip
def test_whatever_fails_before_the_moment_of_change_changes_nothing(
    bench: Bench, failing: str, code: str, starts: str
) -> None:
    fleet = bench.make()
    options: dict[str, Any] = {"refused": {"accept": _refuse}, "uncommitted": {"commit": _no_commit}}.get(failing, {})

    async def act(bench: Bench) -> None:
        old = await bench.live(0, "1")
        switching = bench.switch(BOTH, **options)
        new = await bench.worker(1)
        if failing == "dies":
            new.theirs.close()
        else:
            new.hello("2", **({"profile": "dev"} if failing == "lies" else {}))
        with pytest.raises(SwitchRefused) as refused:
            await switching
        assert refused.value.code == code
        assert bench.instances() == "1"
        assert new.killed
        assert not old.heard(Shutdown)
        assert fleet.choice is ALL
        assert fleet.worker("m", new.number).instance[0] == "1"

    bench.play(act)
    assert "".join(r.runtime_instance[0] for r in bench.records() if r.kind == "worker.start") == starts
    assert len(bench.workers) == 2
    if failing in ("refused", "uncommitted"):  # nothing is wrong with the new worker: it is not wanted
        assert not [line for line in bench.told if "worker refused" in line]
    stops = {r.runtime_instance[0]: r.reason for r in bench.records() if r.kind == "worker.stop"}
    assert stops.get("2", "switch-refused") == "switch-refused"


def test_a_change_that_was_committed_stands_though_its_worker_dies_in_that_moment(bench: Bench) -> None:
    fleet = bench.make()

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")

        async def commit() -> None:
            bench.workers[1].theirs.close()  # nobody hears of it before the record is there

        switching = bench.switch(BOTH, commit=commit)
        (await bench.worker(1)).hello("2")
        await switching
        assert fleet.choice is BOTH
        third = await bench.worker(2)
        assert third.plan.bundles == ("m/1", "m/2")
        third.hello("3")
        await bench.until(lambda: bench.instances() == "3")

    bench.play(act)


@pytest.mark.parametrize("options", [{}, {"per_model": True}], ids=["together", "per-model"])
def test_a_change_that_is_committed_while_the_host_stops_is_left_to_the_next_start(
    bench: Bench, options: dict[str, Any]
) -> None:
    """With a worker for each model the new one's lane is not yet among those that a stop ends."""
    fleet = bench.make(**options)
    wanted = Choice(places=("m/1", "n/1")) if options else BOTH

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")
        stopping: list[asyncio.Task[None]] = []

        async def commit() -> None:
            stopping.append(asyncio.create_task(fleet.stop()))
            await asyncio.wait(stopping)

        switching = bench.switch(wanted, commit=commit)
        new = await bench.worker(1)
        new.hello("2")
        await switching
        assert fleet.choice is wanted
        assert new.killed
        assert not any(one.facts.instance.startswith("2") for one in fleet.published)

    bench.play_until_stopped(act)


def test_why_there_is_no_worker_is_what_became_of_the_one_that_served(bench: Bench) -> None:
    """Health, the host's lines and the gateways' log say it: not the end of one that had been replaced long before."""

    async def act(bench: Bench) -> None:
        old = await bench.live(0, "a")
        switching = bench.switch(BOTH)
        (await bench.worker(1)).hello("b")
        await switching
        old.theirs.close()  # it has drained
        await bench.until(lambda: [r.reason for r in bench.records() if r.kind == "worker.stop"] == ["replaced"])
        bench.workers[1].theirs.close()
        await bench.until(lambda: not bench.fleet.published)
        assert bench.fleet.why_not == "the worker ended (worker-died) and is being replaced"
        await bench.live(2, "c")

    bench.make()
    bench.play(act)


def test_one_change_at_a_time(bench: Bench) -> None:
    bench.make()

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")
        first = bench.switch(BOTH)
        new = await bench.worker(1)
        with pytest.raises(SwitchRefused) as refused:
            await bench.switch(BOTH)
        assert refused.value.code == "switch-under-way"
        new.hello("2")
        await first
        assert bench.instances() == "2"

    bench.play(act)


def test_a_worker_that_dies_while_its_successor_starts_is_not_replaced_by_a_third(bench: Bench) -> None:
    fleet = bench.make()

    async def act(bench: Bench) -> None:
        old = await bench.live(0, "1")
        switching = bench.switch(BOTH)
        new = await bench.worker(1)
        old.theirs.close()
        await bench.until(lambda: not fleet.published)
        with pytest.raises(RuntimeUnavailable):
            fleet.worker("m", old.number)
        new.hello("2")
        await switching
        assert bench.instances() == "2"
        new.theirs.close()
        await bench.live(2, "3")  # and from then on as ever

    bench.play(act)
    assert len(bench.workers) == 3


def test_a_worker_that_dies_while_its_successor_fails_is_started_again_with_the_old_choice(bench: Bench) -> None:
    bench.make()

    async def act(bench: Bench) -> None:
        old = await bench.live(0, "1")
        switching = bench.switch(BOTH)
        new = await bench.worker(1)
        old.theirs.close()
        new.theirs.close()
        with pytest.raises(SwitchRefused):
            await switching
        third = await bench.live(2, "3")
        assert third.plan.bundles == ("m/1",)

    bench.play(act)


def test_several_workers_are_changed_together_or_not_at_all(bench: Bench) -> None:
    fleet = bench.make(workers=2)

    async def act(bench: Bench) -> None:
        first, second = await bench.live(0, "1"), await bench.live(1, "2")
        assert (first.plan.number, second.plan.number) == (0, 1)
        assert {fleet.worker("m", one.number).instance[0] for one in (first, second)} == {"1", "2"}
        assert {fleet.next_published("m").facts.instance[0] for _ in range(2)} == {"1", "2"}  # type: ignore[union-attr]
        switching = bench.switch(BOTH)
        (await bench.worker(2)).hello("3")
        (await bench.worker(3)).theirs.close()
        with pytest.raises(SwitchRefused):
            await switching
        assert sorted(bench.instances()) == ["1", "2"]
        switching = bench.switch(BOTH)
        (await bench.worker(4)).hello("4")
        await bench.worker(5)
        assert sorted(bench.instances()) == ["1", "2"]
        bench.workers[5].hello("5")
        await switching
        assert sorted(bench.instances()) == ["4", "5"]

    bench.play(act)


def test_a_dying_worker_takes_only_its_own_requests_with_it(bench: Bench) -> None:
    fleet = bench.make(workers=2)

    async def act(bench: Bench) -> None:
        first, second = await bench.live(0, "1"), await bench.live(1, "2")
        first.theirs.close()
        await bench.until(lambda: bench.instances() == "2")
        assert fleet.worker("m", first.number).instance[0] == "2", "which refuses what it cannot open"
        assert fleet.worker("m", second.number).instance[0] == "2"
        await bench.live(2, "3")
        assert sorted(bench.instances()) == ["2", "3"]

    bench.play(act)


def test_a_model_with_a_worker_of_its_own_comes_and_goes_alone(bench: Bench) -> None:
    fleet = bench.make(Choice(places=("m/1", "n")), per_model=True)

    async def act(bench: Bench) -> None:
        first, second = await bench.live(0, "1"), await bench.live(1, "2")
        assert (first.plan.bundles, second.plan.bundles) == (("m/1",), ("n",))
        assert fleet.next_published("n").facts.instance[0] == "2"  # type: ignore[union-attr]
        assert fleet.next_published("o") is not None, "evidence that names no such model says so best"
        second.theirs.close()
        await bench.until(lambda: bench.instances() == "1")
        assert fleet.next_published("n") is None, "its worker is being started anew"
        assert {model.name for model in fleet.models} == {"m", "n"}, "the policy still knows it"
        with pytest.raises(RuntimeUnavailable):
            fleet.worker("n", second.number)
        await bench.live(2, "3")
        switching = bench.switch(Choice(places=("m/1", "o/1")))
        fourth = await bench.worker(3)
        assert fourth.plan.bundles == ("o/1",)
        fourth.hello("4")
        await switching
        assert sorted(bench.instances()) == ["1", "4"]
        await bench.until(lambda: bench.workers[2].heard(Shutdown))
        bench.workers[2].theirs.close()
        await bench.until(lambda: {model.name for model in fleet.models} == {"m", "o"})

    bench.play(act)
    assert len(bench.workers) == 4, "the worker of m was left alone"


def test_a_key_whose_number_is_anothers_is_not_published_and_asked_for_anew(bench: Bench) -> None:
    fleet = bench.make(workers=2)

    async def act(bench: Bench) -> None:
        first, second = await bench.live(0, "1"), await bench.live(1, "2")
        before = fleet.published[1].key_configs
        taken = first.keys.published()
        second.say(KeysChanged(key_configs=taken))  # it chose the first one's number
        await bench.until(lambda: second.heard(Rotate))
        assert first.number in second.heard(Rotate)[0].avoid
        assert fleet.published[1].key_configs == before
        assert fleet.worker("m", first.number).instance[0] == "1"
        second.keys.rotate(second.heard(Rotate)[0].avoid)
        second.say(KeysChanged(key_configs=second.keys.published()))
        await bench.until(lambda: fleet.published[1].key_configs == second.keys.published())
        assert fleet.worker("m", second.number).instance[0] == "2"

    bench.play(act)


def test_new_workers_are_not_started_where_the_memory_for_them_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.make()
    monkeypatch.setattr(module, "resident_memory", lambda pid: 500 << 20)
    monkeypatch.setattr(module, "free_memory", lambda: 400 << 20)

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")
        with pytest.raises(SwitchRefused, match="need about 500 MiB, and 400 MiB are free"):
            await bench.switch(BOTH)
        assert len(bench.workers) == 1
        monkeypatch.setattr(module, "free_memory", lambda: None)  # a kernel that does not say
        switching = bench.switch(BOTH)
        (await bench.worker(1)).hello("2")
        await switching

    bench.play(act)


def test_more_workers_than_the_published_list_holds_are_refused(bench: Bench) -> None:
    many = Choice(places=tuple(f"model-{number}" for number in range(9)))
    with pytest.raises(SwitchRefused) as refused:
        bench.make(many, per_model=True)
    assert refused.value.code == "too-many-workers"


def test_a_host_that_stops_while_a_worker_is_being_planned_starts_none_and_leaves(bench: Bench) -> None:
    fleet = bench.make()
    (supervisor,) = fleet.lanes.values()
    planning, go_on = threading.Event(), threading.Event()
    plan = supervisor._plan

    def slow(avoid: tuple[int, ...]) -> Planned:
        planning.set()
        assert go_on.wait(20)
        return plan(avoid)

    supervisor._plan = slow

    async def stop_meanwhile() -> None:
        running = asyncio.create_task(fleet.run())
        await bench.until(planning.is_set)
        await fleet.stop()
        go_on.set()
        async with asyncio.timeout(60):
            await running

    asyncio.run(stop_meanwhile())
    assert bench.workers == []


def test_a_change_that_is_under_way_when_the_host_stops_is_given_up(bench: Bench) -> None:
    bench.make()

    async def act(bench: Bench) -> None:
        old = await bench.live(0, "1")
        switching = bench.switch(BOTH)
        new = await bench.worker(1)
        stopping = asyncio.create_task(bench.fleet.stop())
        with pytest.raises(SwitchRefused):
            await switching
        await stopping
        assert new.killed
        assert old.heard(Shutdown)
        assert bench.committed == []

    bench.play_until_stopped(act)
