"""Keeps one worker alive: starts it, replaces it when it dies, and lets another one take its place when models change.

Every worker has new keys and a new instance id. Restarts wait longer each time until a worker has been live for a
while. A worker that is to take over (`prepare`) is started beside the live one and held before its records; if it
fails, the live one never noticed. If the live one dies meanwhile, no third is started until it is clear what becomes of
the second.

Trusts: `worker_life` for what one worker may do. Never: has two workers whose keys are published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sealgate.protocol.frames import ModelFacts, WorkerFacts
from secure_runtime.errors import RuntimeUnavailable, SwitchRefused, WorkerGone
from secure_runtime.host.admission import LiveWorker
from secure_runtime.host.worker_life import Around, Planned, Published, WorkerLife
from secure_runtime.limits import RESTART_DELAY_MAX_S, RESTART_DELAY_MIN_S, STABLE_AFTER_S, WORKER_GRACE_S


class Successor:
    """A worker that was started to take over. Its steps are asked for from outside: `greet`, `record`, `publish`."""

    def __init__(self, around: Around, planned: Planned) -> None:
        self.why = ""
        loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[WorkerFacts] = loop.create_future()
        self._recorded: asyncio.Future[None] = loop.create_future()
        self._may_record, self._may_publish = asyncio.Event(), asyncio.Event()
        self._say_why: Callable[[str], None] | None = None
        self.life = WorkerLife(around, planned, accept=self._accept, go_live=self._go_live, say_why=self._hear)
        self.running = loop.create_task(self.life.run())
        self.running.add_done_callback(self._ended)

    def _hear(self, text: str) -> None:
        if self._say_why is not None:
            self._say_why(text)
        elif not text.startswith("the worker ended"):  # nobody is being replaced
            self.why = self.why or text

    async def _accept(self, facts: WorkerFacts) -> None:
        self._greeted.set_result(facts)
        await self._may_record.wait()

    async def _go_live(self) -> None:
        self._recorded.set_result(None)
        await self._may_publish.wait()

    def _ended(self, task: asyncio.Task[str]) -> None:
        code = "stopped" if task.cancelled() else task.result() if task.exception() is None else "internal"
        self._fail(SwitchRefused(self.why or f"the new worker ended ({code})", code="switch-failed"))

    def _fail(self, error: SwitchRefused) -> None:
        for step in (self._greeted, self._recorded):
            if not step.done():
                step.set_exception(error)
                step.exception()  # whoever waits is told; where nobody does, nothing is missed

    async def greet(self) -> WorkerFacts:
        """What it says of itself, once it is sealed; raises SwitchRefused."""
        return await asyncio.shield(self._greeted)

    async def record(self) -> None:
        """Put its start, its models and its keys on record; raises SwitchRefused."""
        self._may_record.set()
        await asyncio.shield(self._recorded)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return not self.running.done()

    def publish(self, say_why: Callable[[str], None]) -> None:
        """It takes over from this moment on, and so says by `say_why` why there is none."""
        self._say_why = say_why
        self.life.show()
        self._may_publish.set()

    async def give_up(self) -> None:
        """End it; nothing is left of it but the record of its end, if it has one of its start."""
        self.life.kill(WorkerGone("it is not wanted any more", code="switch-refused"))
        await asyncio.wait((self.running,))


class Supervisor:
    """One worker at a time, and those that were replaced and drain. Owned by the host's event loop.

    `plan` makes the boot plan of the next worker, from the numbers of keys that it must avoid; it runs in a thread,
    because it reads and hashes files, and may ask a key service.
    """

    def __init__(
        self,
        around: Around,
        plan: Callable[[tuple[int, ...]], Planned],
        *,
        drain_s: float = 60.0,
        request_timeout_s: float = 30.0,
    ) -> None:
        self._around = around
        self._plan = plan
        self._drain_s = drain_s
        self._grace_s = request_timeout_s + WORKER_GRACE_S
        self._current: WorkerLife | None = None
        self._lives: dict[WorkerLife, asyncio.Task[str]] = {}
        self._ends: asyncio.Queue[tuple[WorkerLife, str]] = asyncio.Queue()
        self._successor: Successor | None = None
        self._why_not = "the worker is starting"
        self._known: WorkerFacts | None = None  # of the worker before
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()  # no worker is being prepared
        self._settled.set()

    # What others ask -------------------------------------------------------------------------------------------------

    def require_live(self) -> LiveWorker:
        """The live worker; raises RuntimeUnavailable."""
        if self._current is None or self._current.live is None:
            raise RuntimeUnavailable(self._why_not, code="worker-not-ready")
        return self._current.live

    @property
    def published(self) -> Published | None:
        """What may be told about the live worker, or None."""
        return self._current.published if self._current is not None else None

    @property
    def known(self) -> tuple[ModelFacts, ...]:
        """The models of the worker that is live, or was last."""
        facts = (self._current.facts if self._current is not None else None) or self._known
        return facts.models if facts is not None else ()

    @property
    def lives(self) -> tuple[WorkerLife, ...]:
        """Every worker of its that runs, replaced ones included."""
        return tuple(self._lives)

    @property
    def pid(self) -> int:
        """The process of the newest worker; 0 if there is none."""
        return self._current.pid if self._current is not None else 0

    @property
    def why_not(self) -> str:
        """In plain words, why there is no live worker."""
        return self._why_not

    def rotate(self) -> None:
        """Ask the live worker for new keys; raises RuntimeUnavailable or WorkerGone."""
        self.require_live()
        assert self._current is not None
        self._current.rotate()

    def _say_why(self, text: str) -> None:
        if not (text.startswith("the worker ended") and self._why_not.startswith("the worker refused")):
            self._why_not = text

    # The loop --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep one worker alive until `stop`; returns when all of its workers are buried."""
        delay_s, loop = RESTART_DELAY_MIN_S, asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            await self._settled.wait()
            if self._current is None or self._current not in self._lives:
                await self._begin()
            if self._stopping.is_set() and self._current not in self._lives:
                break
            reason = await self._until_none_is_left()
            if self._stopping.is_set():
                break
            delay_s = (
                RESTART_DELAY_MIN_S if loop.time() - started > STABLE_AFTER_S else min(delay_s * 2, RESTART_DELAY_MAX_S)
            )
            self._around.tell(f"worker ended ({reason}); a new one starts in {delay_s:.1f} s")
            try:
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            except TimeoutError:
                continue
        if self._lives:
            await asyncio.wait(self._lives.values())

    async def _begin(self) -> None:
        planned = await asyncio.to_thread(self._plan, self._around.owners.to_avoid())
        if self._stopping.is_set():
            return
        life = WorkerLife(self._around, planned, say_why=self._say_why)
        self._known = (self._current.facts if self._current is not None else None) or self._known
        self._current = life
        self._keep(life, asyncio.get_running_loop().create_task(life.run()))

    def _keep(self, life: WorkerLife, task: asyncio.Task[str]) -> None:
        self._lives[life] = task

        def ended(task: asyncio.Task[str]) -> None:
            del self._lives[life]
            failed = task.cancelled() or task.exception() is not None
            self._ends.put_nowait((life, "internal" if failed else task.result()))

        task.add_done_callback(ended)

    async def _until_none_is_left(self) -> str:
        """The reason for which the newest worker ended. One that was replaced may end whenever it likes."""
        while True:
            life, reason = await self._ends.get()
            await self._settled.wait()  # one that is being prepared may be about to take over
            if life is self._current:
                return reason

    # Taking over -----------------------------------------------------------------------------------------------------

    async def prepare(self, plan: Callable[[tuple[int, ...]], Planned]) -> Successor:
        """Start a worker by another plan, which is to take over, and hold it before its records. One at a time; either
        `take_over` or `give_up` must follow."""
        assert self._successor is None
        self._settled.clear()
        planned = await asyncio.to_thread(plan, self._around.owners.to_avoid())
        self._successor = Successor(self._around, planned)
        return self._successor

    @property
    def prepared(self) -> bool:
        """Whether a worker waits to take over, and still runs."""
        return self._successor is not None and self._successor.alive

    def take_over(self) -> None:
        """The prepared worker is published, the one before drains."""
        successor, before = self._successor, self._current
        assert successor is not None
        self._current, self._successor = successor.life, None
        self._keep(successor.life, successor.running)
        if before is not None:
            before.retire(drain_s=self._drain_s, grace_s=self._grace_s)
        successor.publish(self._say_why)
        self._settled.set()

    async def give_up(self) -> None:
        """What was prepared is not wanted: all is as it was."""
        successor = self._successor
        if successor is not None:
            await successor.give_up()
            self._successor = None
        self._settled.set()

    def retire(self) -> None:
        """No worker is wanted any more: the live one drains, and `run` returns when it is gone."""
        self._stopping.set()
        if self._current is not None:
            self._current.retire(drain_s=self._drain_s, grace_s=self._grace_s)

    async def stop(self) -> None:
        """Ask every worker to finish and leave; `run` returns once they are buried."""
        self._stopping.set()
        if self._successor is not None:
            await self.give_up()
        for life in self.lives:
            life.stop()
