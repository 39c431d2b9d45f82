"""Valid requests of a hostile client: they end in an answer about themselves, never in the end of the worker."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import torch
from safetensors.numpy import save

from sealgate.certificate.architectures import EmbeddingBagSpec, LogisticRegressionSpec
from sealgate.certificate.inputs import InputTensor, TextContent, Utf8Bytes
from sealgate.limits import DEFAULT_MESSAGE
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import BootPlan, Done, Frame, ModelFacts, Work
from sealgate.protocol.ohttp import ResponseSealer, decode_key_configs, open_request, seal_request
from secure_runtime.limits import SEALED_AT_ONCE, SLICE_ROWS
from secure_runtime.models import tokenizers
from secure_runtime.models.bundle import LoadedModel, module_from_weights
from secure_runtime.models.predictor import Predictor
from secure_runtime.worker import gatekeeper
from secure_runtime.worker.engine import serving
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.sweeps import Worker
from tests.secure_runtime.models.conftest import manifest_for, weights_for

MEBIBYTE = 1024 * 1024
SPEC = LogisticRegressionSpec(inputs=1, classes=4)
BAG = EmbeddingBagSpec(length=4096, tokens=257, width=2, classes=4)


class Watched(Predictor):
    """A predictor that says how many rows it was asked for, and at a call of our choosing does something else."""

    sizes: list[int]
    instead: Any = None

    def _begun(self, inputs: Mapping[str, torch.Tensor]) -> Callable[[], dict[str, torch.Tensor]]:
        self.sizes.append(inputs["rows"].shape[0])
        if self.instead is not None:
            self.instead()
        return super()._begun(inputs)


def text_manifest() -> Any:
    """Texts of up to 4096 bytes, a token each."""
    content = TextContent(tokenizer=Utf8Bytes(length=4096))
    return msgspec.structs.replace(
        manifest_for(SPEC),
        architecture=BAG,
        inputs=(InputTensor(name="rows", datatype="BYTES", shape=(-1,), content=content),),
    )


class Desk:
    """A worker with one small model: few bytes go in for a row, many come out."""

    def __init__(self, bench: Any, manifest: Any = None, *, max_message: int = DEFAULT_MESSAGE) -> None:
        manifest = manifest or manifest_for(SPEC)
        facts = ModelFacts(
            name="toy",
            version="1",
            model_digest="a" * 64,
            certificate_digest="b" * 64,
            epsilon_micro=1,
            delta="0.1",
            privacy_unit="example",
            sensitivity="public",
            purposes=("treatment",),
        )
        spec = manifest.architecture
        self.predictor = Watched(manifest, module_from_weights(spec, bytes(save(weights_for(spec)))))
        self.predictor.sizes = []
        self.bench = bench
        self.sent: list[tuple[Frame, bytes]] = []
        plan = BootPlan(
            profile="dev",
            audience="gateway.test:8443",
            models_dir="",
            publishers_file="",
            sys_path=(),
            uid=0,
            gid=0,
            torch_threads=1,
            memory_limit_bytes=0,
            max_message=max_message,
        )
        model = LoadedModel(facts, manifest, self.predictor)
        engine = Engine({"toy": model}, max_batch_rows=256, max_message=max_message, clock=bench.clock)
        self.left: list[int] = []  # how many had been sent whenever something was to leave
        self.worker = Worker(
            plan,
            engine,
            send=lambda *sent: self.sent.append(sent),
            flush=lambda: self.left.append(len(self.sent)),
            clock=bench.clock,
        )

    def ask(self, *bodies: tuple[Any, bytes]) -> list[tuple[str, str, bhttp.Response]]:
        """Outcome, reason and opened answer of requests that arrive together."""
        config = decode_key_configs(self.worker.keys.published())[0]
        works, openers = [], []
        for number, (fields, body) in enumerate(bodies):
            inner = self.bench.inner(path="/v2/models/toy/infer", body=body, extra=fields)
            raw, media_type, opener = seal_request(config, inner)
            works.append((Work(id=number, grant=self.bench.grant(model="toy"), media_type=media_type), raw, False))
            openers.append(opener)
        self.worker.sweep(works)
        sent, self.sent = self.sent, []
        found = []
        for (done, sealed), opener in zip(sent, openers, strict=True):
            assert isinstance(done, Done)
            answer = bhttp.decode_response(opener.open(sealed, done.media_type))
            found.append((done.completion.statement.outcome, done.completion.statement.reason, answer))
        return found


def json_rows(count: int) -> tuple[Any, bytes]:
    document = b'{"inputs":[{"name":"rows","datatype":"FP32","shape":[%d,1],"data":[' % count
    return (), document + b",".join([b"1"] * count) + b"]}]}"


def binary_rows(count: int) -> tuple[Any, bytes]:
    tensor = inference.Tensor("rows", "FP32", (count, 1), bytes(4 * count))
    fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(tensor,)), binary=True)
    return tuple(fields), body


@pytest.fixture
def desk(bench: Any) -> Desk:
    return Desk(bench)


@pytest.mark.parametrize("count", [300_000, 2_000_000], ids=["found-when-written", "found-before"])
def test_an_answer_that_fits_no_message_is_an_error_inside_the_seal(desk: Desk, count: int) -> None:
    (large, small) = desk.ask(json_rows(count), json_rows(1))
    assert sum(desk.predictor.sizes) == 1 + (count if count < 2_000_000 else 0), "what cannot fit is not run"
    assert large[:2] == ("failed", "bad-input")
    assert large[2].status == 413
    assert "fewer rows" in msgspec.json.decode(large[2].body)["error"]
    assert small[:2] == ("completed", "")


@pytest.mark.parametrize(("count", "units"), [(300_000, 300_000), (2_000_000, 0)], ids=["computed", "refused-before"])
def test_an_answer_that_turns_out_too_large_costs_the_rows_that_were_run(desk: Desk, count: int, units: int) -> None:
    engine, spent = desk.worker._engine, []
    true = engine.run

    def watched(admitted: Any) -> Any:
        answers = true(admitted)
        spent.extend(one.units for one in answers)
        return answers

    engine.run = watched  # type: ignore[method-assign]
    ((outcome, _, response),) = desk.ask(json_rows(count))
    assert (outcome, response.status, spent) == ("failed", 413, [units])


def test_a_large_request_runs_in_slices(desk: Desk) -> None:
    (answer,) = desk.ask(binary_rows(2 * SLICE_ROWS + 1))
    assert desk.predictor.sizes == [SLICE_ROWS, SLICE_ROWS, 1]
    assert answer[0] == "completed"
    outputs = inference.decode_infer_response(answer[2].fields, answer[2].body).outputs
    assert {tensor.shape[0] for tensor in outputs} == {2 * SLICE_ROWS + 1}


@pytest.mark.parametrize("place", [0, 13, 31])
def test_one_row_that_cannot_be_run_does_not_make_all_others_run_alone(desk: Desk, place: int) -> None:
    """It is free for whoever sends it: nothing of it is charged."""
    nan = inference.Tensor("rows", "FP32", (1, 1), b"\x00\x00\xc0\x7f")
    fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(nan,)), binary=True)
    bodies = [binary_rows(1) for _ in range(31)]
    bodies.insert(place, (tuple(fields), body))
    answers = desk.ask(*bodies)
    assert [answer[0] for answer in answers] == ["failed" if at == place else "completed" for at in range(32)]
    assert sum(desk.predictor.sizes) == 31
    assert len(desk.predictor.sizes) <= 5


def test_a_large_request_ends_with_its_grant(desk: Desk) -> None:
    def take_long() -> None:
        desk.bench.now_us += 11_000_000

    desk.predictor.instead = take_long
    (answer,) = desk.ask(binary_rows(50 * SLICE_ROWS))
    assert desk.predictor.sizes == [SLICE_ROWS]
    assert answer[:2] == ("failed", "model-error")
    assert answer[2].status == 504


def test_batches_whose_time_is_over_are_not_run(desk: Desk) -> None:
    """Each batch of a sweep once took its time, however long nobody waited any more: at last for the whole worker."""

    def take_long() -> None:
        desk.bench.now_us += 11_000_000

    desk.predictor.instead = take_long
    answers = desk.ask(*[binary_rows(256) for _ in range(4)])
    assert desk.predictor.sizes == [256]
    assert [(one[0], one[2].status) for one in answers] == [("completed", 200), *[("failed", 504)] * 3]


def test_what_is_done_leaves_before_more_long_work_is_begun(desk: Desk, monkeypatch: Any) -> None:
    monkeypatch.setattr(serving, "WORK_TOGETHER", 3 * 256 * SPEC.row_work() - 1)
    answers = desk.ask(*[binary_rows(256) for _ in range(5)])
    assert {one[0] for one in answers} == {"completed"}
    assert desk.left == [2, 4]


def texts(*values: bytes) -> tuple[Any, bytes]:
    data = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    tensor = inference.Tensor("rows", "BYTES", (len(values),), data)
    fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(tensor,)), binary=True)
    return tuple(fields), body


def test_empty_texts_are_few_bytes_and_many_tokens(bench: Any) -> None:
    """Four bytes make 32 KiB of tokens: a million of them would be all of a machine's memory."""
    many, few = Desk(bench, text_manifest()).ask(texts(*[b""] * 1_000_000), texts(b"a"))
    assert many[:2] == ("failed", "bad-input")
    assert many[2].status == 413
    assert "too many texts" in msgspec.json.decode(many[2].body)["error"]
    assert few[:2] == ("completed", "")


def test_reading_texts_ends_with_the_grant(bench: Any, monkeypatch: Any) -> None:
    read = []

    def slowly(text: str, tokenizer: Any, go_on: Any) -> list[int]:
        read.append(text)
        bench.now_us += 11_000_000
        return [1]

    monkeypatch.setattr(tokenizers, "_numbers", slowly)
    (answer,) = Desk(bench, text_manifest()).ask(texts(b"a", b"b", b"c"))
    assert read == ["a"]
    assert answer[:2] == ("failed", "model-error")
    assert answer[2].status == 504


def test_a_request_that_needs_too_much_memory_fails_alone(desk: Desk, monkeypatch: Any) -> None:
    true_decode = inference.decode_infer_request

    def decode(fields: Any, body: Any) -> Any:
        if len(body) > 500:
            raise MemoryError
        return true_decode(fields, body)

    monkeypatch.setattr(f"{serving.__name__}.inference.decode_infer_request", decode)
    (large, small) = desk.ask(json_rows(500), json_rows(1))
    assert large[:2] == ("failed", "model-error")
    assert small[:2] == ("completed", "")


@pytest.mark.parametrize("where", ["encode_response", "seal"])
def test_an_answer_that_there_is_no_memory_to_seal_fails_alone(desk: Desk, monkeypatch: Any, where: str) -> None:
    true = getattr(bhttp if where == "encode_response" else ResponseSealer, where)

    def short(*arguments: Any, **more: Any) -> Any:
        sealed = arguments[-1] if where == "seal" else arguments[0].body
        if len(sealed) > 4096:
            raise MemoryError
        return true(*arguments, **more)

    monkeypatch.setattr(bhttp if where == "encode_response" else ResponseSealer, where, short)
    first, large, last = desk.ask(binary_rows(1), binary_rows(1000), binary_rows(1))
    assert [one[0] for one in (first, large, last)] == ["completed", "failed", "completed"]
    assert (large[1], large[2].status) == ("model-error", 503)
    assert "too little memory" in msgspec.json.decode(large[2].body)["error"]


def test_a_request_that_there_is_no_memory_to_open_is_refused_alone_and_may_come_again(
    desk: Desk, monkeypatch: Any
) -> None:
    config = decode_key_configs(desk.worker.keys.published())[0]
    works = []
    for number in (1, 2):
        inner = desk.bench.inner(path="/v2/models/toy/infer", body=binary_rows(1)[1], extra=binary_rows(1)[0])
        raw, media_type, _ = seal_request(config, inner)
        works.append((Work(id=number, grant=desk.bench.grant(model="toy"), media_type=media_type), raw, False))
    true = open_request

    def short(sealed: Any, private: Any) -> Any:
        if sealed.raw is works[0][1]:
            raise MemoryError
        return true(sealed, private)

    with monkeypatch.context() as patch:
        patch.setattr(gatekeeper, "open_request", short)
        desk.worker.sweep(works)
    desk.worker.sweep(works[:1])
    ends = [(done.completion.statement, done.problem) for done, _ in desk.sent if isinstance(done, Done)]
    assert [(end.outcome, end.reason, problem) for end, problem in ends] == [
        ("refused", "no-memory", "busy"),
        ("completed", "", ""),
        ("completed", "", ""),
    ]


def test_answers_that_are_large_together_are_made_and_leave_one_after_the_other(bench: Any) -> None:
    """Each row in is four bytes, each row out twenty: forty requests are a sixth of a message, their answers five."""
    desk = Desk(bench, max_message=MEBIBYTE)
    bodies = [binary_rows(6000) for _ in range(40)]
    answers = desk.ask(*bodies)
    assert [one[:2] for one in answers] == [("completed", "")] * 40
    assert desk.left, "none waited for all"
    most = max(b - a for a, b in itertools.pairwise([0, *desk.left, 40]))
    assert most * 6000 * 24 <= SEALED_AT_ONCE + MEBIBYTE


def test_only_so_many_answers_are_in_memory_as_fit_one_message(bench: Any, monkeypatch: Any) -> None:
    desk = Desk(bench, max_message=MEBIBYTE)
    true, made = desk.worker._engine.run, []

    def watched(admitted: Any) -> Any:
        answers = true(admitted)
        made.append(sum(len(one.response.body) for one in answers))
        return answers

    monkeypatch.setattr(desk.worker._engine, "run", watched)
    answers = desk.ask(*[binary_rows(6000) for _ in range(40)], json_rows(10))
    assert {one[0] for one in answers} == {"completed"}
    assert sum(made) > 4 * MEBIBYTE
    assert max(made) <= MEBIBYTE
