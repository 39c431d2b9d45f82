"""Models over images, from the rows to a sealed answer: trained, certified, loaded by the sandboxed worker, asked."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sealgate.certificate.inputs import ImageContent
from sealgate.certificate.publishers import load_publishers
from sealgate.client.errors import InferenceFailed, ServiceRefused, UsageError
from secure_runtime.models.bundle import load_bundle
from tests.conftest import Template
from tests.live import Live, clone, run_sealgate

EXAMPLES = Path(__file__).parents[2] / "examples" / "vision"
EXAMPLE = EXAMPLES / "digits.toml"
PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline" / "two_eyes.toml"
FASHION = Path("/usr/share/datasets/fashion-mnist")
CNN = """
[architecture]
stages = [{ channels = 8, kernel = 3, norm_groups = 4, pool = 2 }]
"""


def convolutional(text: str) -> str:
    """The same digits with a convolutional network, trained for a moment."""
    before, after = text.split("[architecture]")[0], text.split("[data]")[1]
    text = before + CNN + "\n[data]" + after
    for old, new in (
        ('name = "digits"', 'name = "digits-cnn"'),
        ('"scatternet"', '"cnn"'),
        ("steps = 60", "steps = 20"),
        ("learning_rate = 8", "learning_rate = 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def images(template: Template) -> Iterator[tuple[Live, Path]]:
    """A deployment of its own that serves both families, and the folder where they were trained."""
    live = clone(template.folder, [])
    folder = live.root.parent / "training"
    folder.mkdir()
    key = template.folder / "publisher.key"
    for name, text in (("digits", EXAMPLE.read_text()), ("digits-cnn", convolutional(EXAMPLE.read_text()))):
        (folder / f"{name}.toml").write_text(text)
        held = folder / f"{name}.csv"
        words: list[object] = [
            "train",
            folder / f"{name}.toml",
            "--out",
            live.root / "models",
            "--key",
            key,
            "--no-audit",
        ]
        run_sealgate(*words, "--heldout-csv", held)
    _made_of_them(live, folder, key)
    with resources.as_file(resources.files("policy.shipped") / "examples" / "explanations.cedar") as example:
        shutil.copy(example, live.deployment.policy)
    try:
        live.start()
        live.ready()
        yield live, folder
    finally:
        live.stop()
        shutil.rmtree(live.root.parent, ignore_errors=True)


def _made_of_them(live: Live, folder: Path, key: Path) -> None:
    """The same digits in whole numbers, and both models as one."""
    models = live.root / "models"
    words: list[object] = ["compress", models / "digits", "--int8", "--name", "digits-int8", "--publisher-key", key]
    run_sealgate("models", *words, "--out", models / "digits-int8", "--test", folder / "digits.csv")
    (live.root / PIPELINE.name).write_text(PIPELINE.read_text())
    words = ["pipeline", live.root / PIPELINE.name, "--publisher-key", key]
    run_sealgate("models", *words, "--out", models / "two-eyes", "--publishers", live.root / "publishers.toml")


@pytest.mark.parametrize("name", ["digits-int8", "two-eyes"])
def test_what_was_made_of_certified_models_is_served_under_its_own_digests(
    images: tuple[Live, Path], name: str
) -> None:
    live, folder = images
    with (folder / "digits.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    pixels = np.array([[int(value) for value in row[:-1]] for row in rows], dtype=np.uint8).reshape(-1, 1, 8, 8)
    model = load_bundle(live.root / "models" / name, load_publishers(live.root / "publishers.toml"))
    alone = model.predict({"images": torch.from_numpy(pixels)})["scores"].numpy()
    with live.session() as session:
        for count in (1, 3, 50, len(rows)):  # sizes that nothing was warmed up for
            result = session.infer(name, pixels[:count])
            np.testing.assert_allclose(np.array(result.outputs["scores"]), alone[:count], atol=1e-6)
        known = session.metadata(name)
    assert [one.name for one in known.inputs] == ["images"]
    assert known.parameters.explain_methods == ("occlusion",)  # wavelets, and whole numbers
    record = result.receipt.record
    assert record.units == len(rows) * (2 if name == "two-eyes" else 1)
    assert record.model_digest == model.facts.model_digest
    assert record.certificate_digest == model.facts.certificate_digest
    members = [load_bundle(live.root / "models" / one, load_publishers(live.root / "publishers.toml")).facts for one in
               ("digits", "digits-cnn")]  # fmt: skip
    spent = members[0].epsilon_micro + (members[1].epsilon_micro if name == "two-eyes" else 0)
    assert model.facts.epsilon_micro == spent


@pytest.mark.parametrize(("name", "least"), [("digits", 0.85), ("digits-cnn", 0.4)])
def test_sealed_answers_are_those_of_the_certified_model(images: tuple[Live, Path], name: str, least: float) -> None:
    live, folder = images
    with (folder / f"{name}.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    pixels = np.array([[int(value) for value in row[:-1]] for row in rows], dtype=np.uint8).reshape(-1, 1, 8, 8)
    with live.session() as session:
        result = session.infer(name, pixels)
        with pytest.raises(UsageError, match=r"rows, 1, 8, 8"):
            session.infer(name, pixels[:, 0])
    assert result.labels is not None
    assert np.mean([found == row[-1] for found, row in zip(result.labels, rows, strict=True)]) > least
    model = load_bundle(live.root / "models" / name, load_publishers(live.root / "publishers.toml"))
    assert model.facts.epsilon_micro <= 3_000_000
    alone = model.predict({"images": torch.from_numpy(pixels)})
    np.testing.assert_allclose(np.array(result.outputs["scores"]), alone["scores"].numpy(), atol=1e-6)
    assert result.receipt.record.units == len(rows)


def digit(folder: Path, row: int = 1) -> np.ndarray:
    with (folder / "digits.csv").open() as file:
        cells = list(csv.reader(file))[row]
    return np.array([int(value) for value in cells[:-1]], dtype=np.uint8).reshape(8, 8)


def test_a_png_gets_the_answer_of_its_pixels_and_a_wrong_one_is_named(images: tuple[Live, Path]) -> None:
    live, folder = images
    pixels, encoded = digit(folder), io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    with live.session() as session:
        assert session.metadata("digits").parameters.encodings == {"images": ("image/png", "image/jpeg")}
        plain = session.infer("digits", pixels.reshape(1, 1, 8, 8))
        assert session.infer("digits", [encoded.getvalue()]).outputs == plain.outputs
        large = io.BytesIO()
        Image.fromarray(pixels).resize((9, 8)).save(large, "PNG")
        with pytest.raises(InferenceFailed, match="row 1: a picture 9 wide and 8 high, expected 8 by 8"):
            session.infer("digits", [large.getvalue()])


def test_an_explanation_is_an_operation_of_its_own_on_record_and_at_its_price(images: tuple[Live, Path]) -> None:
    live, folder = images
    pixels = digit(folder).reshape(1, 1, 8, 8)
    with live.session() as session:
        known = session.metadata("digits-cnn").parameters
        assert known.explain_methods == ("integrated-gradients", "occlusion")
        found = session.explain("digits-cnn", pixels)
        answer = session.infer("digits-cnn", pixels)
        seen = session.statistics("digits-cnn")["model_stats"][0]
        assert session.server("digits-cnn")["name"] == "sealgate"
    record = found.result.receipt.record
    assert (record.operation, record.kind, record.units) == (
        "explain",
        "inference.completed",
        known.explain_units_per_row,
    )
    assert found.labels == answer.labels
    total = np.sum(found.attributions["images"])
    assert total == pytest.approx(found.output[0] - found.baseline[0], abs=0.2)  # kinks of ReLU and pooling
    assert found.result.obligations.round_digits == 6
    assert (seen["explanation_count"], seen["inference_stats"]["fail"]["count"]) == (1, 0)


@pytest.mark.parametrize("name", ["digits-int8", "two-eyes"])
def test_what_was_made_of_certified_models_is_explained_by_what_its_answers_lose(
    images: tuple[Live, Path], name: str
) -> None:
    live, folder = images
    pixels = digit(folder).reshape(1, 1, 8, 8)
    model = load_bundle(live.root / "models" / name, load_publishers(live.root / "publishers.toml"))
    content = model.manifest.inputs[0].content
    assert isinstance(content, ImageContent)

    def margin(image: np.ndarray, target: int) -> float:
        logs = model.predict({"images": torch.from_numpy(image)})["scores"][0].double().log()
        return float(logs[target] - logs.mean())

    with live.session() as session:
        found = session.explain(name, pixels)
        again = session.explain(name, pixels)
        price = session.metadata(name).parameters.explain_units["occlusion"]
    record = found.result.receipt.record
    assert (found.method, record.operation, record.units) == ("occlusion", "explain", price)
    assert again.attributions == found.attributions
    [target] = found.targets
    for row, column in ((0, 0), (2, 4), (4, 2), (6, 6)):
        less = pixels.copy()
        less[0, 0, row : row + 2, column : column + 2] = int(content.center)
        lost = margin(pixels, target) - margin(less, target)
        assert found.attributions["images"][0][0][row][column] == pytest.approx(lost, abs=2e-4)
    assert np.abs(found.attributions["images"]).max() > 0.01


def test_the_command_draws_where_the_model_looked(images: tuple[Live, Path], tmp_path: Path) -> None:
    live, folder = images
    Image.fromarray(digit(folder)).save(tmp_path / "digit.png")
    token = tmp_path / "token"
    token.write_text(live.token())
    token.chmod(0o600)
    asked = (
        "explain", "--model", "digits", "--purpose", "treatment", "--images", tmp_path / "digit.png", "--trust",
        live.trust, "--token-file", token, "--heat-map", tmp_path / "map.png",
    )  # fmt: skip
    told = run_sealgate(*asked).stdout
    assert "by occlusion (at most 19 evaluations of the model)" in told
    assert "@@" in told, "the strongest place"
    assert "receipt" in told
    with Image.open(tmp_path / "map.png") as drawn:
        assert drawn.size == (64, 64)
        assert len(drawn.convert("RGB").getcolors() or ()) > 2
    document = json.loads(run_sealgate(*asked, "--json", "--target", "3").stdout)
    assert document["targets"] == [3]
    assert np.array(document["attributions"]["images"]).shape == (1, 1, 8, 8)


def test_without_a_permit_there_is_no_explanation(live: Live) -> None:
    with live.session() as session, pytest.raises(ServiceRefused) as refused:
        session.explain("breast-cancer", live.rows[:1])
    assert refused.value.receipt is not None
    record = refused.value.receipt.record
    assert (record.kind, record.operation, record.reason) == ("inference.denied", "explain", "no-policy-permits")


def cut(path: Path, target: Path, count: int) -> None:
    """The first `count` entries of an IDX file, as one."""
    data = gzip.decompress(path.read_bytes())
    head = 4 + 4 * data[3]
    size = (len(data) - head) // int.from_bytes(data[4:8], "big")
    target.write_bytes(data[:4] + count.to_bytes(4, "big") + data[8 : head + count * size])


def allow_research(live: Live) -> None:
    """The clinic of the shipped policy treats; these models are made for research alone."""
    tenants = live.deployment.policy / "tenants.toml"
    text, treatment = tenants.read_text(), '[[tenant.purpose]]\nname = "treatment"\n'
    research = '[[tenant.purpose]]\nname = "research"\nmax_epsilon = "3"\n\n'
    assert text.count(treatment) == 1
    tenants.write_text(text.replace(treatment, research + treatment))


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
@pytest.mark.parametrize(
    ("name", "count", "least"),
    [
        ("fashion_mnist", 600, 0.2),
        ("fashion_mnist", 60_000, 0.89),
        ("fashion_mnist_cnn", 60_000, 0.86),
    ],
)
def test_garments_from_the_published_files_to_a_sealed_answer(
    template: Template, name: str, count: int, least: float
) -> None:
    live = clone(template.folder, [])
    try:
        folder = live.root.parent
        text = (EXAMPLES / f"{name}.toml").read_text()
        for kind, dimensions in (("images", 3), ("labels", 1)):
            file = f"train-{kind}-idx{dimensions}-ubyte"
            cut(FASHION / f"{file}.gz", folder / file, count)
            assert f"{FASHION}/{file}.gz" in text
            text = text.replace(f"{FASHION}/{file}.gz", file)
        if count < 60_000:
            for old, new in (("54000", str(count * 9 // 10)), ("steps = 300", "steps = 30"), ("= 100", "= 10")):
                assert old in text
                text = text.replace(old, new)
            # So few images have no mean worth buying.
            text = text.replace("centred = true\n", "").replace(text[text.index("[center]") : text.index("[data]")], "")
        (folder / "fashion.toml").write_text(text)
        key = template.folder / "publisher.key"
        held = folder / "held.csv"
        run_sealgate(
            "train", folder / "fashion.toml", "--out", live.root / "models", "--key", key, "--heldout-csv", held
        )
        (model,) = {path.name for path in (live.root / "models").iterdir()} - {"breast-cancer"}
        with held.open() as lines:
            rows = list(csv.reader(lines))[1:257]
        pixels = np.array([[int(value) for value in row[:-1]] for row in rows], dtype=np.uint8)
        allow_research(live)
        live.start()
        live.ready()
        with live.session(purpose="research", token=live.token(purposes=["research"])) as session:
            result = session.infer(model, pixels.reshape(-1, 1, 28, 28))
        assert result.labels is not None
        assert np.mean([found == row[-1] for found, row in zip(result.labels, rows, strict=True)]) > least - 0.06
        loaded = load_bundle(live.root / "models" / model, load_publishers(live.root / "publishers.toml"))
        assert loaded.facts.epsilon_micro <= 3_000_000
        alone = loaded.predict({"images": torch.from_numpy(pixels.reshape(-1, 1, 28, 28))})
        np.testing.assert_allclose(np.array(result.outputs["scores"]), alone["scores"].numpy(), atol=1e-5)
        card = (live.root / "models" / model / "card.md").read_text()
        quality = float(card.split("accuracy ")[1].split()[0])
        assert quality > least
    finally:
        live.stop()
        shutil.rmtree(live.root.parent, ignore_errors=True)
