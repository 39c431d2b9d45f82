"""The zygote: a fork of the worker from before the worker had keys, which forks a process for each single-use request.

    worker  -- slot, lifetime -->  zygote  -- fork -->  a process for one request: opens, runs, seals, ends
            <-- slot, how it ended --

Whoever breaks into a single-use process finds one request there: no key of the worker, no other caller's data, no
socket, no file. Its memory ends with it. Weights and code are shared with it, copy on write.

Trusts: the worker's word for slot and lifetime. Never: looks into a slot, holds a request key, has a socket but the one
to the worker, or signals anybody: a process that does not end is ended by a timer of its own.
"""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from sealgate.ambient import Clock, now_us
from sealgate.protocol import bhttp
from sealgate.protocol.frames import BootPlan
from sealgate.protocol.hpke import OneSecret
from sealgate.protocol.ohttp import SealedRequest
from sealgate.protocol.sizes import padded_within
from secure_runtime.errors import SandboxRefused, TurnedAway
from secure_runtime.limits import MAX_SINGLE_USE, ZYGOTE_START_S
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.gatekeeper import inspect, unseal
from secure_runtime.worker.meter import SweepMeter
from secure_runtime.worker.sandbox import offspring
from secure_runtime.worker.slots import Job, Result, Slot

BEGIN = struct.Struct(">BI")
"""Worker to zygote: slot, lifetime in milliseconds."""
ENDED = struct.Struct(">BB")
"""Zygote to worker: slot, and one of the three below."""
WELL, NOT_MADE, DIED = 0, 1, 2

_FAILED = 71
_MAX_REPORT = 64 * 1024

Answer = Callable[[Job, bytes], tuple[Result, bytes]]
Layers = dict[str, dict[str, str]]


def answerer(plan: BootPlan, engine: Engine, *, clock: Clock = now_us) -> Answer:
    """What a single-use process does: checks 5 to 10, the model, the sealed answer."""

    pad_to = padded_within(plan.max_message)

    def answer(job: Job, raw: bytes) -> tuple[Result, bytes]:
        opened = False
        meter = SweepMeter()
        try:
            sealed = SealedRequest.parse(raw, job.media_type)
            unsealed = unseal(sealed, OneSecret(sealed.kem, sealed.enc, job.secret))
            opened = True
            admitted = inspect(
                job.grant, unsealed, audience=plan.audience, now_us=clock(), date_window_s=plan.date_window_s
            )
        except TurnedAway as why:
            return Result(opened=opened, outcome="refused", reason=why.code, problem=why.problem), b""
        meter.opened(1)
        (made,) = engine.run([admitted])
        meter.seals()
        response, media_type = admitted.sealer.seal(bhttp.encode_response(made.response, pad_to=pad_to))
        admitted.plaintext.wipe()
        result = Result(
            opened=True,
            outcome=made.outcome,
            reason=made.reason,
            media_type=media_type,
            units=made.units,
            eps_micro=made.eps_micro,
            model_digest=made.model_digest,
            certificate_digest=made.certificate_digest,
            took=meter.took(engine.shares.get(0)),
        )
        return result, response

    return answer


def start(answer: Answer, *, body_max: int) -> tuple[socket.socket, tuple[Slot, ...], Layers]:
    """Fork the zygote. The worker calls it once, before its seal: the channel, the slots, and what the zygote found
    when it tried its own sandbox and that of a child. Raises SandboxRefused. `body_max` is that of a slot.
    """
    slots = tuple(Slot(body_max) for _ in range(MAX_SINGLE_USE))
    worker = os.getpid()
    gc.collect()
    if os.fork() == 0:
        _be_zygote(worker, slots, answer)
    channel = offspring.keep_workers_end()
    channel.settimeout(ZYGOTE_START_S)
    try:
        layers = msgspec.json.decode(channel.recv(_MAX_REPORT), type=Layers)
    except (OSError, msgspec.DecodeError) as error:
        raise SandboxRefused("the process that makes single-use processes did not start") from error
    channel.setblocking(False)
    return channel, slots, layers


def _be_zygote(worker: int, slots: Sequence[Slot], answer: Answer) -> NoReturn:
    """Whatever goes wrong here ends it, and with it, since the channel then ends, the worker."""
    try:
        channel = offspring.become_zygote(worker)
        gc.freeze()  # a collection in a child would touch, and so copy, every page that holds an object
        channel.sendall(msgspec.json.encode(offspring.try_out()))
        _tend(channel, slots, answer)
        os._exit(0)
    except BaseException:
        os._exit(_FAILED)


def _tend(channel: socket.socket, slots: Sequence[Slot], answer: Answer) -> None:
    """Fork for what the worker asks, tell it how each fork ended; return when the worker is gone."""
    zygote = os.getpid()
    running: dict[int, int] = {}  # process to slot
    while True:
        offspring.wait_for(channel)
        for pid, status in offspring.ended_children():
            _tell(channel, running.pop(pid), WELL if status == 0 else DIED)
        try:
            order = channel.recv(BEGIN.size)
        except BlockingIOError:
            continue
        if not order:
            return
        index, lifetime_ms = BEGIN.unpack(order)
        try:
            child = os.fork()
        except OSError:
            _tell(channel, index, NOT_MADE)
            continue
        if child == 0:
            _be_single_use(zygote, slots, index, answer, lifetime_ns=lifetime_ms * 1_000_000)
        running[child] = index


def _tell(channel: socket.socket, index: int, how: int) -> None:
    channel.sendall(ENDED.pack(index, how))


def _be_single_use(zygote: int, slots: Sequence[Slot], index: int, answer: Answer, *, lifetime_ns: int) -> NoReturn:
    """One request. The sandbox first: nothing that a caller sent is looked at before it is closed."""
    try:
        offspring.become_single_use(zygote, lifetime_ns=lifetime_ns)
        for number, slot in enumerate(slots):
            if number != index:
                slot.close()
        own = slots[index]
        own.put(*answer(*own.take(Job)))
        os._exit(0)
    except BaseException:
        os._exit(_FAILED)
