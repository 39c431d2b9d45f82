"""One worker process, from its start to the record of its end.

    spawn -> Hello -> (may it go on?) -> `worker.start`, `model.load`/`model.refuse`, `key.rotate` durable
          -> (now?) -> published -> retired: served until the drain is over -> `worker.stop`

Whoever started it may hold it at the two questions: so a worker is made ready beside another one, and takes its place
in one moment. A worker that does not say Hello in time, or breaks the protocol, is killed.

Trusts: `spawn_worker` for the sandbox, its own plan and reading of the worker's process over the worker's word, the log
for durability. Never: publishes a key that is not on record, or whose number is another worker's; lets a worker's words
end the host.
Long, because what a worker may say, and when, is read together.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.errors import AppendRefused, LogUnavailable
from audit.log import AuditLog
from sealgate.certificate.refusals import refused_for
from sealgate.errors import DecodeError
from sealgate.protocol.frames import (
    BootFailed,
    BootPlan,
    Hello,
    KeysChanged,
    Layer,
    Rotate,
    Shutdown,
    WorkerFacts,
)
from sealgate.protocol.ohttp import KeyConfig, decode_key_configs, encode_key_configs
from sealgate.terminal import printable
from sealgate.transparency.record import Record
from secure_runtime.errors import WorkerGone
from secure_runtime.host.admission import LiveWorker
from secure_runtime.host.inspect import read_layers
from secure_runtime.host.key_owners import KeyOwners
from secure_runtime.host.spawn import SpawnedWorker, spawn_worker
from secure_runtime.host.worker_link import WorkerLink, connect
from secure_runtime.limits import (
    BOOT_TIMEOUT_S,
    DRAIN_POLL_S,
    KEY_CHANGE_EVERY_S,
    MAX_WORKER_EVENTS,
    MAX_WORKER_WORDS,
)

_Event = Hello | BootFailed | KeysChanged | WorkerGone
_CODE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_INSTANCE = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What gateways and evidence may say of a live worker. `facts` is the worker's word; the rest is ours.

    `measured` is what the host measured of the plan that it was started with.
    """

    facts: WorkerFacts
    key_configs: bytes
    host_layers: dict[str, Layer]
    measured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Around:
    """What every worker's life needs of the host."""

    log: AuditLog
    owners: KeyOwners
    evidence_digest: Callable[[Published], str]
    on_change: Callable[[], None]
    tell: Callable[[str], None]
    assurance: str = "software"
    spawn: Callable[[BootPlan], SpawnedWorker] = spawn_worker
    read_layers: Callable[[int], dict[str, Layer]] = read_layers


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A boot plan, and what the host measured of what it starts."""

    plan: BootPlan
    measured: dict[str, str] = field(default_factory=dict)


async def _at_once() -> None:
    """The answer to both questions for a worker that takes nobody's place."""


class WorkerLife:
    """One worker. Owned by the host's event loop; `run` is its task, everything else is asked from beside.

    `live` and `published` are there from the moment in which its keys are published; a retired worker keeps both until
    it is buried, but nobody is told of its keys any more.
    """

    def __init__(
        self,
        around: Around,
        planned: Planned,
        *,
        accept: Callable[[WorkerFacts], Awaitable[None]] | None = None,
        go_live: Callable[[], Awaitable[None]] = _at_once,
        say_why: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`accept` is awaited with the Hello, before any record of it, and may raise WorkerGone; `go_live` once it is
        on record, and whoever waits there may call `show` first. `say_why` hears, in plain words, why it is not
        live."""
        self._around = around
        self._plan = planned.plan
        self._measured = planned.measured
        self._accept = accept
        self._go_live = go_live
        self._say_why = say_why
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._lost = asyncio.Event()
        self._gone: WorkerGone | None = None  # why it is lost
        self._link = WorkerLink(self._note, self._note)
        self._spawned: SpawnedWorker | None = None
        self._keys_from = 0.0  # when its first keys were published
        self._key_changes = 0  # since then
        self._stopping = False
        self._draining: asyncio.Task[None] | None = None
        self._ready: tuple[Published, LiveWorker] | None = None  # on record, and not yet shown
        self.facts: WorkerFacts | None = None
        self.live: LiveWorker | None = None
        self.published: Published | None = None

    @property
    def retired(self) -> bool:
        """Another one has taken its place."""
        return self._draining is not None

    @property
    def pid(self) -> int:
        """The process that the host started; 0 before that."""
        return self._spawned.pid if self._spawned is not None else 0

    def _note(self, event: _Event) -> None:
        if isinstance(event, WorkerGone):
            self._gone = event
            self._lost.set()
        elif self._events.qsize() >= MAX_WORKER_EVENTS:
            raise DecodeError("the worker says more than there is to say")
        self._events.put_nowait(event)

    # Its life --------------------------------------------------------------------------------------------------------

    async def run(self) -> str:
        """Spawn, serve until it is lost, put its end on record; returns the reason."""
        try:
            self._spawned = self._around.spawn(self._plan)
        except OSError as error:
            self._say_why(f"no worker process could be made: {error.strerror}")
            return "spawn-failed"
        await connect(self._link, self._spawned.sock)
        gone = WorkerGone("the worker did not start in time", code="worker-boot-timeout")
        watchdog = asyncio.get_running_loop().call_later(BOOT_TIMEOUT_S, self._link.abort, gone)
        reason = "worker-died"
        try:
            reason = await self._serve(watchdog)
        except LogUnavailable:
            reason = "log-unavailable"
        except WorkerGone as error:
            reason = error.code
            if reason != "switch-refused":  # then who asked for it is told why
                self._around.tell(f"worker refused: {error}")
        except (AppendRefused, DecodeError) as error:
            reason = "worker-protocol"
            self._around.tell(f"worker refused: {error}")
        finally:
            watchdog.cancel()
            if reason == "worker-died" and (self._stopping or self.retired):
                reason = "stopped" if self._stopping else "replaced"
            await self._bury(self._spawned, reason)
        return reason

    async def _serve(self, watchdog: asyncio.TimerHandle) -> str:
        reason = "worker-died"
        while True:
            event = await self._events.get()
            if isinstance(event, Hello):
                watchdog.cancel()
                key = _require_sound(event.facts, self._plan, known=self.facts is not None)
                if self._accept is not None:
                    await self._while_it_lives(self._accept(event.facts))
                await self._put_on_record(event.facts, key)
            elif isinstance(event, KeysChanged):
                await self._change_keys(event.key_configs)
            elif isinstance(event, BootFailed):
                if self.facts is not None or not _CODE.match(event.reason):
                    raise WorkerGone("it says that it did not start, but not how", code="worker-protocol")
                reason = event.reason
                why = f"the worker refused to start: {printable(event.detail, limit=MAX_WORKER_WORDS)}"
                self._say_why(why)
                self._around.tell(why)
            else:
                return reason if reason != "worker-died" else event.code

    async def _while_it_lives(self, question: Awaitable[None]) -> None:
        """The answer to `question`; raises WorkerGone if the worker ends before it comes."""
        asking, lost = asyncio.ensure_future(question), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((asking, lost), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                code = self._gone.code if self._gone is not None else "worker-died"
                raise WorkerGone("the worker ended before it was to serve", code=code)
            asking.result()
        finally:
            asking.cancel()
            lost.cancel()

    async def _put_on_record(self, facts: WorkerFacts, completion_key: Ed25519PublicKey) -> None:
        assert self._spawned is not None
        around = self._around
        read = around.read_layers(self._spawned.sealed_pid())
        published = Published(facts=facts, key_configs=facts.key_configs, host_layers=read, measured=self._measured)
        contradicted = _contradicted(published)
        if facts.profile != "dev" and (contradicted or not published.host_layers):
            otherwise = ", ".join(contradicted) or "there is no such process"
            raise WorkerGone(f"the host reads otherwise: {otherwise}", code="worker-not-isolated")
        evidence_digest = around.evidence_digest(published)
        live = self._as_live(facts, completion_key, evidence_digest)
        self.facts = facts
        await self._append(_started(facts, evidence_digest), live)
        for record in _models(facts):
            await self._append(record, live)
        for refusal in facts.refused:
            means = f" ({words})" if (words := refused_for(refusal.reason)) else ""
            around.tell(f"model {printable(refusal.name, limit=MAX_WORKER_WORDS)} was refused: {refusal.reason}{means}")
        for called, words in facts.graphs.items():
            around.tell(printable(f"CUDA graphs of {called}: {words}", limit=MAX_WORKER_WORDS))
        key_configs = self._publishable(facts.key_configs)
        if not key_configs:
            raise WorkerGone("all its keys have numbers of other workers' keys", code="worker-protocol")
        await self._record_keys(key_configs)
        self._ready = (replace(published, key_configs=key_configs), live)
        await self._while_it_lives(self._go_live())
        self.show()

    def show(self) -> None:
        """From this moment on its keys are published and requests are sent to it. It is on record."""
        if self._ready is None:
            return
        (self.published, self.live), self._ready = self._ready, None
        self._say_why("the worker is being replaced")
        self._keys_from = asyncio.get_running_loop().time()
        self._around.on_change()

    def _as_live(self, facts: WorkerFacts, completion_key: Ed25519PublicKey, evidence_digest: str) -> LiveWorker:
        models: dict[str, dict[str, tuple[str, str]]] = {}
        for model in facts.models:
            models.setdefault(model.name, {})[model.version] = (model.model_digest, model.certificate_digest)
        return LiveWorker(
            link=self._link,
            instance=facts.instance,
            completion_key=completion_key,
            degraded=facts.profile == "dev",
            assurance=self._around.assurance,
            evidence_digest=evidence_digest,
            models=models,
            single_use=facts.single_use,
        )

    # Keys ------------------------------------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Ask for new keys; raises WorkerGone."""
        self._link.send(Rotate(avoid=self._around.owners.to_avoid(self)))

    def _publishable(self, key_configs: bytes) -> bytes:
        """Those of its keys whose numbers are its own; if some are not, it is asked for others."""
        configs: tuple[KeyConfig, ...] = decode_key_configs(key_configs)
        theirs = self._around.owners.claim(self, [config.key_id for config in configs])
        if not theirs:
            return key_configs
        self.rotate()
        own = [config for config in configs if config.key_id not in theirs]
        return encode_key_configs(own) if own else b""

    async def _change_keys(self, key_configs: bytes) -> None:
        if self.published is None:
            raise WorkerGone("keys changed before the worker was live", code="worker-protocol")
        self._key_changes += 1
        if self._key_changes > MAX_WORKER_EVENTS + self._age_s() / KEY_CHANGE_EVERY_S:
            raise WorkerGone("its keys change too often: each change is a record", code="worker-protocol")
        # Without a key of its own left, what was published stays so until the new keys come: it is still opened.
        own = self._publishable(key_configs) or self.published.key_configs
        await self._record_keys(own)
        self.published = replace(self.published, key_configs=own)
        self._around.on_change()

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._keys_from

    async def _record_keys(self, key_configs: bytes) -> None:
        configs = decode_key_configs(key_configs)
        detail = {
            "key_ids": " ".join(str(config.key_id) for config in configs),
            "kems": " ".join(config.kem.name for config in configs),
            "key_configs_digest": hashlib.sha256(key_configs).hexdigest(),
        }
        await self._append(Record(kind="key.rotate", detail=detail))

    async def _append(self, record: Record, live: LiveWorker | None = None) -> None:
        assert self.facts is not None
        changes: dict[str, object] = {"runtime_instance": self.facts.instance}
        if live is not None:
            changes |= {"assurance": live.assurance, "degraded": live.degraded}
        await asyncio.wrap_future(self._around.log.append(msgspec.structs.replace(record, **changes)))

    # Its end ---------------------------------------------------------------------------------------------------------

    def retire(self, *, drain_s: float, grace_s: float) -> None:
        """Another one is published in its place. What is sealed to its keys is still taken for `drain_s`; what was
        taken may come to its end within `grace_s` more; and one that then does not leave within `grace_s` is ended."""
        if self.live is not None:
            self.live.footing.retired = True
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(drain_s=drain_s, grace_s=grace_s))

    async def _drain(self, *, drain_s: float, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(self._lost.wait(), drain_s)
            return
        except TimeoutError:
            self._around.owners.release(self)  # from here on no request is routed to it
            self._around.on_change()
        until = loop.time() + grace_s
        while self.live is not None and self.live.footing.expected and loop.time() < until:  # noqa: ASYNC110 - a count
            await asyncio.sleep(DRAIN_POLL_S)
        self.leave()
        await asyncio.sleep(grace_s)  # cancelled when it ends; what it holds must not outlive its model's removal
        self.kill(WorkerGone("it was replaced, and does not leave", code="worker-hung"))

    def leave(self) -> None:
        """Ask it to finish what it has and to end."""
        try:
            self._link.send(Shutdown())
        except WorkerGone:
            return

    def stop(self) -> None:
        """The host stops: let it leave."""
        self._stopping = True
        self.leave()

    def kill(self, why: WorkerGone) -> None:
        """End it now."""
        self._link.abort(why)

    async def _bury(self, spawned: SpawnedWorker, reason: str) -> None:
        was_told = self.published is not None
        self.live, self.published, self._ready = None, None, None
        self._around.owners.release(self)
        if not self.retired:
            self._say_why(f"the worker ended ({reason}) and is being replaced")
        if was_told:
            self._around.on_change()
        if self._draining is not None:
            self._draining.cancel()
        self._link.abort(WorkerGone("the worker ended", code=reason))
        spawned.kill()
        await asyncio.to_thread(spawned.wait)
        if self.facts is not None and self._around.log.state.ok:
            try:
                await self._append(Record(kind="worker.stop", reason=reason))
            except LogUnavailable:
                self._around.tell("the log failed before the worker's end could be recorded")


def _contradicted(published: Published) -> list[str]:
    """What the host reads as missing. Profile `container` is for machines that forbid namespaces: there, one that the
    worker itself says it has not is no contradiction."""
    facts, missing = published.facts, []
    for name, layer in published.host_layers.items():
        said = facts.layers.get(name)
        excused = (
            facts.profile == "container" and name.endswith("-namespace") and said is not None and said.state != "on"
        )
        if layer.state == "failed" and not excused:
            missing.append(name)
    return sorted(missing)


def _require_sound(facts: WorkerFacts, plan: BootPlan, *, known: bool) -> Ed25519PublicKey:
    """The completion key of a Hello that can be put on record; raises WorkerGone. Nothing was written before."""
    try:
        decode_key_configs(facts.key_configs)
        completion_key = Ed25519PublicKey.from_public_bytes(facts.completion_key)
    except (DecodeError, ValueError):
        raise WorkerGone("its keys are malformed", code="worker-protocol") from None
    sound = (
        not known  # one Hello in a life
        and _INSTANCE.match(facts.instance)
        and facts.profile == plan.profile  # the host's plan decides what is required, not the worker
        and len({(model.name, model.version) for model in facts.models}) == len(facts.models)
        and all(_CODE.match(refusal.reason) for refusal in facts.refused)
    )
    if not sound:
        raise WorkerGone("what it says of itself does not fit its plan", code="worker-protocol")
    return completion_key


def _started(facts: WorkerFacts, evidence_digest: str) -> Record:
    """`worker.start`: names the key that the instance's completions are signed with, and what isolates it."""
    missing = sorted(name for name, layer in facts.layers.items() if layer.state in ("failed", "disabled", "off"))
    broken = sorted(name for name, probe in facts.probes.items() if probe.state not in ("on", "not-needed"))
    detail = {
        "completion_key": base64.urlsafe_b64encode(facts.completion_key).rstrip(b"=").decode(),
        "device": facts.device,
        "profile": facts.profile,
        "layers_missing": " ".join(missing),
        "probes_failed": " ".join(broken),
    }
    return Record(kind="worker.start", evidence_digest=evidence_digest, detail=detail)


def _models(facts: WorkerFacts) -> list[Record]:
    """`model.load` and `model.refuse`, for each bundle that it looked at."""
    loaded = [
        Record(
            kind="model.load",
            model=model.name,
            model_digest=model.model_digest,
            certificate_digest=model.certificate_digest,
            eps_micro=model.epsilon_micro,
            detail={"delta": model.delta, "privacy_unit": model.privacy_unit, "version": model.version},
        )
        for model in facts.models
    ]
    return loaded + [Record(kind="model.refuse", model=one.name, reason=one.reason) for one in facts.refused]
