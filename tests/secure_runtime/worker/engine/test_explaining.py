"""Attributions add up, and are those of a closed form or of every order of columns; and what is refused.

The oracles here call the model and nothing of the engine.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.architectures import (
    CnnSpec,
    EmbeddingBagSpec,
    FrozenEncoderSpec,
    GraphSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
    MlpSpec,
    RecurrentSpec,
    ScatterNetSpec,
    TransformerSpec,
)
from sealgate.certificate.architectures.cnn import Stage
from sealgate.certificate.inputs import (
    GraphEdgesContent,
    GraphNodesContent,
    HashedWords,
    ImageContent,
    SequenceContent,
    TableContent,
    TextContent,
    TokensContent,
    Utf8Bytes,
    WordPiece,
    Words,
)
from sealgate.protocol import inference
from sealgate.protocol.frames import Obligations
from sealgate.protocol.inference import Tensor, tensor_from_list
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.models.tokenizers import NOWHERE, spans_of, tokens_of
from secure_runtime.worker.engine import captum_methods, explaining, serving
from secure_runtime.worker.engine.attribution import Explainer, methods_of, price
from secure_runtime.worker.engine.movable import Movable
from secure_runtime.worker.engine.serving import Engine
from tests.secure_runtime.worker.engine.conftest import NOW_US


def table(made: Any, architecture: Any, columns: int) -> LoadedModel:
    named = tuple(made.column(f"c{n}", center=str(n), scale="2") for n in range(columns))
    return made.model(  # type: ignore[no-any-return]
        architecture, [made.tensor("x", "FP64", (-1, columns), TableContent(columns=named))]
    )


def rows(name: str, values: Any) -> Tensor:
    array = np.asarray(values, dtype="<f8")
    return Tensor(name, "FP64", array.shape, array.tobytes())


def margin(model: LoadedModel, scaled: torch.Tensor, target: int = 0) -> float:
    """Of one scaled row, written down again here."""
    with torch.no_grad():
        logits = model.predictor.module(scaled)[0]
    if len(logits) == 1 and model.manifest.classes == 2:
        return float(logits[0]) * (1 if target else -1)
    return float(logits[0]) * 100 + 50 if not model.manifest.classes else float(logits[target] - logits.mean())


def offered(model: LoadedModel) -> tuple[str, ...]:
    return methods_of(Movable(model.manifest, model.predictor))


def explain(made: Any, model: LoadedModel, tensors: list[Tensor], **parameters: Any) -> dict[str, Any]:
    answer = made.ask(model, tensors, operation="explain", **parameters)
    found = made.outputs(answer)
    method = parameters.get("method", offered(model)[0])
    assert answer.units == len(found["output"]) * price(Movable(model.manifest, model.predictor), method)
    return {name: np.asarray(values) for name, values in found.items()}


# Linear: the closed form --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 2, 4])
@settings(max_examples=10, deadline=None)
@given(values=st.lists(st.floats(-99, 99), min_size=5, max_size=5))
def test_of_linear_models_every_exact_method_gives_coefficient_times_distance(
    made: Any, classes: int, values: list[float]
) -> None:
    kind = LogisticRegressionSpec if classes else LinearRegressionSpec
    model = table(made, kind(inputs=5, classes=classes), 5)
    layer = model.predictor.module.layers[0]  # type: ignore[union-attr]
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()  # type: ignore[union-attr]
    target = 1 if classes else 0
    if classes == 0:
        weight, bias = weight[0] * 100, bias[0] * 100 + 50
    elif classes == 2:
        weight, bias = weight[0], bias[0]
    else:
        weight, bias = weight[target] - weight.mean(axis=0), bias[target] - bias.mean()
    distance = (np.array(values) - np.arange(5)) / 2
    asked = {"target": target} if classes else {}
    assert offered(model) == ("coefficients", "integrated-gradients", "shapley", "ablation")
    for method in offered(model):
        found = explain(made, model, [rows("x", [values])], method=method, **asked)
        off = 1e-7 if method in ("coefficients", "integrated-gradients") else 1e-5  # Captum adds the others up in FP32
        np.testing.assert_allclose(found["attribution.x"][0], weight * distance, rtol=off, atol=1e3 * off)
        np.testing.assert_allclose(found["output"][0], weight @ distance + bias, rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(found["baseline"][0], bias, rtol=1e-9, atol=1e-8)


# Tables: every order --------------------------------------------------------------------------------


def exact_shapley(model: LoadedModel, row: np.ndarray, target: int) -> np.ndarray:
    """By the sum over all subsets (Shapley 1953)."""
    count, scaled = len(row), torch.tensor((row - np.arange(len(row))) / 2)
    found = np.zeros(count)
    for place in range(count):
        others = [one for one in range(count) if one != place]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for subset in itertools.combinations(others, size):
                without, with_it = torch.zeros(1, count).double(), torch.zeros(1, count).double()
                for one in subset:
                    without[0, one] = with_it[0, one] = scaled[one]
                with_it[0, place] = scaled[place]
                found[place] += weight * (margin(model, with_it, target) - margin(model, without, target))
    return found


@pytest.mark.parametrize(("columns", "off"), [(4, 1e-6), (6, 0.35)])
def test_shapley_is_exact_for_few_columns_and_near_for_more(made: Any, columns: int, off: float) -> None:
    model = table(made, MlpSpec(inputs=columns, hidden=(7,), activation="tanh", classes=3), columns)
    row = np.linspace(-5, 9, columns)
    found = explain(made, model, [rows("x", [row])], method="shapley", target="class 2")
    np.testing.assert_allclose(found["attribution.x"][0], exact_shapley(model, row, 2), atol=off)
    assert found["target"].tolist() == [2]
    np.testing.assert_allclose(found["attribution.x"].sum(), found["output"][0] - found["baseline"][0], atol=1e-5)


def test_ablation_is_what_one_column_less_loses(made: Any) -> None:
    model = table(made, MlpSpec(inputs=3, hidden=(5,), activation="relu", classes=2), 3)
    row = np.array([4.0, -3.0, 7.0])
    found = explain(made, model, [rows("x", [row])], method="ablation", target=0)["attribution.x"][0]
    scaled = torch.tensor((row - np.arange(3)) / 2)[None]
    for place in range(3):
        less = scaled.clone()
        less[0, place] = 0
        assert found[place] == pytest.approx(margin(model, scaled, 0) - margin(model, less, 0), abs=1e-12)


# Every family: completeness --------------------------------------------------------------------------------

LENGTH = 6
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "##ly", "very")


def family(made: Any, name: str) -> tuple[LoadedModel, list[Tensor]]:
    """A model of each family, and two rows for it."""
    draw = np.random.default_rng(5)
    channels = tuple(made.column(f"c{n}") for n in range(3))
    steps = [rows("x", draw.normal(size=(2, 5, 3)))]
    sequence = [made.tensor("x", "FP64", (-1, 5, 3), SequenceContent(channels=channels))]
    texts = [tensor_from_list("text", "BYTES", (2,), ["Good, very good!", "badly"])]
    image = ImageContent(low="-10", high="10", center="0.5", scale="2")
    nodes = made.tensor("nodes", "FP64", (-1, 4, 3), GraphNodesContent(columns=channels))
    graph_inputs = [nodes, made.tensor("edges", "BOOL", (-1, 4, 4), GraphEdgesContent())]
    ties = [[1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1]]
    graphs = [
        rows("nodes", draw.normal(size=(2, 4, 3))),
        tensor_from_list("edges", "BOOL", (2, 4, 4), [bool(one) for row in ties for one in row]),
    ]

    def text(tokenizer: Any) -> list[Any]:
        return [made.tensor("text", "BYTES", (-1,), TextContent(tokenizer=tokenizer))]

    words = HashedWords(buckets=19, length=LENGTH)
    frozen = FrozenEncoderSpec(
        length=LENGTH, tokens=len(PIECES), width=8, heads=2, layers=2, feed_forward=10, positions=9, classes=3,
        pretraining="made up", frozen_digest="0" * 64,
    )  # fmt: skip
    cnn = CnnSpec(channels=1, height=8, width=8, stages=(Stage(channels=3),), activation="tanh", classes=3)
    made_of: dict[str, tuple[Any, list[Any], list[Tensor]]] = {
        "mlp": (
            MlpSpec(inputs=3, hidden=(7, 5), activation="gelu", classes=0),
            [made.tensor("x", "FP64", (-1, 3), TableContent(columns=channels))],
            [rows("x", draw.normal(size=(2, 3)))],
        ),
        "lstm": (RecurrentSpec(length=5, channels=3, cell="lstm", hidden=(4,), classes=3), sequence, steps),
        "transformer": (
            TransformerSpec(length=5, channels=3, width=8, heads=2, layers=1, feed_forward=9, classes=3),
            sequence,
            steps,
        ),
        "gru of texts": (
            RecurrentSpec(length=LENGTH, tokens=20, embedding=3, cell="gru", hidden=(4,), reading="mean", classes=2),
            text(words),
            texts,
        ),
        "embedding bag": (
            EmbeddingBagSpec(length=LENGTH, tokens=20, width=7, hidden=(5,), activation="tanh", classes=3),
            [made.tensor("x", "INT32", (-1, LENGTH), TokensContent(size=20))],
            [tensor_from_list("x", "INT32", (2, LENGTH), [3, 4, 5, 0, 0, 0, 19, 1, 1, 2, 7, 8])],
        ),
        "frozen encoder": (frozen, text(WordPiece(vocabulary=PIECES, length=LENGTH)), texts),
        "cnn": (cnn, [made.tensor("x", "FP64", (-1, 1, 8, 8), image)], [rows("x", draw.normal(size=(2, 1, 8, 8)))]),
        "graph convolution": (
            GraphSpec(nodes=4, features=3, layer="convolution", hidden=(5,), activation="tanh", classes=3),
            graph_inputs,
            graphs,
        ),
        "graph attention": (
            GraphSpec(nodes=4, features=3, layer="attention", hidden=(6,), heads=2, activation="tanh", classes=2),
            graph_inputs,
            graphs,
        ),
    }  # fmt: skip
    architecture, inputs, tensors = made_of[name]
    return made.model(architecture, inputs), tensors


FAMILIES = (
    "mlp", "lstm", "transformer", "gru of texts", "embedding bag", "frozen encoder", "cnn", "graph convolution",
    "graph attention",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_integrated_gradients_add_up(made: Any, name: str) -> None:
    model, tensors = family(made, name)
    found = explain(made, model, tensors, method="integrated-gradients")
    parts = [values for key, values in found.items() if key.startswith("attribution.")]
    total = sum(part.reshape(2, -1).sum(axis=1) for part in parts)
    away = found["output"] - found["baseline"]
    np.testing.assert_allclose(total, away, rtol=2e-3, atol=1e-4)
    assert np.abs(away).max() > 0.002, "nothing was explained"
    alone = [explain(made, model, [one_of(one, row) for one in tensors]) for row in (0, 1)]
    for key, values in explain(made, model, tensors).items():
        together = np.concatenate([one[key] for one in alone])
        np.testing.assert_allclose(values, together, rtol=1e-9, atol=1e-12), key


def one_of(tensor: Tensor, row: int) -> Tensor:
    from sealgate.protocol.inference import tensor_to_list

    [values] = [tensor_to_list(tensor, nested=True)[row]]
    return tensor_from_list(tensor.name, tensor.datatype, (1, *tensor.shape[1:]), [values])


def test_ties_that_are_not_there_and_padding_count_for_nothing(made: Any) -> None:
    model, tensors = family(made, "graph convolution")
    found = explain(made, model, tensors)
    edges, nodes = found["attribution.edges"], found["attribution.nodes"]
    assert edges[0, 0, 1] != 0
    assert not edges[0, 3].any()
    assert not nodes[0, 3].any(), "the node is not there"
    assert not np.diagonal(edges, axis1=1, axis2=2).any(), "the nodes themselves are in the baseline"
    text_model, texts = family(made, "gru of texts")
    told = explain(made, text_model, texts)
    assert not told["attribution.text"][1, 1:].any()
    assert told["spans.text"][0, :5].tolist() == [[0, 4], [4, 5], [6, 10], [11, 15], [15, 16]]
    assert told["spans.text"][1].tolist() == [[0, 5], *[[-1, -1]] * 5]


def test_an_occluded_image_shows_where_the_model_looks(made: Any) -> None:
    model, tensors = family(made, "cnn")
    found = explain(made, model, tensors, method="occlusion", target=1)
    values, scaled = found["attribution.x"], (np.frombuffer(tensors[0].data).reshape(2, 1, 8, 8) - 0.5) / 2
    less = torch.tensor(scaled[:1])
    full = margin(model, less, 1)
    less[0, 0, 2:4, 4:6] = 0
    np.testing.assert_allclose(values[0, 0, 2:4, 4:6], full - margin(model, less, 1), atol=1e-9)


def test_a_scattering_network_is_explained_by_occlusion(made: Any) -> None:
    content = ImageContent(low="0", high="1", center="0.5", scale="1")
    architecture = ScatterNetSpec(channels=1, height=16, width=16, scales=2, angles=2, norm_groups=0, classes=3)
    model = made.model(architecture, [made.tensor("x", "FP64", (-1, 1, 16, 16), content)])
    assert offered(model)[0] == "occlusion"
    found = explain(made, model, [rows("x", np.random.default_rng(1).random((1, 1, 16, 16)))])
    assert np.abs(found["attribution.x"]).max() > 0


# Where tokens stand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokenizer",
    [
        HashedWords(buckets=9, length=7),
        Words(vocabulary=("good", "bad"), length=7),
        Utf8Bytes(length=9),
        WordPiece(vocabulary=PIECES, length=7),
    ],
)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="gGood b\u0130\u00e9\u4e2d,\ud83d"[:-1] + "ly\U0001f600 ", max_size=30))
def test_a_token_has_a_place_in_the_text_where_it_is_one(tokenizer: Any, text: str) -> None:
    spans, [tokens] = spans_of(text, tokenizer), tokens_of([text], tokenizer).tolist()
    assert len(spans) == len(tokens) == tokenizer.length
    for span, token in zip(spans, tokens, strict=True):
        if token == 0:
            assert span == NOWHERE
        elif span != NOWHERE:
            assert 0 <= span[0] < span[1] <= len(text)
            part = text[span[0] : span[1]]
            if not isinstance(tokenizer, WordPiece | Utf8Bytes):
                assert token in tokens_of([part], tokenizer)[0].tolist()
        else:
            assert isinstance(tokenizer, WordPiece)


# What is refused, and what applies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "obligations",
    [Obligations(noise_epsilon_micro=1_000_000, noise_rows=4), Obligations(top_k=1), Obligations(hide_scores=True)],
)
def test_a_duty_that_an_explanation_would_undo_refuses_it(made: Any, obligations: Obligations) -> None:
    model, tensors = family(made, "mlp")
    answer = made.ask(model, tensors, operation="explain", obligations=obligations)
    assert (answer.response.status, answer.reason, answer.units) == (403, "explain-not-permitted", 0)
    assert answer.eps_micro == 0


def test_rounding_applies_and_is_said(made: Any) -> None:
    model, tensors = family(made, "mlp")
    answer = made.ask(model, tensors, operation="explain", obligations=Obligations(round_digits=1))
    found = made.outputs(answer)
    for values in (found["attribution.x"], [found["output"]], [found["baseline"]]):
        assert all(value == round(value, 1) for row in values for value in row)
    assert ("obligations", "round-digits=1") in answer.response.fields


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"method": "lime"}, "'lime' is no method; it can be explained by: integrated-gradients, shapley, ablation"),
        ({"method": "occlusion"}, "'occlusion' does not suit this model"),
        ({"method": True}, "'True' is no method"),
        ({"target": 0}, "the model gives a value: there is no target to choose"),
        ({"steps": 3}, "unknown parameter 'steps'; an explanation takes: method, target"),
        ({"outputs": ("scores",)}, "the explanation has no output 'scores'"),
    ],
)
def test_questions_that_cannot_be_answered_say_why(made: Any, parameters: dict[str, Any], said: str) -> None:
    model, tensors = family(made, "mlp")
    assert said in made.error(made.ask(model, tensors, operation="explain", **parameters))


@pytest.mark.parametrize("target", [3, -1, "class 3", 1.0, True])
def test_a_class_that_is_none_is_refused(made: Any, target: object) -> None:
    model, tensors = family(made, "cnn")
    answer = made.ask(model, tensors, operation="explain", target=target)
    assert "neither a class of the model nor the index of one, 0 to 2" in made.error(answer)


def test_outputs_may_be_chosen_and_come_as_json(made: Any) -> None:
    model, tensors = family(made, "mlp")
    answer = made.ask(model, tensors, operation="explain", binary=False, outputs=("attribution.x",))
    assert set(made.outputs(answer)) == {"attribution.x"}


def test_too_much_work_is_refused_before_it_is_begun(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tensors = family(made, "mlp")
    monkeypatch.setattr(explaining, "MAX_EXPLAIN_EVALUATIONS", 200)
    answer = made.ask(model, tensors, operation="explain")
    assert (answer.response.status, "send at most 1 rows at once" in made.error(answer)) == (413, True)
    monkeypatch.setattr(explaining, "MAX_EXPLAIN_EVALUATIONS", 1 << 17)
    monkeypatch.setattr(explaining, "MAX_EXPLAIN_WORK", 10)
    assert "take another method" in made.error(made.ask(model, tensors, operation="explain"))


def test_no_model_is_so_small_that_rows_are_without_bound(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row takes Captum its time: 26,214 rows of two columns were half a minute of a worker's only thread."""
    model = table(made, LinearRegressionSpec(inputs=2, classes=0), 2)
    monkeypatch.setattr(Explainer, "explain", lambda *_: pytest.fail("begun"))
    answer = made.ask(model, [rows("x", np.zeros((4097, 2)))], operation="explain")
    assert "send at most 4096 rows at once" in made.error(answer)


def test_an_output_that_there_is_not_is_refused_before_the_first_row(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tensors = family(made, "mlp")
    monkeypatch.setattr(Explainer, "explain", lambda *_: pytest.fail("begun"))
    answer = made.ask(model, tensors, operation="explain", outputs=("scores",))
    assert ("no output 'scores'" in made.error(answer), answer.units) == (True, 0)


def test_what_fails_after_rows_were_explained_costs_those(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tensors = family(made, "mlp")
    monkeypatch.setattr(serving, "body_room", lambda _: 10)
    answer = made.ask(model, tensors, operation="explain")
    assert (answer.response.status, answer.outcome) == (413, "failed")
    assert answer.units == tensors[0].shape[0] * model.manifest.explain_units > 0


def test_what_is_refused_before_its_first_row_has_had_none(made: Any) -> None:
    """A row has a price of its own in a bill: what was asked wrongly has none, as for an answer."""
    model, tensors = family(made, "cnn")
    engine, had = made.engine(model), []
    for parameters in ({"target": "none"}, {"method": "none"}, {}):
        request = inference.InferRequest(inputs=tuple(tensors), parameters=parameters)
        fields, body = inference.encode_infer_request(request, binary=True)
        engine.run([made.asked("POST", "/v2/models/m/explain", fields, body, obligations=Obligations())])
        had.append([share.rows for share in engine.shares.values()])
    assert had == [[], [], [tensors[0].shape[0]]]


def test_the_price_is_the_manifests(made: Any) -> None:
    columns = (made.column("a"),)
    spec = made.tensor("x", "FP64", (-1, 1), TableContent(columns=columns))
    for changes, units in (({}, 64), ({"units_per_row": 3}, 192), ({"explain_units_per_row": 7}, 7)):
        model = made.model(LinearRegressionSpec(inputs=1, classes=0), [spec], **changes)
        answer = made.ask(model, [rows("x", [[1.0], [2.0]])], operation="explain")
        assert answer.units == 2 * units


def test_without_captum_there_is_none(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tensors = family(made, "mlp")
    monkeypatch.setattr(captum_methods, "INSTALLED", False)
    answer = made.ask(model, tensors, operation="explain")
    assert (answer.response.status, answer.reason) == (501, "explain-not-offered")
    assert made.outputs(made.ask(model, tensors))


def test_captum_brings_no_drawing_and_can_still_be_imported_whole() -> None:
    import subprocess
    import sys

    script = (
        "import sys\n"
        "from secure_runtime.worker.engine import captum_methods\n"
        "assert captum_methods.INSTALLED\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('matplotlib', 'pandas')]\n"
        "assert 'captum' not in sys.modules and 'captum.attr' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("method", ["integrated-gradients", "shapley", "ablation"])
def test_one_row_is_explained_no_longer_than_somebody_waits(
    made: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The clock moves with every look at it; what was begun is paid for."""
    model, tensors = family(made, "mlp")
    monkeypatch.setattr(type(model.manifest.architecture), "rows_at_once", lambda *_: 1)
    looks = iter(range(10**9))
    engine = Engine({"m": model}, max_batch_rows=64, clock=lambda: NOW_US + 20_000_000 * next(looks))
    request = inference.InferRequest(inputs=tuple(tensors), parameters={"method": method})
    fields, body = inference.encode_infer_request(request, binary=True)
    calls = []
    monkeypatch.setattr(Movable, "_margins", _counting(Movable._margins, calls))
    torch.set_grad_enabled(False)
    try:
        [answer] = engine.run([made.asked("POST", "/v2/models/m/explain", fields, body)])
    finally:
        torch.set_grad_enabled(True)
    assert (answer.response.status, answer.reason) == (504, "model-error")
    assert 0 < len(calls) < 4
    assert answer.units == price(Movable(model.manifest, model.predictor), method)


def _counting(true: Any, calls: list[None]) -> Any:
    def counted(*arguments: Any) -> Any:
        calls.append(None)
        return true(*arguments)

    return counted
