"""Models without gradients, and models made of models, are explained: by hand, and by every subset of a row's parts.

The oracles here know of a model only what it answers (`predict`): scores and values, as callers get them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from sealgate.certificate.architectures import (
    FrozenEncoderSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
    MlpSpec,
    ScatterNetSpec,
)
from sealgate.certificate.architectures.pipeline import Fused, Fusion, Member, PipelineSpec, Reading
from sealgate.certificate.compressing import compress_weights
from sealgate.certificate.compression import Compression
from sealgate.certificate.inputs import (
    Column,
    GraphEdgesContent,
    GraphNodesContent,
    HashedWords,
    ImageContent,
    InputTensor,
    SequenceContent,
    TableContent,
    TextContent,
    TokensContent,
)
from sealgate.certificate.manifest import Manifest, check_manifest
from sealgate.protocol.frames import Obligations
from sealgate.protocol.inference import Tensor, tensor_from_list
from secure_runtime.errors import BadInput
from secure_runtime.limits import (
    EXPLAIN_PRICED_EVALUATIONS,
    MAX_EXPLAIN_EVALUATIONS,
    MAX_EXPLAIN_PARTS,
    MAX_EXPLAIN_ROWS,
)
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.models.pipeline import Part, PipelinePredictor
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.tokenizers import tokens_of
from secure_runtime.models.weights import module_from_weights
from secure_runtime.worker.engine.attribution import evaluations, methods_of, price
from secure_runtime.worker.engine.movable import Movable
from secure_runtime.worker.engine.perturbing import Parts, orders, part_count
from tests.secure_runtime.worker.engine.test_explaining import explain, family, rows

Game = Callable[[frozenset[int]], float]
Places = dict[str, list[tuple[int, ...]]]  # by input, the numbers of one part


def compressed(model: LoadedModel, kind: str) -> LoadedModel:
    """The same weights in fewer bits, through the bytes that a bundle would have."""
    plain = save({name: one.float().contiguous() for name, one in model.predictor.module.state_dict().items()})  # type: ignore[union-attr]
    digest = "0" * 64 if isinstance(model.manifest.architecture, FrozenEncoderSpec) else ""
    manifest = msgspec.structs.replace(model.manifest, compression=Compression(kind=kind, frozen_digest=digest))
    check_manifest(manifest)
    module = module_from_weights(manifest.architecture, compress_weights(plain, kind), compression=manifest.compressed)
    return LoadedModel(model.facts, manifest, Predictor(manifest, module))


def movable(model: LoadedModel) -> Movable:
    return Movable(model.manifest, model.predictor)


def offered(model: LoadedModel) -> tuple[str, ...]:
    return methods_of(movable(model))


def margin(model: LoadedModel, inputs: Mapping[str, torch.Tensor], target: int) -> float:
    """From the answer alone. Values must be inside their range."""
    found = model.predict(dict(inputs))
    if not model.manifest.classes:
        return float(found["value"][0])
    logs = found["scores"][0].double().log()
    return float(logs[target] - (logs[1 - target] if len(logs) == 2 else logs.mean()))


def raw(model: LoadedModel, tensors: Sequence[Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row as `predict` takes it."""
    from secure_runtime.worker.engine.tensors import to_model, together

    given = {tensor.name: tensor for tensor in tensors}
    specs = model.manifest.inputs
    return {
        spec.name: together([to_model(given[spec.name], spec, go_on=lambda: None)])[row : row + 1] for spec in specs
    }


def parts_by_hand(spec: InputTensor, one: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """What can be taken away of an input of these tests, as the documentation says it: all are small enough."""
    match spec.content:
        case TextContent() | TokensContent():
            return [[(at,)] for at, token in enumerate(one[0].tolist()) if token]
        case GraphEdgesContent():
            return [[(a, b), (b, a)] for a, b in itertools.combinations(range(one.shape[1]), 2) if float(one[0, a, b])]
        case ImageContent():
            _, height, width = one.shape[1:]
            side = -(-max(height, width) // 7)
            squares: dict[tuple[int, int], list[tuple[int, ...]]] = {}
            for place in itertools.product(*map(range, one.shape[1:])):
                squares.setdefault((place[1] // side, place[2] // side), []).append(place)
            return list(squares.values())
        case _:
            return [[place] for place in itertools.product(*map(range, one.shape[1:]))]


def game(model: LoadedModel, row: Mapping[str, torch.Tensor], target: int) -> tuple[list[Places], Game]:
    """All parts of a row, and what the model gives for a set of them."""
    parts: list[Places] = []
    start: dict[str, torch.Tensor] = {}
    for spec in model.manifest.inputs:
        one = row[spec.name]
        start[spec.name] = one.clone()
        columns = spec.columns
        if isinstance(spec.content, ImageContent):
            start[spec.name][:] = float(spec.content.center)
        elif columns:
            start[spec.name][:] = torch.tensor([float(column.center) for column in columns]).to(one.dtype)
        for places in parts_by_hand(spec, one):
            for place in places:
                if not columns and not isinstance(spec.content, ImageContent):
                    start[spec.name][(0, *place)] = 0
            parts.append({spec.name: places})

    known: dict[frozenset[int], float] = {}

    def worth(those: frozenset[int]) -> float:
        if those not in known:
            inputs = {name: one.clone() for name, one in start.items()}
            for at in those:
                for name, places in parts[at].items():
                    for place in places:
                        inputs[name][(0, *place)] = row[name][(0, *place)]
            known[those] = margin(model, inputs, target)
        return known[those]

    return parts, worth


def exact_shapley(count: int, worth: Game) -> list[float]:
    """By the sum over all subsets (Shapley 1953)."""
    found = []
    for part in range(count):
        others = [one for one in range(count) if one != part]
        found.append(
            math.fsum(
                math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                * (worth(frozenset({*subset, part})) - worth(frozenset(subset)))
                for size in range(count)
                for subset in itertools.combinations(others, size)
            )
        )  # fmt: skip
    return found


def of_part(found: Mapping[str, Any], part: Places, row: int) -> float:
    return float(sum(found[f"attribution.{name}"][(row, *place)] for name, places in part.items() for place in places))


# Whole numbers: every family ------------------------------------------------------------------------------------------

FAMILIES = (
    "mlp", "lstm", "transformer", "gru of texts", "embedding bag", "frozen encoder", "graph convolution",
    "graph attention",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_ablation_of_whole_numbers_is_what_the_answer_loses(made: Any, name: str) -> None:
    plain, tensors = family(made, name)
    model = compressed(plain, "int8")
    assert set(offered(model)) == {"ablation", "shapley"}
    found = explain(made, model, tensors, method="ablation")
    assert {f"attribution.{spec.name}" for spec in model.manifest.inputs} <= found.keys()
    for row in (0, 1):
        parts, worth = game(model, raw(model, tensors, row), int(found["target"][row]))
        everything = frozenset(range(len(parts)))
        assert found["output"][row] == pytest.approx(worth(everything), abs=2e-5)
        assert found["baseline"][row] == pytest.approx(worth(frozenset()), abs=2e-5)
        for at, part in enumerate(parts):
            lost = worth(everything) - worth(everything - {at})
            assert of_part(found, part, row) == pytest.approx(lost, abs=4e-5), (row, part)
        told = sum(np.abs(found[f"attribution.{spec.name}"][row]).sum() for spec in model.manifest.inputs)
        counted = sum(abs(of_part(found, part, row)) for part in parts)
        assert told == pytest.approx(counted, abs=1e-6), "numbers that are no part have none"
    assert max(np.abs(found[f"attribution.{spec.name}"]).max() for spec in model.manifest.inputs) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_shapley_values_of_whole_numbers_add_up(made: Any, name: str) -> None:
    plain, tensors = family(made, name)
    model = compressed(plain, "int8")
    found = explain(made, model, tensors, method="shapley")
    total = sum(found[f"attribution.{spec.name}"].reshape(2, -1).sum(axis=1) for spec in model.manifest.inputs)
    np.testing.assert_allclose(total, found["output"] - found["baseline"], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "row", "off"),
    [
        ("mlp", 0, 4e-5),
        ("gru of texts", 1, 4e-5),  # a single word
        ("frozen encoder", 1, 4e-5),
        ("embedding bag", 0, 4e-5),  # three tokens
        ("embedding bag", 1, 0.02),  # six: sampled
        ("gru of texts", 0, 0.01),
    ],
)
def test_shapley_values_of_whole_numbers_are_those_of_all_subsets(made: Any, name: str, row: int, off: float) -> None:
    plain, tensors = family(made, name)
    model = compressed(plain, "int8")
    found = explain(made, model, tensors, method="shapley")
    parts, worth = game(model, raw(model, tensors, row), int(found["target"][row]))
    values = exact_shapley(len(parts), worth)
    for part, value in zip(parts, values, strict=True):
        assert of_part(found, part, row) == pytest.approx(value, abs=off)
    assert max(map(abs, values)) > 4 * off or len(parts) == 1, "the tolerance would hide everything"


def test_whole_numbers_of_images_are_occluded(made: Any) -> None:
    plain, tensors = family(made, "cnn")
    model = compressed(plain, "int8")
    assert offered(model) == ("occlusion",)
    found = explain(made, model, tensors, target=2)
    parts, worth = game(model, raw(model, tensors, 1), 2)
    everything = frozenset(range(len(parts)))
    for at, part in enumerate(parts):
        lost = worth(everything) - worth(everything - {at})
        for place in part["x"]:
            assert found["attribution.x"][(1, *place)] == pytest.approx(lost, abs=4e-5)


def test_halved_weights_keep_their_gradients(made: Any) -> None:
    for name in ("mlp", "gru of texts", "graph convolution"):
        plain, tensors = family(made, name)
        model = compressed(plain, "bf16")
        assert offered(model) == offered(plain)
        found, whole = (
            explain(
                made, one, tensors, method="integrated-gradients", **({"target": 1} if one.manifest.classes else {})
            )
            for one in (model, plain)
        )
        parts = [values.reshape(2, -1).sum(axis=1) for key, values in found.items() if key.startswith("attribution.")]
        np.testing.assert_allclose(sum(parts), found["output"] - found["baseline"], rtol=2e-3, atol=1e-4)
        for key in found:
            np.testing.assert_allclose(found[key], whole[key], rtol=0.1, atol=0.05 * np.abs(whole[key]).max())


# Models made of models ------------------------------------------------------------------------------------------------


def piped(
    first: Manifest, members: Sequence[tuple[str, LoadedModel, dict[str, Any], str]], fusion: Fusion | None
) -> LoadedModel:
    """A pipeline in memory: name, model, what it reads (input of the member -> names), what it gives. `first` is the
    manifest of a member that answers, whose outputs are the whole's."""
    names = [name for name, *_ in members]
    inputs: dict[str, InputTensor] = {}
    wired = []
    for name, model, reads, take in members:
        specs = {spec.name: spec for spec in model.manifest.inputs}
        for own, sources in reads.items():
            for source, spec in sources.items() if isinstance(sources, dict) else {sources: specs[own]}.items():
                if source not in names:
                    inputs[source] = msgspec.structs.replace(spec, name=source)
        wired.append(
            Member(
                name=name,
                bundle_digest="0" * 64,
                take=take,
                reads=tuple(
                    Reading(input=own, sources=tuple(sources) if isinstance(sources, dict) else (sources,))
                    for own, sources in reads.items()
                ),
            )
        )
    specs_of = [model.manifest.architecture for _, model, *_ in members]
    spec = PipelineSpec(
        members=tuple(wired),
        fusion=fusion,
        shapes=tuple(one.model_shape for one in inputs.values()),
        tokens=max(one.content.vocabulary for one in inputs.values()),
        numbers=sum(one.row_numbers() for one in specs_of),
        work=sum(one.row_work() for one in specs_of),
        classes=first.classes,
    )
    manifest = msgspec.structs.replace(
        first,
        architecture=spec,
        inputs=tuple(inputs.values()),
        units_per_row=len(members),
        compression=msgspec.UNSET,
    )
    check_manifest(manifest)
    parts = tuple(
        Part(member, model.manifest, model.predictor)  # type: ignore[arg-type]
        for member, (_, model, *_) in zip(wired, members, strict=True)
    )
    return LoadedModel(members[0][1].facts, manifest, PipelinePredictor(manifest, spec, parts))


def columns(count: int) -> tuple[Column, ...]:
    return tuple(Column(name=f"c{at}", low="-9", high="9", center=f"{at / 2:g}", scale="2") for at in range(count))


def table_model(made: Any, architecture: Any, *, seed: int = 1, datatype: str = "FP64") -> LoadedModel:
    count = architecture.inputs
    spec = made.tensor("x", datatype, (-1, count), TableContent(columns=columns(count)))
    return made.model(architecture, [spec], seed=seed)  # type: ignore[no-any-return]


def fused(made: Any, kind: Any, how: str, weights: tuple[str, str] = ("0.3", "0.7"), **changes: Any) -> LoadedModel:
    """Two models that read one row."""
    one, two = (table_model(made, kind, seed=seed) for seed in (1, 2))
    parts = tuple(Fused(member=name, weight=weight) for name, weight in zip(("one", "two"), weights, strict=True))
    take = "scores" if one.manifest.classes else "value"
    if changes.get("int8"):
        two = compressed(two, "int8")
    return piped(
        one.manifest, [("one", one, {"x": "row"}, take), ("two", two, {"x": "row"}, take)], Fusion(how=how, parts=parts)
    )


ROW = np.array([3.0, -2.0, 5.0])


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (LinearRegressionSpec(inputs=3, classes=0), "mean"),
        (LogisticRegressionSpec(inputs=3, classes=2), "log-mean"),
        (LogisticRegressionSpec(inputs=3, classes=4), "log-mean"),
    ],
)
def test_of_linear_models_fused_linearly_every_method_gives_the_closed_form(made: Any, kind: Any, how: str) -> None:
    model = fused(made, kind, how)
    target = 1 if kind.classes else 0
    distance, wanted = (ROW - np.arange(3) / 2) / 2, np.zeros(3)
    for part, weight in zip(model.predictor.parts, (0.3, 0.7), strict=True):  # type: ignore[union-attr]
        own = part.predictor.module.layers[0].weight.detach().double().numpy()
        one = own[0] * 100 if not kind.classes else own[0] if kind.classes == 2 else own[target] - own.mean(axis=0)
        wanted += weight * one * distance
    assert offered(model) == ("integrated-gradients", "shapley", "ablation")
    for method in offered(model):
        asked = {"target": target} if kind.classes else {}
        found = explain(made, model, [rows("row", [ROW])], method=method, **asked)
        np.testing.assert_allclose(found["attribution.row"][0], wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["output"][0] - found["baseline"][0], wanted.sum(), rtol=1e-6, atol=1e-8)


def integrated_by_hand(of: Callable[[np.ndarray], float], row: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Integrated gradients by differences and the midpoint rule: knows no gradient."""
    found, steps, little = np.zeros(len(row)), 200, 1e-4
    for step in range(steps):
        at = start + (step + 0.5) / steps * (row - start)
        for place in range(len(row)):
            aside = np.eye(len(row))[place] * little
            found[place] += (of(at + aside) - of(at - aside)) / (2 * little) * (row - start)[place] / steps
    return found


@pytest.mark.parametrize("classes", [2, 3])
def test_gradients_of_a_mean_of_probabilities_are_those_of_its_logarithm(made: Any, classes: int) -> None:
    model = fused(made, MlpSpec(inputs=3, hidden=(6,), activation="tanh", classes=classes), "mean")
    members = [part.predictor.module for part in model.predictor.parts]  # type: ignore[union-attr]

    def of(row: np.ndarray) -> float:
        scaled = torch.tensor((row - np.arange(3) / 2) / 2)[None]
        chances = np.zeros(classes)
        with torch.no_grad():
            for module, weight in zip(members, (0.3, 0.7), strict=True):
                logits = module(scaled)[0].numpy()
                if classes == 2:
                    logits = np.array([0.0, logits[0]])
                chances += weight * np.exp(logits) / np.exp(logits).sum()
        logs = np.log(chances)
        return float(logs[1] - logs[0]) if classes == 2 else float(logs[1] - logs.mean())

    found = explain(made, model, [rows("row", [ROW])], method="integrated-gradients", target=1)
    start = np.arange(3) / 2
    np.testing.assert_allclose(found["attribution.row"][0], integrated_by_hand(of, ROW, start), rtol=1e-3, atol=1e-4)
    assert found["output"][0] == pytest.approx(of(ROW), abs=1e-9)
    assert found["output"][0] == pytest.approx(margin(model, {"row": torch.tensor(ROW)[None]}, 1), abs=1e-4)
    assert found["attribution.row"][0].sum() == pytest.approx(of(ROW) - of(start), abs=1e-4)


def test_a_member_of_no_weight_is_no_obstacle(made: Any) -> None:
    """Its inputs are asked for their gradients as those of others, and have none."""
    one, two = (table_model(made, LogisticRegressionSpec(inputs=3, classes=2), seed=seed) for seed in (1, 2))
    fusion = Fusion(how="mean", parts=(Fused(member="one", weight="1"), Fused(member="two", weight="0")))
    members = [("one", one, {"x": "row"}, "scores"), ("two", two, {"x": "other"}, "scores")]
    model = piped(one.manifest, members, fusion)
    given = [rows("row", [ROW]), rows("other", [ROW])]
    found = explain(made, model, given, method="integrated-gradients")
    alone = explain(made, one, [rows("x", [ROW])], method="integrated-gradients")
    np.testing.assert_allclose(found["attribution.row"], alone["attribution.x"], rtol=1e-9)
    assert not found["attribution.other"].any()


WORDS = HashedWords(buckets=20, length=6)


def text_and_row(made: Any, *, kind: str = "") -> tuple[LoadedModel, list[Tensor]]:
    """Tokenise, embed, classify, with a row of numbers beside the text's vector."""
    encoder = FrozenEncoderSpec(
        length=6, tokens=21, width=8, heads=2, layers=1, feed_forward=12, positions=6,
        pretraining="public", frozen_digest="0" * 64, classes=3,
    )  # fmt: skip
    embed = made.model(encoder, [made.tensor("text", "BYTES", (-1,), TextContent(tokenizer=WORDS))])
    head = MlpSpec(inputs=10, hidden=(4,), activation="tanh", classes=3)
    classify = table_model(made, head, datatype="FP32")
    if kind:
        embed = compressed(embed, kind)
    asked = made.tensor("age", "FP32", (-1, 2), TableContent(columns=classify.manifest.inputs[0].columns[8:]))
    reads = {"x": {"embed": None, "age": asked}}
    members = [("embed", embed, {"text": "mail"}, "features"), ("classify", classify, reads, "scores")]
    model = piped(classify.manifest, members, None)
    ages = np.array([[7.0, -3.0], [1.0, 8.0]], dtype="<f4")
    texts = tensor_from_list("mail", "BYTES", (2,), ["Good, very good!", "badly"])
    return model, [texts, Tensor("age", "FP32", (2, 2), ages.tobytes())]


def test_gradients_go_through_a_text_that_is_embedded_and_classified(made: Any) -> None:
    model, tensors = text_and_row(made)
    assert offered(model) == ("integrated-gradients", "ablation", "shapley")
    found = explain(made, model, tensors)
    total = found["attribution.mail"].sum(axis=1) + found["attribution.age"].sum(axis=1)
    np.testing.assert_allclose(total, found["output"] - found["baseline"], rtol=2e-3, atol=1e-4)
    assert np.abs(found["attribution.mail"][0, :5]).min() > 1e-5
    assert not found["attribution.mail"][1, 1:].any(), "padding"
    assert np.abs(found["attribution.age"]).min() > 1e-5
    assert found["spans.mail"][1, 0].tolist() == [0, 5]
    for row in (0, 1):
        target = int(found["target"][row])
        assert found["output"][row] == pytest.approx(margin(model, raw(model, tensors, row), target), abs=2e-5)


def test_vectors_of_a_text_are_moved_as_by_hand(made: Any) -> None:
    """Another way to the same integral: the encoder's table itself is changed, one vector for each token."""
    model, tensors = text_and_row(made)
    found = explain(made, model, tensors, target=1)
    embed, classify = (part.predictor for part in model.predictor.parts)  # type: ignore[union-attr]
    table = embed.module.features.words.weight
    tokens, age = raw(model, tensors, 1)["mail"], torch.tensor([[1.0, 8.0]])
    word, was = int(tokens[0, 0]), table.detach().clone()
    start_age = torch.tensor([[4.0, 4.5]])

    def of(share: float, moved: torch.Tensor | None = None) -> float:
        with torch.no_grad():
            table[word] = (was[0] + share * (was[word] - was[0])) if moved is None else moved
            vector = embed.module.features(tokens)
            row = torch.cat([vector, (start_age + share * (age - start_age)).double()], dim=1)
            logits = classify.module(*classify.scaled({"x": row}))[0]
            table.copy_(was)
        return float(logits[1] - logits.mean())

    assert of(1.0) == pytest.approx(found["output"][1], abs=1e-6)
    assert of(0.0) == pytest.approx(found["baseline"][1], abs=1e-6)
    steps, little, told = 100, 1e-3, 0.0
    for step in range(steps):
        share = (step + 0.5) / steps
        at, away = was[0] + share * (was[word] - was[0]), was[word] - was[0]
        told += (of(share, at + little * away) - of(share, at - little * away)) / (2 * little) / steps
    assert found["attribution.mail"][1, 0] == pytest.approx(told, rel=5e-3, abs=1e-4)


def test_a_chain_with_whole_numbers_in_it_is_explained_without_gradients(made: Any) -> None:
    model, tensors = text_and_row(made, kind="int8")
    assert offered(model) == ("ablation", "shapley")
    for method in offered(model):
        found = explain(made, model, tensors, method=method)
        parts, worth = game(model, raw(model, tensors, 1), int(found["target"][1]))
        assert len(parts) == 3
        everything = frozenset(range(3))
        wanted = (
            exact_shapley(3, worth)
            if method == "shapley"
            else [worth(everything) - worth(everything - {at}) for at in range(3)]
        )
        for part, value in zip(parts, wanted, strict=True):
            assert of_part(found, part, 1) == pytest.approx(value, abs=4e-5)


def test_a_picture_and_a_row_fused(made: Any) -> None:
    eye = ScatterNetSpec(channels=1, height=16, width=16, scales=2, angles=2, norm_groups=0, classes=3)
    content = ImageContent(low="0", high="1", center="0.5", scale="1")
    sees = made.model(eye, [made.tensor("image", "FP64", (-1, 1, 16, 16), content)])
    reads = table_model(made, MlpSpec(inputs=2, hidden=(3,), activation="tanh", classes=3))
    fusion = Fusion(how="mean", parts=(Fused(member="eye", weight="0.5"), Fused(member="table", weight="0.5")))
    members = [("eye", sees, {"image": "scan"}, "scores"), ("table", reads, {"x": "row"}, "scores")]
    model = piped(sees.manifest, members, fusion)
    assert offered(model) == ("ablation", "shapley"), "wavelets have no gradient where they vanish"
    draw = np.random.default_rng(3)
    tensors = [rows("scan", draw.random((1, 1, 16, 16))), rows("row", [[2.0, -4.0]])]
    found = explain(made, model, tensors)
    parts, worth = game(model, raw(model, tensors, 0), int(found["target"][0]))
    everything = frozenset(range(len(parts)))
    for at, part in enumerate(parts):
        lost = worth(everything) - worth(everything - {at})
        assert of_part(found, part, 0) == pytest.approx(lost, abs=4e-5)
    assert np.abs(found["attribution.row"]).min() > 1e-4


def test_an_intermediate_value_is_clamped_in_explanations_as_in_answers(made: Any) -> None:
    """What a member gives is outside the next one's range: it moves nothing, and has no attribution."""
    inner = table_model(made, LinearRegressionSpec(inputs=3, classes=0))
    outer = table_model(made, LogisticRegressionSpec(inputs=1, classes=2), datatype="FP32")
    members = [("inner", inner, {"x": {"row": inner.manifest.inputs[0]}}, "value"),
               ("outer", outer, {"x": {"inner": None}}, "scores")]  # fmt: skip
    model = piped(outer.manifest, members, None)
    near = np.array([0.1, 0.4, 1.2])
    row, start = {"x": torch.tensor(near)[None]}, {"x": torch.tensor([[0.0, 0.5, 1.0]]).double()}
    values = [margin(inner, one, 0) for one in (row, start)]
    assert values[0] != values[1]
    assert min(values) > 9 or max(values) < -9, f"{values} are not beyond the outer model's range"
    found = explain(made, model, [rows("row", [near])], method="integrated-gradients", target=1)
    assert not found["attribution.row"].any()
    wanted = margin(model, {"row": row["x"]}, 1)
    assert found["output"][0] == found["baseline"][0] == pytest.approx(wanted, abs=1e-5)


# The same each time; bounds and prices --------------------------------------------------------------------------------


def test_the_same_question_has_the_same_explanation_and_draws_nothing(made: Any) -> None:
    plain, tensors = family(made, "embedding bag")
    model = compressed(plain, "int8")
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        answers.append(bytes(made.ask(model, tensors, operation="explain", method="shapley").response.body))
        assert torch.equal(before, torch.get_rng_state())
    assert answers[0] == answers[1]
    both = explain(made, model, tensors, method="shapley")
    assert [sorted(order) for order in orders(7, 64)] == [list(range(7))] * 64
    drawn = list(orders(7, 64))
    assert all(one == other[::-1] for one, other in zip(drawn[::2], drawn[1::2], strict=True))
    assert len({tuple(one) for one in drawn}) > 50
    assert both["output"].shape == (2,)


def specs_drawn() -> st.SearchStrategy[InputTensor]:
    side = st.integers(1, 90)

    def spec(shape: tuple[int, ...], content: Any, datatype: str = "FP32") -> InputTensor:
        return InputTensor(name="x", datatype=datatype, shape=(-1, *shape), content=content)

    image = ImageContent(low="0", high="1", center="0", scale="1")
    return st.one_of(
        st.builds(lambda a: spec((a,), TableContent(columns=columns(a))), side),
        st.builds(lambda a, b: spec((2, a, b), image), side, side),
        st.builds(lambda a, b: spec((a, b), SequenceContent(channels=columns(b))), side, st.integers(1, 400)),
        st.builds(lambda a, b: spec((a, b), GraphNodesContent(columns=columns(b))), side, st.integers(1, 400)),
        st.builds(lambda a: spec((a, a), GraphEdgesContent()), side),
        st.builds(lambda a: spec((a,), TokensContent(size=9), "INT64"), st.integers(1, 2000)),
    )


@settings(max_examples=80, deadline=None)
@given(spec=specs_drawn())
def test_every_number_belongs_to_one_of_a_bounded_number_of_parts(spec: InputTensor) -> None:
    numbers = Parts([spec])._numbers["x"]
    assert tuple(numbers.shape) == spec.model_shape
    assert sorted(set(numbers.flatten().tolist())) == list(range(part_count([spec])))
    assert part_count([spec]) <= MAX_EXPLAIN_PARTS
    if isinstance(spec.content, GraphEdgesContent):
        assert torch.equal(numbers, numbers.t())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["ablation", "shapley"])
def test_the_model_is_asked_no_more_than_is_said_and_paid(
    made: Any, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    plain, tensors = family(made, name)
    model = compressed(plain, "int8")
    asked = 0
    margins = Movable.margins

    def counted(self: Movable, given_rows: Any, target: int) -> torch.Tensor:
        nonlocal asked
        found = margins(self, given_rows, target)
        asked += len(found)
        return found

    monkeypatch.setattr(Movable, "margins", counted)
    answer = made.ask(model, tensors, operation="explain", method=method)
    said = evaluations(movable(model), method)
    assert 0 < asked <= said, "two rows, and each run in whole numbers counts as two"
    assert said == 2 * evaluations(movable(plain), method)
    assert answer.units == 2 * price(movable(model), method)
    assert price(movable(model), method) == 64 * math.ceil(said / 256)


def test_no_request_costs_more_than_the_most_rows_at_the_manifests_price() -> None:
    """So a budget's `units_per_request` that held for gradients holds for every method."""
    for each in range(1, MAX_EXPLAIN_EVALUATIONS + 1):
        most = min(MAX_EXPLAIN_ROWS, MAX_EXPLAIN_EVALUATIONS // each)
        assert most * -(-each // EXPLAIN_PRICED_EVALUATIONS) <= MAX_EXPLAIN_ROWS


def test_it_is_said_what_a_method_took(made: Any) -> None:
    from sealgate.protocol import inference

    model, tensors = text_and_row(made)
    for method in offered(model):
        answer = made.ask(model, tensors, operation="explain", method=method)
        told = inference.decode_infer_response(answer.response.fields, bytes(answer.response.body)).parameters
        wanted = {"method": method, "evaluations": evaluations(movable(model), method)}
        assert told == (wanted | {"seed": 1} if method == "shapley" else wanted)
    asked = made.engine(model).run([made.asked("GET", "/v2/models/m")])[0]
    metadata = msgspec.json.decode(bytes(asked.response.body))["parameters"]
    assert metadata["explain_units"] == {one: price(movable(model), one) for one in offered(model)}
    assert metadata["explain_methods"] == list(offered(model))
    assert metadata["input_columns"] == {"age": ["c8", "c9"]}


def test_a_row_like_the_baseline_has_nothing_to_explain(made: Any) -> None:
    plain, _ = family(made, "gru of texts")
    model = compressed(plain, "int8")
    for method in offered(model):
        found = explain(made, model, [tensor_from_list("text", "BYTES", (1,), [""])], method=method)
        assert not found["attribution.text"].any()
        assert found["output"] == found["baseline"]


def test_one_row_at_a_time_comes_to_the_same(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tensors = text_and_row(made, kind="int8")
    many = [explain(made, model, tensors, method=method) for method in offered(model)]
    monkeypatch.setattr(PipelineSpec, "rows_at_once", lambda *_: 1)
    for method, found in zip(offered(model), many, strict=True):
        for key, values in explain(made, model, tensors, method=method).items():
            np.testing.assert_allclose(values, found[key], atol=1e-6)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "obligations",
    [Obligations(noise_epsilon_micro=1_000_000, noise_rows=4), Obligations(top_k=1), Obligations(hide_scores=True)],
)
@pytest.mark.parametrize("kind", ["", "int8"])
def test_under_a_duty_that_it_would_undo_no_pipeline_is_explained(
    made: Any, kind: str, obligations: Obligations
) -> None:
    model, tensors = text_and_row(made, kind=kind)
    answer = made.ask(model, tensors, operation="explain", obligations=obligations)
    assert (answer.response.status, answer.reason, answer.units) == (403, "explain-not-permitted", 0)
    assert answer.eps_micro == 0


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"method": "integrated-gradients"}, "does not suit this model; it can be explained by: ablation, shapley"),
        ({"method": "kernel-shap"}, "'kernel-shap' is no method; it can be explained by: ablation, shapley"),
        ({"target": "class 9"}, "neither a class of the model nor the index of one, 0 to 2"),
        ({"seed": 4}, "unknown parameter 'seed'; an explanation takes: method, target"),
        ({"outputs": ("attribution.embed",)}, "the explanation has no output 'attribution.embed'"),
    ],
)
def test_wrong_questions_about_pipelines_say_why(made: Any, parameters: dict[str, Any], said: str) -> None:
    model, tensors = text_and_row(made, kind="int8")
    answer = made.ask(model, tensors, operation="explain", **parameters)
    assert said in made.error(answer)
    assert answer.units == 0


def test_rows_that_no_member_takes_are_refused_by_the_name_of_the_whole(made: Any) -> None:
    model, tensors = text_and_row(made)
    assert "'age'" in made.error(made.ask(model, tensors[:1], operation="explain"))
    tokens = tokens_of(["one"], WORDS)
    with pytest.raises(BadInput, match="'age'"):
        Movable(model.manifest, model.predictor).row({"mail": tokens, "age": torch.zeros(1, 3)})
