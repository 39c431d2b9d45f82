"""What the worker signs for a single-use process is what its host takes: a child's word never ends the worker."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.protocol.frames import BootPlan, Done, ModelFacts, Obligations, Work
from sealgate.protocol.ohttp import commitment
from secure_runtime.errors import ENGINE_REASONS, GATEKEEPER_REASONS
from secure_runtime.host.admission import Admission, LiveWorker
from secure_runtime.host.worker_link import Outcome
from secure_runtime.worker.gatekeeper import accept
from secure_runtime.worker.single_use import SingleUse
from secure_runtime.worker.slots import Job, Result, Slot
from secure_runtime.worker.sweeps import Worker
from secure_runtime.worker.zygote import BEGIN, ENDED, WELL

DIGESTS = ("a" * 64, "b" * 64)
FACTS = ModelFacts(
    name="tumour", version="1", model_digest=DIGESTS[0], certificate_digest=DIGESTS[1], epsilon_micro=1, delta="0.1",
    privacy_unit="example", sensitivity="public", purposes=("treatment",),
)  # fmt: skip
PLAN = BootPlan(
    profile="dev", audience="gateway.test:8443", models_dir="", publishers_file="", sys_path=(), uid=0, gid=0,
    torch_threads=1, memory_limit_bytes=0,
)  # fmt: skip
ANSWERED = Result(opened=True, outcome="completed", reason="", media_type="message/ohttp-res", units=3,
                  eps_micro=1_500_000, model_digest=DIGESTS[0], certificate_digest=DIGESTS[1])  # fmt: skip
FAILED = msgspec.structs.replace(ANSWERED, outcome="failed", reason="bad-input", units=0, eps_micro=0)
REFUSED = Result(opened=True, outcome="refused", reason="date-missing", problem="sealed-request-refused")
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "opened": st.booleans(),
    "outcome": st.sampled_from(["completed", "failed", "refused", ""]),
    "reason": st.sampled_from(["", *sorted(ENGINE_REASONS | GATEKEEPER_REASONS), "x"]),
    "problem": st.sampled_from(["", "sealed-request-refused", "unknown-key", "busy", "timed-out", "x"]),
    "media_type": st.sampled_from(["", "message/ohttp-res", "message/ohttp-chunked-res"]),
    "units": st.sampled_from([0, 1, 2**52, 2**52 + 1, -1]),
    "eps_micro": st.sampled_from([0, 1, 500_000, 1_000_000, 2_000_000, 2_500_000, -500_000]),
    "model_digest": st.sampled_from(["", *DIGESTS]),
    "certificate_digest": st.sampled_from(["", *DIGESTS]),
}


@st.composite
def words(draw: st.DrawFn) -> Result:
    """A word that would do, but for up to two of its fields."""
    honest = draw(st.sampled_from([ANSWERED, FAILED, REFUSED]))
    names = draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=2))
    return msgspec.structs.replace(honest, **{name: draw(CHANGES[name]) for name in names})


class Desk:
    """A worker whose zygote is the test."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.zygote, self.channel = ours, theirs
        self.slot = Slot()
        self.sent: list[tuple[Any, bytes]] = []
        single_use = SingleUse(theirs, [self.slot], models={"tumour": FACTS}, clock=bench.clock)
        self.worker = Worker(
            PLAN, SimpleNamespace(run=lambda admitted: []), send=lambda *sent: self.sent.append(sent),  # type: ignore[arg-type]
            single_use=single_use, clock=bench.clock,
        )  # fmt: skip
        bench.keys = self.worker.keys
        self.live = LiveWorker(
            link=SimpleNamespace(abort=lambda why: None),  # type: ignore[arg-type]
            instance=self.worker.instance,
            completion_key=Ed25519PublicKey.from_public_bytes(self.worker.completion_key),
            degraded=True,
            assurance="software",
            evidence_digest="",
            models={"tumour": {"1": DIGESTS}},
            single_use=True,
        )

    def close(self) -> None:
        self.zygote.close()
        self.channel.close()
        self.slot.close()

    def say(self, word: Result, sealed: bytes, obligations: Obligations) -> str:
        """Let a child say this of a request; the host must take what comes of it. Returns the reason."""
        raw, media_type, _ = self.bench.seal(self.bench.inner())
        grant = self.bench.grant(obligations=obligations)
        self.worker.sweep([(Work(id=1, grant=grant, media_type=media_type), raw, False)])
        index, lifetime_ms = BEGIN.unpack(self.zygote.recv(BEGIN.size))
        assert lifetime_ms == 10_000
        self.slot.put(word, sealed)
        self.zygote.sendall(ENDED.pack(index, WELL))
        self.worker.advance()
        ((done, body),) = self.sent
        self.sent.clear()
        assert isinstance(done, Done)
        outcome = Outcome(done, body)
        commits = (commitment(raw), commitment(body) if body else "")
        Admission._require_honest(outcome, grant, commits, self.live, media_type="message/ohttp-res")
        return done.completion.statement.reason


@pytest.fixture
def desk(bench: Any) -> Any:
    made = Desk(bench)
    yield made
    made.close()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    word=words(),
    sealed_too=st.integers(0, 9),
    noise=st.sampled_from([(0, 0), (500_000, 4), (500_000, 1)]),
)
def test_whatever_a_child_says_the_host_takes_what_the_worker_signs(
    desk: Desk, word: Result, sealed_too: int, noise: tuple[int, int]
) -> None:
    epsilon, rows = noise
    sealed = b"sealed" if (sealed_too > 0) == (word.outcome != "refused") else b""
    desk.say(word, sealed, Obligations(single_use=True, noise_epsilon_micro=epsilon, noise_rows=rows))


def test_an_honest_word_passes_as_it_is(desk: Desk) -> None:
    """Otherwise the property above could hold by refusing everything."""
    noised = Obligations(single_use=True, noise_epsilon_micro=500_000, noise_rows=4)
    assert desk.say(ANSWERED, b"sealed", noised) == ""
    assert desk.say(ANSWERED, b"sealed", Obligations(single_use=True)) == "single-use-died"
    assert desk.say(REFUSED, b"", noised) == "date-missing"


def test_a_request_that_did_not_open_may_come_again_and_one_that_did_may_not(desk: Desk) -> None:
    for opened in (True, False):
        raw, media_type, _ = desk.bench.seal(desk.bench.inner())
        grant = desk.bench.grant(obligations=Obligations(single_use=True))
        desk.worker.sweep([(Work(id=1, grant=grant, media_type=media_type), raw, False)])
        index, _ = BEGIN.unpack(desk.zygote.recv(BEGIN.size))
        word = Result(opened=opened, outcome="refused", reason="cannot-open", problem="sealed-request-refused")
        desk.slot.put(word, b"")
        desk.zygote.sendall(ENDED.pack(index, WELL))
        desk.worker.advance()
        desk.sent.clear()
        if opened:
            desk.worker.sweep([(Work(id=2, grant=grant, media_type=media_type), raw, False)])
            assert desk.sent.pop()[0].completion.statement.reason == "replayed"
        else:
            assert accept(grant, raw, media_type, keys=desk.worker.keys, now_us=desk.bench.now_us)


class _Rank:
    """Four slots, whose zygote is the test: who runs, in the order in which the slots were filled."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self._zygote, self._channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._zygote.setblocking(False)
        self._slots = [Slot(4096) for _ in range(4)]
        self.single_use = SingleUse(self._channel, self._slots, models={"tumour": FACTS}, clock=bench.clock)
        self._id = 0

    def ask(self, actor: str, times: int = 1, **changes: Any) -> list[int]:
        """The numbers of these requests."""
        for _ in range(times):
            self._id += 1
            raw, media_type, _ = self.bench.seal(self.bench.inner())
            grant = self.bench.grant(actor=actor, obligations=Obligations(single_use=True), **changes)
            accepted = accept(grant, raw, media_type, keys=self.bench.keys, now_us=self.bench.now_us)
            self.single_use.begin(Work(id=self._id, grant=grant, media_type=media_type), raw, accepted)
        return list(range(self._id - times + 1, self._id + 1))

    def begun(self) -> list[tuple[int, str]]:
        """Slot and caller of each process that the worker asks for now."""
        self.single_use.advance()
        asked: list[tuple[int, str]] = []
        while True:
            try:
                index, _ = BEGIN.unpack(self._zygote.recv(BEGIN.size))
            except BlockingIOError:
                return asked
            asked.append((index, self._slots[index].take(Job)[0].grant.actor))

    def end(self, index: int) -> None:
        self._slots[index].put(REFUSED, b"")
        self._zygote.sendall(ENDED.pack(index, WELL))

    def close(self) -> None:
        self._zygote.close()
        self._channel.close()
        for slot in self._slots:
            slot.close()


@pytest.fixture
def rank(bench: Any) -> Iterator[_Rank]:
    made = _Rank(bench)
    yield made
    made.close()


def test_one_callers_many_leave_a_process_for_another_one(rank: _Rank) -> None:
    rank.ask("many", 100)
    held = rank.begun()
    assert [actor for _, actor in held] == ["many"] * 3, "the fourth is for somebody else"
    rank.ask("one", 2)
    ((mine, actor),) = rank.begun()
    assert actor == "one"
    rank.end(held[0][0])
    ((also_mine, actor),) = rank.begun()
    assert actor == "one", "ahead of ninety-seven that came before it: fewer of its run"
    rank.end(mine)
    assert [actor for _, actor in rank.begun()] == ["many"]
    rank.end(also_mine)
    assert rank.begun() == [], "and again one is left"
    assert rank.single_use.busy


def test_callers_that_wait_together_take_turns(rank: _Rank) -> None:
    for actor in ("a", "b", "c", "d", "e"):
        rank.ask(actor, 2)
    seen = rank.begun()
    assert [actor for _, actor in seen] == ["a", "b", "c", "d"]
    order = []
    for index, _ in seen:
        rank.end(index)
        ((_, actor),) = rank.begun()
        order.append(actor)
    assert order == ["e", "a", "b", "c"]


def test_who_is_cancelled_or_late_has_no_turn(rank: _Rank) -> None:
    held = rank.ask("a", 3)
    late = rank.ask("b", expires_us=rank.bench.now_us + 1_000)
    gone = rank.ask("c", 2)
    assert {end.work.id for end in rank.single_use.cancel({gone[0], held[2]})} == {gone[0], held[2]}
    assert [end.result.reason for end in rank.single_use.cancel(set())] == []
    rank.bench.now_us += 2_000
    ended = rank.single_use.advance()
    assert [(end.work.id, end.result.reason) for end in ended] == [(late[0], "grant-expired")]
    assert sorted(actor for _, actor in rank.begun()) == ["a", "a", "c"]
