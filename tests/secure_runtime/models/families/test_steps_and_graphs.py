"""Recurrent, transformer, embedding, frozen-encoder and graph models against torch's own layers and plain loops."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from sealgate.certificate.architectures import (
    DeclaredInputs,
    EmbeddingBagSpec,
    FrozenEncoderSpec,
    GraphSpec,
    LogisticRegressionSpec,
    MlpSpec,
    RecurrentSpec,
    Spec,
    TransformerSpec,
)
from sealgate.errors import DecodeError
from secure_runtime.models.architectures import build, parts_of
from secure_runtime.models.families.recurrent import GruLayer, LstmLayer
from secure_runtime.models.families.transformer import sinusoids

FROZEN = FrozenEncoderSpec(
    length=6, tokens=20, width=8, heads=2, layers=2, feed_forward=10, positions=9, classes=3,
    pretraining="made up", frozen_digest="0" * 64,
)  # fmt: skip
SPECS: dict[str, Spec] = {
    "lstm": RecurrentSpec(length=5, channels=3, cell="lstm", hidden=(4, 6), classes=3),
    "gru": RecurrentSpec(length=5, channels=3, cell="gru", hidden=(4,), reading="mean"),
    "lstm-tokens": RecurrentSpec(length=6, tokens=20, embedding=3, cell="lstm", hidden=(4,), reading="mean", classes=2),
    "gru-tokens": RecurrentSpec(length=6, tokens=20, embedding=3, cell="gru", hidden=(4, 3), classes=2),
    "transformer": TransformerSpec(length=5, channels=3, width=8, heads=2, layers=2, feed_forward=9, classes=3),
    "transformer-tokens": TransformerSpec(length=6, tokens=20, width=7, heads=1, layers=1, feed_forward=9, classes=2),
    "embedding-bag": EmbeddingBagSpec(length=6, tokens=20, width=7, hidden=(5,), classes=3),
    "frozen-encoder": FROZEN,
    "frozen-hidden": msgspec.structs.replace(FROZEN, hidden=(4,), classes=0),
    "graph-convolution": GraphSpec(nodes=6, features=3, layer="convolution", hidden=(4, 5), reading="sum", classes=3),
    "graph-attention": GraphSpec(
        nodes=6, features=3, layer="attention", heads=2, hidden=(4, 6), reading="max", classes=2
    ),
}


def filled(spec: Spec, seed: int = 1) -> nn.Module:
    """The module with random weights, float64."""
    module, generator = build(spec).double(), np.random.default_rng(seed)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(generator.normal(size=tuple(parameter.shape)) / 2))
    return module


def examples(spec: Spec, count: int, seed: int = 2) -> tuple[torch.Tensor, ...]:
    """Random inputs: tokens with padding behind, graphs with nodes that are not there."""
    generator = np.random.default_rng(seed)
    if spec.vocabulary:
        (length,) = spec.input_shapes()[0]
        tokens = generator.integers(1, spec.vocabulary, size=(count, length))
        tokens[np.arange(length) >= generator.integers(1, length + 1, size=(count, 1))] = 0
        return (torch.from_numpy(tokens),)
    found = [torch.from_numpy(generator.normal(size=(count, *shape))) for shape in spec.input_shapes()]
    if isinstance(spec, GraphSpec):
        there = np.arange(spec.nodes) < generator.integers(1, spec.nodes + 1, size=(count, 1))
        upper = np.triu(generator.random((count, spec.nodes, spec.nodes)) < 0.5, 1)
        edges = (upper | upper.transpose(0, 2, 1) | np.eye(spec.nodes, dtype=bool)) & there[:, None] & there[:, :, None]
        found[1] = torch.from_numpy(edges.astype(np.float64))
    return tuple(found)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_module_is_what_its_declaration_says(spec: Spec) -> None:
    assert not list(spec.refusals())
    module = build(spec)  # type: ignore[arg-type]
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == spec.tensors()
    drawn = torch.get_rng_state()
    build(spec)  # type: ignore[arg-type]
    assert torch.equal(drawn, torch.get_rng_state())
    assert filled(spec)(*examples(spec, 4)).shape == (4, spec.logit_count)
    assert spec.rows_at_once(7) == 7
    assert type(spec)(**{name: getattr(spec, name) for name in spec.__struct_fields__}) == spec


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_row_depends_on_another(spec: Spec, seed: int) -> None:
    module, inputs = filled(spec), examples(spec, 12, seed)
    together = module(*inputs)
    alone = torch.cat([module(*(one[row : row + 1] for one in inputs)) for row in range(12)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_the_lstm_is_torchs() -> None:
    theirs, ours = nn.LSTM(3, 4, batch_first=True).double(), LstmLayer(3, 4).double()
    with torch.no_grad():
        ours.input_to_gates.weight.copy_(theirs.weight_ih_l0)
        ours.input_to_gates.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
        ours.hidden_to_gates.weight.copy_(theirs.weight_hh_l0)
    steps = examples(SPECS["lstm"], 6)[0]
    found = ours(steps, torch.ones(6, 5, dtype=torch.bool))
    torch.testing.assert_close(found, theirs(steps)[0], rtol=1e-10, atol=1e-12)


def test_the_gru_is_torchs() -> None:
    theirs, ours = nn.GRU(3, 4, batch_first=True).double(), GruLayer(3, 4).double()
    with torch.no_grad():
        for layer, kind in ((ours.input_to_gates, "ih"), (ours.hidden_to_gates, "hh")):
            layer.weight.copy_(getattr(theirs, f"weight_{kind}_l0"))
            layer.bias.copy_(getattr(theirs, f"bias_{kind}_l0"))
    steps = examples(SPECS["lstm"], 6)[0]
    found = ours(steps, torch.ones(6, 5, dtype=torch.bool))
    torch.testing.assert_close(found, theirs(steps)[0], rtol=1e-10, atol=1e-12)


def copied(theirs: nn.TransformerEncoderLayer, ours: nn.Module, norms: tuple[str, str]) -> None:
    """torch's encoder layer with the weights of one of our blocks."""
    weights = ours.state_dict()
    attention = theirs.self_attn
    for kind, target in (("weight", attention.in_proj_weight), ("bias", attention.in_proj_bias)):
        target.copy_(torch.cat([weights[f"attention.{part}.{kind}"] for part in ("query", "key", "value")]))
    for name, layer in (
        ("attention.out", attention.out_proj),
        ("widen", theirs.linear1),
        ("narrow", theirs.linear2),
        (norms[0], theirs.norm1),
        (norms[1], theirs.norm2),
    ):
        for kind in ("weight", "bias"):
            getattr(layer, kind).copy_(weights[f"{name}.{kind}"])


@pytest.mark.parametrize("name", ["transformer", "transformer-tokens"])
def test_a_transformers_block_is_torchs(name: str) -> None:
    spec = SPECS[name]
    assert isinstance(spec, TransformerSpec)
    block = filled(spec).get_submodule("blocks.0")
    theirs = nn.TransformerEncoderLayer(
        spec.width, spec.heads, spec.feed_forward, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    present = torch.arange(spec.length) < torch.tensor([[spec.length], [2], [3]])
    steps = torch.from_numpy(np.random.default_rng(3).normal(size=(3, spec.length, spec.width)))
    with torch.no_grad():
        copied(theirs, block, ("attention_norm", "feed_forward_norm"))
        wanted = theirs(steps, src_key_padding_mask=~present)
        torch.testing.assert_close(block(steps, present)[present], wanted[present], rtol=1e-9, atol=1e-11)


def test_positions_are_those_of_the_paper() -> None:
    table = sinusoids(7, 5)
    for place in range(7):
        for index in range(5):
            angle = place / 10_000 ** (2 * (index // 2) / 5)
            wanted = np.sin(angle) if index % 2 == 0 else np.cos(angle)
            assert table[place, index].item() == pytest.approx(wanted, abs=1e-12)


def test_a_frozen_encoder_is_torchs_with_everything_at_its_full_length() -> None:
    module, (tokens,) = filled(FROZEN), examples(FROZEN, 20)
    fixed, head = parts_of(module)
    assert fixed is not None
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    weights = fixed.state_dict()
    with torch.no_grad():
        steps = weights["words.weight"][tokens] + weights["positions.weight"][: FROZEN.length]
        steps = functional.layer_norm(
            steps + weights["segment.weight"][0], (8,), weights["norm.weight"], weights["norm.bias"], 1e-12
        )
        for index in range(FROZEN.layers):
            theirs = nn.TransformerEncoderLayer(8, 2, 10, 0.0, "gelu", 1e-12, batch_first=True, dtype=torch.float64)
            copied(theirs, fixed.get_submodule(f"layers.{index}"), ("attention_norm", "feed_forward_norm"))
            steps = theirs(steps, src_key_padding_mask=tokens == 0)
        vectors = torch.stack([one[there].mean(dim=0) for one, there in zip(steps, tokens != 0, strict=True)])
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        torch.testing.assert_close(fixed(tokens), vectors, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(module(tokens), head(vectors), rtol=1e-9, atol=1e-11)


def test_the_bag_is_torchs() -> None:
    spec, module = SPECS["embedding-bag"], filled(SPECS["embedding-bag"])
    (tokens,) = examples(spec, 8)
    weights = module.state_dict()
    rows = functional.embedding_bag(tokens, weights["embedding.weight"], mode="mean", padding_idx=0)
    hidden = functional.relu(rows @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    wanted = hidden @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    torch.testing.assert_close(module(tokens), wanted, rtol=1e-10, atol=1e-12)


def test_nothing_but_padding_is_an_answer_too() -> None:
    for name in ("lstm-tokens", "gru-tokens", "transformer-tokens", "embedding-bag", "frozen-encoder"):
        spec = SPECS[name]
        assert bool(torch.isfinite(filled(spec)(torch.zeros(2, spec.input_shapes()[0][0], dtype=torch.int64))).all())
    for name in ("graph-convolution", "graph-attention"):
        empty = [torch.zeros(2, *shape, dtype=torch.float64) for shape in SPECS[name].input_shapes()]
        assert bool(torch.isfinite(filled(SPECS[name])(*empty)).all())


@pytest.mark.parametrize("name", ["lstm-tokens", "gru-tokens", "transformer-tokens", "embedding-bag", "frozen-encoder"])
def test_padding_behind_a_text_changes_nothing(name: str) -> None:
    spec = SPECS[name]
    module = filled(spec)
    (tokens,) = examples(spec, 9)
    shorter = tokens.clone()
    shorter[:, 4:] = 0
    cut = msgspec.structs.replace(spec, length=4)
    small = build(cut).double()  # type: ignore[arg-type]
    small.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(shorter), small(tokens[:, :4]), rtol=1e-10, atol=1e-12)


def graph_plainly(spec: GraphSpec, weights: dict[str, np.ndarray], nodes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """One graph's logits, by loops over the nodes that are there and their neighbours."""
    there = [node for node in range(spec.nodes) if edges[node, node]]
    around = {node: [other for other in there if edges[node, other]] for node in there}
    values = {node: nodes[node] for node in there}
    for index in range(len(spec.hidden)):

        def layer(name: str, of: np.ndarray, index: int = index) -> np.ndarray:
            return weights[f"layers.{index}.{name}.weight"] @ of + weights[f"layers.{index}.{name}.bias"]

        mixed = {}
        for node in there:
            if spec.layer == "convolution":
                mixed[node] = sum(
                    layer("linear", values[other]) / np.sqrt(len(around[node]) * len(around[other]))
                    for other in around[node]
                )
            else:
                scores = np.array([layer("target", values[node]) + layer("source", values[o]) for o in around[node]])
                scores = np.exp(np.where(scores > 0, scores, 0.2 * scores))  # [neighbours, heads]
                shares = np.repeat(scores / scores.sum(axis=0), spec.hidden[index] // spec.heads, axis=1)
                mixed[node] = (shares * np.array([layer("linear", values[other]) for other in around[node]])).sum(
                    axis=0
                )
        values = {node: np.maximum(mixed[node], 0) for node in there}
    stacked = np.array(list(values.values()))
    read = {"mean": stacked.mean(0), "sum": stacked.sum(0), "max": stacked.max(0)}[spec.reading]
    return weights["head.weight"] @ read + weights["head.bias"]


@pytest.mark.parametrize("layer", ["convolution", "attention"])
@pytest.mark.parametrize("reading", ["mean", "sum", "max"])
def test_a_graph_is_read_as_by_loops(layer: str, reading: str) -> None:
    heads = 2 if layer == "attention" else 1
    spec = GraphSpec(nodes=6, features=3, layer=layer, heads=heads, hidden=(4, 6), reading=reading, classes=3)
    module, (nodes, edges) = filled(spec), examples(spec, 8)
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    found = module(nodes, edges).detach().numpy()
    for row in range(8):
        wanted = graph_plainly(spec, weights, nodes[row].numpy(), edges[row].numpy())
        np.testing.assert_allclose(found[row], wanted, rtol=1e-9, atol=1e-11)


def test_the_numbers_and_edges_of_nodes_that_are_not_there_count_for_nothing() -> None:
    for name in ("graph-convolution", "graph-attention"):
        module, (nodes, edges) = filled(SPECS[name]), examples(SPECS[name], 10)
        there = torch.diagonal(edges, dim1=1, dim2=2)
        edges_to_nobody = torch.where((there.unsqueeze(1) * there.unsqueeze(2)) == 0, 1.0, edges)
        edges_to_nobody.diagonal(dim1=1, dim2=2).copy_(there)
        changed = nodes + 100 * (1 - there).unsqueeze(2)
        torch.testing.assert_close(module(changed, edges_to_nobody), module(nodes, edges))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (msgspec.structs.replace(SPECS["lstm"], cell="rnn"), "cell"),
        (msgspec.structs.replace(SPECS["lstm"], hidden=()), "number of layers"),
        (msgspec.structs.replace(SPECS["lstm"], hidden=(100_000,)), "width"),
        (msgspec.structs.replace(SPECS["lstm"], embedding=3), "embedding belongs to tokens"),
        (msgspec.structs.replace(SPECS["lstm"], tokens=4), "neither numbers alone"),
        (msgspec.structs.replace(SPECS["lstm"], length=10**9), "number of steps"),
        (msgspec.structs.replace(SPECS["lstm"], reading="first"), "reading"),
        (msgspec.structs.replace(SPECS["transformer"], heads=3), "shared among its heads"),
        (msgspec.structs.replace(SPECS["transformer"], heads=0), "shared among its heads"),
        (msgspec.structs.replace(SPECS["transformer"], length=8192), "too much memory"),
        (msgspec.structs.replace(SPECS["transformer"], activation="sine"), "activation"),
        (msgspec.structs.replace(SPECS["transformer-tokens"], tokens=10**8), "width of a step"),
        (msgspec.structs.replace(SPECS["embedding-bag"], tokens=200_000, width=16_000), "too many weights"),
        (msgspec.structs.replace(SPECS["embedding-bag"], tokens=0, channels=4), "takes tokens"),
        (msgspec.structs.replace(FROZEN, length=10), "positions"),
        (msgspec.structs.replace(FROZEN, frozen_digest="abc"), "digest"),
        (msgspec.structs.replace(FROZEN, pretraining=""), "no proper name"),
        (msgspec.structs.replace(SPECS["graph-convolution"], heads=2), "heads belong to attention"),
        (msgspec.structs.replace(SPECS["graph-attention"], nodes=8000), "too much memory"),
        (msgspec.structs.replace(SPECS["graph-attention"], layer="spectral"), "layer is none of"),
        (msgspec.structs.replace(SPECS["graph-attention"], features=0), "number of features"),
    ],
)
def test_sizes_that_are_refused_before_anything_is_built(spec: Spec, why: str) -> None:
    assert any(why in reason for reason in spec.refusals())


def test_what_training_sees_behind_a_frozen_encoder() -> None:
    assert FROZEN.trained_part() == LogisticRegressionSpec(inputs=8, classes=3)
    hidden = SPECS["frozen-hidden"].trained_part()
    assert hidden == MlpSpec(inputs=8, hidden=(4,), activation="relu", classes=0)
    assert SPECS["lstm"].trained_part() is SPECS["lstm"]


def test_large_models_run_few_rows_at_once() -> None:
    large = msgspec.structs.replace(FROZEN, length=512, positions=512, width=384, heads=12)
    assert 1 <= large.rows_at_once(4096) < 16
    assert FROZEN.rows_at_once(4096) == 4096


@pytest.mark.parametrize(
    "spec",
    [
        RecurrentSpec(length=8192, channels=1, cell="gru", hidden=(2048, 2048), classes=2),
        TransformerSpec(length=2048, channels=1, width=768, heads=4, layers=6, feed_forward=4096, classes=2),
        GraphSpec(nodes=4000, features=8000, layer="convolution", hidden=(4000,), classes=2),
    ],
    ids=lambda spec: spec.family,
)
def test_a_row_that_would_take_minutes_is_refused(spec: Spec) -> None:
    """Every size is within its own bound, and the weights are few enough; a load warms up with several rows."""
    assert "one row takes too much work" in list(spec.refusals())


def test_work_counts_each_weight_once_a_step_and_tables_never() -> None:
    counted = RecurrentSpec(length=10, tokens=1000, embedding=4, cell="gru", hidden=(3,), classes=2)
    assert counted.row_work() == 10 * (counted.weight_count() - 4000)
    busy = RecurrentSpec(length=4096, channels=64, cell="lstm", hidden=(512,), classes=2)
    assert not list(busy.refusals())
    assert busy.rows_at_once(4096) <= 64 * 2**30 // busy.row_work()


@pytest.mark.parametrize(
    ("family", "inputs", "options", "why"),
    [
        (RecurrentSpec, DeclaredInputs(shapes=((4,),)), {"cell": "lstm", "hidden": (2,)}, "sequences, texts or tokens"),
        (RecurrentSpec, DeclaredInputs(shapes=((4, 2),)), {"cell": "lstm"}, "hidden"),
        (TransformerSpec, DeclaredInputs(shapes=((4, 2),)), {"length": 3}, "follows from the data"),
        (EmbeddingBagSpec, DeclaredInputs(shapes=((4, 2),)), {"width": 3}, "texts or tokens"),
        (GraphSpec, DeclaredInputs(shapes=((4, 2),)), {"layer": "convolution", "hidden": (2,)}, "it takes graphs"),
        (GraphSpec, DeclaredInputs(shapes=((4, 2), (5, 5))), {}, "it takes graphs"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    family: type[Spec], inputs: DeclaredInputs, options: dict[str, object], why: str
) -> None:
    with pytest.raises(DecodeError, match=why):
        family.declared(options, inputs=inputs, classes=2)
