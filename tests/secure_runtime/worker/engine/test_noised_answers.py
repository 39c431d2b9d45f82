"""Noise on the way of a real request: through the seal, beside other obligations, and in the signed completion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from sealgate.ambient import random_bytes
from sealgate.certificate.publishers import load_publishers
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import BootPlan, Done, Frame, FrameReader, Obligations, Work, WorkerToHost
from sealgate.protocol.frames import encode_frame as encode
from sealgate.protocol.ohttp import decode_key_configs, seal_request
from secure_runtime.errors import BadInput
from secure_runtime.models.bundle import LoadedModel, load_bundle
from secure_runtime.worker.engine import serving
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.sweeps import Worker

MODEL = "breast-cancer"
NOISE = Obligations(noise_epsilon_micro=500_000, noise_rows=4)


@pytest.fixture(scope="session")
def model(template: Any) -> LoadedModel:
    return load_bundle(template.folder / "models" / MODEL, load_publishers(template.folder / "publishers.toml"))


class Asker:
    """A worker with real keys and a client that seals to it."""

    def __init__(self, bench: Any, model: LoadedModel) -> None:
        self.bench = bench
        self.sent: list[bytes] = []
        plan = BootPlan(
            profile="dev", audience="gateway.test:8443", models_dir="", publishers_file="", sys_path=(), uid=0, gid=0,
            torch_threads=1, memory_limit_bytes=0,
        )  # fmt: skip
        self.worker = Worker(plan, Engine({MODEL: model}, max_batch_rows=64), send=self._send, clock=bench.clock)
        bench.keys = self.worker.keys
        self.openers: dict[int, Any] = {}

    def _send(self, frame: Frame, body: bytes) -> None:
        self.sent.extend(bytes(part) for part in encode(frame, body))

    def work(
        self, number: int, rows: list[list[float]], obligations: Obligations, *, outputs: tuple[str, ...] = ()
    ) -> tuple[Work, bytes, bool]:
        tensor = inference.tensor_from_list("features", "FP32", (len(rows), 30), [v for row in rows for v in row])
        wanted = tuple(inference.RequestedOutput(name) for name in outputs)
        fields, body = inference.encode_infer_request(
            inference.InferRequest(inputs=(tensor,), outputs=wanted), binary=True
        )
        return self._sealed(number, "POST", "/infer", tuple(fields), body, obligations, "infer")

    def reading(self, number: int, obligations: Obligations) -> tuple[Work, bytes, bool]:
        return self._sealed(number, "GET", "", (), b"", obligations, "read-model")

    def _sealed(
        self, number: int, method: str, end: str, fields: Any, body: bytes, obligations: Obligations, operation: str
    ) -> tuple[Work, bytes, bool]:
        inner = self.bench.inner(method=method, path=f"/v2/models/{MODEL}{end}", body=body, extra=fields)
        raw, media_type, self.openers[number] = seal_request(decode_key_configs(self.worker.keys.published())[0], inner)
        grant = self.bench.grant(id=f"g{number}", model=MODEL, obligations=obligations, operation=operation)
        return Work(id=number, grant=grant, media_type=media_type), raw, False

    def sweep(self, *works: tuple[Work, bytes, bool]) -> list[tuple[Done, bhttp.Response]]:
        self.worker.sweep(list(works))
        frames = FrameReader(WorkerToHost).feed(b"".join(self.sent))
        self.sent.clear()
        return [
            (done, bhttp.decode_response(self.openers[done.id].open(sealed, done.media_type)))
            for done, sealed in frames
        ]


def outputs(response: bhttp.Response) -> dict[str, Any]:
    decoded = inference.decode_infer_response(response.fields, response.body)
    return {tensor.name: inference.tensor_to_list(tensor, nested=True) for tensor in decoded.outputs}


def stated(response: bhttp.Response) -> list[str]:
    return [value for name, value in response.fields if name == "obligations"]


@pytest.fixture
def asker(bench: Any, model: LoadedModel) -> Asker:
    return Asker(bench, model)


def test_a_noised_answer_says_and_signs_what_it_spent(asker: Asker, template: Any) -> None:
    [(done, response)] = asker.sweep(asker.work(1, template.rows[:3], NOISE))
    statement = done.completion.statement
    assert (statement.outcome, statement.units, statement.eps_micro) == ("completed", 3, 1_500_000)
    assert stated(response) == ['noise-epsilon="0.5"']
    found = outputs(response)
    assert [max(range(2), key=row.__getitem__) for row in found["scores"]] == found["label"]
    assert all(abs(sum(row) - 1) < 1e-5 and min(row) >= 0 for row in found["scores"])


def test_the_same_row_is_noised_anew_each_time_and_neighbours_are_left_alone(asker: Asker, template: Any) -> None:
    row = template.rows[:1]
    plain = [asker.work(number, row, Obligations()) for number in (1, 2)]
    little = msgspec.structs.replace(NOISE, noise_epsilon_micro=4_000_000)
    noisy = [asker.work(number, row, little) for number in range(3, 23)]
    ends = asker.sweep(plain[0], *noisy, plain[1])
    answers = [outputs(response) for _, response in ends]
    assert answers[0] == answers[-1]
    # Of a sure model half of the noised answers lie beyond 1 and are clipped to it: all 20 once in 700,000 runs.
    assert len({tuple(answer["scores"][0]) for answer in answers[1:-1]}) > 1
    assert [done.completion.statement.eps_micro for done, _ in ends] == [0, *[4_000_000] * 20, 0]


def test_noise_comes_first_and_then_what_reduces(asker: Asker, template: Any) -> None:
    both = msgspec.structs.replace(NOISE, round_digits=1, top_k=1, receipt_required=True)
    [(_, response)] = asker.sweep(asker.work(1, template.rows[:4], both))
    assert stated(response) == ['round-digits=1, top-k=1, noise-epsilon="0.5", receipt-required']
    found = outputs(response)
    for row, label in zip(found["scores"], found["label"], strict=True):
        assert row[1 - label] == 0
        assert abs(row[label] - round(row[label], 1)) < 1e-6


@pytest.mark.parametrize(
    ("obligations", "asked", "given"),
    [
        (msgspec.structs.replace(NOISE, hide_scores=True), (), {"label"}),
        (NOISE, ("label",), {"label"}),
        (NOISE, ("scores",), {"scores"}),
    ],
)
def test_a_label_alone_is_noised_and_costs_as_much(
    asker: Asker, template: Any, obligations: Obligations, asked: tuple[str, ...], given: set[str]
) -> None:
    seen = set()
    for number in range(20):
        [(done, response)] = asker.sweep(asker.work(number, template.rows[:1], obligations, outputs=asked))
        found = outputs(response)
        assert set(found) == given
        assert done.completion.statement.eps_micro == 500_000
        seen.add(str(found))
    assert len(seen) > 1


def test_too_many_rows_are_refused_before_anything_is_spent(asker: Asker, template: Any) -> None:
    [(done, response)] = asker.sweep(asker.work(1, template.rows[:5], NOISE))
    statement = done.completion.statement
    assert (statement.outcome, statement.reason, statement.eps_micro) == ("failed", "too-many-noised-rows", 0)
    assert response.status == 413
    assert b"at most 4 rows" in bytes(response.body)
    assert stated(response) == []


def test_a_model_without_a_declared_range_is_refused(bench: Any, model: LoadedModel, template: Any) -> None:
    scores_only = msgspec.structs.replace(model.manifest, outputs=model.manifest.outputs[:1])
    asker = Asker(bench, replace(model, manifest=scores_only))
    [(done, _)] = asker.sweep(asker.work(1, template.rows[:1], NOISE))
    statement = done.completion.statement
    assert (statement.outcome, statement.reason, statement.eps_micro) == ("failed", "noise-without-bounds", 0)


def test_what_a_model_states_of_itself_is_not_noised(asker: Asker) -> None:
    duties = msgspec.structs.replace(NOISE, receipt_required=True)
    [(done, response)] = asker.sweep(asker.reading(1, duties))
    assert (done.completion.statement.outcome, done.completion.statement.eps_micro) == ("completed", 0)
    assert stated(response) == ["receipt-required"]
    assert msgspec.json.decode(bytes(response.body))["name"] == MODEL


@pytest.mark.parametrize("fault", [BadInput("too large", status=413), MemoryError()])
def test_what_fails_after_the_draw_has_spent(
    asker: Asker, template: Any, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise fault

    asker_works = asker.work(1, template.rows[:2], NOISE), asker.work(2, template.rows[:2], Obligations())
    monkeypatch.setattr(serving, "_formed", fail)
    [(noisy, told), (plain, silent)] = asker.sweep(*asker_works)
    assert (noisy.completion.statement.outcome, noisy.completion.statement.eps_micro) == ("failed", 1_000_000)
    assert stated(told) == ['noise-epsilon="0.5"'], "the record says that it was spent: clients compare"
    assert (plain.completion.statement.outcome, plain.completion.statement.eps_micro) == ("failed", 0)
    assert stated(silent) == []


def test_each_noised_request_fetches_bytes_of_its_own(model: LoadedModel, bench: Any, template: Any) -> None:
    """What one request fetched and did not use must not be there for the next: a fork between them would share it."""
    taken: list[int] = []

    def entropy(size: int) -> bytes:
        taken.append(size)
        return random_bytes(size)

    asker = Asker(bench, model)
    asker.worker._engine = Engine({MODEL: model}, max_batch_rows=64, clock=bench.clock, entropy=entropy)
    asker.sweep(*(asker.work(number, template.rows[:1], NOISE) for number in range(5)))
    assert len(taken) >= 5
    before = len(taken)
    asker.sweep(asker.work(9, template.rows[:1], Obligations()))
    assert len(taken) == before
