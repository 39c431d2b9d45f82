"""Starts the worker, puts its start on record before its keys are published, and replaces it when it dies.

    spawn -> Hello -> `worker.start`, `model.load`/`model.refuse`, `key.rotate` durable -> live -> lost -> `worker.stop`

Every worker has new keys and a new instance id. A worker that does not say Hello in time, or breaks the protocol, is
killed. Restarts wait longer each time until a worker has been live for a while.

Trusts: `spawn_worker` for the sandbox, its own plan and reading of the worker's process over the worker's word, the log
for durability. Never: publishes a key that is not on record; lets a worker's words end the host.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.errors import AppendRefused, LogUnavailable
from audit.log import AuditLog
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
from sealgate.protocol.ohttp import decode_key_configs
from sealgate.terminal import printable
from sealgate.transparency.record import Record
from secure_runtime.errors import RuntimeUnavailable, WorkerGone
from secure_runtime.host.admission import LiveWorker
from secure_runtime.host.inspect import read_layers
from secure_runtime.host.spawn import SpawnedWorker, spawn_worker
from secure_runtime.host.worker_link import WorkerLink, connect
from secure_runtime.limits import (
    BOOT_TIMEOUT_S,
    KEY_CHANGE_EVERY_S,
    MAX_REMEMBERED_KEY_IDS,
    MAX_WORKER_EVENTS,
    MAX_WORKER_WORDS,
    RESTART_DELAY_MAX_S,
    RESTART_DELAY_MIN_S,
    STABLE_AFTER_S,
)

_Event = Hello | BootFailed | KeysChanged | WorkerGone
_CODE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_INSTANCE = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What gateways and evidence may say of the live worker. `facts` is the worker's word; `host_layers` ours."""

    facts: WorkerFacts
    key_configs: bytes
    host_layers: dict[str, Layer]


class Supervisor:
    """Owned by the host's event loop. `on_change` is called after every change of what is live."""

    def __init__(
        self,
        *,
        log: AuditLog,
        plan: Callable[[tuple[int, ...]], BootPlan],
        evidence_digest: Callable[[Published], str],
        on_change: Callable[[], None],
        tell: Callable[[str], None],
        used_key_ids: Sequence[int] = (),
        assurance: str = "software",
    ) -> None:
        self._assurance = assurance
        self._log = log
        self._plan = plan
        self._evidence_digest = evidence_digest
        self._on_change = on_change
        self._tell = tell
        self._live: LiveWorker | None = None
        self._published: Published | None = None
        self._why_not = "the worker is starting"
        self._used_key_ids = list(used_key_ids)
        self._link: WorkerLink | None = None
        self._keys_from = 0.0  # when the live worker's first keys were published
        self._key_changes = 0  # since then
        self._stopping = False

    # What others ask -------------------------------------------------------------------------------------------------

    def require_live(self) -> LiveWorker:
        """The live worker; raises RuntimeUnavailable."""
        if self._live is None:
            raise RuntimeUnavailable(self._why_not, code="worker-not-ready")
        return self._live

    @property
    def published(self) -> Published | None:
        """What may be told about the live worker, or None."""
        return self._published if self._live is not None else None

    @property
    def why_not(self) -> str:
        """In plain words, why there is no live worker."""
        return self._why_not

    def rotate(self) -> None:
        """Ask the live worker for new keys."""
        self.require_live().link.send(Rotate())

    # The loop --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep one worker alive until `stop`; returns after an ordered stop."""
        delay_s = RESTART_DELAY_MIN_S
        loop = asyncio.get_running_loop()
        while not self._stopping:
            started = loop.time()
            reason = await self._one_worker()
            if self._stopping:
                return
            delay_s = (
                RESTART_DELAY_MIN_S if loop.time() - started > STABLE_AFTER_S else min(delay_s * 2, RESTART_DELAY_MAX_S)
            )
            self._tell(f"worker ended ({reason}); a new one starts in {delay_s:.1f} s")
            await asyncio.sleep(delay_s)

    async def _one_worker(self) -> str:
        """Spawn, serve until it is lost, put its end on record; returns the reason."""
        events: asyncio.Queue[_Event] = asyncio.Queue()

        def note(event: _Event) -> None:
            if events.qsize() >= MAX_WORKER_EVENTS and not isinstance(event, WorkerGone):
                raise DecodeError("the worker says more than there is to say")
            events.put_nowait(event)

        plan = self._plan(tuple(self._used_key_ids))
        try:
            spawned = spawn_worker(plan)
        except OSError as error:
            self._why_not = f"no worker process could be made: {error.strerror}"
            return "spawn-failed"
        self._link = link = WorkerLink(note, note)
        instance = ""
        reason = "worker-died"
        await connect(link, spawned.sock)
        watchdog = asyncio.get_running_loop().call_later(
            BOOT_TIMEOUT_S, link.abort, WorkerGone("the worker did not start in time", code="worker-boot-timeout")
        )
        try:
            while True:
                event = await events.get()
                if isinstance(event, Hello):
                    watchdog.cancel()
                    completion_key = _require_sound(event.facts, plan, known=bool(instance))
                    instance = event.facts.instance
                    await self._go_live(event.facts, completion_key, link, spawned)
                elif isinstance(event, KeysChanged):
                    await self._change_keys(event.key_configs)
                elif isinstance(event, BootFailed):
                    if instance or not _CODE.match(event.reason):
                        raise WorkerGone("it says that it did not start, but not how", code="worker-protocol")
                    reason = event.reason
                    self._why_not = f"the worker refused to start: {printable(event.detail, limit=MAX_WORKER_WORDS)}"
                    self._tell(self._why_not)
                else:
                    reason = "stopped" if self._stopping else (reason if reason != "worker-died" else event.code)
                    return reason
        except LogUnavailable:
            reason = "log-unavailable"
            return reason
        except WorkerGone as error:
            reason = error.code
            self._tell(f"worker refused: {error}")
            return reason
        except (AppendRefused, DecodeError) as error:
            reason = "worker-protocol"
            self._tell(f"worker refused: {error}")
            return reason
        finally:
            watchdog.cancel()
            await self._bury(link, spawned, instance, reason)

    async def _go_live(
        self, facts: WorkerFacts, completion_key: Ed25519PublicKey, link: WorkerLink, spawned: SpawnedWorker
    ) -> None:
        published = Published(facts=facts, key_configs=facts.key_configs, host_layers=read_layers(spawned.sealed_pid()))
        contradicted = _contradicted(published)
        if facts.profile != "dev" and (contradicted or not published.host_layers):
            otherwise = ", ".join(contradicted) or "there is no such process"
            raise WorkerGone(f"the host reads otherwise: {otherwise}", code="worker-not-isolated")
        evidence_digest = self._evidence_digest(published)
        degraded = facts.profile == "dev"
        stamp = {"instance": facts.instance, "assurance": self._assurance, "degraded": degraded}
        await self._append(_started(facts, evidence_digest), stamp)
        for model in facts.models:
            detail = {"delta": model.delta, "privacy_unit": model.privacy_unit, "version": model.version}
            record = Record(
                kind="model.load",
                model=model.name,
                model_digest=model.model_digest,
                certificate_digest=model.certificate_digest,
                eps_micro=model.epsilon_micro,
                detail=detail,
            )
            await self._append(record, stamp)
        for refusal in facts.refused:
            self._tell(f"model {printable(refusal.name, limit=MAX_WORKER_WORDS)} was refused: {refusal.reason}")
            await self._append(Record(kind="model.refuse", model=refusal.name, reason=refusal.reason), stamp)
        await self._record_keys(facts.key_configs, facts.instance)
        self._published = published
        self._why_not = "the worker is being replaced"
        self._keys_from = asyncio.get_running_loop().time()
        self._key_changes = 0
        self._live = LiveWorker(
            link=link,
            instance=facts.instance,
            completion_key=completion_key,
            degraded=degraded,
            assurance=self._assurance,
            evidence_digest=evidence_digest,
            models={model.name: (model.model_digest, model.certificate_digest) for model in facts.models},
            single_use=facts.single_use,
        )
        self._on_change()

    async def _change_keys(self, key_configs: bytes) -> None:
        if self._published is None or self._live is None:
            raise WorkerGone("keys changed before the worker was live", code="worker-protocol")
        self._key_changes += 1
        if self._key_changes > MAX_WORKER_EVENTS + self._age_s() / KEY_CHANGE_EVERY_S:
            raise WorkerGone("its keys change too often: each change is a record", code="worker-protocol")
        await self._record_keys(key_configs, self._live.instance)
        facts = self._published.facts
        self._published = Published(facts=facts, key_configs=key_configs, host_layers=self._published.host_layers)
        self._on_change()

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._keys_from

    async def _record_keys(self, key_configs: bytes, instance: str) -> None:
        configs = decode_key_configs(key_configs)
        self._used_key_ids = (self._used_key_ids + [config.key_id for config in configs])[-MAX_REMEMBERED_KEY_IDS:]
        detail = {
            "key_ids": " ".join(str(config.key_id) for config in configs),
            "kems": " ".join(config.kem.name for config in configs),
            "key_configs_digest": hashlib.sha256(key_configs).hexdigest(),
        }
        await self._append(Record(kind="key.rotate", detail=detail), {"instance": instance})

    async def _bury(self, link: WorkerLink, spawned: SpawnedWorker, instance: str, reason: str) -> None:
        was_live, self._live, self._published = self._live is not None, None, None
        if not self._why_not.startswith("the worker refused"):
            self._why_not = f"the worker ended ({reason}) and is being replaced"
        if was_live:
            self._on_change()
        link.abort(WorkerGone("the worker ended", code=reason))
        spawned.kill()
        await asyncio.to_thread(spawned.wait)
        if instance and self._log.state.ok:
            try:
                await self._append(Record(kind="worker.stop", reason=reason), {"instance": instance})
            except LogUnavailable:
                self._tell("the log failed before the worker's end could be recorded")

    async def _append(self, record: Record, stamp: dict[str, object]) -> None:
        changes = {"runtime_instance" if key == "instance" else key: value for key, value in stamp.items()}
        await asyncio.wrap_future(self._log.append(msgspec.structs.replace(record, **changes)))

    async def stop(self) -> None:
        """Ask the worker to finish and leave; `run` returns once it is buried."""
        self._stopping = True
        if self._link is not None:
            try:
                self._link.send(Shutdown())
            except WorkerGone:
                return


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
        and len({model.name for model in facts.models}) == len(facts.models)
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
