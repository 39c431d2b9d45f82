"""All workers of a host: which one gets a request, whose keys are published, and how their models change.

With placement "together" every worker has every model, so many of them as `workers` says; with "per-model" each model
has a worker of its own. A request goes to the worker whose key it was sealed to. What is sealed to nobody's key goes to
a worker that serves the model, which refuses it on record.

A change is all or nothing: `switch` starts every new worker beside the old ones, asks whether they have what was
wanted, lets their starts be recorded, and publishes them in one turn of the event loop. Until then anything that fails
leaves all as it was.

Trusts: `supervisor` for single workers. Never: runs two changes at once; looks into a request beyond the first byte.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from sealgate.certificate.repository import version_order
from sealgate.limits import MAX_WORKERS
from sealgate.protocol.frames import ModelFacts, WorkerFacts
from secure_runtime.errors import RuntimeUnavailable, SwitchRefused, WorkerGone
from secure_runtime.host.admission import LiveWorker
from secure_runtime.host.choice import Choice
from secure_runtime.host.inspect import free_memory, resident_memory
from secure_runtime.host.supervisor import Supervisor
from secure_runtime.host.worker_life import Around, Planned, Published, WorkerLife
from secure_runtime.limits import SPARE_MEMORY_BYTES

NONE_SERVED = "no model is to be served"


@dataclass(frozen=True)
class Lane:
    """What one worker, and whoever takes its place, is for. `model` is a folder's name with a worker of its own, or ""
    for a worker with everything."""

    number: int
    model: str = ""

    def places(self, choice: Choice) -> tuple[str, ...]:
        """The bundles that it loads."""
        return tuple(one for one in choice.places if self.model in ("", one.partition("/")[0]))


Plan = Callable[[Lane, Choice, tuple[int, ...]], Planned]


@dataclass(frozen=True)
class _Change:
    """One lane's part in a switch: `fresh` lanes had no worker before."""

    lane: Lane
    supervisor: Supervisor
    fresh: bool


class Fleet:
    """Owned by the host's event loop."""

    def __init__(
        self,
        around: Around,
        plan: Plan,
        choice: Choice,
        *,
        workers: int = 1,
        per_model: bool = False,
        drain_s: float = 60.0,
        request_timeout_s: float = 30.0,
    ) -> None:
        self._around = around
        self._plan = _one_at_a_time(plan)
        self._workers = workers
        self._per_model = per_model
        self._drain_s = drain_s
        self._request_timeout_s = request_timeout_s
        self._turn = 0
        self._switching = False
        self._stopping = False
        self._changed = asyncio.Event()  # lanes came or went
        self._tasks: dict[Supervisor, asyncio.Task[None]] = {}
        self.choice = choice
        self.lanes: dict[Lane, Supervisor] = {lane: self._supervisor(lane) for lane in self._wanted(choice)}

    def _wanted(self, choice: Choice) -> list[Lane]:
        """Raises SwitchRefused for more workers than may be: the published list has room for their keys only."""
        if not self._per_model:
            return [Lane(number) for number in range(self._workers)]
        models = dict.fromkeys(place.partition("/")[0] for place in choice.places)
        if len(models) > MAX_WORKERS:
            raise SwitchRefused(
                f"a worker for each of {len(models)} models: {MAX_WORKERS} workers may be", code="too-many-workers"
            )
        return [Lane(number, model) for number, model in enumerate(models)]

    def _supervisor(self, lane: Lane) -> Supervisor:
        return Supervisor(
            self._around,
            lambda avoid: self._plan(lane, self.choice, avoid),
            drain_s=self._drain_s,
            request_timeout_s=self._request_timeout_s,
        )

    # What others ask -------------------------------------------------------------------------------------------------

    def worker(self, model: str = "", key: int = -1) -> LiveWorker:
        """The worker that a request for `model`, sealed to the key of this number, goes to; raises
        RuntimeUnavailable."""
        owner = self._around.owners.owner(key)
        if isinstance(owner, WorkerLife) and owner.live is not None:
            return owner.live
        other: LiveWorker | None = None
        awaited = False
        for supervisor in self.lanes.values():
            try:
                live = supervisor.require_live()
            except RuntimeUnavailable:
                awaited = awaited or any(one.name == model for one in supervisor.known)
                continue
            if not model or model in live.models:
                return live
            other = other or live
        if other is None or awaited:
            raise RuntimeUnavailable(self.why_not, code="worker-not-ready")
        return other

    @property
    def published(self) -> tuple[Published, ...]:
        """What may be told about the workers whose keys are published."""
        return tuple(one for lane in self.lanes.values() if (one := lane.published) is not None)

    @property
    def draining(self) -> tuple[Published, ...]:
        """The replaced workers that still take what is sealed to their keys."""
        lives = (life for supervisor in self._tasks for life in supervisor.lives)
        return tuple(life.published for life in lives if life.retired and life.published is not None)

    @property
    def models(self) -> tuple[ModelFacts, ...]:
        """What any of the workers may answer with, once, also what one has that is just being started anew; of each
        name the newest version last. Nothing while no worker is live."""
        live = self.published
        if not live:
            return ()
        facts = [model for one in (*live, *self.draining) for model in one.facts.models]
        facts += [model for lane in self.lanes.values() if lane.published is None for model in lane.known]
        found = {(one.name, one.version, one.certificate_digest): one for one in facts}
        return tuple(sorted(found.values(), key=lambda one: (one.name, version_order(one.version))))

    def next_published(self, model: str = "") -> Published | None:
        """One of them that serves `model`, each in its turn: clients that ask for evidence are shared out like this.
        Any of them for a model that there is not, or no longer: its evidence says so, and which there are. None where
        its worker is just being started anew."""
        fit = [one for one in self.published if any(facts.name == model for facts in one.facts.models)]
        awaited = (facts for lane in self.lanes.values() if lane.published is None for facts in lane.known)
        if not fit and not any(facts.name == model for facts in awaited):
            fit = list(self.published)
        if not fit:
            return None
        self._turn += 1
        return fit[self._turn % len(fit)]

    @property
    def why_not(self) -> str:
        """In plain words, why there is no live worker."""
        waiting = [supervisor.why_not for supervisor in self.lanes.values() if supervisor.published is None]
        return waiting[0] if waiting else NONE_SERVED

    @property
    def missing(self) -> tuple[str, ...]:
        """Why single workers are not live, while others are."""
        return tuple(lane.why_not for lane in self.lanes.values() if lane.published is None)

    def tell_change(self) -> None:
        """What is told of the workers changed, though none of them did."""
        self._around.on_change()

    def rotate(self) -> None:
        """Ask every live worker for new keys; raises RuntimeUnavailable if there is none."""
        asked = 0
        for supervisor in self.lanes.values():
            try:
                supervisor.rotate()
                asked += 1
            except (RuntimeUnavailable, WorkerGone):
                continue
        if not asked:
            raise RuntimeUnavailable(self.why_not, code="worker-not-ready")

    # Life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep every lane's worker alive until `stop`; ends early only by a fault of ours."""
        for supervisor in self.lanes.values():
            self._start(supervisor)
        while self._tasks or not self._stopping:
            waking = asyncio.ensure_future(self._changed.wait())
            done, _ = await asyncio.wait({*self._tasks.values(), waking}, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()
            self._changed.clear()
            for supervisor, task in list(self._tasks.items()):
                if task in done:
                    del self._tasks[supervisor]
                    task.result()

    def _start(self, supervisor: Supervisor) -> None:
        self._tasks[supervisor] = asyncio.get_running_loop().create_task(supervisor.run())
        self._changed.set()

    async def stop(self) -> None:
        """Ask every worker to finish and leave; `run` returns once they are buried."""
        self._stopping = True
        self._changed.set()
        for supervisor in {*self.lanes.values(), *self._tasks}:
            await supervisor.stop()

    # Changes ---------------------------------------------------------------------------------------------------------

    async def switch(
        self,
        choice: Choice,
        *,
        anew: Collection[str] = (),
        accept: Callable[[Sequence[WorkerFacts]], None],
        commit: Callable[[], Awaitable[None]],
    ) -> None:
        """Serve `choice`, from new workers where it differs and where bundles are to be read `anew`.

        `accept` judges what the new workers say and may raise SwitchRefused; `commit` makes the change durable, after
        their starts are on record and before they are published. Raises SwitchRefused; then nothing changed.
        """
        if self._switching or self._stopping:
            raise SwitchRefused("models are being changed this very moment; try again", code="switch-under-way")
        self._switching = True
        changes: list[_Change] = []
        try:
            changes = self._changes(choice, anew=anew)
            self._require_memory(changes)
            await self._prepare(changes, choice, accept=accept)
            if self._stopping or not all(change.supervisor.prepared for change in changes):
                raise SwitchRefused("a new worker ended in the last moment", code="switch-failed")
            await commit()  # who ends from here on is replaced as ever
        except BaseException:
            for change in changes:
                await change.supervisor.give_up()
            raise
        else:
            await self._put_in_force(changes, choice)
        finally:
            self._switching = False

    def _changes(self, choice: Choice, *, anew: Collection[str]) -> list[_Change]:
        found: list[_Change] = []
        known = {lane.model: lane for lane in self.lanes} if self._per_model else {}
        numbers = iter(sorted(set(range(len(self.lanes) + len(choice.places) + 1)) - {x.number for x in self.lanes}))
        for wanted in self._wanted(choice):
            lane = known.get(wanted.model, Lane(next(numbers), wanted.model)) if self._per_model else wanted
            supervisor = self.lanes.get(lane)
            if supervisor is None:
                found.append(_Change(lane, self._supervisor(lane), fresh=True))
            elif lane.places(choice) != lane.places(self.choice) or not set(anew).isdisjoint(lane.places(choice)):
                found.append(_Change(lane, supervisor, fresh=False))
        return found

    def _require_memory(self, changes: Sequence[_Change]) -> None:
        """Raise SwitchRefused if the machine has not the memory that the workers of today take, once more."""
        needed = sum(resident_memory(pid) for change in changes if (pid := change.supervisor.pid))
        free = free_memory()
        if free is not None and needed + SPARE_MEMORY_BYTES > free:
            raise SwitchRefused(
                f"new workers beside the old ones need about {needed >> 20} MiB, and {free >> 20} MiB are free",
                code="memory-short",
            )

    async def _prepare(
        self, changes: Sequence[_Change], choice: Choice, *, accept: Callable[[Sequence[WorkerFacts]], None]
    ) -> None:
        """New workers, one after the other up to their Hello, so that their starts do not take each other's time; then
        all of them on record."""
        facts, prepared = [], []
        for change in changes:
            plan = _planner(self._plan, change.lane, choice)
            prepared.append(await change.supervisor.prepare(plan))
            if self._stopping:
                raise SwitchRefused("the runtime host is stopping", code="switch-failed")
            facts.append(await prepared[-1].greet())
        accept(facts)
        for successor in prepared:
            await successor.record()

    async def _put_in_force(self, changes: Sequence[_Change], choice: Choice) -> None:
        """What was committed is served from here on, without waiting; or by the next start, if this host is stopping:
        then its workers are being ended already."""
        if not self._stopping:
            self._take_over(changes, choice)
            return
        self.choice = choice
        for change in changes:
            await change.supervisor.give_up()

    def _take_over(self, changes: Sequence[_Change], choice: Choice) -> None:
        gone = [lane for lane in self.lanes if self._per_model and not lane.places(choice)]
        self.choice = choice
        for change in changes:
            self.lanes[change.lane] = change.supervisor
        for change in changes:
            change.supervisor.take_over()
            if change.fresh:
                self._start(change.supervisor)
        for lane in gone:
            self.lanes.pop(lane).retire()
        self._around.on_change()


def _one_at_a_time(plan: Plan) -> Plan:
    """Plans are made in threads: several at once would only wait for the same files, and what reads them learns its
    types at the first use, which not every library lets two threads do at once."""
    lock = threading.Lock()

    def locked(lane: Lane, choice: Choice, avoid: tuple[int, ...]) -> Planned:
        with lock:
            return plan(lane, choice, avoid)

    return locked


def _planner(plan: Plan, lane: Lane, choice: Choice) -> Callable[[tuple[int, ...]], Planned]:
    return lambda avoid: plan(lane, choice, avoid)
