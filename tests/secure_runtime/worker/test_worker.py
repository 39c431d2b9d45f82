"""The worker without its sandbox: every grant comes to one signed end, whatever was sent, and batches do not mix."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealgate.certificate.architectures.cnn import CnnSpec, Stage
from sealgate.certificate.architectures.frozen_encoder import FrozenEncoderSpec
from sealgate.certificate.architectures.linear import MlpSpec
from sealgate.certificate.publishers import load_publishers
from sealgate.protocol import bhttp, inference
from sealgate.protocol.completion import verify_completion
from sealgate.protocol.frames import (
    BootPlan,
    Cancel,
    Done,
    Frame,
    FrameReader,
    KeysChanged,
    Obligations,
    Shutdown,
    Work,
    WorkerToHost,
)
from sealgate.protocol.frames import encode_frame as encode
from sealgate.protocol.ohttp import commitment, decode_key_configs, seal_request
from secure_runtime.models.bundle import LoadedModel, load_bundle
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.rehearsal import rehearse, rows_large
from secure_runtime.worker.sweeps import Worker, serve

MODEL = "breast-cancer"


def boot_plan(**changes: Any) -> BootPlan:
    values: dict[str, Any] = {
        "profile": "dev",
        "audience": "gateway.test:8443",
        "models_dir": "",
        "publishers_file": "",
        "sys_path": (),
        "uid": 0,
        "gid": 0,
        "torch_threads": 1,
        "memory_limit_bytes": 0,
        **changes,
    }
    return BootPlan(**values)


@pytest.fixture(scope="session")
def model(template: Any) -> LoadedModel:
    return load_bundle(template.folder / "models" / MODEL, load_publishers(template.folder / "publishers.toml"))


class Runner:
    """A worker, what it sent, and a client that seals to it."""

    def __init__(self, bench: Any, model: LoadedModel, **plan: Any) -> None:
        self.bench = bench
        self.sent: list[bytes] = []
        self.engine = Engine({MODEL: model}, max_batch_rows=8)
        self.worker = Worker(boot_plan(**plan), self.engine, send=self._send, clock=bench.clock)
        bench.keys = self.worker.keys
        self.openers: dict[int, Any] = {}

    def _send(self, frame: Frame, body: bytes) -> None:
        self.sent.extend(bytes(part) for part in encode(frame, body))

    def take(self) -> list[tuple[Any, bytes]]:
        frames = FrameReader(WorkerToHost).feed(b"".join(self.sent))
        self.sent.clear()
        return frames

    def work(
        self, number: int, rows: list[list[float]], *, binary: bool = True, path: str = "infer", **grant: Any
    ) -> tuple[Work, bytes]:
        tensor = inference.tensor_from_list("features", "FP32", (len(rows), 30), [v for row in rows for v in row])
        fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(tensor,)), binary=binary)
        return self.raw_work(number, tuple(fields), body, path=path, **grant)

    def raw_work(
        self, number: int, fields: Any, body: bytes, *, path: str = "infer", **grant: Any
    ) -> tuple[Work, bytes]:
        inner = self.bench.inner(path=f"/v2/models/{MODEL}/{path}", body=body, extra=fields)
        config = decode_key_configs(self.worker.keys.published())[0]
        raw, media_type, self.openers[number] = seal_request(config, inner)
        granted = self.bench.grant(id=f"grant-{number}", model=MODEL, **grant)
        return Work(id=number, grant=granted, media_type=media_type), raw

    def answer(self, done: Done, sealed: bytes) -> bhttp.Response:
        return bhttp.decode_response(self.openers[done.id].open(sealed, done.media_type))

    def outputs(self, done: Done, sealed: bytes) -> dict[str, list[Any]]:
        response = self.answer(done, sealed)
        decoded = inference.decode_infer_response(response.fields, response.body)
        return {tensor.name: inference.tensor_to_list(tensor, nested=True) for tensor in decoded.outputs}


@pytest.fixture
def runner(bench: Any, model: LoadedModel) -> Callable[..., Runner]:
    return lambda **plan: Runner(bench, model, **plan)


def test_of_two_copies_in_one_sweep_one_is_opened(runner: Callable[..., Runner], template: Any) -> None:
    run = runner()
    (work, raw), other = run.work(1, template.rows[:1]), run.work(3, template.rows[:1])
    copy = msgspec.structs.replace(work, id=2, grant=run.bench.grant(id="grant-2", model=MODEL))
    run.worker.sweep([(work, raw, False), (copy, raw, False), (*other, False)])
    ends = [done.completion.statement for done, _ in run.take()]
    assert [(end.grant, end.outcome, end.reason) for end in ends] == [
        ("grant-1", "completed", ""),
        ("grant-2", "refused", "replayed"),
        ("grant-3", "completed", ""),
    ]


def test_every_grant_comes_to_one_signed_end_in_order(runner: Callable[..., Runner], template: Any) -> None:
    run = runner()
    rows = template.rows
    good = [run.work(1, rows[:1]), run.work(2, rows[1:4]), run.work(3, rows[4:5], binary=False)]
    garbage = (Work(id=4, grant=run.bench.grant(id="grant-4", model=MODEL), media_type="message/ohttp-req"), b"x")
    bad = run.raw_work(5, (), b"{")
    cancelled = run.work(6, rows[:1])
    run.worker.sweep([*[(work, raw, False) for work, raw in [*good, garbage, bad]], (*cancelled, True)])

    ends = run.take()
    key = Ed25519PublicKey.from_public_bytes(run.worker.completion_key)
    statements = [verify_completion(done.completion, key) for done, _ in ends]
    assert [done.id for done, _ in ends] == [1, 2, 3, 4, 5, 6]
    assert [statement.seq for statement in statements] == [1, 2, 3, 4, 5, 6]
    assert [statement.grant for statement in statements] == [f"grant-{n}" for n in range(1, 7)]
    assert [statement.outcome for statement in statements] == [
        *["completed"] * 3,
        "refused",
        "failed",
        "refused",
    ]
    assert [done.problem for done, _ in ends] == ["", "", "", "sealed-request-refused", "", "timed-out"]
    assert [statement.units for statement in statements] == [1, 3, 1, 0, 0, 0]
    for (done, sealed), (_, raw) in zip(ends[:3], good, strict=True):
        assert done.completion.statement.req_commit == commitment(raw)
        assert done.completion.statement.resp_commit == commitment(sealed)


def test_an_answer_does_not_depend_on_its_neighbours(runner: Callable[..., Runner], template: Any) -> None:
    run = runner()
    works = [run.work(number, [row]) for number, row in enumerate(template.rows[:20])]
    run.worker.sweep([(work, raw, False) for work, raw in works])  # batches of at most 8 rows
    together = [run.outputs(done, sealed) for done, sealed in run.take()]
    alone = []
    for number, row in enumerate(template.rows[:20]):
        work, raw = run.work(number, [row])
        run.worker.sweep([(work, raw, False)])
        alone.append(run.outputs(*run.take()[0]))
    assert together == alone


def test_answers_do_not_wait_for_explanations(runner: Callable[..., Runner], template: Any) -> None:
    """Two explanations before an answer, and a second answer that arrives while the first explanation is made; the
    third explanation is cancelled in that time."""
    run = runner()
    ours, theirs = socket.socketpair()
    outgoing: list[bytes | memoryview] = []
    worker = Worker(
        boot_plan(), run.engine, send=lambda frame, body: outgoing.extend(encode(frame, body)), clock=run.bench.clock
    )
    run.worker = worker
    explained, late = 0, run.work(5, template.rows[:1])

    def told(frame: Frame, body: bytes = b"") -> bytes:
        return b"".join(encode(frame, body))

    answered = run.engine.run

    def watched(admitted: Any) -> Any:
        nonlocal explained
        if any(one.target.operation == "explain" for one in admitted):
            explained += 1
            if explained == 1:
                ours.sendall(told(*late) + told(Cancel(id=3)) + told(Shutdown()))
        return answered(admitted)

    run.engine.run = watched  # type: ignore[method-assign]
    works = [run.work(number, template.rows[:1], path="explain", operation="explain") for number in (1, 2, 3)]
    ours.sendall(b"".join(told(*one) for one in (*works, run.work(4, template.rows[:1]))))
    with ours, theirs:
        serve(worker, theirs, outgoing)
        ours.setblocking(False)
        ends = FrameReader(WorkerToHost).feed(ours.recv(1 << 20))
    statements = [(done.id, done.completion.statement) for done, _ in ends]
    assert [(number, one.seq, one.outcome, one.reason) for number, one in statements] == [
        (4, 1, "completed", ""),
        (1, 2, "completed", ""),
        (5, 3, "completed", ""),
        (3, 4, "refused", "cancelled"),
        (2, 5, "completed", ""),
    ]


@pytest.mark.parametrize("round_digits", [0, 2])
def test_obligations_narrow_the_answer(runner: Callable[..., Runner], template: Any, round_digits: int) -> None:
    run = runner()
    obliged = Obligations(round_digits=round_digits)
    work, raw = run.work(1, template.rows[:6], obligations=obliged)
    run.worker.sweep([(work, raw, False)])
    scores = run.outputs(*run.take()[0])["scores"]
    assert all(abs(value - round(value, round_digits)) < 1e-6 for row in scores for value in row)

    work, raw = run.work(2, template.rows[:6], obligations=Obligations(top_k=1))
    run.worker.sweep([(work, raw, False)])
    assert all(sum(value > 0 for value in row) == 1 for row in run.outputs(*run.take()[0])["scores"])

    work, raw = run.work(3, template.rows[:6], obligations=Obligations(hide_scores=True))
    run.worker.sweep([(work, raw, False)])
    assert set(run.outputs(*run.take()[0])) == {"label"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "other"}, "'features'"),
        ({"datatype": "FP64"}, "expected FP32"),
        ({"shape": [1, 29], "data": [0.0] * 29}, "expected [rows, 30]"),
        ({"shape": [30], "data": [0.0] * 30}, "expected [rows, 30]"),
        ({"shape": [0, 30], "data": []}, "no rows"),
        ({"data": [0.0] * 29}, "30"),
    ],
)
def test_bad_input_is_told_inside_the_seal(runner: Callable[..., Runner], change: Any, text: str) -> None:
    run = runner()
    document = {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": [0.0] * 30, **change}
    work, raw = run.raw_work(1, (), msgspec.json.encode({"inputs": [document]}))
    run.worker.sweep([(work, raw, False)])
    done, sealed = run.take()[0]
    response = run.answer(done, sealed)
    assert response.status == 400
    assert text in msgspec.json.decode(response.body)["error"]
    assert done.completion.statement.outcome == "failed"
    assert "features" not in str(done), "the text of an answer stays inside the seal"


def test_answers_of_one_size_class_do_not_show_which_label_won(runner: Callable[..., Runner], template: Any) -> None:
    run = runner()
    works = [run.work(number, [row], binary=False) for number, row in enumerate(template.rows)]
    run.worker.sweep([(work, raw, False) for work, raw in works])
    ends = run.take()
    labels = {run.outputs(done, sealed)["label"][0] for done, sealed in ends}
    assert labels == {0, 1}
    assert len({len(sealed) for _, sealed in ends}) == 1


def test_plaintext_is_wiped_when_answered(runner: Callable[..., Runner], template: Any, monkeypatch: Any) -> None:
    from secure_runtime.worker import sweeps

    admitted: list[Any] = []
    true_admission = sweeps.admission

    def remember(*arguments: Any, **more: Any) -> Any:
        admitted.append((yield from true_admission(*arguments, **more)))
        return admitted[-1]

    monkeypatch.setattr(sweeps, "admission", remember)
    run = runner()
    work, raw = run.work(1, template.rows[:1])
    run.worker.sweep([(work, raw, False)])
    with pytest.raises(ValueError, match="wiped"):
        admitted[0].plaintext.view()


def test_keys_rotate_by_age_and_by_hand(runner: Callable[..., Runner]) -> None:
    run = runner(key_active_s=100, key_stale_s=10)
    before = run.worker.keys.published()
    run.worker.tick()
    assert run.take() == []
    run.bench.now_us += 100_000_000
    run.worker.tick()
    run.worker.rotate()
    changes = [frame for frame, _ in run.take()]
    assert all(isinstance(frame, KeysChanged) for frame in changes)
    assert len({before, *(frame.key_configs for frame in changes)}) == 3


def test_the_rehearsal_reaches_every_path(model: LoadedModel, monkeypatch: Any) -> None:
    from secure_runtime.worker import rehearsal

    outcomes: set[tuple[str, str]] = set()
    true_worker = Worker._statement

    def watch(self: Worker, grant: Any, raw: bytes, *, outcome: str, reason: str, **rest: Any) -> Any:
        outcomes.add((outcome, reason))
        return true_worker(self, grant, raw, outcome=outcome, reason=reason, **rest)

    monkeypatch.setattr(Worker, "_statement", watch)
    rehearse(boot_plan(), Engine({MODEL: model}, max_batch_rows=256), {MODEL: model})
    assert rehearsal.__doc__
    assert {("completed", ""), ("failed", "bad-input"), ("failed", "model-not-loaded")} <= outcomes
    assert {("refused", "malformed"), ("refused", "cancelled")} <= outcomes


@pytest.mark.parametrize(
    ("architecture", "rows"),
    [
        (MlpSpec(inputs=30, hidden=(64,), classes=2, activation="relu"), 4096),
        (
            FrozenEncoderSpec(
                length=128, tokens=30522, width=384, heads=12, layers=6, feed_forward=1536, positions=512, classes=2,
                pretraining="public", frozen_digest="0" * 64,
            ),
            2,
        ),
        (CnnSpec(channels=1, height=28, width=28, stages=(Stage(channels=512, kernel=7),), classes=2), 106),
    ],
    ids=["mlp", "text encoder", "wide cnn"],
)  # fmt: skip
def test_the_rehearsal_is_soon_done_whatever_a_row_takes(model: LoadedModel, architecture: Any, rows: int) -> None:
    """A worker that rehearses thousands of rows of a large model is given up before it is ready."""
    manifest = msgspec.structs.replace(model.manifest, architecture=architecture)
    assert rows_large(manifest) == rows
