"""What the worker does for ever: take whatever has arrived, admit it, run it as batches, seal, sign, answer.

What a permit wants in a process of its own is accepted here, opened and run there, and signed here. Everything that
arrived together is one sweep; each request in it comes to exactly one signed end.

Trusts: the host for grants, which say who may have what. Never: keeps plaintext beyond the sweep that it came in, or
signs for what it did not admit.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Generator
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.limits import DEFAULT_MESSAGE, LARGE_BODY
from sealgate.protocol import bhttp
from sealgate.protocol.completion import Completion, Statement, sign_completions
from sealgate.protocol.frames import (
    BootPlan,
    Cancel,
    Done,
    Frame,
    FrameReader,
    Grant,
    HostToWorker,
    KeysChanged,
    Rotate,
    Shutdown,
    Took,
    Work,
)
from sealgate.protocol.ohttp import commitment
from sealgate.protocol.sizes import padded_within, sealed_size
from secure_runtime.errors import TurnedAway
from secure_runtime.limits import RECEIVE_BYTES, SEALED_AT_ONCE
from secure_runtime.worker.engine.answers import EngineAnswer, unsealed
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.gatekeeper import Admitted, accept, admission
from secure_runtime.worker.keys import KeyRing
from secure_runtime.worker.meter import SweepMeter
from secure_runtime.worker.single_use import Ended, SingleUse
from secure_runtime.worker.turns import ExplanationQueue, Waiting, in_turns


class Worker:
    """Everything after the seal. One thread owns it all; time and randomness are injected."""

    def __init__(
        self,
        plan: BootPlan,
        engine: Engine,
        *,
        send: Callable[[Frame, bytes], None],
        flush: Callable[[], None] = lambda: None,
        single_use: SingleUse | None = None,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        """`flush` is called where what was sent is to leave before more is made."""
        self._plan = plan
        self._engine = engine
        self._single_use = single_use
        self._send = send
        self._flush = flush
        self._clock = clock
        self.instance = entropy(16).hex()
        self._signer = Ed25519PrivateKey.generate()
        self.keys = KeyRing(
            plan.suites,
            active_s=plan.key_active_s,
            stale_s=plan.key_stale_s,
            replay_max=plan.replay_max,
            avoid_ids=plan.avoid_key_ids,
            clock=clock,
            entropy=entropy,
        )
        self._pad_to = padded_within(plan.max_message)
        self._seq = 0
        self._ends: list[tuple[Statement, Callable[[Completion], Done], bytes]] = []  # not signed yet
        self._ends_bytes = 0  # of their sealed answers

    @property
    def completion_key(self) -> bytes:
        """The Ed25519 public key that completions verify under."""
        return self._signer.public_key().public_bytes_raw()

    def tick(self) -> None:
        """Rotate keys when their time has come, and tell the host."""
        if self.keys.tick():
            self._send(KeysChanged(key_configs=self.keys.published()), b"")

    def rotate(self, avoid_ids: tuple[int, ...] = ()) -> None:
        """Rotate now, to keys without these numbers."""
        self.keys.rotate(avoid_ids)
        self._send(KeysChanged(key_configs=self.keys.published()), b"")

    def sweep(self, works: list[tuple[Work, bytes, bool]]) -> None:
        """Bring every work item `(frame, sealed request, cancelled)` to its one signed end; those that a process of
        their own runs come to theirs by `advance`. What is large leaves before the next is made."""
        meter = SweepMeter()
        places = self._admitted(works)
        meter.opened(len(works))
        self.advance()  # the processes run beside the batch
        to_run = [place for place in places if isinstance(place, Admitted)]
        answers: deque[tuple[int, EngineAnswer]] = deque()
        begun = 0
        for (work, raw, _), place in zip(works, places, strict=True):
            if isinstance(place, TurnedAway):
                self._refuse(work, raw, reason=place.code, problem=place.problem, took=meter.refused())
            elif place is not None:
                if not answers:
                    if begun:
                        self._sign_and_send()
                        self._flush()
                    answers.extend(enumerate(self._engine.run(to_run[begun:])))
                    begun += len(answers)
                index, answer = answers.popleft()
                meter.seals()
                self._answer(work, raw, place, answer, partial(meter.took, self._engine.shares.get(index)))
                if self._ends_bytes > SEALED_AT_ONCE:
                    self._sign_and_send()
                    self._flush()
        self._sign_and_send()

    def turn_away(self, one: Waiting, why: TurnedAway) -> None:
        """Bring one to its end that nothing is done for."""
        work, raw, _ = one
        self._refuse(work, raw, reason=why.code, problem=why.problem)
        self._sign_and_send()

    @property
    def channel(self) -> socket.socket | None:
        """To poll beside the host's socket: when it can be read, `advance`."""
        return self._single_use.channel if self._single_use is not None else None

    @property
    def busy(self) -> bool:
        """Whether a request is still in a process of its own, or waits for one."""
        return self._single_use is not None and self._single_use.busy

    def advance(self) -> None:
        """Sign and send what single-use processes came to; start those that waited."""
        if self._single_use is not None:
            self._close(self._single_use.advance())

    def cancel(self, ids: AbstractSet[int]) -> None:
        """Bring those to their end that wait for a process of their own."""
        if self._single_use is not None:
            self._close(self._single_use.cancel(ids))

    def _close(self, ends: list[Ended]) -> None:
        for end in ends:
            result = end.result
            if result.outcome == "refused":
                self._refuse(end.work, end.raw, reason=result.reason, problem=result.problem)
                continue
            statement = self._statement(
                end.work.grant,
                end.raw,
                outcome=result.outcome,
                reason=result.reason,
                model_digest=result.model_digest,
                certificate_digest=result.certificate_digest,
                units=result.units,
                eps_micro=result.eps_micro,
                resp_commit=commitment(end.sealed),
            )
            done = partial(_done, id=end.work.id, media_type=result.media_type, took=result.took)
            self._ends.append((statement, done, end.sealed))
        self._sign_and_send()

    def _admitted(self, works: list[tuple[Work, bytes, bool]]) -> list[Admitted | TurnedAway | None]:
        """All of a sweep through the gatekeeper, step by step; None for what is in a process of its own."""
        places: list[Admitted | TurnedAway | None] = [None] * len(works)
        under_way: dict[int, Generator[None, None, Admitted]] = {}
        for index, (work, raw, cancelled) in enumerate(works):
            try:
                if cancelled:
                    raise TurnedAway("cancelled", problem="timed-out")
                if work.grant.obligations.single_use:
                    self._give_away(work, raw)
                else:
                    under_way[index] = self._admission(work, raw)
            except TurnedAway as why:
                places[index] = why
        while under_way:
            for index, steps in list(under_way.items()):
                try:
                    next(steps)
                    continue
                except StopIteration as ended:
                    places[index] = ended.value
                except TurnedAway as why:
                    places[index] = why
                except MemoryError:
                    places[index] = TurnedAway("no-memory", problem="busy")
                del under_way[index]
        return places

    def _give_away(self, work: Work, raw: bytes) -> None:
        """To a process of its own: nothing of it is opened here."""
        if self._single_use is None:
            raise TurnedAway("single-use-not-offered")
        accepted = accept(work.grant, raw, work.media_type, keys=self.keys, now_us=self._clock())
        self._single_use.begin(work, raw, accepted)

    def _admission(self, work: Work, raw: bytes) -> Generator[None, None, Admitted]:
        return admission(
            work.grant,
            raw,
            work.media_type,
            keys=self.keys,
            audience=self._plan.audience,
            now_us=self._clock(),
            date_window_s=self._plan.date_window_s,
        )

    def _answer(
        self, work: Work, raw: bytes, admitted: Admitted, answer: EngineAnswer, took: Callable[[], Took]
    ) -> None:
        """Seal the answer, forget the question, sign what was done."""
        try:
            sealed, media_type = self._sealed(admitted, answer)
        except MemoryError:
            answer = unsealed(answer)
            sealed, media_type = self._sealed(admitted, answer)
        admitted.plaintext.wipe()
        statement = self._statement(
            work.grant,
            raw,
            outcome=answer.outcome,
            reason=answer.reason,
            model_digest=answer.model_digest,
            certificate_digest=answer.certificate_digest,
            units=answer.units,
            eps_micro=answer.eps_micro,
            resp_commit=commitment(sealed),
        )
        self._ends.append((statement, partial(_done, id=work.id, media_type=media_type, took=took()), sealed))
        self._ends_bytes += len(sealed)

    def _sealed(self, admitted: Admitted, answer: EngineAnswer) -> tuple[bytes, str]:
        return admitted.sealer.seal(bhttp.encode_response(answer.response, pad_to=self._pad_to))

    def _refuse(self, work: Work, raw: bytes, *, reason: str, problem: str, took: Took | None = None) -> None:
        statement = self._statement(work.grant, raw, outcome="refused", reason=reason)
        self._ends.append((statement, partial(_done, id=work.id, problem=problem, took=took), b""))

    def _statement(self, grant: Grant, raw: bytes, *, outcome: str, reason: str, **rest: Any) -> Statement:
        self._seq += 1
        values = {"model_digest": "", "certificate_digest": "", "units": 0, "resp_commit": "", **rest}
        return Statement(
            instance=self.instance,
            seq=self._seq,
            grant=grant.id,
            outcome=outcome,
            reason=reason,
            model=grant.model,
            req_commit=commitment(raw),
            **values,
        )

    def _sign_and_send(self) -> None:
        """All ends since the last time, in the order of their numbers, under one signature."""
        ends, self._ends, self._ends_bytes = self._ends, [], 0
        completions = sign_completions([statement for statement, _, _ in ends], self._signer)
        for completion, (_, done, sealed) in zip(completions, ends, strict=True):
            self._send(done(completion), sealed)


def _done(completion: Completion, **rest: Any) -> Done:
    return Done(completion=completion, **rest)


def serve(
    worker: Worker,
    sock: socket.socket,
    outgoing: list[bytes | memoryview],
    *,
    body_max: int = sealed_size(DEFAULT_MESSAGE),
) -> None:
    """Until the host hangs up or says Shutdown. `outgoing` is what the worker's `send` fills; `body_max` bounds what is
    taken for one request.

    An explanation takes as long as thousands of answers: one is made at a turn, after what else arrived has been
    answered and sent, so that nobody waits for more than one of somebody else's; and callers take turns.
    """
    reader = FrameReader(HostToWorker, body_max=body_max)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if worker.channel is not None:
        poller.register(worker.channel, select.POLLIN)
    waiting: deque[tuple[Frame, bytes]] = deque()
    to_explain = ExplanationQueue()
    leave = False
    while True:
        idle_ms = max(1, min(int(worker.keys.seconds_to_next_change() * 1000) + 1, 3_600_000))
        poller.poll(0 if to_explain else idle_ms)
        worker.tick()
        open_still = _drain(sock, reader, waiting)
        cancelled = {frame.id for frame, _ in waiting if isinstance(frame, Cancel)}
        works = [(frame, body, frame.id in cancelled) for frame, body in waiting if isinstance(frame, Work)]
        if rotations := [frame.avoid for frame, _ in waiting if isinstance(frame, Rotate)]:
            worker.rotate(tuple(number for avoid in rotations for number in avoid))
        leave = leave or any(isinstance(frame, Shutdown) for frame, _ in waiting)
        waiting.clear()
        worker.cancel(cancelled)
        gone = to_explain.cancel(cancelled)  # at once: the host takes a worker that is late with those for a hung one
        alone = [one for one in works if one[0].grant.obligations.single_use]
        together = [one for one in works if not (one[0].grant.obligations.single_use or _is_explanation(one[0].grant))]
        worker.sweep([*alone, *in_turns(together), *gone])
        for one in works:
            if _is_explanation(one[0].grant) and not to_explain.add(one):
                worker.turn_away(one, TurnedAway("no-memory", problem="busy"))
        flush(sock, outgoing)
        if to_explain:
            worker.sweep([to_explain.next()])
            flush(sock, outgoing)
        if not open_still or (leave and not worker.busy and not to_explain):
            return


def _is_explanation(grant: Grant) -> bool:
    """One that is made here; those that are made in a process of their own keep nobody waiting."""
    return grant.operation == "explain" and not grant.obligations.single_use


def _drain(sock: socket.socket, reader: FrameReader, into: deque[tuple[Frame, bytes]]) -> bool:
    """Take what has arrived, up to a bound; False when the host hung up. `recv`, never `recvmsg`: no descriptors."""
    taken = 0
    while taken < RECEIVE_BYTES:
        try:
            data = sock.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        taken += len(data)
        into.extend(reader.feed(data))
    return True


def flush(sock: socket.socket, outgoing: list[bytes | memoryview]) -> None:
    """Write what is queued; nothing stays in it."""
    if not outgoing:
        return
    parts, outgoing[:] = outgoing[:], []
    if sum(map(len, parts)) <= LARGE_BODY:
        parts = [b"".join(parts)]  # one system call, and one wake-up of the host
    for part in parts:
        sock.sendall(part)
