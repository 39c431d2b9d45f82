"""Steps 6 and 10: nothing is forwarded until `authorized` is durable, nothing is released until its end is durable.

    6   reserve budget + append `authorized` (or `denied`), one transaction; wait until durable
    7-9 the worker: its own check, the model, the sealed answer, the signed completion
    10  settle budget + append `completed` or `failed`, one transaction; wait until durable; hand out the receipt

Trusts: the gateway's word for who the caller is and what the policy said (both are recorded as its word); the audit log
for durability. Never: sees plaintext; releases an answer without its record; says more than a public code to a caller.
What cannot be recorded raises LogUnavailable, and nothing is released. Long, because what is promised between the two
records is seen only where both are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from audit.effects import AnyEffect
from audit.errors import LogUnavailable
from audit.log import Appended, AuditLog
from policy.budget import BudgetBook
from policy.limits import MAX_ROUND_DIGITS, MAX_TOP_K
from sealgate.ambient import Clock, now_us
from sealgate.errors import DecodeError, VerificationError
from sealgate.limits import MAX_LEAF
from sealgate.protocol.completion import CompletionVerifier
from sealgate.protocol.frames import Answer, AuditRead, Caller, Deny, Grant, Recorded, Refused, Submit
from sealgate.protocol.ohttp import (
    MEDIA_CHUNKED_REQUEST,
    MEDIA_CHUNKED_RESPONSE,
    MEDIA_REQUEST,
    MEDIA_RESPONSE,
)
from sealgate.transparency.record import Record
from secure_runtime.errors import ENGINE_REASONS, GATEKEEPER_REASONS, RuntimeUnavailable, WorkerGone
from secure_runtime.host import spending
from secure_runtime.host.choice import ModelRules
from secure_runtime.host.commitments import committed
from secure_runtime.host.link_server import Reply
from secure_runtime.host.metering import Metering
from secure_runtime.host.room import Owner, Room
from secure_runtime.host.watching import Journey, Watcher
from secure_runtime.host.worker_link import Outcome, WorkerLink
from secure_runtime.limits import (
    MAX_BINDING,
    MAX_IN_FLIGHT_BYTES,
    MAX_UNITS,
    MAX_UNRECORDED_BYTES,
    ROOM_FOR_END,
    WORKER_GRACE_S,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_with = msgspec.structs.replace
_STATUS = {"sealed-request-refused": 400, "unknown-key": 400, "busy": 503, "timed-out": 504}
_RETRY_AFTER_S = 1
_ANSWERED_AS = {MEDIA_REQUEST: MEDIA_RESPONSE, MEDIA_CHUNKED_REQUEST: MEDIA_CHUNKED_RESPONSE}
_POLICY_CHANGED = Refused(status=503, code="policy-changed", retry_after_s=_RETRY_AFTER_S)
_REASONS = {"completed": frozenset({""}), "failed": ENGINE_REASONS, "refused": GATEKEEPER_REASONS}


@dataclass
class Footing:
    """How a live worker stands: requests that it was chosen for and that have not come to their end, and whether
    another one was published in its place."""

    expected: int = 0
    retired: bool = False


@dataclass(frozen=True, kw_only=True)
class LiveWorker:
    """A worker whose start is on record and whose keys may be published."""

    link: WorkerLink
    instance: str
    completion_key: Ed25519PublicKey
    degraded: bool
    assurance: str
    evidence_digest: str
    models: dict[str, dict[str, tuple[str, str]]]  # name and version to digests of weights and certificate
    single_use: bool = False  # it can answer a request in a process of its own
    footing: Footing = field(default_factory=Footing)
    completions: CompletionVerifier = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "completions", CompletionVerifier(self.completion_key))

    def digests(self, model: str, outcome: str) -> tuple[tuple[str, str], ...]:
        """What a completion about `model` may name: its digests, or none where no model was reached."""
        nothing = () if outcome == "completed" else (("", ""),)
        return (*nothing, *self.models.get(model, {}).values())

    def judged(self, model: str, certificates: tuple[str, ...]) -> bool:
        """Whether the policy was asked about every version that it has. Which it was asked about must be said."""
        return all(digest in certificates for _, digest in self.models.get(model, {}).values())


class Admission:
    """The bridge between what gateways ask and what workers do. Owned by the host's event loop.

    `worker` returns the live worker for a model and the number of the key that a request was sealed to, or raises
    RuntimeUnavailable with the reason; `policy_digest` is the digest of the policy in force, as recorded. What a
    gateway decided by another is refused without a record ("policy-changed"), and the gateway decides anew. Nothing is
    awaited between that check and the queueing of the record, so in the log every decision stands under the policy that
    made it.
    """

    def __init__(
        self,
        *,
        log: AuditLog,
        budgets: BudgetBook,
        worker: Callable[[str, int], LiveWorker],
        policy_digest: str,
        max_in_flight: int,
        timeout_s: float,
        rules: ModelRules | None = None,
        metering: Metering | None = None,
        watcher: Watcher | None = None,
        clock: Clock = now_us,
    ) -> None:
        self._rules = rules or ModelRules()
        self._metering = metering or Metering(None)
        self._watcher = watcher or Watcher(None, traced=False)
        self._log = log
        self._budgets = budgets
        self._worker = worker
        self._policy_digest = policy_digest
        self._timeout_s = timeout_s
        self._clock = clock
        self._exhaustions = spending.Exhaustions()
        self._in_flight, self._in_flight_bytes = Room(max_in_flight), Room(MAX_IN_FLIGHT_BYTES)
        self._answers = Room(MAX_UNRECORDED_BYTES)

    @property
    def in_flight(self) -> tuple[int, int]:
        """Requests being worked on, and the bytes of them."""
        return self._in_flight.taken, self._in_flight_bytes.taken

    def put_in_force(self, policy_digest: str, budgets: BudgetBook) -> None:
        """From here on another policy decides. Call it in the moment in which its `policy.change` is queued."""
        self._policy_digest, self._budgets = policy_digest, budgets

    # Step 6 ----------------------------------------------------------------------------------------------------------

    async def submit(self, frame: Submit, body: bytes, gone: asyncio.Event) -> tuple[Reply, bytes]:
        """One permitted sealed request, from grant to recorded end."""
        journey = self._watcher.begin(frame)
        reply, sealed = await self._submit(frame, body, gone, journey)
        return journey.told(reply), sealed

    async def _submit(self, frame: Submit, body: bytes, gone: asyncio.Event, journey: Journey) -> tuple[Reply, bytes]:
        req_commit = await committed(body)  # first: from the check of the policy to the record nothing is awaited
        if frame.decision.policy_digest != self._policy_digest:
            return _POLICY_CHANGED, b""
        draft = self._draft(frame, kind="inference.authorized", req_commit=req_commit)
        _require_room(draft, frame)
        try:
            worker = self._require_serving(frame, body)
        except (RuntimeUnavailable, LogUnavailable) as error:
            code = "busy" if error.code == "model-busy" else "unavailable"
            return await self._refuse(draft, reason=error.code, code=code, status=503)
        if not worker.judged(frame.model, frame.judged):
            return _POLICY_CHANGED, b""  # a version was loaded after the gateway had decided: it decides anew
        draft = _with(
            draft,
            runtime_instance=worker.instance,
            evidence_digest=worker.evidence_digest,
            assurance=worker.assurance,
            degraded=worker.degraded,
        )
        owner = _owner(frame)
        self._in_flight.take(owner, 1)  # there is room: nothing was awaited since that was looked at
        self._in_flight_bytes.take(owner, len(body))
        worker.footing.expected += 1
        place = self._rules.enter(frame.model, owner)
        try:
            intent = await self._append(draft, spending.reserve(self._budgets, frame, clock=self._clock))
            journey.authorised(intent.record)
            if intent.record.kind != "inference.authorized":
                if (exhausted := self._exhaustions.first(intent.record)) is not None:
                    # Its denial is durable: nobody waits for this, and a failing log says so.
                    self._log.append(exhausted)
                return spending.refusal(intent), b""
            try:
                return await self._run(frame, body, gone, intent, worker, journey)
            except LogUnavailable:
                raise
            except Exception:  # a fault of ours; what was authorised still comes to its one end
                await self._fail(intent, "internal")
                raise
        finally:
            self._in_flight.give_back(owner, 1)
            self._in_flight_bytes.give_back(owner, len(body))
            worker.footing.expected -= 1
            self._rules.leave(frame.model, owner, place)

    def _require_serving(self, frame: Submit, body: bytes) -> LiveWorker:
        self._log.check_may_infer()
        owner = _owner(frame)
        if not (self._in_flight.fits(owner, 1) and self._in_flight_bytes.fits(owner, len(body))):
            raise RuntimeUnavailable("too many requests in flight", code="overloaded")
        if self._rules.full(frame.model, owner):
            raise RuntimeUnavailable("as many requests for this model in flight as may be", code="model-busy")
        worker = self._worker(frame.model, body[0] if body else -1)
        if frame.decision.obligations.single_use and not worker.single_use:
            raise RuntimeUnavailable("the worker has no process for one request alone", code="obligation-unmet")
        return worker

    # Steps 7 to 10 ---------------------------------------------------------------------------------------------------

    async def _run(
        self,
        frame: Submit,
        body: bytes,
        gone: asyncio.Event,
        intent: Appended,
        worker: LiveWorker,
        journey: Journey,
    ) -> tuple[Reply, bytes]:
        granted = intent.record
        grant = Grant(
            id=granted.id,
            model=frame.model,
            operation=frame.operation,
            purpose=frame.purpose,
            actor=granted.actor,
            credential_binding=frame.caller.credential_binding,
            obligations=frame.decision.obligations,
            expires_us=self._clock() + int(self._timeout_s * 1e6),
            version=self._rules.version_for(
                frame.model, worker.models.get(frame.model, {}), granted.id, retired=worker.footing.retired
            ),
        )
        try:
            outcome = await worker.link.run(
                grant, body, media_type=frame.media_type, gone=gone, timeout_s=self._timeout_s, grace_s=WORKER_GRACE_S
            )
            answer = outcome.sealed_response
            commits = (granted.req_commit, await committed(answer) if answer else "")
            self._require_honest(outcome, grant, commits, worker, media_type=_ANSWERED_AS.get(frame.media_type))
        except WorkerGone as error:
            ended = await self._fail(intent, error.code)
            journey.ended(ended.record)
            status, code = (504, "timed-out") if error.code == "worker-hung" else (503, "unavailable")
            return _refused(ended, status=status, code=code, retry_after_s=_RETRY_AFTER_S)
        done = outcome.done
        journey.ran(done)
        draft = _ended(intent, outcome, detail=self._metering.detail(done.took))
        del outcome
        owner, held = _owner(frame), len(answer)
        if not self._answers.take(owner, held):
            answer, held = b"", 0
        try:
            ended = await self._append(draft, spending.settle(self._budgets, granted, clock=self._clock))
        finally:
            self._answers.give_back(owner, held)
        journey.ended(ended.record)
        if not answer and not done.problem:
            return _refused(ended, status=503, code="busy", retry_after_s=_RETRY_AFTER_S)
        if done.problem:
            return _refused(ended, status=_STATUS[done.problem], code=done.problem, retry_after_s=_retry(done.problem))
        reply = Answer(
            id=frame.id,
            media_type=done.media_type,
            log=ended.record.log,
            record=ended.index,
            receipt=ended.receipt,
        )
        return reply, answer

    @staticmethod
    def _require_honest(
        outcome: Outcome, grant: Grant, commits: tuple[str, str], worker: LiveWorker, *, media_type: str | None
    ) -> None:
        """The completion is the live instance's, about this grant and this request, and fits the body it came with.

        The answer's media type is the one that belongs to the request's: it becomes the gateway's Content-Type.
        """
        try:
            statement = worker.completions.verify(outcome.done.completion)
        except VerificationError:
            worker.link.abort(WorkerGone("the worker's signature does not hold", code="worker-protocol"))
            raise WorkerGone("the worker's signature does not hold", code="worker-protocol") from None
        sealed = outcome.sealed_response
        fits = (
            statement.instance == worker.instance
            and statement.grant == grant.id
            and statement.model == grant.model
            and (statement.req_commit, statement.resp_commit) == commits
            and bool(sealed) == (not outcome.done.problem)
            and outcome.done.problem in ("", *_STATUS)
            and (not sealed or outcome.done.media_type == media_type)
            and (statement.outcome == "refused") == bool(outcome.done.problem)
            and statement.outcome in ("completed", "failed", "refused")
            and statement.reason in _REASONS[statement.outcome]
            and 0 <= statement.units <= MAX_UNITS
            and spending.epsilon_fits(statement, grant)
            and (statement.model_digest, statement.certificate_digest) in worker.digests(grant.model, statement.outcome)
        )
        if not fits:
            worker.link.abort(WorkerGone("the worker's completion does not fit", code="worker-protocol"))
            raise WorkerGone("the worker's completion does not fit", code="worker-protocol")

    async def _fail(self, intent: Appended, reason: str) -> Appended:
        """The end of a request that nobody answered: what was held for it counts as spent."""
        failed = _end_of(intent, {"kind": "inference.failed", "outcome": "failed", "reason": reason})
        return await self._append(failed, spending.abandon(self._budgets))

    # Refusals and reads ----------------------------------------------------------------------------------------------

    async def deny(self, frame: Deny) -> tuple[Reply, bytes]:
        """The policy said no: make it a record."""
        if frame.decision.policy_digest != self._policy_digest:
            return _POLICY_CHANGED, b""
        return await self._record(self._draft(frame, kind="inference.denied", reason=frame.decision.reason))

    async def audit_read(self, frame: AuditRead) -> tuple[Reply, bytes]:
        """An auditor is about to read: make it a record first."""
        if frame.decision.policy_digest != self._policy_digest:
            return _POLICY_CHANGED, b""
        draft = Record(
            kind=frame.kind,
            tenant=frame.caller.tenant,
            actor=self._actor(frame.caller),
            authn=frame.caller.authn,
            policy_digest=frame.decision.policy_digest,
            policy_ids=frame.decision.policy_ids,
            detail=frame.detail,
        )
        return await self._record(draft)

    async def _record(self, draft: Record) -> tuple[Reply, bytes]:
        ended = await self._append(draft, None)
        self._watcher.denied(ended.record)
        return Recorded(log=ended.record.log, record=ended.index, receipt=ended.receipt), b""

    async def _refuse(self, draft: Record, *, reason: str, code: str, status: int) -> tuple[Reply, bytes]:
        """Refuse before any grant, on record if the log still writes."""
        ended = await self._append(_with(draft, kind="inference.denied", reason=reason), None)
        self._watcher.denied(ended.record)
        return _refused(ended, status=status, code=code, retry_after_s=_RETRY_AFTER_S)

    def _append(self, draft: Record, effect: AnyEffect | None) -> asyncio.Future[Appended]:
        return self._log.append_awaited(draft, effect)

    def _actor(self, caller: Caller) -> str:
        return self._log.actor(caller.tenant, caller.subject)

    def _draft(self, frame: Submit | Deny, **said: Any) -> Record:
        """What a record says of the request, and what is `said` of it."""
        return Record(
            tenant=frame.caller.tenant,
            actor=self._actor(frame.caller),
            authn=frame.caller.authn,
            model=frame.model,
            operation=frame.operation,
            purpose=frame.purpose,
            policy_digest=frame.decision.policy_digest,
            policy_ids=frame.decision.policy_ids,
            **said,
        )


def _owner(frame: Submit) -> Owner:
    return frame.caller.tenant, frame.caller.subject


def _require_room(draft: Record, frame: Submit) -> None:
    """Raise DecodeError for words of a gateway that would leave no room for the end in a leaf, or in a worker's frame.

    Likewise for noise, rounding or a choice of scores that no policy can demand: what a gateway may have done to an
    answer ends there. Found out before anything is authorised: what is authorised must be able to end.
    """
    obligations = frame.decision.obligations
    spending.most_epsilon(obligations, frame.operation)
    digits, scores = obligations.round_digits, obligations.top_k
    if not (digits is None or 0 <= digits <= MAX_ROUND_DIGITS) or not (scores is None or 1 <= scores <= MAX_TOP_K):
        raise DecodeError("the gateway demands of an answer what no policy can demand")
    binding = frame.caller.credential_binding
    if len(msgspec.json.encode(draft)) > MAX_LEAF - ROOM_FOR_END or len(binding) > MAX_BINDING:
        raise DecodeError("the gateway says more of a request than a record can hold")


_NOT_INHERITED: dict[str, Any] = {
    "id": "",
    "ts_us": 0,
    "salt": "",
    "eps_micro": 0,
    "budget_after_micro": 0,
    "detail": {},
}


def _end_of(intent: Appended, said: dict[str, Any]) -> Record:
    """The end of an authorised request: what is `said` of it, and what it inherits."""
    begun = intent.record
    return _with(begun, **(_NOT_INHERITED | {"grant": begun.id, "intent_seq": intent.index} | said))


def _ended(intent: Appended, outcome: Outcome, *, detail: dict[str, str]) -> Record:
    """The end's record: the worker's statement, field by field, unchanged; and in the detail what it cost."""
    statement = outcome.done.completion.statement
    said = {
        "kind": "inference.completed" if statement.outcome == "completed" else "inference.failed",
        "runtime_instance": statement.instance,
        "runtime_seq": statement.seq,
        "runtime_sig": outcome.done.completion.signature,
        "grant": statement.grant,
        "outcome": statement.outcome,
        "reason": statement.reason,
        "model": statement.model,
        "model_digest": statement.model_digest,
        "certificate_digest": statement.certificate_digest,
        "units": statement.units,
        "eps_micro": statement.eps_micro,
        "req_commit": statement.req_commit,
        "resp_commit": statement.resp_commit,
        "detail": detail,
    }
    return _end_of(intent, said)


def _refused(ended: Appended, *, status: int, code: str, retry_after_s: int) -> tuple[Reply, bytes]:
    reply = Refused(
        status=status,
        code=code,
        log=ended.record.log,
        record=ended.index,
        receipt=ended.receipt,
        retry_after_s=retry_after_s,
    )
    return reply, b""


def _retry(problem: str) -> int:
    return _RETRY_AFTER_S if problem == "busy" else 0
