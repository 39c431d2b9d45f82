"""Compressing bundles of every family: exact sums, answers whoever shares the batch, and a certificate kept."""

from __future__ import annotations

import csv
import dataclasses
from decimal import Decimal
from functools import cache

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from sealgate.certificate.architectures import (
    EmbeddingBagSpec,
    FrozenEncoderSpec,
    LogisticRegressionSpec,
    RecurrentSpec,
    ScatterNetSpec,
    TransformerSpec,
)
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.commands import MODELS
from sealgate.certificate.compressing import compress_weights
from sealgate.certificate.compression import Compression
from sealgate.certificate.files import CERTIFICATE, MANIFEST, WEIGHTS
from sealgate.certificate.recompute import recompute
from sealgate.errors import CertificateError, ConfigurationError
from secure_runtime.models import int8
from secure_runtime.models.bundle import load_bundle, warm_up
from secure_runtime.models.compress import Asked, compress_bundle
from secure_runtime.models.compress_commands import COMPRESS
from secure_runtime.models.int8 import Int8Linear, exact_product, integer_product
from secure_runtime.models.weights import module_from_weights
from tests.sealgate.certificate.conftest import Forge
from tests.sealgate.certificate.test_claims import audit
from tests.secure_runtime.models.conftest import SPECS, manifest_for, weights_for

FAMILIES = {
    "bag": EmbeddingBagSpec(length=6, tokens=11, width=8, hidden=(5,), classes=3),
    "lstm": RecurrentSpec(length=5, channels=3, cell="lstm", hidden=(6,), classes=2),
    "gru": RecurrentSpec(length=5, tokens=9, embedding=4, cell="gru", hidden=(6, 5), classes=3, reading="mean"),
    "transformer": TransformerSpec(
        length=5, tokens=9, width=8, heads=2, layers=2, feed_forward=12, classes=3, activation="gelu"
    ),
}


_once = cache(recompute)


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    """Times are printed, not judged; the same constants are recomputed once for all tests here."""
    monkeypatch.setattr("sealgate.certificate.recompute.recompute", _once)
    monkeypatch.setattr("secure_runtime.models.comparison.TIMED_RUNS", 3)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_sums_of_whole_numbers_are_exact(rows, width, outputs, seed):
    generator = np.random.default_rng(seed)
    left, right = (generator.integers(-127, 128, (count, width)).astype(np.int8) for count in (rows, outputs))
    wanted = left.astype(np.int64) @ right.astype(np.int64).T
    layer = Int8Linear(torch.from_numpy(right), torch.ones(outputs), None)
    assert (layer._product(torch.from_numpy(left), layer.whole).numpy() == wanted).all()
    assert (exact_product(torch.from_numpy(left), layer.whole).numpy() == wanted).all()


def test_a_kernel_that_saturates_is_not_used(monkeypatch):
    """Kernels for processors without VNNI may add pairs of products in 16 bits."""

    def saturating(rows, whole):
        pairs = rows.int()[:, None, :] * whole.int()[None]
        return pairs.reshape(*pairs.shape[:2], -1, 2).sum(-1).clamp(-(2**15), 2**15 - 1).sum(-1).to(torch.int32)

    whole = torch.full((3, 8), 127, dtype=torch.int8)
    monkeypatch.setattr(int8, "integer_product", saturating)
    layer = Int8Linear(whole, torch.ones(3), None)
    assert torch.allclose(layer(torch.full((2, 8), 2.0)), torch.full((2, 3), 2.0 * 127 * 8))


def test_the_widest_layer_does_not_overflow():
    row = torch.full((1, int8.MAX_WIDTH), 127, dtype=torch.int8)
    assert integer_product(row, row).item() == 127**2 * int8.MAX_WIDTH < 2**31
    with pytest.raises(ValueError, match="overflow"):
        Int8Linear(torch.zeros(1, int8.MAX_WIDTH + 1, dtype=torch.int8), torch.ones(1), None)


def test_a_layer_of_whole_numbers_follows_its_definition():
    generator = np.random.default_rng(4)
    whole = generator.integers(-127, 128, (3, 7)).astype(np.int8)
    scale, bias = generator.random(3).astype(np.float32), generator.random(3).astype(np.float32)
    layer = Int8Linear(torch.from_numpy(whole), torch.from_numpy(scale), torch.from_numpy(bias)).double()
    rows = generator.normal(size=(5, 7))
    rows[2] = 0
    span = np.abs(rows).max(axis=1, keepdims=True) / 127
    span[span == 0] = 1
    wanted = np.rint(rows / span) @ whole.T.astype(np.float64) * span * scale + bias
    assert np.allclose(layer(torch.from_numpy(rows)).numpy(), wanted, rtol=1e-12, atol=1e-12)
    one = torch.from_numpy(rows).requires_grad_()
    layer(one).sum().backward()
    assert np.allclose(one.grad.numpy(), np.tile((whole * scale[:, None]).sum(axis=0), (5, 1)))


def test_a_row_is_answered_alike_beside_a_row_that_is_a_million_times_larger():
    """Where the range is taken over the batch, as torch.ao does, the neighbour would decide."""
    layer = Int8Linear(torch.randint(-127, 128, (4, 6), dtype=torch.int8), torch.rand(4) + 0.1, torch.rand(4))
    small, large = torch.rand(1, 6), torch.rand(1, 6) * 1e6
    assert torch.equal(layer(torch.cat([small, large]))[:1], layer(small))


@pytest.mark.parametrize("kind", ["int8", "bf16"])
@pytest.mark.parametrize("name", [*SPECS, "bag", "lstm", "gru", "transformer"])
def test_compressed_modules_answer_nearly_as_their_originals(name, kind):
    spec = SPECS.get(name) or FAMILIES[name]
    weights = {key: one * np.float32(0.4) for key, one in weights_for(spec).items()}
    plain = bytes(save(weights))
    before = module_from_weights(spec, plain).double().eval()
    after = module_from_weights(spec, compress_weights(plain, kind), compression=Compression(kind=kind))
    after = after.double().eval()
    generator = np.random.default_rng(2)
    shape = (20, *spec.input_shapes()[0])
    rows = generator.integers(0, spec.vocabulary, shape) if spec.vocabulary else generator.normal(size=shape)
    given_rows = torch.from_numpy(rows)
    with torch.inference_mode():
        first, second = before(given_rows), after(given_rows)
        assert float((first - second).abs().max()) < 0.08 * max(1.0, float(first.abs().max()))
        assert not torch.equal(first, second)
        if kind == "int8":
            assert any(isinstance(part, Int8Linear) for part in after.modules())
            assert torch.allclose(torch.cat([after(one[None]) for one in given_rows]), second, rtol=1e-12, atol=1e-12)


def test_numbers_that_no_compression_makes_are_refused():
    spec = LogisticRegressionSpec(inputs=3, classes=2)
    good = compress_weights(bytes(save(weights_for(spec))), "int8")
    header = int.from_bytes(good[:8], "little") + 8
    for place, value in ((-4, b"\x00\x00\x00\x00"), (-4, b"\x00\x00\x80\x7f"), (-7, b"\x80")):
        at = len(good) + place
        bad = good[:at] + value + good[at + len(value) :]
        assert at >= header
        with pytest.raises(CertificateError) as caught:
            module_from_weights(spec, bad, compression=Compression(kind="int8"))
        assert caught.value.code == "weights-shape"


@pytest.fixture
def original(tmp_path):
    spec = SPECS["mlp-3-gelu"]
    forge = Forge(manifest=manifest_for(spec), weights=bytes(save(weights_for(spec))))
    forge.claim(audit=audit(code_digest=forge.certificate.environment.code_digest))
    directory = forge.write(tmp_path / "models" / "toy")
    return forge, verify_bundle(directory, forge.publishers)


def write_rows(path, bundle, forge, *, rows=60, wrong=0):
    """Rows with the labels that the original gives; of some, another."""
    model = load_bundle(bundle.directory, forge.publishers)
    numbers = np.random.default_rng(7).normal(size=(rows, 5)).astype(np.float32)
    labels = model.predict({"rows": torch.from_numpy(numbers)})["decision"].tolist()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["c0", "c1", "c2", "c3", "c4", "truth"])
        for at, (cells, label) in enumerate(zip(numbers.tolist(), labels, strict=True)):
            writer.writerow([*map(repr, cells), f"class {(label + (at < wrong)) % 3}"])
    return path


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_a_compressed_bundle_is_loaded_and_keeps_the_certificate(original, tmp_path, kind):
    forge, bundle = original
    rows = write_rows(tmp_path / "rows.csv", bundle, forge, wrong=6)
    made = compress_bundle(
        bundle,
        Asked(kind=kind, out=tmp_path / "models" / "small", name="small", test=rows, max_loss=Decimal("0.1")),
        key=forge.key,
        publishers=forge.publishers,
    )
    assert made.bytes_after < made.bytes_before
    model = load_bundle(tmp_path / "models" / "small", forge.publishers, require_audit=True)
    warm_up(model)
    assert (model.facts.name, model.facts.version, model.facts.audited) == ("small", f"1.0.0+{kind}", True)
    assert model.facts.epsilon_micro == bundle.facts.epsilon_micro
    assert model.facts.model_digest != bundle.facts.model_digest
    certificate = made.bundle.certificate
    assert certificate.measured[0].rows == certificate.derived.original.rows == 60
    assert certificate.derived.original.right == 54
    assert certificate.releases[-1].covered is False
    given_rows = torch.from_numpy(np.random.default_rng(3).normal(size=(50, 5)).astype(np.float32))
    together = model.predict({"rows": given_rows})
    for name, values in together.items():
        alone = torch.cat([model.predict({"rows": row[None]})[name] for row in given_rows])
        assert torch.equal(alone, values), name


def test_a_model_that_loses_too_much_is_not_written(original, tmp_path, monkeypatch):
    forge, bundle = original
    rows = write_rows(tmp_path / "rows.csv", bundle, forge)
    crude = weights_for(SPECS["mlp-3-gelu"], seed=9)
    monkeypatch.setattr(
        "secure_runtime.models.compress.compress_weights", lambda _w, kind: compress_weights(bytes(save(crude)), kind)
    )
    asked = Asked(kind="int8", out=tmp_path / "small", test=rows, max_loss=Decimal("0.01"))
    with pytest.raises(ConfigurationError, match="--max-loss"):
        compress_bundle(bundle, asked, key=forge.key, publishers=forge.publishers)
    assert not (tmp_path / "small").exists()


def test_what_cannot_be_compressed_says_why(original, tmp_path):
    forge, bundle = original

    def refused(match, key=None, **changes):
        asked = Asked(**{"kind": "int8", "out": tmp_path / "small", **changes})
        with pytest.raises(ConfigurationError, match=match):
            compress_bundle(changes.pop("bundle", bundle), asked, key=key or forge.key, publishers=forge.publishers)

    refused("that publisher's key", key=Forge().key)
    refused("another place", out=bundle.directory, replace=True)
    refused("exists", out=tmp_path)
    refused("--test", max_loss=Decimal("0.1"))
    small = compress_bundle(
        bundle, Asked(kind="int8", out=tmp_path / "small"), key=forge.key, publishers=forge.publishers
    )
    with pytest.raises(ConfigurationError, match="compressed already"):
        compress_bundle(
            small.bundle, Asked(kind="bf16", out=tmp_path / "twice"), key=forge.key, publishers=forge.publishers
        )
    locked = dataclasses.replace(bundle, locked_under="k")
    with pytest.raises(ConfigurationError, match="encrypted"):
        compress_bundle(locked, Asked(kind="int8", out=tmp_path / "x"), key=forge.key, publishers=forge.publishers)
    for text, match in (
        ("", "at least one row"),
        ("c0,c1,c2,c3,truth\n1,2,3,4,class 0\n", "'c4'"),
        ("c0,c1,c2,c3,c4,truth\n1,2,3,4,5,no class\n", "class names"),
        ("c0,c1,c2,c3,c4,truth\n1,2,3,4,x,class 0\n", "not a number"),
        ("c0,c1,c2,c3,c4,truth\n1,2,3,4,5\n", "longer or shorter"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        refused(match, out=tmp_path / "y", test=tmp_path / "bad.csv")


def test_the_command_prints_the_comparison(original, tmp_path, capsys):
    import argparse

    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from tests.secure_runtime.models.conftest import write_publishers

    forge, bundle = original
    write_publishers(tmp_path / "publishers.toml", forge)
    (tmp_path / "key.pem").write_bytes(forge.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    rows = write_rows(tmp_path / "rows.csv", bundle, forge, wrong=3)
    parser = argparse.ArgumentParser()
    COMPRESS.configure(parser)
    words = [str(bundle.directory), "--int8", "--out", str(tmp_path / "models" / "small"), "--test", str(rows)]
    words += ["--publisher-key", str(tmp_path / "key.pem"), "--arithmetic", "float32", "--max-loss", "0.05"]
    assert COMPRESS.run(parser.parse_args(words)) == 0
    text = capsys.readouterr().out
    for part in ("accuracy", "0.9500", "original", "compressed", "p50 / p99", "carried over", "epsilon 1.7"):
        assert part in text
    assert (tmp_path / "models" / "small" / WEIGHTS).stat().st_size < (bundle.directory / WEIGHTS).stat().st_size
    MODELS.configure(models := argparse.ArgumentParser())
    page = tmp_path / "page.html"
    words = ["report", str(tmp_path / "models" / "small"), "--out", str(page)]
    assert MODELS.run(models.parse_args(words)) == 0
    assert "Made from another model: int8" in page.read_text()
    words = ["verify", str(tmp_path / "models" / "small"), "--original", str(bundle.directory)]
    assert MODELS.run(models.parse_args(words)) == 0
    assert "again gives the same" in capsys.readouterr().out
    assert {CERTIFICATE, MANIFEST} <= {path.name for path in (tmp_path / "models" / "small").iterdir()}


def test_a_frozen_encoder_is_named_as_it_is_after_compression(tmp_path):
    from sealgate.certificate.inputs import InputTensor, TokensContent
    from sealgate.certificate.weights import frozen_digest

    spec = FrozenEncoderSpec(
        length=4, tokens=9, width=8, heads=2, layers=1, feed_forward=12, positions=6,
        pretraining="public", frozen_digest="00" * 32, classes=3,
    )  # fmt: skip
    plain = bytes(save(weights_for(spec)))
    spec = msgspec.structs.replace(spec, frozen_digest=frozen_digest(plain, prefix="features."))
    tokens = InputTensor(name="rows", datatype="INT64", shape=(-1, 4), content=TokensContent(size=9))
    manifest = msgspec.structs.replace(
        manifest_for(LogisticRegressionSpec(inputs=5, classes=3)), architecture=spec, inputs=(tokens,)
    )
    forge = Forge(manifest=manifest, weights=plain).claim(
        initialisation__pretraining=f"public, SHA-256 {spec.frozen_digest}"
    )
    bundle = verify_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    asked = Asked(kind="int8", out=tmp_path / "small")
    made = compress_bundle(bundle, asked, key=forge.key, publishers=forge.publishers)
    named = made.bundle.manifest.compressed.frozen_digest
    assert named not in ("", spec.frozen_digest)
    other = {**weights_for(spec), "features.words.weight": weights_for(spec, seed=3)["features.words.weight"]}
    swapped = compress_weights(bytes(save(other)), "int8")
    assert frozen_digest(swapped, prefix="features.", dtypes=("F32", "I8")) != named


def test_images_are_compressed_too():
    spec = ScatterNetSpec(channels=1, height=16, width=16, scales=2, angles=4, classes=3)
    plain = bytes(save(weights_for(spec)))
    module = module_from_weights(spec, compress_weights(plain, "int8"), compression=Compression(kind="int8"))
    assert isinstance(module.head, Int8Linear)
