"""The runtime host, put together: log, budgets, supervisor, admission, attester, and the socket for gateways.

The only place where these meet. Trusts: the deployment's files, readable by the host alone. Never: sees plaintext.
Long, because it is the list of the host's parts and how they hang together.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Sequence

import msgspec
import uvloop

from audit.auth_failures import AuthFailures
from audit.erasure import nameless
from audit.errors import LogUnavailable
from audit.log import AuditLog
from audit.query import AuditReader, RecordFilter
from policy.history import PolicyHistory
from sealgate.ambient import Clock, now_us
from sealgate.deployment import Deployment
from sealgate.evidence.claims import Claims, state_digest
from sealgate.evidence.measure import measure_host, measure_models
from sealgate.evidence.verify import WORKER_PREFIX
from sealgate.limits import EVIDENCE_LIFETIME_S
from sealgate.protocol.administration import (
    AdminToHost,
    ApplyPolicy,
    AskModels,
    ChangeModels,
    CredentialRevoked,
    HostToAdmin,
)
from sealgate.protocol.frames import (
    AuditRead,
    AuthFailed,
    BootPlan,
    Deny,
    EvidenceGiven,
    EvidenceWanted,
    FiguresGiven,
    FiguresWanted,
    Recorded,
    Refused,
    RuntimeState,
    Submit,
)
from sealgate.protocol.ohttp import decode_key_configs
from sealgate.protocol.sizes import sealed_size
from sealgate.terminal import printable
from sealgate.transparency.record import Record
from secure_runtime.attestation.endorsed import open_attester
from secure_runtime.errors import EndorserFailed, RuntimeUnavailable, WorkerGone
from secure_runtime.host import spending
from secure_runtime.host.administration import AdminServer
from secure_runtime.host.admission import Admission
from secure_runtime.host.choice import Choice, ModelRules, first_choice
from secure_runtime.host.cose_receipts import with_cose_receipt
from secure_runtime.host.fleet import Fleet, Lane
from secure_runtime.host.key_files import load_ed25519, load_log_cosigner, load_note_signer, load_subjects_key
from secure_runtime.host.key_owners import KeyOwners
from secure_runtime.host.link_server import Asked, LinkServer, Reply
from secure_runtime.host.metering import open_metering
from secure_runtime.host.metrics import HostMetrics, Standing, own_processes
from secure_runtime.host.model_keys import data_keys, wrapping_keys
from secure_runtime.host.policies import Deciding, HostPolicy, OpenedPolicy, PolicyKeeper, open_policy
from secure_runtime.host.privacy import Privacy
from secure_runtime.host.repository import ModelKeeper, route_words, workers_of
from secure_runtime.host.spawn import memory_limit, python_paths, worker_environment
from secure_runtime.host.watching import Watcher
from secure_runtime.host.withheld import newest_change, settle_withheld
from secure_runtime.host.witnesses import witnessed
from secure_runtime.host.worker_life import Around, Planned, Published
from secure_runtime.limits import COLLECT_EVERY, DRAIN_S, MAX_REMEMBERED_KEY_IDS, MAX_TOLD
from secure_runtime.machine import gpu_nodes


class RuntimeHost:
    """Implements `link_server.Service`. Owned by the event loop of the main thread."""

    def __init__(
        self,
        deployment: Deployment,
        log: AuditLog,
        *,
        policy: OpenedPolicy,
        deciding: Deciding,
        policy_before: str,
        models_before: Record | None,
        used_key_ids: Sequence[int],
        tell: Callable[[str], None],
        witness_trouble: Callable[[], str] = lambda: "",
        clock: Clock = now_us,
    ) -> None:
        settings = deployment.settings.runtime
        self._log = log
        self._clock = clock
        self._tell = tell
        self._deployment = deployment
        wrapping_keys(deployment)  # a key that cannot be read is said now, not at the first restart of a worker
        operator_key = load_ed25519(deployment.operator_key)
        self._attester = open_attester(operator_key, deployment.settings.attestation, root=deployment.root)
        self._policies = PolicyKeeper(deployment, log, policy, put_in_force=self._put_in_force)
        self._deciding = deciding
        self._policy_before = policy_before
        self._privacy = Privacy(log, url=deployment.log_url, retention=deployment.retention, clock=clock)
        self._auth_failures = AuthFailures(log, clock=clock)
        self._models_before = models_before
        self._unloaded = settle_withheld(deployment.withheld, models_before)
        choice = first_choice(deployment, self._unloaded.withheld, tell=tell)
        self._rules = ModelRules(choice.named)
        around = Around(
            log=log,
            owners=KeyOwners(used_key_ids, stale_s=settings.key_stale_s),
            evidence_digest=lambda published: state_digest(self._claims(published, b"")),
            on_change=self._changed,
            tell=tell,
            assurance=self._attester.assurance,
        )
        self._fleet = Fleet(
            around,
            self._boot_plan,
            choice,
            workers=settings.workers,
            per_model=settings.placement == "per-model",
            drain_s=settings.drain_s,
            request_timeout_s=settings.request_timeout_s,
        )
        self._models = ModelKeeper(deployment, log, self._fleet, self._rules, tell=tell)
        telemetry = deployment.settings.telemetry
        self._metering = open_metering(
            meter=telemetry.meter, watts_per_cpu=telemetry.watts_per_cpu, device=settings.device
        )
        self._metrics = HostMetrics(self._standing) if telemetry.metrics else None
        self._keys_seen = (b"", clock())  # what is published, and since when
        self._instances_seen: set[str] = set()
        self._admission = Admission(
            log=log,
            budgets=policy.policy.budgets,
            worker=self._fleet.worker,
            policy_digest=policy.policy.digest,
            max_in_flight=settings.max_queue,
            timeout_s=settings.request_timeout_s,
            rules=self._rules,
            metering=self._metering,
            watcher=Watcher(
                self._metrics.figures if self._metrics else None, traced=bool(telemetry.traces), clock=clock
            ),
            clock=clock,
        )
        self._server = LinkServer(self, metrics=self._metrics, body_max=sealed_size(deployment.max_message))
        self._admin = AdminServer(self)
        self._witness_trouble = witness_trouble
        self._told = (False, "", "ok", "")
        self._stopping = False

    def _boot_plan(self, lane: Lane, choice: Choice, avoid_key_ids: tuple[int, ...]) -> Planned:
        """Called in a thread: it reads and hashes files."""
        deployment, settings = self._deployment, self._deployment.settings.runtime
        own_limit_mb = choice.section(lane.model).memory_limit_mb if lane.model else 0
        gpus = () if settings.single_use and settings.device == "auto" else gpu_nodes(settings.device)
        plan = BootPlan(
            profile=settings.profile,
            audience=deployment.settings.deployment.audience,
            models_dir=str(deployment.models),
            publishers_file=str(deployment.publishers),
            sys_path=python_paths(),
            uid=settings.worker_uid,
            gid=settings.worker_uid,
            torch_threads=settings.torch_threads,
            memory_limit_bytes=memory_limit(own_limit_mb or settings.memory_limit_mb, gpus=gpus),
            key_active_s=settings.key_active_s,
            key_stale_s=settings.key_stale_s,
            device=settings.device,
            gpus=gpus,
            single_use=settings.single_use,
            require_audit=settings.require_audit,
            require_model_signature=deployment.settings.models.require_model_signature,
            require_encryption=deployment.settings.models.require_encryption,
            model_keys=data_keys(deployment, tell=self._tell, places=lane.places(choice)),
            avoid_key_ids=avoid_key_ids,
            bundles=lane.places(choice),
            memory_limits={
                name: one.memory_limit_mb * 1024 * 1024 for name, one in choice.named.items() if one.memory_limit_mb
            },
            cuda_graphs=tuple(name for name, one in choice.named.items() if one.cuda_graphs),
            number=lane.number,
            max_message=deployment.max_message,
        )
        return Planned(plan=plan, measured=measure_host(plan, environment=worker_environment(plan)))

    # link_server.Service ---------------------------------------------------------------------------------------------

    async def answer(self, frame: Asked, body: bytes, gone: asyncio.Event) -> tuple[Reply, bytes]:
        """Dispatch one frame; the reply repeats its id."""
        try:
            if isinstance(frame, Submit):
                reply, sealed = await self._admission.submit(frame, body, gone)
            elif isinstance(frame, Deny):
                reply, sealed = await self._admission.deny(frame)
            elif isinstance(frame, AuditRead):
                reply, sealed = await self._admission.audit_read(frame)
            elif isinstance(frame, FiguresWanted):
                reply, sealed = await self._figures()
            else:
                reply, sealed = await self._evidence(frame)
        except LogUnavailable as error:
            reply, sealed = Refused(status=503, code="unavailable", retry_after_s=error.retry_after_s), b""
            if not self._log.state.ok:
                self._look_again()
        return with_cose_receipt(_with_id(reply, frame.id), frame, self._log), sealed

    async def _figures(self) -> tuple[Reply, bytes]:
        if self._metrics is None:
            return Refused(status=503, code="unavailable"), b""
        processes = await asyncio.to_thread(own_processes)
        return FiguresGiven(), self._metrics.given(processes)

    def _standing(self) -> Standing:
        state, every = self.state(), self._fleet.published
        in_flight, in_flight_bytes = self._admission.in_flight
        log = self._log.state
        return Standing(
            ready=state.ready,
            degraded=state.degraded,
            workers=len(every),
            models=len(state.models),
            models_refused=max((len(one.facts.refused) for one in every), default=0),
            keys=len(decode_key_configs(state.key_configs)) if state.key_configs else 0,
            key_age_us=self._clock() - self._keys_seen[1],
            layers=[one.host_layers for one in every],
            requests_in_flight=in_flight,
            bytes_in_flight=in_flight_bytes,
            log_records=log.size,
            log_ok=log.ok,
            log_allows_inference=self._log_refuses() is None,
            witnesses_ok=not state.witnesses,
        )

    async def _evidence(self, frame: EvidenceWanted) -> tuple[Reply, bytes]:
        published = self._fleet.next_published(frame.model)
        if published is None:
            return Refused(status=503, code="unavailable", retry_after_s=1), b""
        claims = self._claims(published, frame.nonce)
        try:
            return EvidenceGiven(), await asyncio.to_thread(self._attester.attest, claims)
        except EndorserFailed as error:
            self._tell(f"no evidence can be given: {error}")
            return Refused(status=503, code="unavailable", retry_after_s=1), b""

    def _claims(self, published: Published, nonce: bytes) -> Claims:
        facts, now = published.facts, self._clock()
        settings = self._deployment.settings
        return Claims(
            nonce=nonce,
            issued_at_us=now,
            expires_at_us=now + EVIDENCE_LIFETIME_S * 1_000_000,
            audience=settings.deployment.audience,
            key_configs=published.key_configs,
            completion_key=facts.completion_key,
            instance=facts.instance,
            models=facts.models,
            layers=facts.layers,
            probes=facts.probes,
            host_layers=published.host_layers,
            profile=facts.profile,
            assurance=self._attester.assurance,
            device=facts.device,
            log_origin=settings.deployment.origin,
            log_checkpoint=self._log.checkpoint(),
            policy_digest=self._policies.in_force.digest,
            measurements={f"{WORKER_PREFIX}{name}": digest for name, digest in facts.measurements.items()}
            | {**published.measured, "bundles": measure_models(facts.models)},
            degraded=facts.profile == "dev",
        )

    def auth_failed(self, frame: AuthFailed) -> None:
        """Count it; the log bounds what a flood may write."""
        with contextlib.suppress(LogUnavailable):
            self._auth_failures.note(frame.reason, frame.source)

    def fault(self, error: Exception) -> None:
        """An error that nobody expected. Its text stays out: it may quote what it was about."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        self._tell(f"internal fault: {type(error).__name__} at {place}")

    def state(self) -> RuntimeState:
        """What gateways may know."""
        published, log = self._fleet.published, self._log.state
        ready = bool(published)
        detail = "; ".join(self._fleet.missing) if published else self._fleet.why_not
        refusal = self._log_refuses()
        if refusal is not None:
            ready, detail = False, f"the audit log refuses inference: {refusal}"
        return RuntimeState(
            ready=ready,
            detail=detail,
            log_state="ok" if log.ok else f"failed: {log.reason}",
            log=self._deployment.settings.deployment.origin,
            key_configs=b"".join(one.key_configs for one in published),
            models=self._fleet.models,
            policy_digest=self._policies.in_force.digest,
            assurance=self._attester.assurance,
            profile=self._deployment.settings.runtime.profile,
            degraded=any(one.facts.profile == "dev" for one in published),
            single_use=bool(published) and all(one.facts.single_use for one in published),
            witnesses=printable(self._witness_trouble(), limit=MAX_TOLD),
            workers=workers_of(published),
            routes={
                name: words for name in self._fleet.choice.named if (words := route_words(self._fleet.choice, name))
            },
        )

    def _log_refuses(self) -> str | None:
        """Why the log takes no new inference; None while it does."""
        try:
            self._log.check_may_infer()
        except LogUnavailable as error:
            return error.code
        return None

    # administration.Administered -------------------------------------------------------------------------------------

    async def administer(self, frame: AdminToHost, *, by: str) -> HostToAdmin:
        """Do what an operator asks and put it on record; the reply repeats the frame's id."""
        try:
            if isinstance(frame, ApplyPolicy):
                return await self._policies.apply(frame, by=by)
            if isinstance(frame, ChangeModels | AskModels):
                return await self._models.answer(frame, by=by)
            if not isinstance(frame, CredentialRevoked):
                return await self._privacy.answer(frame, by=by)
            actor = await asyncio.to_thread(self._log.actor, frame.tenant, frame.subject) if frame.subject else ""
            ended = await asyncio.wrap_future(self._log.append(_revocation(frame, actor=actor, by=by)))
        except LogUnavailable:
            return Refused(id=frame.id, status=503, code="unavailable")
        return Recorded(id=frame.id, log=ended.record.log, record=ended.index, receipt=ended.receipt)

    def _put_in_force(self, policy: HostPolicy) -> None:
        self._deciding.put_in_force(policy)
        self._admission.put_in_force(policy.digest, policy.budgets)
        self._server.broadcast()
        self._tell(f"policy {policy.manifest.name} {policy.manifest.version} is in force ({policy.digest[:16]}...)")

    def _changed(self) -> None:
        """Tell gateways the state of now, and people when what they care about changed."""
        self._server.broadcast()
        state = self.state()
        if state.key_configs != self._keys_seen[0]:
            self._keys_seen = (state.key_configs, self._clock())
        if self._metrics is not None:
            instances = {one.facts.instance for one in self._fleet.published}
            self._metrics.figures.add("sealgate_worker_starts_total", (), len(instances - self._instances_seen))
            self._instances_seen = instances
        told, self._told = self._told, _told(state)
        if self._told[:3] != told[:3] and not self._stopping:
            but = f", but {state.detail}" if state.detail else ""
            self._tell(f"runtime ready{but}" if state.ready else f"runtime not ready: {state.detail}")
            for words in self._models.missing_versions:
                self._tell(printable(words))

    def rotate_keys(self) -> None:
        """New request keys now; the old ones are opened for as long as stale keys are."""
        try:
            self._fleet.rotate()
        except (RuntimeUnavailable, WorkerGone):
            self._tell("no worker is live: nothing to rotate")

    # Life ------------------------------------------------------------------------------------------------------------

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then drain, let the worker leave, and close the log in order."""
        settings = self._deployment.settings.runtime
        await self._policies.record_start(self._policy_before)
        await self._models.record_start(self._models_before, by=self._unloaded.by)
        await self._server.listen(self._deployment.socket, group=settings.socket_group)
        await self._admin.listen(self._deployment.admin_socket)
        supervising = asyncio.create_task(self._fleet.run())
        watching = asyncio.create_task(self._watch())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((supervising, stopping), return_when=asyncio.FIRST_COMPLETED)
        self._stopping = True
        watching.cancel()
        await self._admin.close(drain_s=DRAIN_S)
        await self._server.close(drain_s=DRAIN_S)
        await self._fleet.stop()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(supervising, DRAIN_S)
        with contextlib.suppress(LogUnavailable):
            self._auth_failures.flush()
        self._attester.close()
        self._deployment.socket.unlink(missing_ok=True)
        self._deployment.admin_socket.unlink(missing_ok=True)

    async def _watch(self) -> None:
        """Once a second: close the minute of counted failures, and tell gateways when the log's state changed."""
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(LogUnavailable):
                self._auth_failures.tick()
            self._metering.tick()
            self._look_again()

    def _look_again(self) -> None:
        """The log's health has no event: compare with what was told."""
        state = self.state()
        if _told(state) != self._told:
            self._changed()


def _revocation(frame: CredentialRevoked, *, actor: str, by: str) -> Record:
    named = {"fingerprint": frame.fingerprint} if frame.fingerprint else {}
    return Record(
        kind="credential.restore" if frame.restored else "credential.revoke",
        tenant=frame.tenant,
        actor=actor,
        detail={"what": frame.what, **named, "by": by, "note": nameless(frame.note, subject=frame.subject)},
    )


def _told(state: RuntimeState) -> tuple[bool, str, str, str]:
    """What gateways hear of as soon as it changes."""
    return state.ready, state.detail, state.log_state, state.witnesses


def _with_id(reply: Reply, frame_id: int) -> Reply:
    return reply if reply.id == frame_id else msgspec.structs.replace(reply, id=frame_id)


def run_host(deployment: Deployment, *, tell: Callable[[str], None]) -> int:
    """Open the log, serve until SIGTERM or SIGINT, close the log. SIGHUP rotates the request keys.

    Blocks; call from the main thread.
    """
    with PolicyHistory(deployment.policy_history).hold():
        return _run_holding(deployment, open_policy(deployment, tell=tell), tell=tell)


def _run_holding(deployment: Deployment, policy: OpenedPolicy, *, tell: Callable[[str], None]) -> int:
    budgets = policy.policy.budgets
    origin = deployment.settings.deployment.origin
    url = deployment.log_url
    mldsa = load_log_cosigner(deployment.log_mldsa_key, origin)
    if mldsa is None:
        tell(f"{deployment.log_mldsa_key} is not there: what the log publishes is signed with Ed25519 only")
    deciding = Deciding(policy.policy)
    log = AuditLog.open(
        url,
        shard="never" if deployment.settings.log.shard == "never" else "half-year",
        balances=deciding.balances,
        signer=load_note_signer(deployment.log_key, origin),
        subjects_key=load_subjects_key(deployment.subjects_key),
        person_keys=deployment.person_keys,
        origin=origin,
        extra_tables=(budgets.tables,),
        on_abort=spending.abandon(budgets),
        mldsa=mldsa,
        disk_reserve_bytes=deployment.settings.runtime.disk_reserve_mb * 1024 * 1024,
    )
    try:
        used, before, models_before = _read_back(url, origin)
        with witnessed(deployment, log, tell=tell) as witness_trouble:
            host = RuntimeHost(
                deployment,
                log,
                policy=policy,
                deciding=deciding,
                policy_before=before,
                models_before=models_before,
                used_key_ids=used,
                tell=tell,
                witness_trouble=witness_trouble,
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                gc.freeze()  # what stands now stands until the end: collections need not look at it
                gc.set_threshold(COLLECT_EVERY)
                runner.run(_until_signal(host))
    finally:
        log.close()
    return 0


def _read_back(url: str, origin: str) -> tuple[tuple[int, ...], str, Record | None]:
    """Key identifiers of earlier workers, oldest first: a stale client must meet "unknown key", not another's key. The
    digest of the policy that was in force last, or "". And the newest change of the models."""
    reader = AuditReader(url, origin=origin)
    try:
        page = reader.records(RecordFilter(kind="key.rotate"), limit=MAX_REMEMBERED_KEY_IDS // 2)
        changes = reader.records(RecordFilter(kind="policy.change"), limit=1).records
        models = newest_change(reader)
    finally:
        reader.close()
    rotations = [entry.record.detail.get("key_ids", "") for entry in reversed(page.records)]
    before = changes[0].record.policy_digest if changes else ""
    return tuple(int(number) for ids in rotations for number in ids.split()), before, models


async def _until_signal(host: RuntimeHost) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, host.rotate_keys)
    await host.serve(stop)
