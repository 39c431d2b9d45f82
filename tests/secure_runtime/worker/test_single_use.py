"""Single-use processes of a real, sealed worker: what it answers, what it survives, and what stays apart.

The worker runs in its sandbox; the tests are its host, over the socketpair. What a hostile request would make the
engine do, the engine is told to do by the grant's `actor`: the code that does it runs inside the single-use process.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealgate.ambient import now_us
from sealgate.protocol import bhttp, inference
from sealgate.protocol.completion import verify_completion
from sealgate.protocol.frames import (
    BootFailed,
    Cancel,
    Done,
    FrameReader,
    Grant,
    Hello,
    KeysChanged,
    Obligations,
    Rotate,
    Shutdown,
    Work,
    WorkerToHost,
    encode_frame,
)
from sealgate.protocol.ohttp import commitment, decode_key_configs, seal_request
from secure_runtime.errors import GATEKEEPER_REASONS
from secure_runtime.host import inspect, spawn
from secure_runtime.limits import MAX_SINGLE_USE
from tests.live import wait_until
from tests.secure_runtime.sandbox import test_red_team as red_team
from tests.secure_runtime.sandbox.conftest import BOOT, plan_for, shared_folder
from tests.secure_runtime.sandbox.test_red_team import LOUD, QUIET, context

__all__ = ["context", "shared_folder"]  # fixtures: real targets for the attempts

MODEL = "breast-cancer"
MEMORY = (2 if torch.version.cuda is None else 4) << 30  # the libraries of torch for CUDA take 3 GiB of addresses
AUDIENCE = "gateway.test:8443"
ATTEMPTS = red_team.SOURCE.read_text().split('if __name__ == "__main__"')[0]

HOSTILE = """
import ctypes, gc, mmap, time
import msgspec
from sealgate.protocol import bhttp
from secure_runtime.worker import main, slots, sweeps, zygote
from secure_runtime.worker.engine import serving
from secure_runtime.worker.keys import HeldKey

CONTEXT = {context!r}
true_run, true_put = serving.Engine.run, slots.Slot.put
lies = {{}}

def grow(size):
    kept = []
    while True:
        kept.append(b"x" * size)

def held():
    gc.unfreeze()  # a Worker holds the signing key
    keys = [thing for thing in gc.get_objects() if isinstance(thing, (HeldKey, sweeps.Worker))]
    open_slots = []
    for thing in gc.get_objects():
        if isinstance(thing, slots.Slot) and not thing._memory.closed:
            written = thing._memory[:8] != bytes(8)
            open_slots.append(written)
    return {{"keys": len(keys), "slots": open_slots}}

DEEDS = {{
    "abort": lambda: __import__("os").abort(),
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: __import__("os")._exit(0),
    "raise": lambda: (_ for _ in ()).throw(SystemExit(3)),
    "hang": lambda: [time.sleep(1) for _ in range(600)],
    "spin": lambda: [None for _ in iter(int, 1)],
    "grow": lambda: grow(1 << 20),
}}

def engine_run(self, admitted):
    if not admitted:
        return []
    deed, _, argument = admitted[0].grant.actor.partition(":")
    if deed in DEEDS:
        DEEDS[deed]()
    answers = true_run(self, admitted)
    if deed == "attempt":
        told = run(argument.split(), CONTEXT)
    elif deed == "held":
        told = held()
    elif deed == "process":
        told = {{"pid": __import__("os").getpid(), "random": __import__("os").urandom(16).hex()}}
    elif deed == "lie":
        lies.update(json.loads(argument))
        return answers
    else:
        return answers
    body = msgspec.json.encode(told)
    return [msgspec.structs.replace(answers[0], response=bhttp.Response(status=200, fields=(), body=body))]

def put(self, header, body):
    if lies and isinstance(header, slots.Result):
        if "raw" in lies:
            self._memory[:64] = bytes.fromhex(lies["raw"])
            return
        body = lies.pop("body", body.hex())
        header = msgspec.structs.replace(header, **lies)
        body = bytes.fromhex(body)
    true_put(self, header, body)

serving.Engine.run, slots.Slot.put = engine_run, put
code = main.run(sock, {{k: v for k, v in plan.items() if k != "payload"}}, report)
"""


class Host:
    """The host's end of one real worker."""

    def __init__(self, plan: dict[str, Any]) -> None:
        environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.worker = spawn._start(BOOT, json.dumps(plan).encode(), python=sys.executable, environment=environment)
        self.sock = self.worker.sock
        self.sock.settimeout(60)
        self.reader = FrameReader(WorkerToHost)
        self.frames: list[tuple[Any, bytes]] = []
        self.next_id = 0
        self.openers: dict[int, Any] = {}
        self.raws: dict[int, bytes] = {}
        self.hello, _ = self.take()
        if isinstance(self.hello, Hello):
            self.keys = self.hello.facts.key_configs
            self.completion_key = Ed25519PublicKey.from_public_bytes(self.hello.facts.completion_key)

    def take(self) -> tuple[Any, bytes]:
        while not self.frames:
            data = self.sock.recv(1 << 20)
            assert data, f"the worker ended: {self.worker.wait()}"
            self.frames.extend(self.reader.feed(data))
        return self.frames.pop(0)

    def send(self, frame: Any, body: bytes = b"") -> None:
        self.sock.sendall(b"".join(bytes(part) for part in encode_frame(frame, body)))

    def ask(self, *, single_use: bool = True, raw: bytes | None = None, life_s: float = 60, **changes: Any) -> int:
        """Send one request; `actor` says what the engine is to do. Returns the frame's id."""
        self.next_id += 1
        rows = changes.pop("rows", [[0.5] * 30])
        if raw is None:
            raw, media_type, self.openers[self.next_id] = seal_request(
                decode_key_configs(self.keys)[0], self.inner(rows), chunked=False
            )
        else:
            media_type = "message/ohttp-req"
        values: dict[str, Any] = {
            "id": f"grant-{self.next_id}",
            "model": MODEL,
            "operation": "infer",
            "purpose": "treatment",
            "actor": "",
            "credential_binding": "binding",
            "obligations": Obligations(single_use=single_use),
            "expires_us": now_us() + int(life_s * 1e6),
            **changes,
        }
        self.raws[self.next_id] = raw
        self.send(Work(id=self.next_id, grant=Grant(**values), media_type=media_type), raw)
        return self.next_id

    @staticmethod
    def inner(rows: list[list[float]]) -> bytes:
        tensor = inference.tensor_from_list("features", "FP32", (len(rows), 30), [v for row in rows for v in row])
        fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(tensor,)), binary=True)
        date = format_datetime(datetime.fromtimestamp(now_us() // 1_000_000, UTC), usegmt=True)
        fixed = (("date", date), ("purpose", "treatment"), ("credential-binding", "binding"))
        return bhttp.encode_request(
            bhttp.Request(
                method="POST",
                scheme="https",
                authority=AUDIENCE,
                path=f"/v2/models/{MODEL}/infer",
                fields=(*fixed, *fields),
                body=body,
            )
        )

    def end(self) -> tuple[Done, bytes]:
        """The next completion; its signature, its number and its commitments must hold."""
        done, sealed = self.take()
        assert isinstance(done, Done)
        statement = verify_completion(done.completion, self.completion_key)
        assert statement.req_commit == commitment(self.raws[done.id])
        assert statement.resp_commit == (commitment(sealed) if sealed else "")
        return done, sealed

    def answer(self, done: Done, sealed: bytes) -> bhttp.Response:
        return bhttp.decode_response(self.openers[done.id].open(sealed, done.media_type))

    def told(self, actor: str, *, single_use: bool = True) -> Any:
        """What the engine answered inside the seal."""
        self.ask(actor=actor, single_use=single_use)
        done, sealed = self.end()
        assert done.problem == "", done.completion.statement.reason
        return json.loads(bytes(self.answer(done, sealed).body))

    def reason(self, **ask: Any) -> tuple[str, str]:
        self.ask(**ask)
        done, sealed = self.end()
        assert sealed == b""
        assert done.completion.statement.outcome == "refused"
        return done.completion.statement.reason, done.problem

    def serves(self) -> None:
        """Whoever comes next is answered, in both ways."""
        for single_use in (True, False):
            self.ask(single_use=single_use)
            done, sealed = self.end()
            assert done.completion.statement.outcome == "completed"
            assert self.answer(done, sealed).status == 200

    def processes(self) -> list[psutil.Process]:
        """The sealed worker, its zygote, and the zygote's children."""
        sealed = psutil.Process(self.worker.sealed_pid())
        return [sealed, *sealed.children(recursive=True)]

    def close(self) -> None:
        self.sock.close()
        self.worker.kill()
        self.worker.wait()


def plan(folder: Path, context: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return plan_for(
        ATTEMPTS + HOSTILE.format(context=context),
        **{
            "profile": "container",
            "audience": AUDIENCE,
            "models_dir": str(folder / "models"),
            "publishers_file": str(folder / "publishers.toml"),
            "single_use": True,
            "memory_limit_bytes": MEMORY,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def folder(template: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = template.folder
    return found


@pytest.fixture(scope="module")
def host(folder: Path, context: dict[str, Any]) -> Iterator[Host]:
    """One worker for the whole module: every test leaves it serving."""
    made = Host(plan(folder, context))
    assert isinstance(made.hello, Hello), made.hello
    yield made
    made.close()


# It works ------------------------------------------------------------------------------------------------------------


def test_hello_says_that_it_is_offered_and_by_which_layers(host: Host) -> None:
    facts = host.hello.facts
    assert facts.single_use
    assert {facts.layers[name].state for name in ("seccomp-seal", "seccomp-zygote", "seccomp-once")} == {"on"}


def test_the_answer_is_that_of_a_shared_worker(host: Host, template: Any) -> None:
    answers = []
    for single_use in (True, False):
        host.ask(single_use=single_use, rows=template.rows[:5])
        done, sealed = host.end()
        statement = done.completion.statement
        assert (statement.outcome, statement.units) == ("completed", 5)
        assert statement.model_digest == host.hello.facts.models[0].model_digest
        response = host.answer(done, sealed)
        decoded = inference.decode_infer_response(response.fields, response.body)
        answers.append({t.name: inference.tensor_to_list(t, nested=True) for t in decoded.outputs})
    assert answers[0] == answers[1]


def test_each_request_has_a_process_and_randomness_of_its_own(host: Host) -> None:
    told = [host.told("process") for _ in range(6)]
    assert len({one["pid"] for one in told}) == 6
    assert len({one["random"] for one in told}) == 6


def test_noise_is_drawn_anew_in_each_process(host: Host, template: Any) -> None:
    """A fork copies everything, also random bytes that somebody kept: none may be kept."""
    obligations = Obligations(single_use=True, noise_epsilon_micro=4_000_000, noise_rows=16)
    answers = set()
    for _ in range(4):
        host.ask(obligations=obligations, rows=template.rows[:16])
        done, sealed = host.end()
        assert done.completion.statement.eps_micro == 64_000_000
        answers.add(bytes(host.answer(done, sealed).body))
    assert len(answers) == 4


def test_worker_and_zygote_have_one_thread_and_the_children_are_gone(host: Host) -> None:
    host.serves()
    processes = host.processes()
    assert [process.num_threads() for process in processes] == [1, 1]
    assert inspect.read_layers(processes[1].pid)["seccomp"].state == "on"


def test_a_child_holds_neither_request_keys_nor_the_signing_key(host: Host) -> None:
    in_worker = host.told("held", single_use=False)
    assert in_worker["keys"] > 2, "the search finds what is there"
    assert host.told("held")["keys"] == 0


def test_a_child_holds_no_slot_but_its_own_and_no_secret_is_left_in_that(host: Host) -> None:
    """The other slots carry other callers' requests, each with the secret that opens it."""
    slow = [host.ask(actor="hang", life_s=2) for _ in range(MAX_SINGLE_USE - 1)]
    assert len(host.told("held", single_use=False)["slots"]) == MAX_SINGLE_USE, "the search finds what is there"
    assert host.told("held")["slots"] == [False], "the own one, and what came in it is wiped"
    assert {host.end()[0].id for _ in slow} == set(slow)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"purpose": "marketing"}, ("purpose-mismatch", "sealed-request-refused")),
        ({"credential_binding": "another"}, ("credential-mismatch", "sealed-request-refused")),
        ({"model": "another"}, ("model-mismatch", "sealed-request-refused")),
        ({"operation": "read-model"}, ("operation-mismatch", "sealed-request-refused")),
        ({"life_s": 0}, ("grant-expired", "timed-out")),
        ({"raw": b"garbage"}, ("malformed", "sealed-request-refused")),
    ],
)
def test_the_checks_are_those_of_a_shared_worker(host: Host, change: dict[str, Any], reason: tuple[str, str]) -> None:
    assert host.reason(**change) == reason
    assert reason[0] in GATEKEEPER_REASONS


def test_a_request_is_opened_once_whether_shared_or_alone(host: Host) -> None:
    for first in (True, False):
        number = host.ask(single_use=first)
        host.end()
        for second in (True, False):
            assert host.reason(single_use=second, raw=host.raws[number])[0] == "replayed"


def test_garbage_under_a_copied_encapsulation_does_not_burn_the_true_request(host: Host) -> None:
    raw, _, opener = seal_request(decode_key_configs(host.keys)[0], host.inner([[0.5] * 30]), chunked=False)
    assert host.reason(raw=raw[:-1] + bytes([raw[-1] ^ 1]))[0] == "cannot-open"
    number = host.ask(raw=raw)
    host.openers[number] = opener
    assert host.answer(*host.end()).status == 200


def test_a_large_request_fits(host: Host) -> None:
    host.ask(rows=[[0.5] * 30] * 60_000)
    done, _ = host.end()
    assert (done.completion.statement.outcome, done.completion.statement.units) == ("completed", 60_000)


def test_keys_rotate_while_a_process_runs(host: Host) -> None:
    number = host.ask(actor="process")
    host.send(Rotate())
    ends = [host.take() for _ in range(2)]
    (changed,) = (frame for frame, _ in ends if isinstance(frame, KeysChanged))
    ((done, sealed),) = ((frame, body) for frame, body in ends if isinstance(frame, Done))
    assert (done.id, host.answer(done, sealed).status) == (number, 200)
    host.keys = changed.key_configs
    host.serves()


# It fails alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deed", ["abort", "segfault", "exit", "raise", "grow"])
def test_a_process_that_dies_fails_its_request_only(host: Host, deed: str) -> None:
    before = host.processes()
    reason = host.reason(actor=deed)
    assert reason == ("single-use-died", "sealed-request-refused")
    host.serves()
    assert host.processes() == before


def test_the_request_of_a_process_that_died_is_used_up(host: Host) -> None:
    number = host.ask(actor="abort")
    host.end()
    assert host.reason(raw=host.raws[number])[0] == "replayed"


@pytest.mark.parametrize("deed", ["hang", "spin"])
def test_a_process_that_hangs_is_ended_at_its_deadline_and_delays_nobody(host: Host, deed: str) -> None:
    slow = host.ask(actor=deed, life_s=2)
    for single_use in (False, True, False):
        host.ask(single_use=single_use)
        done, _ = host.end()
        assert done.id != slow
        assert done.completion.statement.outcome == "completed"
    done, _ = host.end()
    assert (done.id, done.completion.statement.reason, done.problem) == (slow, "single-use-timed-out", "timed-out")
    host.serves()


def test_there_are_only_so_many_at_once_and_the_others_wait(host: Host) -> None:
    slow = [host.ask(actor=f"hang:{number}", life_s=3) for number in range(MAX_SINGLE_USE)]  # a caller each
    waiting = [host.ask(actor="process") for _ in range(3)]
    expiring = host.ask(life_s=1)
    dropped = host.ask()
    host.ask(single_use=False)
    assert host.end()[0].completion.statement.outcome == "completed", "shared requests do not wait"
    wait_until(lambda: len(host.processes()) == 2 + MAX_SINGLE_USE, within_s=30, what="as many as there may be")
    host.send(Cancel(id=dropped))
    done, _ = host.end()
    assert (done.id, done.completion.statement.reason, done.problem) == (dropped, "cancelled", "timed-out")
    ends = {done.id: done for done, _ in (host.end() for _ in range(len(slow) + len(waiting) + 1))}
    assert {ends[number].completion.statement.reason for number in slow} == {"single-use-timed-out"}
    assert {ends[number].completion.statement.outcome for number in waiting} == {"completed"}
    assert ends[expiring].completion.statement.reason == "grant-expired"
    host.serves()


def test_what_was_never_opened_may_come_again(host: Host) -> None:
    slow = [host.ask(actor=f"hang:{number}", life_s=1) for number in range(MAX_SINGLE_USE)]
    dropped = host.ask()
    host.send(Cancel(id=dropped))
    for _ in range(len(slow) + 1):
        host.end()
    again = host.ask(raw=host.raws[dropped])
    host.openers[again] = host.openers[dropped]
    assert host.answer(*host.end()).status == 200


# It is hostile -------------------------------------------------------------------------------------------------------


def test_every_quiet_attempt_is_refused_in_a_child(host: Host, context: dict[str, Any]) -> None:
    told = host.told("attempt:" + " ".join(QUIET))
    assert set(told) == set(QUIET)
    assert {name: words for name, words in told.items() if not words.startswith("refused")} == {}
    assert Path(context["model"]).read_text() == "weights"


@pytest.mark.parametrize("name", LOUD)
def test_every_loud_attempt_ends_the_child_and_nothing_else(host: Host, name: str) -> None:
    assert host.reason(actor=f"attempt:{name}") == ("single-use-died", "sealed-request-refused")


def test_after_all_that_it_serves(host: Host) -> None:
    host.serves()


@pytest.mark.parametrize(
    "lie",
    [
        {"outcome": "excellent"},
        {"outcome": "completed", "reason": "bad-input"},
        {"outcome": "failed", "reason": "the patient's name"},
        {"outcome": "failed", "reason": "bad-input", "body": ""},
        {"outcome": "refused", "reason": "replayed", "problem": "sealed-request-refused"},
        {"outcome": "refused", "reason": "the patient's name", "problem": "sealed-request-refused", "body": ""},
        {"outcome": "refused", "reason": "replayed", "problem": "teapot", "body": ""},
        {"opened": False},
        {"problem": "busy"},
        {"units": -1},
        {"units": 2**60},
        {"eps_micro": 1},
        {"eps_micro": -1},
        {"media_type": "text/html"},
        {"media_type": "message/ohttp-chunked-res"},
        {"model_digest": "f" * 64},
        {"certificate_digest": ""},
        {"model_digest": "", "certificate_digest": ""},
        {"body": ""},
        {"raw": "ff" * 64},
        {"raw": "0000000a00000000" + "c1" * 56},
        {"raw": "00000001" + "7fffffff" + "80" * 56},
    ],
    ids=lambda lie: json.dumps(lie)[:48],
)
def test_the_worker_signs_no_lie_of_a_child(host: Host, lie: dict[str, Any]) -> None:
    assert host.reason(actor=f"lie:{json.dumps(lie)}") == ("single-use-died", "sealed-request-refused")


def test_a_lie_that_fits_is_about_the_liars_request_only(host: Host) -> None:
    """It may say that it was refused, or how many rows there were: that is what owning a process means."""
    lie = {"outcome": "refused", "reason": "date-missing", "problem": "sealed-request-refused", "body": "",
           "media_type": ""}  # fmt: skip
    assert host.reason(actor=f"lie:{json.dumps(lie)}")[0] == "date-missing"
    host.serves()


# Ends ----------------------------------------------------------------------------------------------------------------


def _wait_for_end(sock: socket.socket) -> bytes:
    data = b""
    try:
        while more := sock.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass
    return data


@pytest.fixture
def own(folder: Path, context: dict[str, Any]) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(**changes: Any) -> Host:
        made.append(Host(plan(folder, context, **changes)))
        return made[-1]

    yield make
    for host in made:
        host.close()


def test_an_ordered_end_waits_for_what_runs(own: Callable[..., Host]) -> None:
    host = own()
    numbers = {host.ask(actor="process") for _ in range(MAX_SINGLE_USE + 2)}
    host.send(Shutdown())
    assert {host.end()[0].id for _ in numbers} == numbers
    assert host.worker.wait() == 0


def test_a_worker_whose_zygote_dies_ends_and_so_does_all_else(own: Callable[..., Host]) -> None:
    host = own()
    host.ask(actor="hang")
    sealed, zygote, *_ = host.processes()
    watched = [os.pidfd_open(process.pid) for process in host.processes()]
    zygote.kill()
    assert _wait_for_end(host.sock) == b""
    assert host.worker.wait() != 0
    for descriptor in watched:
        assert select.select([descriptor], [], [], 30)[0]
        os.close(descriptor)
    assert not sealed.is_running()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"torch_threads": 2}, "torch_threads = 1"),
        ({"payload": "from secure_runtime.worker import main, zygote\n"
                     "zygote.offspring.become_zygote = lambda worker: 1 / 0\n"
                     "main.run(sock, {k: v for k, v in plan.items() if k != 'payload'}, report)"}, "did not start"),
        ({"payload": "import os\nfrom secure_runtime.worker import main, zygote\n"
                     "zygote._be_single_use = lambda *given, **more: os._exit(1)\n"
                     "main.run(sock, {k: v for k, v in plan.items() if k != 'payload'}, report)"}, "could not answer"),
        ({"payload": "import os, types\nfrom secure_runtime.worker import main, zygote\n"
                     "calls = []\n"
                     "def fork():\n"
                     "    calls.append(1)\n"
                     "    if len(calls) > 1:\n"
                     "        raise BlockingIOError(11, 'too many processes')\n"
                     "    return os.fork()\n"
                     "zygote.os = types.SimpleNamespace(fork=fork, getpid=os.getpid, _exit=os._exit)\n"
                     "main.run(sock, {k: v for k, v in plan.items() if k != 'payload'}, report)"},
         "could not answer: single-use-not-made"),
    ],
    ids=["threads", "no zygote", "no child", "no room for a child"],
)  # fmt: skip
def test_a_worker_that_cannot_do_what_was_asked_does_not_start(
    folder: Path, context: dict[str, Any], changes: dict[str, Any], text: str
) -> None:
    host = Host(plan(folder, context) | changes)
    try:
        assert isinstance(host.hello, BootFailed)
        assert text in host.hello.detail
    finally:
        host.close()


def test_a_worker_without_the_setting_refuses_what_wants_it(own: Callable[..., Host]) -> None:
    host = own(single_use=False)
    assert not host.hello.facts.single_use
    assert host.reason() == ("single-use-not-offered", "sealed-request-refused")
    assert len(host.processes()) == 1
    host.ask(single_use=False)
    assert host.end()[0].completion.statement.outcome == "completed"
